"""Fields that nobody reads: what matters is refused by name or by value, the rest is listed once, in every place.

A line is what a row has beside its texts, and its outline or, in a list, the names that the report lists.
"""

import json

import pytest
from row_outlines import agree, draw_images, outlines

from vlmhelpers.data import read_csv, read_dataset
from vlmhelpers.data.rows import unused_fields

KEPT = "user: q | assistant: a"
BOX = [1, 2, 3, 4]
LINES = [
    # boxes, by name
    ({"gt_bboxes": [BOX]}, "! gt_bboxes"),
    ({"bbox_list": [BOX]}, "! bbox_list"),
    ({"answerBbox": "[1, 2, 3, 4]"}, "! answerBbox"),
    ({"bbox_x": 5}, "! bbox_x"),
    ({"rectanglelabels": ["car"]}, "! rectanglelabels"),
    ({"num_bboxes": 3}, ["num_bboxes"]),
    # by name and value
    ({"target_box": BOX}, "! target_box"),
    ({"target_box": "(1, 2), (3, 4)"}, "! target_box"),
    ({"target_box": "the red one"}, ["target_box"]),
    ({"click_point": [1, 2]}, "! click_point"),
    ({"points": 10}, ["points"]),
    ({"coordinates": [48.1, 11.5]}, ["coordinates"]),
    ({"mailbox": "1 2 3 4"}, ["mailbox"]),
    # by value
    ({"annotations": [{"bbox": BOX, "category_id": 1}]}, "! annotations"),
    ({"detections": [BOX]}, "! detections"),
    ({"detections": ["car", "dog"]}, ["detections"]),
    ({"found": {"cars": [{"x": 1, "y": 2, "width": 3, "height": 4}]}}, "! found"),
    ({"label": json.dumps([{"x": 1, "rectanglelabels": ["car"]}])}, "! label"),
    ({"shape": {"counts": "ab1", "size": [4, 4]}}, "! shape"),
    ({"xmin": 1, "ymin": 2, "xmax": 3, "ymax": 4}, "! xmin, ymin, xmax, ymax"),
    ({"x": "1", "y": "2", "width": "3", "height": "4"}, "! x, y, width, height"),
    ({"width": 3, "height": 4}, ["height", "width"]),
    ({"ids": BOX}, ["ids"]),
    # in the object of an image
    ({"image": {"path": "red.png", "bbox": BOX}}, "! bbox"),
    ({"image": {"path": "red.png", "x": 1, "y": 2, "width": 3, "height": 4}}, "! x, y, width, height"),
    ({"image": {"path": "red.png", "mask": "blue.png"}}, "! 'mask'"),
    ({"image": {"path": "red.png", "width": 3, "format": "png"}}, ["width (in image)"]),
    # what says nothing
    ({"objects": {"bbox": [], "category": []}, "tools": [None], "videos": [[]]}, []),
    ({"tools": "nan", "video": "NaN", "bbox": "None", "objects": "[]"}, []),
    ({"objects": {"bbox": [[]], "category": ["car"]}}, "! objects"),
    # images and other media
    ({"data": {"bytes": None, "path": "x.mp4"}}, "! data: only images"),
    ({"parts": [None, {"path": "red.png"}]}, "! image in 'parts'"),
    ({"image_url": {"url": "https://x.example/1234"}}, "! image_url"),
    ({"image_urls": ["https://x.example/1234"]}, "! image_urls"),
    ({"file_name": "red.png", "mask_file_name": "blue.png"}, "user: [red] [blue] q | assistant: a"),
    ({"image": "red.png", "coco_file_name": "0001.jpg"}, ["coco_file_name"]),
]
IN_MESSAGES = [
    ({"image_url": "https://x.example/1234"}, "! image_url"),
    ({"picture": "x.heic"}, "! picture"),
    ({"found": [{"bbox": BOX}]}, "! found"),
    ({"tool_calls": [{"function": None}]}, []),
    ({"id": 5}, ["id (in messages)"]),
]


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path)


def check(folder, row, right, ending="jsonl"):
    (folder / f"rows.{ending}").write_text(json.dumps(row) if ending == "jsonl" else row)
    dataset = read_dataset(folder / f"rows.{ending}")
    (found,) = outlines(dataset)
    if isinstance(right, str):
        assert agree(found, right), found
    else:
        assert "q | assistant: a" in found and unused_fields(dataset) == right, found


@pytest.mark.parametrize(("more", "right"), LINES)
def test_beside_texts(folder, more, right):
    check(folder, {"text": "q", "response": "a"} | more, right)


@pytest.mark.parametrize(("more", "right"), LINES[:20])
def test_beside_a_pair(folder, more, right):
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "q", "chosen": "a", "rejected": "b"} | more))
    (found,) = outlines(read_dataset(folder / "rows.jsonl"))
    assert agree(found, right if isinstance(right, str) else "user: q // assistant: a // assistant: b"), found


@pytest.mark.parametrize(("more", "right"), IN_MESSAGES)
def test_in_a_message(folder, more, right):
    asked = {"role": "user", "content": "q"} | more
    check(folder, {"messages": [asked, {"role": "assistant", "content": "a"}]}, right)


@pytest.mark.parametrize(
    ("cells", "right"),
    [
        (("tools,video,bbox", "nan,None,[]"), []),
        (("label", '"[{""x"": 1, ""rectanglelabels"": [""car""]}]"'), "! label"),
        (("x1,y1,x2,y2", "1,2,3.5,4"), "! x1, y1, x2, y2"),
    ],
)
def test_in_a_table(folder, cells, right):
    check(folder, f"text,response,{cells[0]}\nq,a,{cells[1]}\n", right, "csv")


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("<audio>x.wav</audio>q", "! <audio>x.wav</audio> in a text"),
        ("<video>my clip.mp4</video>q", "! <video>my clip.mp4</video> in a text"),
        ("<video>https://x.example/1</video>q", "! <video>https://x.example/1</video> in a text"),
        ("<video>How long is it?</video>q", "<video> taken as text: only images are read"),
        ("<video><audio>\n<|video_1|>q", "<video> <audio> <|video_1|> taken as text: only images are read"),
        ("<videos>q", ""),
    ],
)
def test_tags_of_other_media_in_a_text(folder, text, right):
    for row in ({"text": text, "response": "<video>"}, {"prompt": text, "chosen": "a", "rejected": "b"}):
        (folder / "rows.jsonl").write_text(json.dumps(row))
        dataset = read_dataset(folder / "rows.jsonl")
        (found,) = outlines(dataset)
        assert agree(found, right) if right.startswith("!") else dataset[0]["note"] == right, found


@pytest.mark.parametrize(
    ("header", "row", "right"),
    [
        ("prompt,chosen,rejected", "q,a,b", "user: [red] q // assistant: a // assistant: b"),
        ("question,answer,label", "q,a,False", "user: [red] q // assistant: a // false"),
        ("prompt,solution", "q,a", "user: [red] q // a"),
    ],
)
def test_an_imagefolder_of_the_other_kinds(folder, header, row, right):
    (folder / "metadata.csv").write_text(f"file_name,{header}\nred.png,{row}\n")
    assert outlines(read_dataset(folder / "metadata.csv")) == [right]


def test_a_verdict_in_a_table_is_the_one_problem_of_its_row(folder):
    (folder / "rows.csv").write_text("question,answer,image,label\nq,a,red.png,False\n")
    (found,) = outlines(read_csv(folder / "rows.csv"))
    assert found.startswith("! rated row") and ";" not in found
