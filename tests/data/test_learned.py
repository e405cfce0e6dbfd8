"""What says that an answer is not to be learned: verdicts, rejected answers and weights, wherever a row has them."""

import csv
import json

import pytest
from datasets import Dataset
from row_outlines import agree, draw_images, outlines, read_outlines

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data import read_dataset, read_jsonl, read_preferences, read_stream, to_rows, write_jsonl
from vlmhelpers.data.schema import FEATURES, make_row

M = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]}
KEPT, PAIR, SIDES = (
    "user: q | assistant: a",
    "user: q // assistant: a // assistant: b",
    {"chosen": "a", "rejected": "b"},
)
ASKED = {"prompt": "q"}
FIELDS = {"instruction": "q", "output": "a"}


def turns(question=None, answer=None):
    """Messages whose question and answer have more than their content."""
    asked, answered = M["messages"]
    return {"messages": [asked | (question or {}), answered | (answer or {})]}


def share(answer=None, **more):
    said = {"from": "gpt", "value": "a"} | (answer or {})
    return {"conversations": [{"from": "human", "value": "q"}, said]} | more


def part(**more):
    return {"type": "text", "text": "a"} | more


ROWS = {  # row -> what is right where it stands alone, and after a plain one
    # verdicts
    "kto_tag of 0": (FIELDS | {"kto_tag": 0}, ["user: q // assistant: a // false", "! kto_tag"]),
    "kto_tag of 1": (FIELDS | {"kto_tag": "1"}, ["user: q // assistant: a // true", "! kto_tag"]),
    "kto_tag of a conversation": (share(kto_tag=0), ["user: q // assistant: a // false", "! kto_tag"]),
    "kto_tag of a turn": (share({"kto_tag": 0}), ["! kto_tag"]),
    "KTO_tag": (M | {"KTO_tag": False}, ["! KTO_tag"]),
    "Label": (FIELDS | {"Label": False}, ["! Label"]),
    "a label of 0 by a completion": (
        {"prompt": "q", "completion": "a", "label": 0},
        ["user: q // assistant: a // false", "! label"],
    ),
    "a label of no": (
        {"prompt": "q", "completion": "a", "label": "no"},
        ["user: q // assistant: a // false", "! label"],
    ),
    "a class by a completion": ({"prompt": "q", "completion": "a", "label": "cat"}, [KEPT]),
    "a class of 0 by messages": (M | {"label": 0}, [KEPT]),
    "a class of a turn": (turns(answer={"label": "cat"}), [KEPT]),
    "a label of a turn": (turns(answer={"label": False}), ["! label"]),
    "a label of a part": (turns(answer={"content": [part(label=False)]}), ["! label"]),
    # rejected answers
    "rejected by a response": ({"prompt": "q", "response": "a", "rejected": "b"}, [PAIR, "! rejected"]),
    "rejected by messages": (M | {"rejected": "b"}, [PAIR, "! rejected"]),
    "rejected of LLaMA-Factory": (share(rejected={"from": "gpt", "value": "b"}), [PAIR, "! rejected"]),
    "rejected by an answer": (ASKED | {"answer": "a", "rejected": "b"}, ["! rejected", "! chosen"]),
    "rejected by a number": (
        {"text": "q", "response": 1, "rejected": 0},
        ["user: q // assistant: 1 // assistant: 0", "! rejected"],
    ),
    "Rejected": ({"prompt": "q", "response": "a", "Rejected": "b"}, ["! Rejected"]),
    "rejectedResponse": (M | {"rejectedResponse": "b"}, ["! rejectedResponse"]),
    "rejected answers": (M | {"rejected_answers": ["b"]}, ["! rejected_answers"]),
    "rejected of a turn": (turns(answer={"rejected": "b"}), ["! rejected"]),
    "two rejected that differ": (
        ASKED | SIDES | {"rejected_response": "c"},
        ["! rejected, rejected_response", "! preference row"],
    ),
    "two rejected of one text": (
        ASKED | SIDES | {"rejected_messages": [{"role": "assistant", "content": "b"}]},
        [PAIR, "! preference row"],
    ),
    "rejected of nothing": (FIELDS | {"rejected": "", "rejected_response": None, "kto_tag": None}, [KEPT]),
    "an answer of its own": (M | {"rejected_by": "x", "rejected_score": 1}, [KEPT]),
    "response_rejected": (M | {"response_rejected": "b"}, ["! response_rejected"]),
    "a verdict on a pair": (ASKED | SIDES | {"kto_tag": 0}, ["! kto_tag", "! preference row"]),
    # weights of rows
    "a weight of a pair": (ASKED | SIDES | {"weight": 0}, ["! weight", "! preference row"]),
    "a weight of a rated row": (ASKED | {"completion": "a", "label": True, "train": False}, ["! train", "! rated row"]),
    "a weight of a prompt": (ASKED | {"solution": "a", "loss": 0}, ["! loss", "! response"]),
    "a half weight of a pair": (ASKED | SIDES | {"loss_weight": 0.5}, ["! loss_weight", "! preference row"]),
    "a whole weight of a pair": (ASKED | SIDES | {"weight": 1}, [PAIR, "! preference row"]),
    "a weight of OpenAI's pair": (
        {
            "input": {"messages": M["messages"][:1]},
            "preferred_output": [{"role": "assistant", "content": "a"}],
            "non_preferred_output": [{"role": "assistant", "content": "b"}],
            "weight": 0,
        },
        ["! weight", "! preference row"],
    ),
    "weights in a list": (M | {"weight": [0, 1]}, ["! weight 0, 1"]),
    "losses in a list": (M | {"loss": [0, 1]}, ["! loss 0, 1"]),
    "losses as JSON": (M | {"loss": "[false, true]"}, ["! loss false, true"]),
    "whole weights in a list": (M | {"weight": [1, 1]}, [KEPT]),
    "weights of things": (M | {"weight": [70.5, 80], "train": ["a", "b"]}, [KEPT]),
    "Weight": (M | {"Weight": 0}, ["! Weight"]),
    "lossWeight": (M | {"lossWeight": 0.5}, ["! lossWeight"]),
    "train of no": (M | {"train": "no"}, ["! train"]),
    "loss_mask": (M | {"loss_mask": [0, 1]}, ["! loss_mask"]),
    "loss_mask of a turn": (turns(answer={"loss_mask": 0}), ["! learned"]),
    "train of yes": (M | {"train": "yes"}, [KEPT]),
    # weights of turns and parts
    "train of no of a turn": (turns(answer={"train": "no"}), ["! train"]),
    "Train of a turn": (turns(answer={"Train": False}), ["! learned"]),
    "a part that is not learned": (turns(answer={"content": [part(train=False)]}), ["! learned"]),
    "a part of weight 0": (turns(answer={"content": [part(weight=0), part()]}), ["! part"]),
    "a part of loss false": (share({"value": [part(), part(loss=False)]}), ["! part"]),
    "a part that is learned": (turns(answer={"content": [part(train=True)]}), [KEPT]),
    "a part of a question": (turns({"content": [part(text="q", train=False)]}), [KEPT]),
    # other names of system and history
    "system_message": (M | {"system_message": "s"}, ["system: s | " + KEPT]),
    "systemPrompt": (FIELDS | {"systemPrompt": "s"}, ["system: s | " + KEPT]),
    "system twice": (FIELDS | {"systemPrompt": "s", "system": "s"}, ["system: s | " + KEPT]),
    "two system texts": (FIELDS | {"systemPrompt": "s", "system": "t"}, ["! systemPrompt system"]),
    "chat_history": (FIELDS | {"chat_history": [["h", "i"]]}, ["user: h | assistant: i | " + KEPT]),
    "chat_history of messages": (M | {"chatHistory": M["messages"]}, [f"{KEPT} | {KEPT}"]),
    "dialog_history": (
        FIELDS | {"dialog_history": [{"user": "h", "assistant": "i"}]},
        ["user: h | assistant: i | " + KEPT],
    ),
    "chat_history of a text": (FIELDS | {"chat_history": "h"}, ["! chat_history"]),
    "history of a pair": (
        ASKED | SIDES | {"history": M["messages"]},
        [f"{KEPT} | {PAIR}", "! preference row"],
    ),
}  # fmt: skip


