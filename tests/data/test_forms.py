"""Files in the forms of other programs, written after their documentation: kept as they say, or rejected by name.

The files in forms/ are small samples of each; what has to be built (parquet, shards, folders) is built here. A line of
the tables is a row, see row_outlines.
"""

import io
import json
import shutil
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, List, Value
from row_outlines import agree, draw_images, outlines, read_outlines

from vlmhelpers.data import read_dataset
from vlmhelpers.data.rows import unused_fields

FORMS = Path(__file__).parent / "forms"


@pytest.fixture
def folder(tmp_path):
    """A folder with red.png and blue.png."""
    return draw_images(tmp_path)


def disagreements(found, expected):
    """The rows whose outlines are others than expected, for a message that shows both."""
    pairs = list(zip(found, expected, strict=False))
    wrong = [f"{got}\n   not: {want}" for got, want in pairs if not agree(got, want)]
    return wrong + [f"{len(found)} rows, not {len(expected)}: {found}"] * (len(found) != len(expected))


# file -> its rows
FILES = {
    "own_fields.jsonl": [
        "user: [red] What? | assistant: Red.",
        "user: [red] [blue] Which? | assistant: None.",
        "user: [blue] [red] Both? | assistant: Yes.",
        "user: Why? | assistant: So.",
        "system: Be short. | user: First? | assistant: This. | user: Then? | assistant: Now.",
        "user: [red] or [blue] ? | assistant: The first.",
    ],
    "own_messages.jsonl": [
        "user: [red] What? | assistant: Red.",
        "user: Which? [red] [blue] | assistant: None.",
        "system: Be short. | user: [blue] What is it? | assistant: Blue.",
        "user: [red] What now? | assistant: A red one.",
        "user: Skip? | assistant-: Bad. | user: And? | assistant: Good.",
    ],
    "openai.jsonl": [
        "system: You name colors. | user: I will show one. | user: [red] | assistant: Red.",
        "system: Be short. | user: What is it? [red] | assistant: A red one.",
        "user: And this? [blue] | assistant: Blue.",
        "user: One? | assistant-: Bad. | user: Two? | assistant: Good.",
        "user: No tools? | assistant: None.",
        "system: Be kind. | user: Named? | assistant: Yes.",
        "! tools",
        "! tool_calls",
        "! function_call",
        "! refusal",
        "! input_audio",
        "! file",
        "! https://images.example/red.png",
    ],
    "openai_dpo.jsonl": [
        "system: Be short. | user: What? // assistant: This. // assistant: That.",
        "user: [red] Which? // assistant: Red. // assistant: Blue.",
        "! tools",
    ],
    "openai_responses.jsonl": ["user: What? [red] | assistant: Red.", "! file_id"],
    "anthropic.jsonl": [
        "system: Be short. | user: [red] What? | assistant: Red.",
        "system: Be kind. | user: [blue] Which? | assistant: Blue.",
        "! file_id",
        "! tool_use",
        "! document",
    ],
    "bedrock.jsonl": ["system: Be short. | user: What? [red] | assistant: Red.", "! s3location"],
    "transformers.jsonl": [
        "user: [red] One? | assistant: Red.",
        "user: [blue] Two? | assistant: Blue.",
        "user: [red] Three? | assistant: Red.",
        "user: [blue] Four? | assistant: Blue.",
        "user: [red] Five? | assistant: Red.",
        "user: Six? [red] | assistant: Red.",
        "! video",
        "! audio",
    ],
    "trl_prompt_completion.jsonl": [
        "user: The sky is | assistant: blue.",
        "user: [red] What? | assistant: Red.",
        "user: [blue] Which? | assistant: Blue.",
    ],
    "trl_preference.jsonl": [
        "user: [red] What? // assistant: Red. // assistant: Blue.",
        "user: The sky is // assistant: blue. // assistant: green.",
        "user: Which? // assistant: This. // assistant: That.",
    ],
    "trl_unpaired.jsonl": [
        "user: [red] What? // assistant: Red. // true",
        "user: The sky is // assistant: green. // false",
    ],
    "trl_messages.jsonl": ["user: [red] What? | assistant: Red.", "! reasoning_content", "! tools"],
    "swift_messages.jsonl": [
        "system: Be short. | user: [red] [blue] Which? | assistant: None.",
        "user: [red] What? | assistant: Red.",
        "user: [blue] This? | assistant: Blue.",
        "user: [red] That? | assistant: Red.",
        "user: One? | assistant-: Bad. | user: Two? | assistant: Good.",
        "user: Three? | assistant: Fine.",
        "user: [red] Uri? | assistant: Red.",
        "! videos",
        "! audios",
        "! objects",
        "! tool",
        "! image",
        "! image",
        "! answer",
    ],
    "swift_query.jsonl": [
        "system: Be short. | user: First? | assistant: One. | user: [red] Second? | assistant: Two.",
        "system: Be kind. | user: Third? | assistant: Three.",
        "user: [blue] Fourth? | assistant: Four.",
        "user: Fifth? | assistant: Five.",
    ],
    "swift_dpo.jsonl": [
        "user: [red] What? // assistant: Red. // assistant: Blue.",
        "user: [red] Which? // assistant: Red. // assistant: Green.",
        "user: Why? // assistant: So. // assistant: No.",
        "! rejected",
    ],
    "swift_kto.jsonl": ["user: [red] What? // assistant: Red. // true", "user: Why? // assistant: No. // false"],
    "llama_factory_alpaca.json": [
        "user: [red] What? | assistant: Red.",
        "system: Be short. | user: First? | assistant: One. | user: [blue] Which? Look. | assistant: Blue.",
        "user: Why? Today. | assistant: So.",
        "! videos",
        "! audios",
    ],
    "llama_factory_sharegpt.json": [
        "system: Be short. | user: [red] What? | assistant: Red.",
        "user: Why? | assistant: So.",
        "! function_call",
        "! tools",
        "! videos",
        "user: [red] Where? | assistant: <image>",
    ],
    "llama_factory_ranking.json": [
        "user: [red] What? // assistant: Red. // assistant: Blue.",
        "user: Why? Today. // assistant: So. // assistant: No.",
    ],
    "llama_factory_kto.json": ["user: [red] What? // assistant: Red. // true", "user: Why? // assistant: No. // false"],
    "llama_factory_v1.jsonl": [
        "system: Be short. | user: [red] What? | assistant: Red.",
        "user: One? | assistant-: Bad. | user: Two? [blue] | assistant: Good.",
        "user: [red] Which? | assistant: Red.",
        "! video_url",
        "! tool_call",
        "! loss_weight 0.5",
    ],
    "llama_factory_v1_dpo.jsonl": ["user: [red] What? // assistant: Red. // assistant: Blue."],
    "llava.json": [
        "user: [red] What? | assistant: Red. | user: Sure? | assistant: Yes.",
        "user: Left: [red] Right: [blue] Which? | assistant: None.",
        "user: Why? | assistant: So.",
        "system: Be short. | user: Where? [blue] | assistant: Here.",
        "! bboxes",
        "! video",
    ],
    "sharegpt_pairs.jsonl": [
        "system: Be short. | user: One? | assistant: First. | user: Two? | assistant: Second.",
        "user: [red] What? | assistant: Red.",
        "system: Be kind. | user: Three? | assistant: Third. | user: Four? | assistant: Fourth.",
        "user: Five? | assistant: Fifth.",
    ],
    "phi3_cookbook.jsonl": [
        "user: [red] [blue] Which? | assistant: None.",
        "user: [red] What? | assistant: Red. | user: [blue] And now? | assistant: Blue.",
        "user: Why? | assistant: So.",
        "! answer",
    ],
    "gemini.jsonl": [
        "system: Be short. | user: [red] What? | assistant: Red.",
        "system: Be kind. | user: Which? [red] | assistant: Red.",
        "user: [blue] One? | assistant: Blue. | user: Two? [red] | assistant: Red.",
        "! gs://bucket/red.png",
        "! video/mp4",
        "! functionCall",
        "! tools",
    ],
    "minicpm_v.json": [
        "user: [red] What? | assistant: Red. | user: Sure? | assistant: Yes.",
        "user: First [red] then [blue] Which? | assistant: None.",
        "user: [blue] or [red] ? | assistant: The first.",
        "user: [blue] Where? | assistant: Here.",
        "! <image_0",
    ],
    "qwen_vl.json": [
        "user: Hello | assistant: I am here.",
        "user: Picture 1: [red] What? | assistant: Red. | user: Box it. | assistant: "
        "<ref>It</ref><box>(1,2),(3,4)</box>",
        "user: Picture 1: [red] Picture 2: [blue] Which? | assistant: None.",
    ],
    "internvl.jsonl": [
        "user: [red] What? | assistant: Red.",
        "user: Image-1: [red] Image-2: [blue] Which? | assistant: None.",
        "user: [blue] Find it. | assistant: <ref>it</ref><box>[[1, 2, 3, 4]]</box>",
        "! video",
    ],
    "axolotl.jsonl": [
        "! train of a user's turn",
        "system: Be short. | user: One? | assistant-: Bad. | user: Two? | assistant: Good.",
        "user: Three? | assistant-: Bad. | user: Four? | assistant: Good.",
        "user: Five? | assistant-: Bad. | user: Six? | assistant: Good.",
        "! train_detail",
        "user: [red] Eight? | assistant: Red.",
    ],
    "question_answer.csv": ["user: [red] What? | assistant: Red.", "user: [blue] Which? | assistant: Blue."],
    "excel.csv": ["user: [red] What? | assistant: Red."],
    "lists.csv": ["user: [red] [blue] Which? | assistant: None.", "! ['red.png', 'blue.png']", "! empty image path"],
}
# file without questions -> its rows, with the question that the caller gives
CAPTIONS = {
    "captions.csv": [
        "user: [red] Describe. | assistant: A red one.",
        "user: [blue] Describe. | assistant: A blue one.",
    ],
    "label_studio.json": [
        "user: [red] Describe. | assistant: A red one.",
        "user: [blue] Describe. | assistant: A blue one.",
        "user: [red] Describe. | assistant: red",
        "! was_cancelled",
        "! annotation",
        "! rectanglelabels",
        "! annotation",
    ],
    "label_studio_min.json": [
        "user: [red] Describe. | assistant: A red one.",
        "user: [blue] Describe. | assistant: A blue one.",
    ],
    "label_studio.csv": [
        "user: [red] Describe. | assistant: A red one.",
        "user: [blue] Describe. | assistant: A blue one.",
    ],
}
# file that holds nothing to learn from -> a word of the error
REFUSED = {
    "trl_prompt_only.jsonl": "response",
    "trl_text.jsonl": "response",
    "trl_stepwise.jsonl": "completions",
    "coco_captions.json": "object",
    "coco_boxes.json": "object",
}


