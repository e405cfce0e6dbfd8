"""What readers have made is read back as it is, from every place where a Dataset goes."""

import json
import re

import pyarrow.parquet as pq
import pytest
from datasets import Image, List
from row_outlines import draw_images, outlines, read_outlines

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data import read_dataset, read_stream, to_rated
from vlmhelpers.data.schema import KINDS

ANSWER = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b", "train": False}]
ROWS = {
    "fields": {"text": "q", "response": "a", "image": "red.png", "id": 5},
    "columns of our names": {
        "text": "q",
        "response": "a",
        "images": ["red.png"],
        "row": 7,
        "note": "n",
        "messages": None,
    },
    "messages": {"messages": [*ANSWER, {"role": "user", "content": "<image>r"}, ANSWER[1] | {"train": True}]}
    | {"images": ["red.png"]},
    "a text about tags": {"text": "What are <video> and [IMG]?", "response": "<img>red.png</img>"},
    "pairs": {"prompt": "<image>q", "chosen": "a", "rejected": "b", "images": ["red.png"]},
    "pairs of two images": {"prompt": "q", "chosen": "a", "rejected": "b", "images": ["red.png"]}
    | {"rejected_images": ["blue.png"]},
    "rated": {"prompt": "q", "completion": "a", "label": False, "image": "red.png"},
    "prompts": {"prompt": "q", "answer": "a", "image": "red.png"},
}
OUTSIDE = {"image": "/etc/red.png", "images": ["/etc/red.png"]}  # a row that its reader rejects


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path)


@pytest.fixture(params=ROWS)
def read(folder, request):
    row = ROWS[request.param]
    broken = json.dumps(row | {name: value for name, value in OUTSIDE.items() if name in row})
    lines = [json.dumps(row), broken, re.sub(r'q\b(?=["?])|are', "is", json.dumps(row))]
    (folder / "rows.jsonl").write_text("\n".join(lines))
    return read_dataset(folder / "rows.jsonl")


def kept_in(dataset, folder, place):
    """The Dataset where it was kept; a path for files."""
    if place == "parquet":
        dataset.to_parquet(folder / "made.parquet")
        return folder / "made.parquet"
    if place == "shards":
        (folder / "made").mkdir()
        for number in range(2):
            dataset.shard(2, number).to_parquet(folder / "made" / f"train-{number}.parquet")
        return folder / "made"
    if place == "saved":
        dataset.save_to_disk(folder / "saved")
        return folder / "saved"
    return dataset


@pytest.mark.parametrize("place", ["memory", "parquet", "shards", "saved"])
def test_what_was_kept_is_read_back(folder, read, place):
    report = check_dataset(read, progress=False)
    kept = report.dataset
    again = read_dataset(kept_in(kept, folder, place), image_root=folder if place == "shards" else None)
    assert outlines(again) == outlines(kept)
    assert again.remove_columns(["problem", "note"]).features == kept.features
    assert list(again["row"]) == list(kept["row"])
    assert place in ("parquet", "shards") or check_dataset(again, progress=False).unused == report.unused


def test_what_a_reader_said_stays_with_the_row(read):
    again = read_dataset(read)
    assert again.to_list() == read.to_list() and outlines(again) == outlines(read)
    assert again.features == read.features


@pytest.mark.parametrize("name", ["fields", "messages", "a text about tags"])
def test_a_stream_takes_them_too(folder, name):
    (folder / "rows.jsonl").write_text(json.dumps(ROWS[name]))
    read = read_dataset(folder / "rows.jsonl")
    kept_in(read, folder, "parquet")
    for source in (folder / "made.parquet", read.to_iterable_dataset()):
        (row,) = read_stream(source, image_root=folder)
        assert row["messages"][-1]["content"] == read[0]["messages"][-1]["content"]
        assert len(row["images"]) == len(read[0]["images"])


def test_images_that_are_not_decoded_are_ours_too(folder):
    (folder / "rows.jsonl").write_text(json.dumps(ROWS["fields"]))
    read = read_dataset(folder / "rows.jsonl").cast_column("images", List(Image(decode=False)))
    assert read_outlines(read) == ["user: [red] q | assistant: a"]


def test_pairs_cut_into_rated_rows_are_read_back(folder):
    (folder / "rows.jsonl").write_text(json.dumps(ROWS["pairs"]))
    rated = to_rated(read_dataset(folder / "rows.jsonl"))
    assert outlines(read_dataset(rated)) == outlines(rated) and KINDS["rated"].keys() <= rated.features.keys()


def test_paths_in_a_file_stay_in_its_folder(folder):
    (folder / "rows.jsonl").write_text(json.dumps(ROWS["fields"]))
    (folder / "elsewhere").mkdir()
    kept = read_dataset(folder / "rows.jsonl")
    pq.write_table(kept.data.table, folder / "elsewhere" / "made.parquet")  # as it is, without the images
    (found,) = read_outlines(folder / "elsewhere" / "made.parquet")
    assert found.startswith("! path leaves the image root")
    assert read_outlines(folder / "elsewhere" / "made.parquet", image_root=folder) == ["user: [red] q | assistant: a"]


def test_a_field_cannot_be_named_in_rows_that_were_read(folder):
    (folder / "rows.jsonl").write_text(json.dumps(ROWS["fields"]))
    with pytest.raises(ValueError, match="read already. Leave out the field 'response'"):
        read_dataset(read_dataset(folder / "rows.jsonl"), response_field="response")


def test_columns_of_others_that_look_like_ours_are_read_by_their_form(folder):
    (folder / "rows.jsonl").write_text(json.dumps(ROWS["fields"]))
    others = read_dataset(folder / "rows.jsonl").select_columns(["image", "text", "response", "row"])
    assert read_outlines(others, image_root=folder) == ["user: [red] q | assistant: a"]