def write(folder, *rows):
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder / "rows.jsonl"


@pytest.mark.parametrize("name", ROWS)
def test_a_row(tmp_path, name):
    row, right = ROWS[name]
    (found,) = read_outlines(write(tmp_path, row))
    assert any(agree(found, line) for line in right), found


@pytest.mark.parametrize("name", ROWS)
def test_such_a_row_among_rows_of_answers(tmp_path, name):
    row, right = ROWS[name]
    plain = {"messages": [{"role": "user", "content": "r"}, {"role": "assistant", "content": "c"}]}
    first, found = read_outlines(write(tmp_path, plain, row))
    assert first == "user: r | assistant: c" and any(agree(found, line) for line in right), found


@pytest.mark.parametrize("name", ROWS)
def test_such_a_row_of_a_table(tmp_path, name):
    row, right = ROWS[name]
    with open(tmp_path / "rows.csv", "w", newline="") as file:
        table = csv.DictWriter(file, row)
        table.writeheader()
        table.writerow({key: value if isinstance(value, str) else json.dumps(value) for key, value in row.items()})
    (found,) = read_outlines(tmp_path / "rows.csv")
    assert any(agree(found, line) for line in right), found


UNLEARNED = [name for name, (_, right) in ROWS.items() if right[-1].startswith("!")]