def test_every_file_has_its_line_here():
    assert {path.name for path in FORMS.iterdir()} == {*FILES, *CAPTIONS, *REFUSED}


@pytest.mark.parametrize("name", FILES)
def test_a_file(folder, name):
    shutil.copy(FORMS / name, folder)
    assert not disagreements(read_outlines(folder / name), FILES[name])


def test_prompts_are_read_where_the_caller_wants_them(folder):
    shutil.copy(FORMS / "trl_prompt_only.jsonl", folder)
    found = read_outlines(folder / "trl_prompt_only.jsonl", kind="prompts")
    assert found == ["user: [red] What? // ", "user: The sky is // "]


@pytest.mark.parametrize("name", CAPTIONS)
def test_a_file_of_images_and_answers_takes_the_callers_question(folder, name):
    shutil.copy(FORMS / name, folder)
    assert not disagreements(read_outlines(folder / name, instruction="Describe."), CAPTIONS[name])


@pytest.mark.parametrize("name", sorted(CAPTIONS.keys() - {"label_studio.json"}))
def test_without_a_question_such_a_file_is_refused_with_the_remedy(folder, name):
    shutil.copy(FORMS / name, folder)
    with pytest.raises(ValueError, match="instruction="):
        read_dataset(folder / name)


def test_a_task_of_label_studio_may_have_a_question_of_its_own(folder):
    (task, *_) = json.loads((FORMS / "label_studio.json").read_text())
    task["data"]["question"] = "Which color?"
    (folder / "tasks.json").write_text(json.dumps([task]))
    assert read_outlines(folder / "tasks.json") == ["user: [red] Which color? | assistant: A red one."]


