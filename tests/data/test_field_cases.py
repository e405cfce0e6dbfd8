"""The smallest inputs of public reports, a table for each kind: what is read, rejected, collated, answered and saved.

A line of the tables is a row, see row_outlines. Several lines are several right ways.
"""

import base64
import json
import math

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, List
from datasets import Image as Images
from row_outlines import agree, draw_images, outlines, read_outlines

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.common.numbers import first_number
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.jsonl_reader import read_alpaca, read_jsonl
from vlmhelpers.data.schema import FEATURES, image_part, make_row, text_part
from vlmhelpers.data.splitting import split
from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.export.adapters import save_adapter
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.lora import lora_targets


@pytest.fixture
def folder(tmp_path):
    return draw_images(tmp_path)


def user(content, **more):
    return {"role": "user", "content": content} | more


def says(content, **more):
    return {"role": "assistant", "content": content} | more


def parts(*content):
    return [{"type": "text", "text": part} if isinstance(part, str) else part for part in content]


TOOL = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
ROWS = {
    "A1 images beside text and response": (
        {"text": "q", "response": "a", "images": ["red.png"]},
        "user: [red] q | assistant: a",
    ),
    "A3 images inside a message": (
        {"messages": [user("q", images=["red.png"]), says("a")]},
        "user: [red] q | assistant: a",
    ),
    "A4 a video": ({"messages": [user("<video>q"), says("a")], "videos": ["x.mp4"]}, "! videos"),
    "A5 system beside messages": (
        {"system": "Be short.", "messages": [user("q"), says("a")]},
        "system: Be short. | user: q | assistant: a",
    ),
    "A6 history and system beside fields": (
        {"system": "s", "history": [["h1", "h2"]], "text": "q", "response": "a"},
        "system: s | user: h1 | assistant: h2 | user: q | assistant: a",
    ),
    "A7 an image in the text": ({"text": "<img>red.png</img>q", "response": "a"}, "user: [red] q | assistant: a"),
    "A8 objects and boxes": (
        {
            "messages": [user("<image>Find it"), says("<bbox>")],
            "images": ["red.png"],
            "objects": {"ref": [], "bbox": [[1, 2, 3, 4]]},
        },
        "! objects",
    ),
    "A9 tool calls beside a text": ({"messages": [user("q"), says("I look.", tool_calls=[TOOL])]}, "! tool_calls"),
    "A10 tools": ({"tools": [TOOL], "messages": [user("q"), says("a")]}, "! tools"),
    "B2 a turn with weight 0": (
        {"messages": [user("q"), says("bad", weight=0), user("r"), says("good")]},
        "user: q | assistant-: bad | user: r | assistant: good",
    ),
    "B3 a turn without loss": (
        {"messages": [user("q"), says("bad", loss=False), user("r"), says("good")]},
        "user: q | assistant-: bad | user: r | assistant: good",
    ),
    "C1 NaN as an answer": ({"text": "q", "response": math.nan}, "! nan"),
    "E1 a part with a path": (
        {"messages": [user(parts({"type": "image", "path": "red.png"}, "q")), says("a")]},
        "user: [red] q | assistant: a",
    ),
    "E1b a part with a url": (
        {"messages": [user(parts({"type": "image", "url": "red.png"}, "q")), says("a")]},
        "user: [red] q | assistant: a",
    ),
    "E1c a data URI": (
        {"messages": [user(parts({"type": "image_url", "image_url": {"url": "DATA_URI"}}, "q")), says("a")]},
        "user: [red] q | assistant: a",
    ),
    "E2 pairs": ({"conversation": [{"human": "q", "assistant": "a"}]}, "user: q | assistant: a"),
    "E4 query, response, history": (
        {"query": "<image>q2", "response": "a2", "history": [["q1", "a1"]], "images": ["red.png"]},
        "user: q1 | assistant: a1 | user: [red] q2 | assistant: a2",
    ),
    "E5 parts with a value": (
        {
            "messages": [
                user([{"type": "image", "value": "red.png"}, {"type": "text", "value": "q"}], loss_weight=0.0),
                says([{"type": "text", "value": "a"}], loss_weight=1.0),
            ]
        },
        "user: [red] q | assistant: a",
    ),
    "E6 contents": (
        {
            "contents": [
                {"role": "user", "parts": [{"fileData": {"fileUri": "red.png"}}, {"text": "q"}]},
                {"role": "model", "parts": [{"text": "a"}]},
            ]
        },
        "user: [red] q | assistant: a",
    ),
    "E7 a dictionary of images": (
        {
            "image": {"<image_00>": "red.png", "<image_01>": "blue.png"},
            "conversations": [user("<image_00>\n<image_01>q"), says("a")],
        },
        "user: [red] [blue] q | assistant: a",
    ),
    "E9 path and bytes": (
        {"text": "q", "response": "a", "image": {"path": "red.png", "bytes": None}},
        "user: [red] q | assistant: a",
    ),
}


