"""Sources of rows: splits, shards that break off or mix, values that the features of a Dataset mean."""

import gzip
import io
import json
import os
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Json, List, Value
from row_outlines import agree, draw_images, read_outlines

from vlmhelpers import check_dataset
from vlmhelpers.data import read_csv, read_dataset, read_jsonl, read_stream
from vlmhelpers.data.readers import arrow_rows
from vlmhelpers.data.readers.source import MOST_COLUMNS, TOGETHER, DataError
from vlmhelpers.data.rows import batches_of, bytes_in, unpacked_rows, unused_fields
from vlmhelpers.data.rules import split_problem
from vlmhelpers.data.schema import assistant, user

ROW = {"text": "What?", "response": "Red."}


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path)


def shard(path, *members):
    """A tar archive of (name, content) pairs; an object becomes JSON, the name of an image its bytes."""
    with tarfile.open(path, "w") as archive:
        for name, content in members:
            if isinstance(content, dict):
                content = json.dumps(content).encode()
            elif isinstance(content, str):
                content = (path.parent / content).read_bytes()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def reasons(dataset):
    return [split_problem(problem)[0] for problem in dataset["problem"]]


# Splits


@pytest.mark.parametrize(
    "names",
    [
        ("train.jsonl", "val.jsonl"),
        ("data/train-00000-of-00001.jsonl", "data/test-00000-of-00001.jsonl"),
        ("train/metadata.jsonl", "test/metadata.jsonl"),
    ],
)
def test_files_of_several_splits_are_not_one_source(folder, names):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(ROW | {"file_name": "red.png"}))
    with pytest.raises(ValueError, match=r"holds the splits \w+, \w+: name the files of one, such as .*jsonl"):
        read_dataset(folder)
    assert len(read_dataset(folder / names[0], image_root=folder)) == 1


