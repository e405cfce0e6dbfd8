"""Tables of products: answers from the columns, pictures from links or paths, a reason for every row without one."""

import os

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict, Image, List, Value
from misbehaving_server import misbehaving_server, picture_bytes

from vlmhelpers import check_dataset, read_products, split
from vlmhelpers.data.readers.products_reader import open_table
from vlmhelpers.data.rows import READER_FEATURES, unused_fields
from vlmhelpers.data.rules import split_problem
from vlmhelpers.data.schema import FEATURES, assistant, user

TYPES = {
    "website_name": "string",
    "category3_code": "string",
    "product_code": "int64",
    "title": "string",
    "imageurl": "string",
    "full_price": "float64",
    "flg_discount": "int64",
}
SCARF = ["Burberry", "CASHMERE SCARVES", 80795561, "Check Cashmere Scarf", "scarf.png", 2150.0, 0]
ANSWER = "Product: Check Cashmere Scarf, Category: CASHMERE SCARVES, Full Price: 2150.0"
LOCAL = {"private_hosts": ("127.0.0.1",), "attempts": 2, "backoff": 0.01, "pause": 0, "read_timeout": 2}


def scarf(**changes):
    return dict(zip(TYPES, SCARF, strict=True)) | changes


def table_of(*rows):
    return pa.Table.from_pylist(list(rows), pa.schema([(name, getattr(pa, kind)()) for name, kind in TYPES.items()]))


@pytest.fixture
def folder(tmp_path):
    """A folder with two pictures."""
    (tmp_path / "scarf.png").write_bytes(picture_bytes(color="tan"))
    (tmp_path / "bag.jpg").write_bytes(picture_bytes(color="navy", image_format="JPEG"))
    return tmp_path


@pytest.fixture
def read(folder):
    """read_products of rows in a parquet file beside the pictures."""

    def write_and_read(*rows, **options):
        pq.write_table(table_of(*rows), folder / "table.parquet")
        return read_products(folder / "table.parquet", cache_dir=folder / "cache", **options)

    return write_and_read


@pytest.fixture
def server():
    with misbehaving_server() as running:
        yield running


def reasons(dataset):
    return [split_problem(problem)[0] for problem in dataset["problem"]]


def paths(dataset):
    rows = dataset.cast_column("images", List(Image(decode=False)))["images"]
    return [image and image["path"] for images in rows for image in images]


# Rows


def test_a_row_of_the_table_becomes_a_row_to_train_on(read, folder, capsys):
    dataset = read(scarf())
    row = dataset[0]
    assert row["messages"] == [user("What is shown in this image?", images=1), assistant(ANSWER)]
    assert paths(dataset) == [os.path.realpath(folder / "scarf.png")] and row["images"][0].size == (32, 24)
    assert (row["row"], row["problem"], row["note"]) == (1, "", "")
    assert {name: row[name] for name in TYPES} == scarf()
    expected = {**FEATURES, **READER_FEATURES, **{name: Value(kind) for name, kind in TYPES.items()}}
    assert dataset.features == expected
    assert capsys.readouterr().out == "1 rows read: 1 with an answer and an image\n"


def test_the_question_the_template_and_the_column_of_the_picture_can_be_named(read, folder):
    dataset = read(
        scarf(title="bag.jpg"), image_field="title", instruction="Price?", response="{{{full_price:.2f}}} {title!r}"
    )
    assert dataset[0]["messages"] == [user("Price?", images=1), assistant("{2150.00} 'bag.jpg'")]
    assert paths(dataset) == [os.path.realpath(folder / "bag.jpg")]


@pytest.mark.parametrize("price", [2150.0, 0.1, 1e16, 1234567.891, 0.0])
def test_numbers_are_written_as_an_f_string_writes_them(read, price):
    text = read(scarf(full_price=price), response="{full_price} {product_code}")[0]["messages"][1]["content"][0]["text"]
    assert text == f"{price} 80795561"