def caption(text, name="caption", kind="textarea"):
    return {"type": kind, "from_name": name, "to_name": "image", "value": {"text": [text]}}


@pytest.mark.parametrize(
    ("results", "right"),
    [
        ([caption("A dog."), caption("A cat.")], "user: [red] Describe. | assistant: A dog. A cat."),
        ([caption("A dog."), caption("", kind="brushlabels")], "! brushlabels"),
        ([caption("A dog.", name="image")], "! 'image'"),
        ([caption("A dog."), "x"], "! annotation"),
        ([{"type": "textarea", "value": ["x"]}], "! textarea"),
        ([{"type": ["x"], "value": {}}], "! annotation"),
        ({"x": 1}, "! response"),
    ],
)
def test_the_results_of_a_task_are_joined_or_named(folder, results, right):
    task = {"data": {"image": "red.png"}, "annotations": [{"result": results}]}
    (folder / "tasks.json").write_text(json.dumps([task]))
    (found,) = read_outlines(folder / "tasks.json", instruction="Describe.")
    assert agree(found, right), found


CHAT = [{"role": "user", "content": "What?"}]


@pytest.mark.parametrize(
    ("messages", "results", "right"),
    [
        (CHAT, [caption("A dog.")], "user: [red] What? | assistant: A dog."),
        (json.dumps(CHAT), [caption("A dog.")], "user: [red] What? | assistant: A dog."),
        ([{"from": "human", "value": "What?"}], [caption("A dog.")], "user: [red] What? | assistant: A dog."),
        (CHAT, [caption("Hm.", "note"), caption("A dog.", "answer")], "user: [red] What? | assistant: A dog."),
        (CHAT, [caption("Hm.", "note"), caption("A dog.", "said")], "! several answers note, said"),
        ([*CHAT, {"role": "assistant", "content": "A cat."}], [caption("A dog.")], "! messages in data caption"),
        ([*CHAT, {"role": "assistant", "content": "A cat."}], [], "user: [red] What? | assistant: A cat."),
        ([], [caption("A dog.")], "! messages in data caption"),
    ],
)
def test_a_conversation_in_a_task_is_answered_by_its_annotation(folder, messages, results, right):
    task = {"data": {"image": "red.png", "messages": messages}, "annotations": [{"result": results}]}
    (folder / "tasks.json").write_text(json.dumps([task]))
    (found,) = read_outlines(folder / "tasks.json")
    assert agree(found, right), found