def test_parts_of_one_split_are_one_source_without_hidden_files(folder):
    for name in ("training-0.jsonl", "train-1.jsonl", ".ipynb_checkpoints/train-1.jsonl"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(json.dumps(ROW | {"text": f"{name}?"}))
    assert sorted(read_dataset(folder)["text"]) == ["train-1.jsonl?", "training-0.jsonl?"]


# Shards


def test_pictures_of_a_shard_stand_as_its_fields_list_them(folder):
    row = ROW | {"images": ["1.before.png", "1.after.png"], "text": "<image> <image> What changed?"}
    path = shard(folder / "a.tar", ("1.after.png", "blue.png"), ("1.before.png", "red.png"), ("1.json", row))
    assert read_outlines(path) == ["user: [red] [blue] What changed? | assistant: Red."]


def test_pictures_of_a_shard_stand_by_their_numbers(folder):
    pictures = [(f"1.{number}.png", "red.png" if number == 2 else "blue.png") for number in (10, 2)]
    assert read_outlines(shard(folder / "a.tar", *pictures, ("1.json", ROW))) == [
        "user: [red] [blue] What? | assistant: Red."
    ]


def test_pictures_of_a_shard_in_no_known_order_are_a_problem(folder):
    path = shard(folder / "a.tar", ("1.png", "red.png"), ("1.seg.png", "blue.png"), ("1.json", ROW))
    assert reasons(read_dataset(path)) == ["several pictures, in no order that is known: png, seg.png"]


def said(*parts, answer="Red."):
    return {"messages": [{"role": "user", "content": [*parts]}, {"role": "assistant", "content": answer}]}


ASKED = {"type": "text", "text": "What?"}
NAMED = [{"type": "image", "image": "1.png"}, ASKED, {"type": "image_url", "image_url": {"url": "seg.png"}}]


@pytest.mark.parametrize(
    ("row", "right"),
    [
        (said(*NAMED), "user: [red] What? [blue] | assistant: Red."),
        (said(NAMED[0], ASKED), "! pictures does not name: seg.png"),
        (said(ASKED, {"type": "image", "value": "seg.png"}), "! pictures does not name: png"),
        (said({"type": "image", "image": "1.seg.png"}, {"type": "image", "path": "0.png"}, ASKED), "! png"),
        (ROW | {"images": ["1.png", "1.seg.png"]}, "user: [red] [blue] What? | assistant: Red."),
        (ROW | {"images": ["1.png", "1.seg.png", "1.c.png"]}, "! 3 images 2 pictures beside it: png, seg.png"),
        (ROW | {"image": "1.png"}, "! 1 images 2 pictures"),
        (said(ASKED, answer="seg.png"), "! no order"),
    ],
)
def test_pictures_of_a_shard_stand_where_a_row_names_them(folder, row, right):
    path = shard(folder / "a.tar", ("1.png", "red.png"), ("1.seg.png", "blue.png"), ("1.json", row))
    (found,) = read_outlines(path)
    assert agree(found, right), found


def test_a_picture_that_a_shard_has_not_is_a_problem(folder):
    path = shard(folder / "a.tar", ("1.png", "red.png"), ("1.json", ROW | {"images": ["1.png", "b.png"]}))
    assert agree(read_outlines(path)[0], "! 2 images 1 pictures")


@pytest.mark.parametrize(
    ("member", "content", "right"),
    [
        ("1.mp4", b"\xff\xfe", "! member .mp4: only images are read"),
        ("1.left.wav", b"RIFF", "! member .left.wav: only images are read"),
        ("1.npy", b"\x93NUMPY", "! member .npy that is no UTF-8 text"),
        ("1.heic", b"\0\0\0 ftypheic", "! image"),
        ("1.txt", b"\xff", "! member .txt"),
    ],
)
def test_a_member_that_is_no_text_and_no_picture_is_named(folder, member, content, right):
    path = shard(folder / "a.tar", (member, content), ("1.json", ROW))
    assert agree(read_outlines(path)[0], right)
    if member != "1.heic":
        with pytest.raises(DataError, match=f"row 1: a member .{member.removeprefix('1.')}"):
            read_dataset(shard(folder / "b.tar", (member, content)))


def test_members_of_one_row_stand_together(folder):
    pictures = [("1.png", "red.png"), ("2.png", "blue.png")]
    path = shard(folder / "a.tar", *pictures, ("1.json", ROW), ("2.json", ROW))
    found = reasons(read_dataset(path))
    assert len(found) == 4 and all(found) and found[2] == "members of one name that do not stand together"


def test_a_shard_that_breaks_off_is_an_error(folder):
    path = shard(folder / "a.tar", *((f"{number}.json", ROW) for number in range(3)))
    whole = path.read_bytes()
    path.write_bytes(whole[:1024] + b"x" * 512 + whole[1536:])  # the header of the second
    with pytest.raises(DataError, match="what stands at byte 1024 is no member"):
        read_dataset(path)
    (folder / "b.tar.gz").write_bytes(gzip.compress(whole)[:-30])
    with pytest.raises(DataError, match="b.tar.gz cannot be read as a tar archive"):
        read_dataset(folder / "b.tar.gz")


# What features mean

MIXED = {
    "messages": [
        {"role": "user", "content": [{"type": "text", "text": "What?"}]},
        {"role": "assistant", "content": "Red."},
    ]
}


@pytest.mark.parametrize("features", [Features({"messages": Json()}), Features({"messages": List(Json())})])
def test_json_in_a_dataset_is_what_it_says(folder, features):
    dataset = Dataset.from_list([MIXED], features=features)
    dataset.to_parquet(folder / "a.parquet")
    for source in (dataset, folder / "a.parquet"):
        assert read_outlines(source) == ["user: What? | assistant: Red."]
    (row,) = read_stream(dataset.to_iterable_dataset())
    assert row["messages"][1]["content"][0]["text"] == "Red."


def test_a_class_is_its_name_in_a_stream_too():
    features = Features({"question": Value("string"), "answer": ClassLabel(names=["no", "yes"])})
    rows = Dataset.from_list([{"question": "Red?", "answer": 1}], features=features)
    (row,) = read_stream(rows.to_iterable_dataset())
    assert row["messages"][1]["content"][0]["text"] == "yes"


def test_a_date_that_python_has_not_is_an_error_that_names_the_file(tmp_path):
    table = pa.table({"text": ["What?"], "response": ["Red."], "day": pa.array([10**8], pa.date32())})
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match="a.parquet cannot be read as Parquet"):
        read_dataset(tmp_path / "a.parquet")


