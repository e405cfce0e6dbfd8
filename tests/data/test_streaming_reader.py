"""read_stream: rows of shards and of other streams, read while they are asked for."""

import io
import json
import tarfile

import datasets
import pytest
import torch  # noqa: F401 - datasets loads it with the first stream, which takes seconds
from PIL import Image

from vlmhelpers.common.images import image_identity
from vlmhelpers.data.readers.streaming import read_stream, save_left_out
from vlmhelpers.data.schema import answer_of
from vlmhelpers.data.splitting import hold_out


def png(number):
    file = io.BytesIO()
    Image.new("RGB", (32, 32), (10 * number, 0, 0)).save(file, "PNG")
    return file.getvalue()


@pytest.fixture
def shards(tmp_path):
    """Two JSONL shards of four rows; each row has a picture of its own, the third of each shard a damaged one."""
    for number in range(8):
        (tmp_path / f"{number}.png").write_bytes(png(number) if number % 4 != 2 else b"no picture")
        with open(tmp_path / f"shard-{number // 4}.jsonl", "a") as file:
            row = {"text": "What?", "image": f"{number}.png", "response": f"Answer {number}"}
            print(json.dumps(row), file=file)
    return tmp_path


def answers(stream):
    return [answer_of(row) for row in stream]


def test_sound_rows_come_in_order_and_the_others_are_named(shards, capsys):
    stream = read_stream(shards / "*.jsonl")
    assert stream.left_out == {}
    assert answers(stream) == [f"Answer {number}" for number in (0, 1, 3, 4, 5, 7)]
    assert [row["row"] for row in stream] == [1, 2, 4] * 2 and stream.num_shards == 2
    assert list(stream.left_out) == [(str(shards / f"shard-{n}.jsonl"), 3) for n in (0, 1)]
    reason, remedy = stream.left_out[str(shards / "shard-0.jsonl"), 3]
    assert reason.startswith("not an image") and remedy
    assert capsys.readouterr().out.count("shard-0.jsonl, row 3 is left out: not an image") == 1
    save_left_out(stream.left_out, shards / "left_out.csv")
    assert (shards / "left_out.csv").read_text("utf-8-sig").splitlines()[0] == "shard,source_row,reason,remedy"
    assert answers(stream.shard(2, 1)) == ["Answer 4", "Answer 5", "Answer 7"]


def test_other_forms_of_shards_and_streams_give_the_same_rows(tmp_path):
    rows = [{"text": "What?", "image": {"bytes": png(n), "path": None}, "response": f"Answer {n}"} for n in range(3)]
    dataset = datasets.Dataset.from_list(rows).cast_column("image", datasets.Image())
    dataset.to_parquet(tmp_path / "rows.parquet")
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        for number, row in enumerate(rows):
            fields = json.dumps({name: row[name] for name in ("text", "response")}).encode()
            for ending, content in (("png", png(number)), ("json", fields)):
                member = tarfile.TarInfo(f"train/{number:05}.{ending}")
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    files = [tmp_path / "rows.parquet", tmp_path / "rows.tar"]
    loaded = datasets.load_dataset("parquet", data_files=str(files[0]), split="train", streaming=True)
    pictures = datasets.IterableDataset.from_generator(lambda: ({**row, "image": png(n)} for n, row in enumerate(rows)))
    for source in (*files, loaded, dataset.to_iterable_dataset(), pictures):
        found = list(read_stream(source))
        assert answers(found) == ["Answer 0", "Answer 1", "Answer 2"]
        assert [image_identity(row["images"][0]) for row in found] == [image_identity(row["image"]) for row in rows]


def test_what_is_broken_in_a_shard_costs_its_row_alone(tmp_path):
    (tmp_path / "rows.jsonl").write_text('{"text": "What?"}\n{"text": "Hi", "response": "Hello"}\n{"text": \n[1]\n')
    stream = read_stream(tmp_path / "rows.jsonl")
    assert answers(stream) == ["Hello"]
    assert [row for _, row in stream.left_out] == [1, 3, 4]
    with tarfile.open(tmp_path / "rows.tar", "w") as archive:
        for name, content in (("1.json", b"{"), ("2.json", b"[]"), ("3.text", b"Hi"), ("3.response", b"Hello")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    stream = read_stream(tmp_path / "rows.tar")
    assert answers(stream) == ["Hello"] and len(stream.left_out) == 2


def test_paths_stay_in_their_folder(shards, tmp_path):
    outside = datasets.IterableDataset.from_generator(
        lambda: iter([{"text": "What?", "image": "../etc/0.png", "response": "A"}])
    )
    with pytest.raises(ValueError, match="has paths of images: pass image_root"):
        list(read_stream(outside))
    stream = read_stream(outside, image_root=tmp_path)
    assert not list(stream) and "leaves the image root" in stream.left_out["", 1][0]


def test_what_is_no_stream_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*none\*.jsonl: name a file, or a pattern"):
        read_stream(tmp_path / "none*.jsonl")
    (tmp_path / "rows.csv").write_text("text,response\n")
    with pytest.raises(ValueError, match="rows.csv cannot be streamed: name shards that end in .jsonl"):
        read_stream(tmp_path / "rows.csv")
    with pytest.raises(ValueError, match="holds no rows"):
        read_stream(datasets.IterableDataset.from_generator(lambda: iter(())))


def test_the_first_rows_are_held_out_and_others_of_their_images_are_not_trained_on(shards):
    (shards / "7.png").write_bytes(png(0))  # the last picture is the first once more
    held, others = hold_out(read_stream(shards / "*.jsonl"), 2)
    assert answers(held) == ["Answer 0", "Answer 1"] and held[0]["images"][0].size == (32, 32)
    assert answers(others.take(5)) == [f"Answer {number}" for number in (3, 4, 5, 3, 4)]
    with pytest.raises(ValueError, match="no sound row besides the 6 that are held out"):
        hold_out(read_stream(shards / "*.jsonl"), 9)