def test_what_a_task_has_beside_its_question_and_answer_is_listed(folder):
    results = [caption("A dog."), caption("Blurred.", "comment")]
    data = {"image": "red.png", "hint": "It barks.", "nothing": None}
    (folder / "tasks.json").write_text(json.dumps([{"id": 1, "data": data, "annotations": [{"result": results}]}]))
    assert unused_fields(read_dataset(folder / "tasks.json", instruction="Describe.")) == ["comment", "hint", "id"]


@pytest.mark.parametrize("name", REFUSED)
def test_a_file_without_anything_to_learn_names_what_it_has(folder, name):
    shutil.copy(FORMS / name, folder)
    try:
        found = read_outlines(folder / name)
    except ValueError as error:
        found = [f"! {error}"]
    assert all(agree(line, f"! {REFUSED[name]}") for line in found) and found


# Parquet and data sets of the Hub

RED, BLUE = ("red.png", "blue.png")


def struct(folder, name, path=False):
    return {"bytes": (folder / name).read_bytes(), "path": name if path else None}


def parquet(folder, columns, schema=None):
    pq.write_table(pa.table(columns, schema=schema), folder / "rows.parquet")
    return folder / "rows.parquet"


def hub(folder, columns, features):
    Dataset.from_dict(columns, features=features).to_parquet(folder / "rows.parquet")
    return folder / "rows.parquet"