def test_rows_keep_their_order_and_a_taken_name_gets_an_underscore(folder):
    table = Dataset.from_list([scarf(title=str(n), row=n * 10, problem="x") for n in range(1, 6)])
    dataset = read_products(table, folder, folder / "cache")
    assert dataset["row"] == [1, 2, 3, 4, 5] and dataset["row_"] == [10, 20, 30, 40, 50]
    assert dataset["title"] == list("12345") and dataset["problem_"] == ["x"] * 5 and set(dataset["problem"]) == {""}


# Problems of rows


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"title": None}, "empty title"),
        ({"title": " "}, "empty title"),
        ({"full_price": None}, "empty full_price"),
        ({"full_price": float("nan")}, "empty full_price"),
        ({"title": "", "category3_code": None}, "empty title; empty category3_code"),
        ({"imageurl": None}, "empty image path"),
        ({"imageurl": "  "}, "empty image path"),
        ({"imageurl": "N.A."}, "neither a URL nor a file: 'N.A.'"),
        ({"imageurl": "scarf.jpg"}, "neither a URL nor a file: 'scarf.jpg'"),
        ({"imageurl": "../scarf.png"}, "path leaves the image root: '../scarf.png'"),
        ({"imageurl": "ftp://h/scarf.png"}, "not a local file: 'ftp://h/scarf.png'"),
        ({"imageurl": "http:/h/scarf.png"}, "not a URL: 'http:/h/scarf.png'"),
        ({"imageurl": "https://"}, "not a URL: 'https://'"),
        ({"imageurl": "//shop.example/a.png"}, "neither a URL nor a file: '//shop.example/a.png'"),
        ({"imageurl": "a\0b"}, "NUL character in the image path"),
        ({"imageurl": "."}, "not a file: "),
    ],
)
def test_a_broken_row_keeps_its_place_and_says_why(read, changes, reason):
    dataset = read(scarf(), scarf(**changes), scarf())
    assert dataset["row"] == [1, 2, 3]
    found = reasons(dataset)
    assert found[0] == found[2] == "" and found[1].startswith(reason) and split_problem(dataset["problem"][1])[1]


def test_a_value_that_the_response_does_not_use_may_be_missing(read):
    assert reasons(read(scarf(website_name=None, flg_discount=None, title="N.A."))) == [""]


def test_a_format_that_does_not_fit_a_value_is_that_rows_problem(read):
    assert reasons(read(scarf(), response="{title:.2f}"))[0].startswith("response does not fit the values: ")


def test_without_an_image_root_a_path_cannot_be_found(folder):
    dataset = read_products(Dataset.from_list([scarf()]), cache_dir=folder / "cache")
    assert dataset["problem"] == [
        "neither a URL nor a file: 'scarf.png'\n"
        "write an address that begins with http:// or https://, or pass image_root"
    ]


def test_nothing_is_lost_and_validation_has_every_reason(read, server, capsys):
    links = ["good/1", "unknown", "html", "jpeg/2", "broken"]
    rows = [scarf(product_code=n, title=f"T{n}", imageurl=f"{server.url}/{path}") for n, path in enumerate(links)]
    dataset = read(*rows, scarf(title="", imageurl=f"{server.url}/good/3"), scarf(imageurl="N.A."), **LOCAL)
    assert capsys.readouterr().out == (
        "7 rows read: 2 with an answer and an image, 1 not found, 1 not an image, 1 server busy or broken, "
        "1 empty title, 1 neither a URL nor a file\n"
    )
    assert [path is None for path in paths(dataset)] == [False, True, True, False, True, True, True]
    report = check_dataset(dataset, near_duplicates=False, progress=False)
    rejected = {record["row"]: record["reason"] for record in report.rejected}
    assert rejected[2].startswith("not found: HTTP 404") and rejected[3].startswith("not an image: it is a web page")
    assert rejected[5].startswith("server busy or broken") and rejected[6] == "empty title"
    assert (report.counts["read"], report.counts["kept"]) == (7, 2)
    assert report.rejected[0]["fields"]["full_price"] == 2150.0


# Links


