"""Reading JSONL of fields and of messages, image paths and URLs in it, and writing messages."""

import json
import os
from functools import partial

import pytest
from datasets import Dataset
from jsonl_rows import reason_of, undecoded, write_and_read
from misbehaving_server import misbehaving_server
from PIL import Image as Pictures

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.jsonl_reader import read_jsonl, write_jsonl
from vlmhelpers.data.rules import split_problem
from vlmhelpers.data.schema import FEATURES, assistant, image_part, make_row, text_part, user

SOUND = {"text": "What?", "response": "A bag."}
TEXT = "Gr\u00f6\u00dfe \u540d\u524d \U0001f642"


@pytest.fixture
def folder(tmp_path):
    """A folder with images/bag.jpg and "images/b\u00e4g 2.jpg"; the JSONL goes beside it."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    for name in ("bag.jpg", "b\u00e4g 2.jpg"):
        Pictures.new("RGB", (8, 8), "red").save(tmp_path / "data" / "images" / name)
    return tmp_path / "data"


@pytest.fixture
def read(folder):
    """read_jsonl of objects, with images undecoded."""

    return partial(write_and_read, folder)


def paths(row):
    return [image and image["path"] for image in row["images"]]


def part(path=None):
    return {"type": "image"} if path is None else {"type": "image", "image": path}


def turns(*content, answer="A bag."):
    return [{"role": "user", "content": list(content)}, {"role": "assistant", "content": answer}]


# Fields


def test_a_row_of_fields(read, folder):
    row = read({"text": f" {TEXT} ", "image": "images/bag.jpg", "response": "A bag.\n"})[0]
    assert row["messages"] == [user(TEXT, images=1), assistant("A bag.")]
    assert row["images"] == [{"path": os.path.realpath(folder / "images" / "bag.jpg"), "bytes": None}]
    assert (row["row"], row["problem"], row["note"]) == (1, "", "")
    assert (row["text"], row["image"], row["response"]) == (f" {TEXT} ", "images/bag.jpg", "A bag.\n")


@pytest.mark.parametrize(
    ("image", "count"),
    [(None, 0), ("", 0), ([], 0), ("images/bag.jpg", 1), (["images/bag.jpg"], 1), (["images/bag.jpg"] * 3, 3)],
)
def test_a_field_holds_no_image_one_or_several(read, image, count):
    row = read(SOUND | {"image": image})[0]
    assert row["messages"][0] == user("What?", images=count) and len(row["images"]) == count
    assert row["problem"] == ""


def test_images_are_opened_when_a_row_is_used(folder):
    (folder / "rows.jsonl").write_text(json.dumps(SOUND | {"image": "images/bag.jpg"}))
    dataset = read_jsonl(folder / "rows.jsonl")
    assert {name: dataset.features[name] for name in FEATURES} == FEATURES
    assert dataset[0]["images"][0].size == (8, 8)


def test_fields_by_other_names_in_a_list(folder):
    path = folder / "rows.json"
    path.write_text(json.dumps([{"question": "What?", "picture": "bag.jpg", "answer": 7}]))
    dataset = read_jsonl(
        path, image_root=folder / "images", text_field="question", image_field="picture", response_field="answer"
    )
    row = undecoded(dataset)[0]
    assert row["messages"] == [user("What?", images=1), assistant("7")]
    assert paths(row) == [os.path.realpath(folder / "images" / "bag.jpg")]
    assert row["note"] == "number read as text"


@pytest.mark.parametrize(
    "written",
    ["images/bag.jpg", "./images/../images/bag.jpg", "{folder}/images/bag.jpg", "file://{folder}/images/bag.jpg",
     "file:{folder}/images/bag.jpg", "file://localhost{folder}/images/b%61g.jpg", "FILE:images/bag.jpg"],
)  # fmt: skip
def test_local_paths_and_urls(read, folder, written):
    row = read(SOUND | {"image": written.format(folder=folder)})[0]
    assert (paths(row), row["problem"]) == ([os.path.realpath(folder / "images" / "bag.jpg")], "")


def test_a_url_is_decoded_and_a_path_is_not(read, folder):
    rows = read(*[SOUND | {"image": image} for image in ("file:images/b%C3%A4g%202.jpg", "images/b%61g.jpg")])
    names = [os.path.basename(path) for row in rows for path in paths(row)]
    assert names == ["b\u00e4g 2.jpg", "b%61g.jpg"]


def test_a_url_keeps_what_a_web_address_would_cut_off(read):
    assert paths(read(SOUND | {"image": "file:images/bag.jpg?a#b"})[0])[0].endswith("images/bag.jpg?a#b")


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("http://example.com/bag.jpg", "not a local file: 'http://example.com/bag.jpg'"),
        ("https://example.com/bag.jpg", "not a local file: 'https://example.com/bag.jpg'"),
        ("file://server/bag.jpg", "not a local file: 'file://server/bag.jpg'"),
        ("../bag.jpg", "path leaves the image root: '../bag.jpg'"),
        ("file:///etc/passwd", "path leaves the image root: '/etc/passwd'"),
        ("file:images/%2e%2e/%2e%2e/bag.jpg", "path leaves the image root: 'images/../../bag.jpg'"),
        (["images/bag.jpg", ""], "empty image path"),
        (["images/bag.jpg", None], "no image path in image: None"),
        (5, "no image path in image: 5"),
        ({"file": "images/bag.jpg"}, "no image path in image: {'file': 'images/bag.jpg'}"),
    ],
)
def test_other_image_paths_are_a_problem_of_their_row(read, image, reason):
    dataset = read(
        SOUND, SOUND | {"image": image}, {"messages": turns(text_part("What?"), *[part()] * 2), "images": image}
    )
    assert [reason_of(row) for row in dataset] == ["", reason, reason.replace(" in image:", " in images:")]
    assert all(split_problem(problem)[1] for problem in dataset["problem"][1:])


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"text": "What?"}, "no field 'response'"),
        (SOUND | {"text": " "}, "empty text"),
        (SOUND | {"response": ["A bag."]}, "response is a list, not text"),
        (["What?"], 'no object: ["What?"]'),
        ({"messages": None}, "no field 'text'; no field 'response'"),
    ],
)
def test_a_broken_row_keeps_its_place(read, value, reason):
    dataset = read(SOUND, value, SOUND)
    assert dataset["row"] == [1, 2, 3]
    assert [reason_of(row) for row in dataset] == ["", reason, ""]


@pytest.mark.parametrize(
    ("value", "advice"),
    [
        ({"Txt": "What?", "respons": "A bag."}, "text_field='Txt', response_field='respons')"),
        ({"file_name": "a.png", "text": "A bag."}, "pass instruction='...'"),
        ({"dialog": [1]}, "Its fields: dialog."),
        ({"data": [SOUND]}, "under 'data'"),
    ],
)
def test_a_file_of_other_fields_is_an_error_that_names_them(read, value, advice):
    with pytest.raises(ValueError) as caught:
        read(value)
    assert "rows.jsonl" in str(caught.value) and advice in str(caught.value)


def test_an_image_root_has_to_be_there(read, folder):
    with pytest.raises(NotADirectoryError, match="image_root: there is no folder .*gone"):
        read(SOUND, image_root=folder / "gone")


# Messages


def test_messages_are_passed_through(read):
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": [text_part(" What "), text_part("is it? ")]},
        {"role": "assistant", "content": "A bag."},
        user("Why?"),
        assistant(" So."),
    ]
    row = read({"messages": messages, "id": 3})[0]
    system = {"role": "system", "content": [text_part("Be kind.")]}
    assert row["messages"] == [system, messages[1], assistant("A bag."), *messages[3:]]
    assert (row["images"], row["problem"], row["note"], row["id"]) == ([], "", "", "3")
    assert json.loads(row["messages_"]) == messages


def test_images_follow_the_order_of_their_parts(read):
    content = [part(), text_part("and"), part("images/own.jpg"), {"type": "image", "image": None, "text": None}]
    row = read({"messages": turns(*content), "images": ["images/1.jpg", "file:images/2.jpg"]})[0]
    assert row["messages"][0]["content"] == [image_part(), text_part("and"), image_part(), image_part()]
    assert [os.path.basename(path) for path in paths(row)] == ["1.jpg", "own.jpg", "2.jpg"]
    assert row["problem"] == ""


def test_rows_of_fields_and_of_messages_may_mix(read):
    dataset = read({"messages": turns(text_part("Why?"), answer="So.")}, SOUND | {"image": "images/bag.jpg"})
    assert dataset["messages"][:] == [[user("Why?"), assistant("So.")], [user("What?", images=1), assistant("A bag.")]]


def test_a_number_in_a_text_part_is_noted(read):
    row = read({"messages": turns({"type": "text", "text": 5})})[0]
    assert row["messages"][0] == user("5") and row["note"] == "number read as text"


@pytest.mark.parametrize(
    ("messages", "reason"),
    [
        ("What?", "messages is no list of messages"),
        ([["user", "What?"]], "messages is no list of messages"),
        ([{"content": "What?"}], "a message without a role"),
        ([{"role": 5, "content": "What?"}], "a message without a role"),
        ([{"role": "user"}], "content is no text and no list of parts"),
        ([{"role": "user", "content": ["What?"]}], "content is no text and no list of parts"),
        (turns({"type": "text", "text": ["What?"]}), "a text part is a list, not text"),
        (turns(part(5)), "no image path in an image part: 5"),
    ],
)
def test_messages_of_no_form_are_a_problem_of_their_row(read, messages, reason):
    dataset = read(SOUND, {"messages": messages}, SOUND)
    assert [reason_of(row) for row in dataset] == ["", reason, ""]
    assert split_problem(dataset[1]["problem"])[1]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({"messages": []}, "no answer"),
        ({"messages": turns(text_part("What?"))[:1]}, "no answer"),
        ({"messages": turns(text_part("What?"), answer=" ")}, "empty answer"),
        ({"messages": [{"role": "human", "content": "What?"}]}, "no answer"),
        ({"messages": turns({"type": "page"})}, "unknown part: ['page']"),
        ({"messages": turns({"type": "text"})}, "a text part without text"),
        ({"messages": turns(part(), part()), "images": ["images/bag.jpg"]}, "images do not match: 2 image parts, 1"),
        ({"messages": turns(part()), "images": ["images/bag.jpg"] * 2}, "images do not match: 1 image parts, 2"),
        ({"messages": turns(part("images/gone.jpg"))}, "missing file"),
    ],
)
def test_validation_judges_messages_that_have_the_form(read, value, reason):
    dataset = read(SOUND, value)
    assert dataset["problem"] == ["", ""]
    (record,) = check_dataset(dataset).rejected
    assert record["row"] == 2 and record["reason"].startswith(reason)


# Links

LOCAL = {"private_hosts": ("127.0.0.1",), "attempts": 2, "backoff": 0.01, "pause": 0, "read_timeout": 2}


@pytest.fixture
def server():
    with misbehaving_server() as running:
        yield running


@pytest.fixture
def fetch(read, folder):
    """`read` with downloads, from 127.0.0.1 as well, into the folder cache."""

    def download_and_read(*values):
        return read(*values, download=True, cache_dir=folder / "cache", **LOCAL)

    return download_and_read


def with_parts(*places, **fields):
    return {"messages": turns(*map(part, places), text_part("What?"))} | fields


def conversation(text, **fields):
    return {"conversations": [{"from": "human", "value": text}, {"from": "gpt", "value": "A bag."}]} | fields


def test_pictures_behind_links_are_downloaded_in_every_form(fetch, server, folder, capsys):
    link, other = f"{server.url}/good/1", f"{server.url}/jpeg/2"
    dataset = fetch(
        SOUND | {"image": link},
        SOUND | {"image": ["images/bag.jpg", other]},
        with_parts(link, None, images=["images/bag.jpg"]),
        conversation("<image>\nand\n<image>", image=[other, link]),
        {"messages": [{"role": "user", "content": "<image>"}, {"role": "assistant", "content": "So."}], "images": link},
    )
    assert dataset["problem"] == [""] * 5
    (one,), (bag, two), third, fourth, fifth = map(paths, dataset)
    assert os.path.dirname(one) == os.path.dirname(two) == os.path.realpath(folder / "cache")
    assert (third, fourth, fifth) == ([one, bag], [two, one], [one]) and bag.endswith("bag.jpg")
    assert server.requests == {"/good/1": 1, "/jpeg/2": 1}
    assert capsys.readouterr().out == "2 linked pictures: 2 there\n"
    assert check_dataset(dataset, progress=False).counts["kept"] == 5


def test_a_failed_download_is_the_problem_of_its_row(fetch, server, capsys):
    good, gone, html = (f"{server.url}/{name}" for name in ("good", "unknown", "html"))
    rows = [SOUND | {"image": image} for image in (good, gone, "images/bag.jpg", [good, html], "https://")]
    dataset = fetch(*rows)
    assert [reason_of(row) for row in dataset] == [
        "",
        f"not found: HTTP 404 Not Found ('{gone}')",
        "",
        f"not an image: it is a web page ('{html}')",
        "not a URL: 'https://' ('https://')",
    ]
    assert [len(paths(row)) for row in dataset] == [1, 1, 1, 2, 1] and paths(dataset[1]) == [None]
    assert capsys.readouterr().out == "4 linked pictures: 1 there, 1 not found, 1 not an image, 1 not a URL\n"
    report = check_dataset(dataset, progress=False)
    assert [record["row"] for record in report.rejected] == [2, 4, 5] and report.counts["kept"] == 2
    assert all(record["remedy"] and record["fields"]["image"] for record in report.rejected)


def test_links_of_rows_with_other_problems_are_not_asked_for(fetch, server):
    link = f"{server.url}/good"
    dataset = fetch(
        SOUND | {"image": [link, "../bag.jpg"]},
        {"text": "What?", "image": link},
        conversation("<image>\nWhat?", images=[link, link]),
        SOUND,
    )
    assert [reason_of(row).partition(":")[0] for row in dataset] == [
        "path leaves the image root",
        "no field 'response'",
        "images do not match",
        "",
    ]
    assert not server.requests


@pytest.mark.parametrize("link", ["http://example.com/bag.jpg", "HTTPS://example.com/bag.jpg", "http:/example.com/a"])
def test_without_leave_to_download_a_link_is_a_problem_that_names_the_argument(read, link, capsys):
    dataset = read(SOUND, SOUND | {"image": link}, with_parts(link), conversation("<image>", images=[link]))
    assert [reason_of(row) for row in dataset] == ["", *[f"not a local file: {link!r}"] * 3]
    assert all("download=True" in split_problem(problem)[1] for problem in dataset["problem"][1:])
    assert capsys.readouterr().out == ""


def test_nothing_is_printed_or_made_where_there_are_no_links(fetch, folder, capsys):
    assert fetch(SOUND | {"image": "images/bag.jpg"})["problem"] == [""]
    assert capsys.readouterr().out == "" and not (folder / "cache").exists()


def test_a_second_reading_takes_the_pictures_from_the_cache(fetch, server):
    row = SOUND | {"image": f"{server.url}/good"}
    assert paths(fetch(row)[0]) == paths(fetch(row)[0]) and server.requests.total() == 1


def test_a_private_host_is_not_asked_without_leave(read, folder, server):
    dataset = read(SOUND | {"image": f"{server.url}/good"}, download=True, cache_dir=folder / "cache")
    assert reason_of(dataset[0]).startswith("address not allowed: 127.0.0.1 ") and not server.requests


@pytest.mark.parametrize("download", [False, True])
def test_a_rule_that_does_not_exist_is_an_error(read, download):
    with pytest.raises(TypeError, match="imagefield"):
        read(SOUND, download=download, imagefield="image")


# Writing


def test_text_rows_have_exactly_this_shape(tmp_path):
    write_jsonl(Dataset.from_list([make_row(TEXT, "So.")], features=FEATURES), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_bytes().decode() == (
        '{"messages": [{"role": "user", "content": [{"type": "text", "text": "' + TEXT + '"}]}, '
        '{"role": "assistant", "content": [{"type": "text", "text": "So."}]}]}\n'
    )


def test_image_rows_name_their_paths_from_the_root(read, folder):
    dataset = read(SOUND | {"image": ["images/bag.jpg", "images/b\u00e4g 2.jpg"]}, SOUND)
    write_jsonl(dataset, folder / "new" / "out.jsonl", folder)
    lines = (folder / "new" / "out.jsonl").read_text(encoding="utf-8").splitlines()
    first, second = map(json.loads, lines)
    assert list(first) == ["messages", "images"] and list(second) == ["messages"]
    assert first["images"] == ["images/bag.jpg", "images/b\u00e4g 2.jpg"]
    assert first["messages"][0]["content"] == [{"type": "image"}] * 2 + [{"type": "text", "text": "What?"}]
    again = undecoded(read_jsonl(folder / "new" / "out.jsonl", image_root=folder))
    assert [again[:][name] for name in FEATURES] == [dataset[:][name] for name in FEATURES]


def test_the_sample_data_survive_a_round_trip(data, tmp_path):
    dataset = read_csv(data / "products.csv")
    write_jsonl(dataset, tmp_path / "products.jsonl", data)
    again = read_jsonl(tmp_path / "products.jsonl", image_root=data)
    assert not any(again["problem"]) and len(again) == len(dataset)
    for name in ("messages", "row"):
        assert again[name][:] == dataset[name][:]
    assert undecoded(again)["images"][:] == undecoded(dataset)["images"][:]
    assert again[0]["images"][0].tobytes() == dataset[0]["images"][0].tobytes()


def test_more_rows_than_a_batch_keep_their_order(tmp_path):
    rows = [make_row(f"{number}?", f"{number}.") for number in range(2500)]
    write_jsonl(Dataset.from_list(rows, features=FEATURES), tmp_path / "out.jsonl")
    assert read_jsonl(tmp_path / "out.jsonl")["messages"][:] == [row["messages"] for row in rows]


def test_an_image_that_has_no_path_ends_the_writing_and_leaves_the_old_file(tmp_path, rows_of, picture):
    (tmp_path / "out.jsonl").write_text("old")
    with pytest.raises(ValueError, match="out.jsonl, row 3: an image without a path .*Save it"):
        write_jsonl(rows_of([("Why?", "So.", [])] * 2 + [("What?", "A bag.", [picture])]), tmp_path / "out.jsonl")
    assert (tmp_path / "out.jsonl").read_text() == "old" and os.listdir(tmp_path) == ["out.jsonl"]


def test_an_image_outside_the_root_is_an_error(read, folder):
    dataset = read(SOUND | {"image": "images/bag.jpg"})
    with pytest.raises(ValueError, match="out.jsonl, row 1: .*bag.jpg is outside .*new.*image_root"):
        write_jsonl(dataset, folder / "new" / "out.jsonl")
    assert os.listdir(folder / "new") == []


def test_numbers_and_controls_that_fuzzing_found(tmp_path):
    (tmp_path / "rows.jsonl").write_text(f'{{"text": 1{"0" * 400}, "response": "a"}}\n"\x7f"\n')
    first, second = read_jsonl(tmp_path / "rows.jsonl")
    assert first["problem"] == "" and len(first["messages"][0]["content"][0]["text"]) == 401
    assert second["problem"].startswith(r'no object: "\x7f"')


def test_a_name_with_a_nul_that_fuzzing_found(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "What?", "response": "Red.", "x": "a", "x\\u0000": "b"}')
    (row,) = read_jsonl(tmp_path / "rows.jsonl")
    assert (row["x"], row["x\ufffd"], row["problem"]) == ("a", "b", "")