IMAGE_COLUMNS = {
    "struct": lambda f: [struct(f, RED), struct(f, BLUE, path=True)],
    "bytes": lambda f: [(f / RED).read_bytes(), (f / BLUE).read_bytes()],
    "lists of structs": lambda f: [[struct(f, RED)], [struct(f, BLUE)]],
    "lists of bytes": lambda f: [[(f / RED).read_bytes()], [(f / BLUE).read_bytes()]],
    "paths": lambda f: [RED, BLUE],
    "structs of paths": lambda f: [{"bytes": None, "path": RED}, {"bytes": None, "path": BLUE}],
}


@pytest.mark.parametrize("column", ["image", "images"])
@pytest.mark.parametrize("form", IMAGE_COLUMNS)
def test_parquet_with_images_of_every_form(folder, form, column):
    columns = {column: IMAGE_COLUMNS[form](folder), "question": ["What?", "Which?"], "answer": ["Red.", "Blue."]}
    found = read_outlines(parquet(folder, columns))
    assert found == ["user: [red] What? | assistant: Red.", "user: [blue] Which? | assistant: Blue."]


def as_parquet(folder, name):
    """A parquet file of the rows of a sample, where Arrow can hold them in one table."""
    text = (FORMS / name).read_text()
    rows = json.loads(text) if name.endswith(".json") else [json.loads(line) for line in text.splitlines()]
    columns = {key: [row.get(key) for row in rows] for key in dict.fromkeys(key for row in rows for key in row)}
    return parquet(folder, columns)


UNIFORM = ["llama_factory_alpaca.json", "llama_factory_sharegpt.json", "llama_factory_v1.jsonl"]
UNIFORM += ["phi3_cookbook.jsonl", "qwen_vl.json", "sharegpt_pairs.jsonl", "swift_kto.jsonl", "swift_query.jsonl"]
UNIFORM += ["bedrock.jsonl", "transformers.jsonl", "llama_factory_kto.json", "llama_factory_v1_dpo.jsonl"]


@pytest.mark.parametrize("name", UNIFORM)
def test_parquet_of_a_form_gives_the_same_rows_though_it_fills_in_nulls(folder, name):
    assert not disagreements(read_outlines(as_parquet(folder, name)), FILES[name])


def cauldron(folder, more=()):
    turns = [
        {"user": "What?", "assistant": "Red.", "source": "a"},
        {"user": "Sure?", "assistant": "Yes.", "source": "a"},
    ]
    columns = {"images": [[struct(folder, RED)]], "texts": [turns]}
    text = {"user": Value("string"), "assistant": Value("string"), "source": Value("string")}
    return hub(folder, columns | dict(more), Features({"images": List(Image()), "texts": List(text)}))


def test_the_cauldron(folder):
    assert read_outlines(cauldron(folder)) == ["user: [red] What? | assistant: Red. | user: Sure? | assistant: Yes."]


def test_finevision(folder):
    columns = {
        "images": [[struct(folder, RED), struct(folder, BLUE)]],
        "texts": [[{"user": "Which?", "assistant": "None."}]],
        "source": ["made up"],
        "relevance_ratings": [[4]],
        "relevance_min": [4],
    }
    dataset = read_dataset(parquet(folder, columns))
    assert outlines(dataset) == ["user: [red] [blue] Which? | assistant: None."]
    assert "relevance_ratings" in dataset.info.description and "source" in dataset.info.description


def test_parts_with_an_index(folder):
    part = {"type": Value("string"), "text": Value("string"), "index": Value("int64")}
    features = Features({"messages": List({"role": Value("string"), "content": List(part)}), "images": List(Image())})
    question = [
        {"type": "text", "text": "Which?", "index": None},
        {"type": "image", "text": None, "index": 1},
        {"type": "image", "text": None, "index": 0},
    ]
    answer = [{"type": "text", "text": "None.", "index": None}]
    messages = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}]]
    columns = {"messages": messages, "images": [[struct(folder, RED), struct(folder, BLUE)]]}
    assert read_outlines(hub(folder, columns, features)) == ["user: Which? [blue] [red] | assistant: None."]