@pytest.mark.parametrize("name", UNLEARNED)
def test_no_such_row_is_learned_by_the_reader_of_answers_or_a_stream(tmp_path, name):
    path = write(tmp_path, ROWS[name][0], M)
    assert [line.startswith("!") for line in outlines(read_jsonl(path))] == [True, False]
    stream = read_stream(path)
    assert [row["row"] for row in stream] == [2] and len(stream.left_out) == 1


@pytest.mark.parametrize(
    "row", [M | {"label": False}, M | {"weight": 0}, M | {"rejected_response": "b"}, M | {"videos": ["x.mp4"]}]
)
def test_a_row_with_a_problem_is_not_written_as_a_sound_one(tmp_path, row):
    dataset = read_jsonl(write(tmp_path, M, row))
    reason = dataset["problem"][1].partition("\n")[0]
    with pytest.raises(ValueError, match="row 2: .*Remedy: .*check_dataset") as error:
        write_jsonl(dataset, tmp_path / "out.jsonl")
    assert next(iter(row.keys() - M.keys())) in str(error.value) and reason[:20] in str(error.value)
    write_jsonl(check_dataset(dataset, progress=False).dataset, tmp_path / "out.jsonl")
    assert read_outlines(tmp_path / "out.jsonl") == [KEPT]


@pytest.mark.parametrize("kind", ["pairs", "rated", "prompts"])
def test_rows_of_another_kind_are_not_written_and_the_remedy_works(tmp_path, kind):
    row = {"pairs": SIDES, "rated": {"completion": "a", "label": True}, "prompts": {"answer": "a"}}[kind]
    dataset = read_dataset(write(tmp_path, ASKED | row))
    with pytest.raises(ValueError, match=f"rows are {kind}.*to_rows"):
        write_jsonl(dataset, tmp_path / "out.jsonl")
    write_jsonl(to_rows(dataset), tmp_path / "out.jsonl")
    assert read_outlines(tmp_path / "out.jsonl") == [KEPT]


def test_an_image_of_the_history_of_a_pair_stays_there(tmp_path):
    folder = draw_images(tmp_path)
    pair = ASKED | SIDES | {"images": ["red.png"], "history": [["<image>h", "i"]]}
    shown = {"role": "user", "content": [{"type": "image", "image": "red.png"}, {"type": "text", "text": "h"}]}
    of_messages = ASKED | SIDES | {"history": [shown, {"role": "assistant", "content": "i"}]}
    right = f"user: [red] h | assistant: i | {PAIR}"
    for row in (pair, of_messages):
        assert read_outlines(write(folder, row)) == [right]


def test_the_remedy_of_a_row_names_its_field(tmp_path):
    path = write(tmp_path, {"prompt": "q", "response": "a", "Rejected": "b"})
    assert "read_preferences(..., rejected_field='Rejected')" in read_jsonl(path)["problem"][0]
    assert outlines(read_preferences(path, rejected_field="Rejected")) == [PAIR]


def test_only_what_is_not_read_of_a_pair_is_named_as_unused(tmp_path):
    folder = draw_images(tmp_path)
    sides = {"preferred_output": M["messages"][1:], "non_preferred_output": [{"role": "assistant", "content": "b"}]}
    openai = {"input": {"messages": M["messages"][:1], "metadata": "x"}, "id": 1} | sides
    assert check_dataset(read_dataset(write(folder, openai)), progress=False).unused == ["id", "metadata (in input)"]
    text = json.dumps({"question": "q", "note": "x"} | SIDES)
    dataset = read_dataset(write(folder, {"image_path": "red.png", "text": text, "idx": 1}))
    assert check_dataset(dataset, progress=False).unused == ["idx", "note (in text)"]


def test_a_stream_names_what_it_does_not_use_once(tmp_path, capsys):
    stream = read_stream(write(tmp_path, M | {"id": 1}, M | {"id": 2, "origin": "x"}, turns(answer={"name": "y"})))
    assert len(list(stream)) == 3 and stream.unused == {"id", "origin", "name (in messages)"}
    assert capsys.readouterr().out.count("id") == 1


@pytest.mark.parametrize(
    ("more", "right"),
    [
        ({"label": [None, False]}, "label"),
        ({"kto_tag": [None, 0]}, "kto_tag"),
        ({"weight": [1, 0]}, "weight"),
        ({"rejected": [None, "b"]}, "rejected"),
        ({"label": [0, 1], "weight": [70.5, 1], "rejected_by": ["x", "y"]}, None),
        ({"chosen": ["c", "c"], "rejected": ["b", "b"]}, None),
    ],
)
def test_a_dataset_that_no_reader_has_made_is_refused_where_an_answer_is_not_to_be_learned(more, right):
    dataset = Dataset.from_list([make_row("q", "a")] * 2, features=FEATURES)
    for name, values in more.items():
        dataset = dataset.add_column(name, values)
    if right is None:
        assert check_dataset(dataset, progress=False).unused == sorted(more)
    else:
        with pytest.raises(ValueError, match=f"row 2: .*{right}.*leave such rows out"):
            check_dataset(dataset, progress=False)