def write(folder, row):
    uri = "data:image/png;base64," + base64.b64encode((folder / "red.png").read_bytes()).decode()
    (folder / "x.jsonl").write_text(json.dumps(row).replace("DATA_URI", uri) + "\n")
    return folder / "x.jsonl"


@pytest.mark.parametrize("name", ROWS)
def test_a_row_is_kept_as_it_says_or_rejected_by_name(folder, name):
    row, expected = ROWS[name]
    found = outlines(read_jsonl(write(folder, row)))
    assert len(found) == 1 and agree(found[0], expected), found
    (found,) = read_outlines(write(folder, row))
    assert agree(found, expected), found


NOT_TO_LEARN = {
    "B1 a rated row, bad": {"messages": [user("q"), says("bad")], "label": False},
    "B4 a rejected answer": {"messages": [user("q"), says("good")], "rejected_response": "bad"},
}


@pytest.mark.parametrize("name", NOT_TO_LEARN)
def test_an_answer_that_was_rejected_is_none_to_learn(folder, name):
    (found,) = outlines(read_jsonl(write(folder, NOT_TO_LEARN[name])))
    assert agree(found, "! row")
    (found,) = read_outlines(write(folder, NOT_TO_LEARN[name]))
    assert found in ("user: q // assistant: bad // false", "user: q // assistant: good // assistant: bad")


def test_a2_a_field_that_no_row_has_is_an_error_that_names_those_there(folder):
    path = write(folder, {"text": "q", "response": "a", "image": "red.png"})
    with pytest.raises(ValueError, match=r"'img'.*image, response, text"):
        read_jsonl(path, image_field="img")


def test_a11_alpaca_with_images(folder):
    (folder / "al.json").write_text(
        json.dumps([{"instruction": "q", "input": "", "output": "a", "images": ["red.png"]}])
    )
    assert outlines(read_alpaca(folder / "al.json")) == ["user: [red] q | assistant: a"]


def test_e3_the_reason_for_a_broken_data_uri_is_short(folder):
    (found,) = read_outlines(
        write(folder, {"text": "q", "response": "a", "image": "data:image/png;base64," + "A" * 40000})
    )
    assert found.startswith("!") and len(found) < 300


def test_e8_captions_take_the_callers_question(folder):
    path = write(folder, {"file_name": "red.png", "text": "A red one."})
    assert read_outlines(path, instruction="Describe.") == ["user: [red] Describe. | assistant: A red one."]
    with pytest.raises(ValueError, match="instruction="):
        read_outlines(path)


def test_e10_a_csv_with_other_column_names(folder):
    (folder / "q.csv").write_text("image,question,answer\nred.png,What?,red\n")
    assert outlines(read_csv(folder / "q.csv")) == ["user: [red] What? | assistant: red"]


def test_e11_a_long_cell(folder):
    (folder / "l.csv").write_text(f'image_path,instruction,description\nred.png,q,"{"x" * 140_000}"\n')
    assert outlines(read_csv(folder / "l.csv")) == [f"user: [red] q | assistant: {'x' * 140_000}"]