def test_images_inside_the_parts_of_messages(folder):
    messages = [
        {
            "role": "user",
            "content": [{"type": "image", "image": struct(folder, RED)}, {"type": "text", "text": "What?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "Red."}]},
    ]
    assert read_outlines(parquet(folder, {"messages": [messages]})) == ["user: [red] What? | assistant: Red."]


def test_llava_as_the_hub_has_it(folder):
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "Red."}]
    columns = {"id": ["1"], "image": [struct(folder, RED)], "conversations": [turns], "data_source": ["x"]}
    assert read_outlines(parquet(folder, columns)) == ["user: [red] What? | assistant: Red."]


def test_visual_question_answering_takes_the_answer_that_most_gave(folder):
    answers = [
        {"answer": "blue", "answer_confidence": "no", "answer_id": 1},
        {"answer": "red", "answer_confidence": "yes", "answer_id": 2},
    ]
    columns = {
        "question_type": ["what"], "multiple_choice_answer": ["red"], "answers": [answers], "image_id": [5],
        "answer_type": ["other"], "question_id": [50], "question": ["What?"], "image": [struct(folder, RED)],
    }  # fmt: skip
    assert read_outlines(parquet(folder, columns)) == ["user: [red] What? | assistant: red"]


def test_several_accepted_answers_leave_a_note_and_none_is_a_problem(folder):
    columns = {
        "questionId": ["1", "2"], "question": ["What?", "Which?"], "docId": [1, 2],
        "image": [struct(folder, RED), struct(folder, BLUE)], "answers": [["red", "a red one"], None],
    }  # fmt: skip
    dataset = read_dataset(parquet(folder, columns))
    first, second = outlines(dataset)
    assert first == "user: [red] What? | assistant: red" and dataset[0]["note"]
    assert agree(second, "! answer")


def test_captions_and_classes_take_the_callers_question(folder):
    images = [struct(folder, RED), struct(folder, BLUE)]
    path = hub(
        folder,
        {"image": images, "text": ["A red one.", "A blue one."]},
        Features({"image": Image(), "text": Value("string")}),
    )
    assert read_outlines(path, instruction="Describe.") == [
        "user: [red] Describe. | assistant: A red one.",
        "user: [blue] Describe. | assistant: A blue one.",
    ]
    classes = Features({"image": Image(), "label": ClassLabel(names=["red", "blue"])})
    assert read_outlines(hub(folder, {"image": images, "label": [0, 1]}, classes), instruction="Which color?") == [
        "user: [red] Which color? | assistant: red",
        "user: [blue] Which color? | assistant: blue",
    ]


@pytest.mark.parametrize("kind", ["dataset", "splits", "saved", "folder of parquet"])
def test_data_sets_and_their_folders(folder, kind):
    features = Features({"image": Image(), "question": Value("string"), "answer": Value("string")})
    columns = {"image": [struct(folder, RED)], "question": ["What?"], "answer": ["Red."]}
    dataset = Dataset.from_dict(columns, features=features)
    (folder / "data").mkdir()
    if kind == "saved":
        dataset.save_to_disk(folder / "saved")
    elif kind == "folder of parquet":
        dataset.to_parquet(folder / "data" / "train-00000-of-00001.parquet")
    sources = {"dataset": dataset, "splits": {"train": dataset}, "saved": folder / "saved"}
    source = sources.get(kind, folder / "data")
    assert read_outlines(source) == ["user: [red] What? | assistant: Red."]


# Folders of images, and shards


def imagefolder(folder, ending, rows):
    place = folder / "set"
    place.mkdir()
    for name in (RED, BLUE):
        shutil.copy(folder / name, place)
    if ending == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), place / "metadata.parquet")
    elif ending == "jsonl":
        (place / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        lines = [",".join(rows[0]), *(",".join(row.values()) for row in rows)]
        (place / "metadata.csv").write_text("\n".join(lines) + "\n")
    return place


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_an_imagefolder(folder, ending):
    rows = [{"file_name": RED, "text": "A red one."}, {"file_name": BLUE, "text": "A blue one."}]
    assert read_outlines(imagefolder(folder, ending, rows), instruction="Describe.") == [
        "user: [red] Describe. | assistant: A red one.",
        "user: [blue] Describe. | assistant: A blue one.",
    ]


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_an_imagefolder_of_several_images_a_row(folder, ending):
    rows = [{"file_names": [RED, BLUE], "question": "Which?", "answer": "None."}]
    assert read_outlines(imagefolder(folder, ending, rows)) == ["user: [red] [blue] Which? | assistant: None."]


def test_an_imagefolder_whose_images_have_names_of_their_own(folder):
    rows = [{"before_file_name": RED, "after_file_name": BLUE, "question": "What changed?", "answer": "The color."}]
    found = read_outlines(imagefolder(folder, "jsonl", rows))
    assert agree(found[0], "user: [red] [blue] What changed? | assistant: The color.") or agree(
        found[0], "! _file_name"
    )


def test_an_imagefolder_says_which_image_is_missing(folder):
    rows = [{"file_name": RED, "text": "A red one."}, {"file_name": "gone.png", "text": "A gone one."}]
    first, second = read_outlines(imagefolder(folder, "jsonl", rows), instruction="Describe.")
    assert first.startswith("user: [red]") and agree(second, "! gone.png")


def test_a_folder_of_images_alone_is_an_error_that_says_what_is_missing(folder):
    with pytest.raises(FileNotFoundError, match="metadata"):
        read_dataset(folder / "images")


def shard(folder, members, name="0000.tar"):
    with tarfile.open(folder / name, "w:gz" if name.endswith("gz") else "w") as tar:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return folder / name


@pytest.mark.parametrize("name", ["0000.tar", "0000.tar.gz"])
def test_a_shard_of_images_and_captions(folder, name):
    red, blue = ((folder / name).read_bytes() for name in (RED, BLUE))
    members = {"a/1.png": red, "a/1.txt": b"A red one.", "b/1.PNG": blue, "b/1.txt": b"A blue one.", "b/2.png": red}
    first, second, third = read_outlines(shard(folder, members, name), instruction="Describe.")
    assert first == "user: [red] Describe. | assistant: A red one."
    assert second == "user: [blue] Describe. | assistant: A blue one."
    assert third.startswith("!")


def test_a_shard_with_fields_in_json(folder):
    red, blue = ((folder / name).read_bytes() for name in (RED, BLUE))
    one = json.dumps({"question": "What?", "answer": "Red.", "width": 64}).encode()
    turns = [{"role": "user", "content": "<image><image>Which?"}, {"role": "assistant", "content": "None."}]
    two = json.dumps({"messages": turns}).encode()
    members = {"1.png": red, "1.json": one, "2.0.png": red, "2.1.png": blue, "2.json": two}
    assert read_outlines(shard(folder, members)) == [
        "user: [red] What? | assistant: Red.",
        "user: [red] [blue] Which? | assistant: None.",
    ]


def test_a_shard_with_classes(folder):
    members = {"1.png": (folder / RED).read_bytes(), "1.cls": b"3"}
    assert read_outlines(shard(folder, members), instruction="Which?") == ["user: [red] Which? | assistant: 3"]


def test_the_rendered_text_of_alpaca_is_no_second_question(folder):
    row = {"instruction": "Name a color.", "input": "", "output": "Red.", "text": "### Name a color.\n### Red."}
    (folder / "alpaca.jsonl").write_text(json.dumps(row))
    assert read_outlines(folder / "alpaca.jsonl") == ["user: Name a color. | assistant: Red."]
    (folder / "other.jsonl").write_text(json.dumps(row | {"text": "Name another."}))
    assert agree(read_outlines(folder / "other.jsonl")[0], "! several fields")