def test_each_link_of_a_sound_row_is_asked_for_once_and_later_taken_from_the_cache(read, server):
    link = f"{server.url}/good"
    rows = [
        scarf(imageurl=link),
        scarf(imageurl=f" {link} "),
        scarf(imageurl=f"{server.url}/octet", title=None),
        scarf(imageurl=f"{server.url}/unknown"),
        scarf(imageurl=f"{server.url}/unknown", full_price=1.0),
    ]
    first = read(*rows, **LOCAL)
    assert server.requests == {"/good": 1, "/unknown": 1}
    assert paths(first)[0] == paths(first)[1] and reasons(first)[3:] == ["not found: HTTP 404 Not Found"] * 2
    again = read(*rows, download=False)
    assert paths(again) == paths(first) and server.requests.total() == 2
    assert reasons(again)[3] == "not downloaded: it is not in the cache"


def test_pictures_that_are_in_the_cache_need_no_leave_and_no_network(read, server):
    read(scarf(imageurl=f"{server.url}/good"), **LOCAL)
    assert reasons(read(scarf(imageurl=f"{server.url}/good"))) == [""] and server.requests.total() == 1


def test_pictures_from_paths_alone_need_no_cache(read, folder):
    assert reasons(read(scarf())) == [""] and not (folder / "cache").exists()


def test_a_private_host_is_not_asked_without_leave(read, server):
    assert reasons(read(scarf(imageurl=f"{server.url}/good")))[0].startswith("address not allowed: 127.0.0.1 ")
    assert not server.requests


def test_a_rule_that_does_not_exist_is_an_error(read):
    with pytest.raises(TypeError, match="retries"):
        read(scarf(), retries=3)


# Sources


def test_the_same_rows_from_every_kind_of_table(read, folder, monkeypatch):
    rows = [scarf(), scarf(product_code=7, title="Bag, blue", imageurl="bag.jpg", full_price=0.5)]
    from_parquet = read(*rows)
    pd.DataFrame(rows).to_csv(folder / "table.csv", index=False)
    dataset = Dataset(table_of(*rows))
    monkeypatch.setattr(
        "vlmhelpers.data.readers.products_reader.load_dataset",
        lambda name, split: {(HUB, "train"): dataset}[name, split],
    )
    sources = [folder / "table.csv", str(folder / "table.csv"), dataset, DatasetDict(train=dataset)]
    for source in [*sources, pd.DataFrame(rows), pd.DataFrame(rows, index=[5, 3]), HUB]:
        read_again = read_products(source, image_root=folder, cache_dir=folder / "cache")
        assert read_again[:]["messages"] == from_parquet[:]["messages"] and paths(read_again) == paths(from_parquet)
        assert read_again["full_price"] == [2150.0, 0.5] and read_again["product_code"] == [80795561, 7]
        assert read_again.features["full_price"] == Value("float64")
        assert read_again.features["product_code"] == Value("int64")


HUB = "DBQ/Burberry.Product.prices.United.States"


def test_rows_of_a_selected_and_reordered_dataset(folder):
    dataset = Dataset.from_list([scarf(title=str(n)) for n in range(5)]).select([3, 1])
    assert read_products(dataset, folder, folder / "cache")["title"] == ["3", "1"]


def test_columns_of_other_types_are_kept(folder):
    rows = [scarf(tags=["new", "wool"], when=pd.Timestamp("2022-05-01"), size={"cm": 180}, sale=True)]
    dataset = read_products(Dataset.from_list(rows), folder, folder / "cache", response="{sale} {tags}")
    assert dataset[0]["tags"] == ["new", "wool"] and dataset[0]["size"] == {"cm": 180} and dataset[0]["sale"] is True
    assert dataset[0]["when"] == pd.Timestamp("2022-05-01")
    frame = pd.DataFrame(rows).astype({"category3_code": "category", "title": "string", "full_price": np.float32})
    dataset = read_products(frame.drop(columns="size"), folder, folder / "cache")
    assert dataset["category3_code"] == ["CASHMERE SCARVES"] and reasons(dataset) == [""]