def test_a_row_that_is_nested_too_deeply_is_a_problem_of_its_own(folder):
    deep = '{"path":' * 700 + '"red.png"' + "}" * 700
    (folder / "a.jsonl").write_text(f'{json.dumps(ROW)}\n{{"text": "What?", "response": "Red.", "image": {deep}}}\n')
    found = reasons(read_dataset(folder / "a.jsonl"))
    assert found[0] == "" and found[1]
    for value in (deep, "[" * 700 + "1" + "]" * 700):
        row = f'{{"text": "What?", "response": "Red.", "beside": {value}}}'
        (folder / "a.jsonl").write_text(f"{json.dumps(ROW)}\n{row}\n")
        stream = read_stream(folder / "a.jsonl")
        assert len([*stream]) == 1 and [problem[0] for problem in stream.left_out.values()] == ["nested too deeply"]


# Members that an archive of a few bytes unpacks to


def header(name, size, **kind):
    info = tarfile.TarInfo(name)
    info.size = size
    for key, value in kind.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT)


def with_holes(path, *members):
    """A plain archive of (name, content) and (name, size) pairs, of which the latter take no room on the disk."""
    with open(path, "wb") as file:
        for name, content in members:
            size = content if isinstance(content, int) else len(content)
            file.write(header(name, size))
            file.write(b"" if isinstance(content, int) else content)
            file.truncate(file.tell() + (size if isinstance(content, int) else 0) + -size % 512)
            file.seek(0, io.SEEK_END)
        file.truncate(file.tell() + 10_240)
    return path


@pytest.mark.parametrize("ending, most", [("jpg", "783 MB"), ("txt", "67 MB"), ("mp4", "783 MB")])
def test_members_that_are_too_large_are_problems_of_their_rows(folder, ending, most):
    row = json.dumps(ROW).encode()
    path = with_holes(folder / "a.tar", ("0.json", row), (f"0.{ending}", 10**12), ("1.json", row))
    reason = f"a member .{ending} of 1,000,000 MB, where up to {most} are read"
    assert reasons(read_dataset(path)) == [reason, ""] and read_outlines(path)[1] == "user: What? | assistant: Red."


def test_the_members_of_one_row_are_not_too_large_together(folder, monkeypatch):
    monkeypatch.setattr("vlmhelpers.data.readers.shards._MOST_IN_ROW", 5_000_000)
    row = json.dumps(ROW).encode()
    path = with_holes(folder / "a.tar", ("0.json", row), ("0.1.txt", 3_000_000), ("0.2.txt", 3_000_000))
    assert reasons(read_dataset(path)) == ["a member .2.txt of 3 MB, where up to 2 MB are read"]


@pytest.mark.parametrize("name, kind", [("0.jpg", {}), ("0.txt", {}), ("x", {"type": tarfile.GNUTYPE_LONGNAME})])
def test_large_members_of_compressed_archives_are_not_unpacked(folder, name, kind):
    (folder / "a.tar.gz").write_bytes(gzip.compress(header(name, 2 * 10**9, **kind) + bytes(10_000)))
    with pytest.raises(DataError, match="to 2,000 MB, more than a row may have|header of 2000000000 bytes"):
        read_dataset(folder / "a.tar.gz")


def test_sparse_members_are_not_read(folder):
    sparse = {"GNU.sparse.map": "0,0", "GNU.sparse.size": "1000000000000", "GNU.sparse.name": "0.txt"}
    member = header("0.txt", 0, pax_headers=sparse)
    row = json.dumps(ROW).encode()
    rows = header("0.json", len(row)) + row.ljust(512, b"\0") + member + bytes(10_240)
    (folder / "a.tar").write_bytes(rows)
    assert reasons(read_dataset(folder / "a.tar")) == ["a member .txt that is sparse"]


def test_zeros_after_the_end_are_not_all_read(folder):
    path = with_holes(folder / "a.tar", ("0.json", json.dumps(ROW).encode()))
    os.truncate(path, 10**13)
    assert read_outlines(path) == ["user: What? | assistant: Red."]


# Row groups of Parquet that a file of a few bytes unpacks to

LONG = "q" * 2_000_000