def test_e12_parquet_of_images_is_read_or_its_reader_named(folder):
    images = [{"bytes": (folder / "red.png").read_bytes(), "path": None}]
    table = Dataset.from_dict({"image": images, "text": ["A red one."]}).cast_column("image", Images())
    pq.write_table(table.data.table, folder / "hub.parquet")
    found = read_outlines(folder / "hub.parquet", instruction="Describe.")
    assert found == ["user: [red] Describe. | assistant: A red one."]
    with pytest.raises(ValueError, match="read_dataset"):
        read_jsonl(folder / "hub.parquet")


@pytest.mark.parametrize(
    ("text", "value"), [("1.299,00 €", 1299.0), ("12,50", 12.5), ("1 299 €", 1299.0), ("$1,299.50", 1299.5)]
)
def test_i1_prices_in_other_forms(text, value):
    assert first_number(text) == value


# What is kept can be collated


def turn(role, *content):
    return {"role": role, "content": [text_part(part) if isinstance(part, str) else part for part in content]}


SHAPES = {
    "D1 the assistant begins": ([turn("assistant", "Hi"), turn("user", "q"), turn("assistant", "a")], 0),
    "D2 an image in the system turn": ([turn("system", image_part()), turn("user", "q"), turn("assistant", "a")], 1),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_what_is_kept_is_collated(folder, tiny, name):
    messages, images = SHAPES[name]
    _, processor = tiny("qwen3-vl")
    rows = [{"messages": messages, "images": [str(folder / "red.png")] * images}]
    report = check_dataset(Dataset.from_list(rows, features=FEATURES), processor, progress=False)
    if report.counts["kept"]:
        assert (VisionCollator(processor)([report.dataset[0]])["labels"] >= 0).any()
    else:
        assert report.rejected[0]["reason"] and report.rejected[0]["remedy"]


WAYS = {
    "D3 images undecoded": lambda rows: rows.cast_column("images", List(Images(decode=False))),
    "D4 tensors": lambda rows: rows.with_format("torch"),
    "D4b arrays": lambda rows: rows.with_format("numpy"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", WAYS)
def test_rows_of_another_format_are_collated_as_the_others(folder, tiny, name):
    _, processor = tiny("qwen3-vl")
    rows = Dataset.from_list([make_row("q", "a", [str(folder / "red.png")])], features=FEATURES)
    other = WAYS[name](rows)
    assert check_dataset(other, processor, progress=False).counts["kept"] == 1
    collate = VisionCollator(processor)
    assert collate([other[0]])["input_ids"].tolist() == collate([rows[0]])["input_ids"].tolist()


# Guards of functions


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"do_sample": True, "num_return_sequences": 2}, {"return_dict_in_generate": True}])
def test_g1_generate_answers_or_names_the_option(tiny, options):
    model, processor = tiny("qwen3-vl")
    rows = Dataset.from_list([make_row("q", "a")], features=FEATURES)
    try:
        answers = generate(model, processor, rows, max_new_tokens=2, progress=False, **options)
    except ValueError as error:
        assert list(options)[-1] in str(error)
    else:
        assert len(answers) == 1


@pytest.mark.slow
def test_g2_generate_takes_a_list_of_rows(tiny):
    model, processor = tiny("qwen3-vl")
    assert len(generate(model, processor, [make_row("q", "a")], max_new_tokens=2, progress=False)) == 1


def test_g3_evaluate_without_references():
    rows = Dataset.from_list([{"messages": [turn("user", "q")], "images": []}], features=FEATURES)
    with pytest.raises(ValueError, match="answer|reference"):
        evaluate(["x"], rows)


def test_g4_split_with_an_integer_of_numpy():
    rows = Dataset.from_list([make_row(str(number), "a") for number in range(5)], features=FEATURES)
    assert sorted(map(len, split(rows, np.int64(2)).values())) == [2, 3]


@pytest.mark.slow
def test_h1_an_adapter_that_is_not_called_default_is_saved_like_any(tiny, tmp_path):
    from peft import LoraConfig, get_peft_model

    model, processor = tiny("qwen3-vl")
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=lora_targets(model)), adapter_name="mine")
    save_adapter(tuned, processor, tmp_path / "adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {
        file.name for file in (tmp_path / "adapter").iterdir()
    }