def test_missing_values_of_a_data_frame_are_empty(folder):
    frame = pd.DataFrame([scarf(), scarf(title=None), scarf(full_price=None), scarf(imageurl=float("nan"))])
    dataset = read_products(frame, folder, folder / "cache")
    assert reasons(dataset) == ["", "empty title", "empty full_price", "empty image path"]


@pytest.mark.parametrize(
    ("cell", "value", "reason"),
    [
        ("2150", 2150.0, ""),
        (" 2150.50 ", 2150.5, ""),
        ("2e3", 2000.0, ""),
        ("", None, "empty full_price"),
        ("2 150", 2150.0, ""),
        ('"2,150.00"', 2150.0, ""),
        ("$5", 5.0, ""),
        ("$5 each", None, "no number in full_price: '$5 each'"),
        ("nan", None, "no number in full_price: 'nan'"),
        ("inf", None, "no number in full_price: 'inf'"),
        ("1_0", None, "no number in full_price: '1_0'"),
    ],
)
def test_prices_of_a_csv_are_numbers(folder, cell, value, reason):
    (folder / "t.csv").write_text(f"title,category3_code,full_price,imageurl\nA,B,{cell},scarf.png\nA,B,1,scarf.png\n")
    dataset = read_products(folder / "t.csv", cache_dir=folder / "cache")
    assert reasons(dataset) == [reason, ""] and dataset["full_price"] == [value, 1.0]


@pytest.mark.parametrize(
    ("cells", "values", "notes"),
    [
        (("12.50", "9"), [12.5, 9.0], ["", ""]),
        (("1.299,00", "12,50", "7"), [1299.0, 12.5, 7.0], ["like 1.234,5", "like 1.234,5", ""]),
        (("1.299", "12,50"), [1299.0, 12.5], ["read as 1299.0, written like 1.234,5", "like 1.234,5"]),
        (("1.299", "12.50"), [1.299, 12.5], ["", ""]),
        (("1.299", "2.499"), [1.299, 2.499], ["and could be 1299.0", "and could be 2499.0"]),
        (("1,299", "2,499.50"), [1299.0, 2499.5], ["like 1,234.5", "like 1,234.5"]),
        (("1\u202f299,50", "2 150"), [1299.5, 2150.0], ["like 1 234,5", "like 1 234,5"]),
        (("1'299.50",), [1299.5], ["like 1'234.5"]),
        (("12,50", "12.50"), [12.5, 12.5], ["like 1.234,5", ""]),
        (("1.299,00 €", "12", "7,50"), [1299.0, 12.0, 7.5], ["read as 1299.0, written like", "", "like 1.234,5"]),
        (("1.299 €", "2.499"), [1299.0, 2499.0], ["and could be 1.299", "and could be 2.499"]),
        (("$1.299", "2.49"), [1.299, 2.49], ["read as 1.299, written like 1,234.5", ""]),
        (("1.299 €", "$1,299", "12"), [1299.0, 1299.0, 12.0], ["like 1.234,5", "like 1,234.5", ""]),
        (("5,-", "7"), [5.0, 7.0], ["read as 5.0", ""]),
    ],
)
def test_a_column_says_how_its_prices_are_written(folder, cells, values, notes):
    lines = "".join(f'A,B,"{cell}",scarf.png\n' for cell in cells)
    (folder / "t.csv").write_text(f"title,category3_code,full_price,imageurl\n{lines}", encoding="utf-8")
    dataset = read_products(folder / "t.csv", cache_dir=folder / "cache")
    assert reasons(dataset) == [""] * len(cells) and dataset["full_price"] == values
    assert all(bool(found) == bool(note) and note in found for note, found in zip(notes, dataset["note"], strict=True))


def test_a_price_of_two_readings_in_a_column_of_two_forms_is_a_problem(folder):
    cells = "".join(f'A,B,"{cell}",scarf.png\n' for cell in ("12,50", "12.50", "1.299"))
    (folder / "t.csv").write_text(f"title,category3_code,full_price,imageurl\n{cells}")
    dataset = read_products(folder / "t.csv", cache_dir=folder / "cache")
    assert dataset["full_price"] == [12.5, 12.5, None]
    reason = "'1.299' in full_price can be 1.299 or 1299.0, as full_price has numbers in several forms"
    assert reasons(dataset) == ["", "", reason]