@pytest.mark.slow
@pytest.mark.parametrize("more", [0, 50], ids=["all of one text", "and others"])
@pytest.mark.parametrize("texts", ["text", "messages"])
def test_a_text_that_many_rows_have_is_in_memory_a_few_times(tmp_path, monkeypatch, texts, more):
    answers = [LONG] * 100 + [f"{number} " * 2000 for number in range(more)]
    values = [[user("Why?"), assistant(text)] for text in answers] if texts == "messages" else answers
    table = pa.table({texts: values, "response": ["a"] * len(answers)} if texts == "text" else {texts: values})
    pq.write_table(table, tmp_path / "a.parquet", compression="zstd")
    assert (tmp_path / "a.parquet").stat().st_size < 200_000
    sizes = []
    monkeypatch.setattr(arrow_rows, "unpacked_rows", lambda table: sizes.append(table.nbytes) or unpacked_rows(table))
    rows = [*arrow_rows.rows_of_parquet(tmp_path / "a.parquet")]
    assert [row.fields[texts] for row in rows] == values
    assert max(sizes) < 3 * len(LONG)


@pytest.mark.parametrize("compression", ["zstd", "snappy"])
def test_batches_are_bounded_by_what_their_rows_unpack_to(tmp_path, monkeypatch, compression):
    monkeypatch.setattr(arrow_rows, "BYTES_PER_BATCH", 1_000_000)
    values = [str(number % 10) * 100_000 for number in range(50)]
    options = {"compression": compression, "use_dictionary": False, "row_group_size": 30}
    pq.write_table(pa.table({"text": values, "response": ["a"] * 50}), tmp_path / "a.parquet", **options)
    sizes = []
    monkeypatch.setattr(arrow_rows, "unpacked_rows", lambda table: sizes.append(table.nbytes) or unpacked_rows(table))
    assert [row.fields["text"] for row in arrow_rows.rows_of_parquet(tmp_path / "a.parquet")] == values
    assert max(sizes) <= 1_000_000 and sum(sizes) >= 5_000_000


@pytest.mark.parametrize(
    "column", [{"text": ["q" * 2_000_000, "q"]}, {"n": [[1] * 300_000, [1]]}], ids=["a text", "numbers"]
)
def test_row_groups_that_unpack_to_far_more_than_they_are_are_refused(tmp_path, monkeypatch, column):
    monkeypatch.setattr(arrow_rows, "_MOST", 1_000_000)
    pq.write_table(pa.table({"response": ["a"] * 2} | column), tmp_path / "a.parquet", compression="zstd")
    with pytest.raises(DataError, match=r"row group 1 of .*a.parquet would unpack to 2 MB, over 100 times its size"):
        [*arrow_rows.rows_of_parquet(tmp_path / "a.parquet")]


@pytest.mark.parametrize("bound, largest", [(10_000_000, 2_000_000), (500_000, 600_000)])
def test_many_large_values_do_not_stay_in_memory_as_a_dictionary(tmp_path, monkeypatch, bound, largest):
    monkeypatch.setattr(arrow_rows, "BYTES_PER_BATCH", bound)
    pictures = [os.urandom(50_000) for _ in range(40)]
    options = {"dictionary_pagesize_limit": 100_000, "write_batch_size": 1}  # by which the others stand outside of it
    pq.write_table(pa.table({"image": pictures}), tmp_path / "a.parquet", **options)
    sizes = []
    monkeypatch.setattr(arrow_rows, "unpacked_rows", lambda table: sizes.append(table.nbytes) or unpacked_rows(table))
    assert [row.fields["image"] for row in arrow_rows.rows_of_parquet(tmp_path / "a.parquet")] == pictures
    assert largest / 2 < max(sizes) <= largest + 5000


def test_values_of_all_types_are_those_of_the_table(tmp_path):
    table = pa.table(
        {
            "large": pa.array(["a" * 40_000, None], pa.large_string()),
            "bytes": pa.array([b"a" * 40_000, b"b"], pa.large_binary()),
            "view": pa.array(["a" * 40_000, "b"], pa.string_view()),
            "class": pa.array(["x" * 40_000, "y"]).dictionary_encode(),
            "list": [["a" * 40_000], []],
            "map": pa.array([[("k" * 40_000, "v")], []], pa.map_(pa.string(), pa.string())),
            "fixed": pa.array([b"a" * 40_000, b"b" * 40_000], pa.binary(40_000)),
        }
    )
    pq.write_table(table, tmp_path / "a.parquet")
    assert [row.fields for row in arrow_rows.rows_of_parquet(tmp_path / "a.parquet")] == table.to_pylist()


@pytest.mark.parametrize("value", ["q", {"a": ["q" * 10, {"b": b"q" * 5}], "c": 1, "d": None}])
def test_bytes_in_a_value(value):
    assert bytes_in(value) == (1 if value == "q" else 15)


def test_rows_of_long_texts_are_stored_a_few_at_a_time():
    rows = [{"text": LONG, "number": number} for number in range(100)]
    batches = [*batches_of(rows)]
    assert [row for batch in batches for row in batch] == rows and max(map(len, batches)) == 34


# More fields than columns are kept for

WIDE = {f"c{i}": str(i) for i in range(300)}  # before the fields that are read


def fields_of(row):
    """What a row of a Dataset has from its source, wherever it stands."""
    found = {name: value for name, value in row.items() if name in {*WIDE, *ROW} or name.startswith("own")}
    return {n: v for n, v in (found | json.loads(row[TOGETHER] or "{}")).items() if v is not None}


def test_fields_of_rows_that_have_their_own_stand_together(folder):
    rows = [ROW | {f"own{row}_{i}": str(i) for i in range(20)} for row in range(40)]
    (folder / "a.jsonl").write_text("\n".join(map(json.dumps, [*rows, ROW])))
    dataset = read_dataset(folder / "a.jsonl")
    assert [fields_of(row) for row in dataset] == [*rows, ROW] and dataset[40][TOGETHER] is None
    assert dataset["text"] == ["What?"] * 41 and sum(map(bool, dataset["note"])) == 1
    note = f"{802 - MOST_COLUMNS} of 802 fields are kept together, as JSON in {TOGETHER}"
    assert dataset["note"][0] == note and len(dataset.column_names) == MOST_COLUMNS + 6
    assert len(unused_fields(dataset)) == 800 and len(repr(check_dataset(dataset))) < 5000


@pytest.mark.parametrize("ending", ["jsonl", "csv", "parquet"])
def test_of_many_columns_those_that_are_read_are_kept(folder, ending):
    wide = WIDE | ROW
    if ending == "jsonl":
        (folder / "a.jsonl").write_text(json.dumps(wide) + "\n")
    elif ending == "csv":
        (folder / "a.csv").write_text(",".join(wide) + "\n" + ",".join(wide.values()) + "\n")
    else:
        pq.write_table(pa.Table.from_pylist([wide]), folder / "a.parquet")
    dataset = read_dataset(folder / f"a.{ending}")
    assert fields_of(dataset[0]) == wide and dataset.column_names[-4:-1] == ["c197", *ROW]
    again = read_dataset(dataset)
    assert again.column_names == dataset.column_names and again[0] == dataset[0]


@pytest.mark.slow
def test_rejected_rows_of_many_columns_can_be_mended(folder):
    (folder / "a.jsonl").write_text(json.dumps(WIDE | ROW | {"image": "gone.png"}) + "\n")
    check_dataset(read_jsonl(folder / "a.jsonl")).save_rejected(folder / "rejected.csv")
    (folder / "gone.png").write_bytes((folder / "red.png").read_bytes())
    mended = read_csv(folder / "rejected.csv", image_field="image", text_field="text", response_field="response")
    assert check_dataset(mended).counts["kept"] == 1 and mended[0]["text"] == "What?"
    assert json.loads(mended[0][TOGETHER])[TOGETHER]  # as it is a text like others there


def test_a_named_field_may_be_one_of_many(folder):
    (folder / "a.jsonl").write_text(json.dumps(WIDE | ROW | {"question2": "Which?"}) + "\n")
    dataset = read_jsonl(folder / "a.jsonl", text_field="question2")
    assert dataset[0]["question2"] == "Which?" and dataset[0]["messages"][0]["content"][0]["text"] == "Which?"
    (folder / "a.jsonl").write_text("\n".join(json.dumps(ROW | {f"k{n}_{i}": 1 for i in range(60)}) for n in range(30)))
    with pytest.raises(ValueError, match="has no field 'pic' in any row"):
        read_jsonl(folder / "a.jsonl", image_field="pic")