def test_columns_of_the_answer_are_used(read):
    dataset = read(scarf(), response="{title}: {full_price}")
    assert unused_fields(dataset) == ["category3_code", "flg_discount", "product_code", "website_name"]


def test_prices_that_are_all_written_with_a_currency_stay_text(folder):
    (folder / "t.csv").write_text('title,price,full_price,imageurl\nA,"$1,250.00",,bag.jpg\nB,$5,9,bag.jpg\n')
    dataset = read_products(folder / "t.csv", cache_dir=folder / "cache", response="{title}: {price}")
    assert reasons(dataset) == ["", ""] and dataset["full_price"] == [None, 9.0]
    assert dataset["messages"][0][-1] == assistant("A: $1,250.00")


@pytest.mark.parametrize("code", ["80795561.5", "N.A.", "9223372036854775808", "9" * 5000])
def test_codes_of_a_csv_are_whole_numbers(folder, code):
    (folder / "t.csv").write_text(
        f"title,category3_code,full_price,imageurl,product_code\nA,B,1,bag.jpg,{code}\nA,B,1,bag.jpg,\nA,B\n"
    )
    dataset = read_products(folder / "t.csv", cache_dir=folder / "cache")
    assert reasons(dataset) == [f"no number in product_code: {code[:40]!r}", "", "too few cells: 2 of 5"]
    assert dataset["product_code"] == [None, None, None] and dataset.features["product_code"] == Value("int64")


# What is wrong with the whole table


def test_missing_columns_are_named_with_what_to_pass(folder):
    table = Dataset.from_list([{"imagelink": "a", "titel": "b", "full_price": 1.0}])
    with pytest.raises(ValueError, match=r"the table has no column 'imageurl'.*image_field='imagelink'"):
        read_products(table)
    with pytest.raises(ValueError, match=r"no column 'title' and no column 'category3_code', which.*imagelink, titel"):
        read_products(table, image_field="imagelink")


@pytest.mark.parametrize(
    "response",
    ["{title.__class__}", "{title[0]}", "{}", "{0}", "{title", "title}", "{title!x}", "{full_price:{title}}", "{!r}"],
)
def test_a_response_with_more_than_names_of_columns_is_an_error(read, response):
    with pytest.raises(ValueError, match="^response: "):
        read(scarf(), response=response)


@pytest.mark.parametrize("name", ["instruction", "response"])
@pytest.mark.parametrize("text", ["", " \n", None])
def test_an_empty_question_or_answer_is_an_error(read, name, text):
    with pytest.raises(ValueError, match=f"^{name}: "):
        read(scarf(), **{name: text})


@pytest.mark.parametrize("value", [5, ["scarf.png"], b"scarf.png", {"bytes": b"", "path": "scarf.png"}])
def test_a_column_of_pictures_that_holds_no_text_is_an_error(value):
    with pytest.raises(ValueError, match="image_field='imageurl' holds no text"):
        read_products(Dataset.from_list([scarf(imageurl=value)]))


def test_a_column_that_would_take_the_place_of_another_is_an_error():
    with pytest.raises(ValueError, match="'row' would be kept as 'row_', which is there"):
        read_products(Dataset.from_list([scarf(row=1, row_=2)]))


def test_a_column_named_twice_is_an_error_that_names_it(folder):
    pq.write_table(table_of(scarf()).append_column("title", pa.array(["Bag"])), folder / "twice.parquet")
    with pytest.raises(ValueError, match="twice.parquet has two columns named 'title'"):
        read_products(folder / "twice.parquet")


def test_a_column_of_mixed_types_is_an_error_that_names_it():
    with pytest.raises(ValueError, match=r"the DataFrame cannot be read: .*column full_price.* one plain type"):
        read_products(pd.DataFrame([scarf(), scarf(full_price="N.A.")]))


def test_a_frame_with_a_number_that_no_column_holds():
    with pytest.raises(ValueError, match="the DataFrame cannot be read: .* one plain type"):
        read_products(pd.DataFrame([scarf(full_price=10**400)]))


def test_several_splits_are_an_error_that_names_them():
    dataset = Dataset.from_list([scarf()])
    with pytest.raises(ValueError, match=r"the splits 'train', 'test'.*table\['train'\]"):
        read_products(DatasetDict(train=dataset, test=dataset))
    with pytest.raises(ValueError, match="the splits none"):
        read_products(DatasetDict())


@pytest.mark.parametrize("source", ["table.json", "one/two/three", "folder"])
def test_what_is_no_table_by_its_name_is_an_error(folder, monkeypatch, source):
    monkeypatch.chdir(folder)
    (folder / "folder").mkdir()
    with pytest.raises(ValueError, match=f"^{source} is no .csv or .parquet file"):
        read_products(source)


@pytest.mark.parametrize("source", ["gone.parquet", "data/gone.parquet", "data/gone.csv"])
def test_a_file_that_is_not_there_is_an_error_and_no_name_on_the_hub(folder, monkeypatch, source):
    monkeypatch.setattr(
        "vlmhelpers.data.readers.products_reader.load_dataset", lambda *_, **__: pytest.fail("asked the hub")
    )
    with pytest.raises(FileNotFoundError):
        read_products(source)


def test_a_broken_file_is_an_error_that_names_it(folder):
    for content in (b"", b"PAR1 and nothing else", b"title,imageurl"):
        (folder / "broken.parquet").write_bytes(content)
        with pytest.raises(ValueError, match="broken.parquet cannot be read as Parquet"):
            read_products(folder / "broken.parquet")


def test_a_table_without_rows_is_an_error(read):
    with pytest.raises(ValueError, match="holds no rows"):
        read()


@pytest.mark.parametrize("source", [7, None, [scarf()]])
def test_what_is_no_table_is_an_error(source):
    with pytest.raises(TypeError, match="is no table"):
        open_table(source)


# Train and test


def test_a_grouped_split_has_no_code_on_both_sides_and_leaks_of_pictures_are_reported(folder):
    rows = [scarf(product_code=n // 2, title=f"T{n}", imageurl=f"{n // 2}.png") for n in range(40)]
    rows[-1]["imageurl"] = rows[0]["imageurl"]
    for n in range(20):
        (folder / f"{n}.png").write_bytes(picture_bytes(color=(n * 12, 250 - n * 12, (n * 90) % 256)))
    products = read_products(Dataset.from_list(rows), folder, folder / "cache")
    for seed in range(40):  # until the two codes that share a picture are on different sides
        parts = split(products, test_size=8, group_by="product_code", seed=seed)
        codes = {side: set(part["product_code"]) for side, part in parts.items()}
        assert len(parts["test"]) == 8 and not codes["train"] & codes["test"]
        if (0 in codes["test"]) != (19 in codes["test"]):
            break
    report = check_dataset(parts, near_duplicates=False, progress=False)
    assert any(record["reason"].startswith("leak: the same image") for record in report.rejected)
    assert {record["fields"]["product_code"] for record in report.rejected} <= {0, 19}


def test_rejected_products_can_be_saved_mended_and_read_again(read, folder):
    report = check_dataset(read(scarf(), scarf(title=None, imageurl="bag.jpg")), progress=False)
    report.save_rejected(folder / "rejected.csv")
    again = read_products(folder / "rejected.csv", cache_dir=folder / "cache")
    assert reasons(again) == ["empty title"] and again["full_price"] == [2150.0]


def test_it_does_not_write_to_the_cache_of_datasets(read, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "untouched")
    read(scarf())
    assert not (tmp_path / "untouched").exists()


def test_a_frame_with_a_name_that_arrow_cuts():
    with pytest.raises(ValueError, match="the DataFrame cannot be read: .* a name of its own"):
        read_products(pd.DataFrame([{"x": "a", "x\0": "b"}]))
