"""Runs written for other programs, and read back: every method and every form of weights, exact values, odd rows."""

import json
from dataclasses import asdict, replace

import pytest
import yaml
from datasets import Dataset
from PIL import Image

from vlmhelpers.data.readers.recognition import read_rows
from vlmhelpers.data.rules import row_problems
from vlmhelpers.data.schema import (
    FEATURES,
    PAIR_FEATURES,
    assistant,
    image_part,
    make_pair,
    make_row,
    text_part,
    user,
    with_train,
)
from vlmhelpers.families import tiny_model
from vlmhelpers.interchange import from_llama_factory, from_swift, to_llama_factory, to_swift
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS

FAMILY = "qwen2.5-vl"
WRITE = {"LLaMA-Factory": to_llama_factory, "ms-swift": to_swift}
READ = {"LLaMA-Factory": from_llama_factory, "ms-swift": from_swift}
FORMS = {
    "lora": {"lora_dropout": 0.1, "vision": True},
    "qlora": {"bits": 4},
    "full": {"weights": "full"},
    "freeze": {"weights": "freeze", "last_layers": 2},
}
OF_METHOD = {
    "sft": {"lr_scheduler_type": "linear", "max_pixels": 48**2},
    "dpo": {"loss": "hinge", "beta": 0.3},
    "kto": {"beta": 0.2},
    "orpo": {},
    "simpo": {"simpo_gamma": 0.7, "nll_coef": 0.5},
    "reward": {},
}
CASES = [("sft", form) for form in FORMS] + [(method, "lora") for method in OF_METHOD if method != "sft"]
ONLY_SWIFT = [
    ("cpo", {"nll_coef": 0.5}),
    ("reward", {"center_rewards_coefficient": 0.01}),
    ("dpo", {"loss": "ipo+sft"}),
]


def config_of(tmp_path, method="sft", **changes):
    usual = {"bits": 16, "max_steps": 3, "batch_size": 2, "max_length": 512}
    return RunConfig(FAMILY, "rows.jsonl", str(tmp_path / "run"), method, **usual | changes)


@pytest.fixture
def written(rows, tmp_path):
    """Writes a run and gives the folder, the keys of its YAML and the settings."""

    def write(program, method="sft", dataset=None, **changes):
        config = config_of(tmp_path, method, **changes)
        dataset = dataset or rows[METHODS[method].rows]
        path = WRITE[program](dataset, tmp_path / "files", config, "mine")
        return path.parent, yaml.safe_load(path.read_text(encoding="utf-8")), config

    return write


# There and back


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
@pytest.mark.parametrize(("method", "form"), CASES)
def test_a_run_comes_back_as_it_went(program, method, form, written):
    folder, _, config = written(program, method, **{"bits": 16} | OF_METHOD[method] | FORMS[form])
    imported = READ[program](folder / "mine.yaml")
    found, expected = asdict(imported.config), asdict(config)
    changed = {name for name, value in expected.items() if value is not None and found[name] != value}
    assert changed == {"model_id", "dataset"}
    assert found["model_id"] == str(tiny_model(FAMILY))
    assert imported.unmapped.keys() == {"template"}
    again = WRITE[program](read_rows(found["dataset"], METHODS[method].rows), folder / "again", imported.config, "mine")
    first, second = ((path / "mine.yaml").read_text() for path in (folder, again.parent))
    assert second.replace(str(again.parent), str(folder)) == first


@pytest.mark.slow
@pytest.mark.parametrize(("method", "settings"), ONLY_SWIFT, ids=str)
def test_what_one_program_has_alone(method, settings, written):
    if method != "dpo":
        with pytest.raises(ValueError, match=r"LLaMA-Factory has no method 'cpo'|center_rewards_coefficient: LLaMA"):
            written("LLaMA-Factory", method, **settings)
    folder, _, _ = written("ms-swift", method, **settings)
    found = asdict(from_swift(folder / "mine.yaml").config)
    assert {name: found[name] for name in settings} == settings and found["method"] == method


# What is in the files


@pytest.mark.slow
def test_the_files_of_llama_factory_are_those_that_it_was_run_with(written):
    folder, keys, _ = written("LLaMA-Factory", "dpo", seed=7, vision=True)
    expected = {
        "model_name_or_path": str(tiny_model(FAMILY)),
        "template": "qwen2_vl",
        "stage": "dpo",
        "finetuning_type": "lora",
        "lora_target": "all",
        "freeze_vision_tower": False,
        "freeze_multi_modal_projector": False,
        "dataset": "mine",
        "dataset_dir": str(folder),
        "media_dir": str(folder),
        "cutoff_len": 512,
        "pref_loss": "sigmoid",
        "pref_ftx": 1.0,
        "pref_beta": 0.1,
        "per_device_train_batch_size": 2,
        "max_steps": 3,
        "seed": 7,
        "trust_remote_code": False,
    }
    assert expected.items() <= keys.items()
    info = json.loads((folder / "dataset_info.json").read_text())["mine"]
    assert info["file_name"] == "mine.jsonl" and info["formatting"] == "sharegpt" and info["ranking"] is True
    assert set(info["columns"]) == {"messages", "images", "chosen", "rejected"}
    first = json.loads((folder / "mine.jsonl").read_text().splitlines()[0])
    assert first["messages"] == [{"role": "user", "content": "<image>Describe this product."}]
    assert first["chosen"]["role"] == "assistant" and first["chosen"] != first["rejected"]
    with Image.open(folder / first["images"][0]) as image:
        assert image.size == (48, 48)


@pytest.mark.slow
def test_the_files_of_swift_are_those_that_it_was_run_with(written):
    folder, keys, _ = written("ms-swift", "dpo", lora_dropout=0.1)
    expected = {
        "model_type": "qwen2_5_vl",
        "template": "qwen2_5_vl",
        "rlhf_type": "dpo",
        "loss_type": ["sigmoid", "sft"],
        "loss_weights": [1.0, 1.0],
        "lora_dropout": 0.1,
        "add_version": False,
        "strict": True,
        "weight_decay": 0.0,
        "dataset": [str(folder / "mine.jsonl")],
        "ENV": {"ROOT_IMAGE_DIR": str(folder)},
    }
    assert expected.items() <= keys.items()
    first = json.loads((folder / "mine.jsonl").read_text().splitlines()[0])
    assert first["messages"][-1]["role"] == "assistant" and first["rejected_response"]
    assert (folder / first["images"][0]).is_file()


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
def test_the_readers_here_read_the_rows_as_they_were(program, written, rows):
    for method in ("sft", "dpo", "kto"):
        kind = METHODS[method].rows
        folder, _, _ = written(program, method)
        back = read_rows(folder / "mine.jsonl", kind)
        names = [name for name in rows[kind].features if name not in ("images", "row", "note", "problem")]
        names = [name for name in names if name in back.features and name in ("messages", "prompt", "chosen", "label")]
        assert back.select_columns(names).to_list() == rows[kind].select_columns(names).to_list()
        assert not any(map(row_problems, back))


@pytest.mark.slow
def test_other_data_sets_stay_in_dataset_info(written, tmp_path):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "dataset_info.json").write_text('{"theirs": {"file_name": "theirs.json"}}')
    folder, _, _ = written("LLaMA-Factory")
    assert json.loads((folder / "dataset_info.json").read_text()).keys() == {"theirs", "mine"}
    (folder / "dataset_info.json").write_text("[1")
    with pytest.raises(ValueError, match=r"dataset_info.json is no JSON: .* Mend it"):
        written("LLaMA-Factory")


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
def test_held_out_rows_have_files_of_their_own(program, written, capsys):
    settings = {"test_rows": 1, "validation_rows": 2, "eval_steps": 2, "early_stopping_patience": 3}
    folder, keys, _ = written(program, **settings)
    lines = {path.stem: len(path.read_text().splitlines()) for path in folder.glob("*.jsonl")}
    assert lines == {"mine": 5, "mine_validation": 2, "mine_test": 1}
    assert keys["eval_strategy"] == "steps" and keys["eval_steps"] == keys["save_steps"] == 2
    assert "1 rows are held out in mine_test.jsonl" in capsys.readouterr().out
    imported = READ[program](folder / "mine.yaml")
    named = {"eval_dataset", "val_dataset", "eval_steps"} & imported.unmapped.keys()
    assert len(named) == 2 and imported.config.validation_rows == 0


# Odd rows


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
def test_a_literal_mark_in_a_text_is_no_image(program, written, capsys):
    image = Image.new("RGB", (48, 48), "red")
    row = make_row("What does <image> mean, and <|im_end|>?", "A mark: <video>.", [image])
    folder, _, _ = written(program, dataset=Dataset.from_list([row] * 4, features=FEATURES))
    texts = [turn["content"] for turn in json.loads((folder / "mine.jsonl").read_text().splitlines()[0])["messages"]]
    assert texts == ["<image>What does < image> mean, and < |im_end|>?", "A mark: < video>."]
    assert "mark such as <image>" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
def test_images_stand_where_their_parts_do_and_one_file_serves_all_rows(program, written):
    first, second = (Image.new("RGB", (48, 48), color) for color in ("red", "blue"))
    parts = [text_part("Compare "), image_part(), text_part(" with "), image_part(), text_part(".")]
    row = {"messages": [{"role": "user", "content": parts}, assistant("They differ.")], "images": [first, second]}
    folder, _, _ = written(program, dataset=Dataset.from_list([row] * 4, features=FEATURES))
    lines = [json.loads(line) for line in (folder / "mine.jsonl").read_text().splitlines()]
    assert lines[0]["messages"][0]["content"] == "Compare <image> with <image>."
    assert len({path for line in lines for path in line["images"]}) == 2 == len(list((folder / "images").iterdir()))


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
def test_rows_without_images_have_no_column_of_them(program, written):
    folder, _, _ = written(program, dataset=Dataset.from_list([make_row("One?", "Two.")] * 4, features=FEATURES))
    assert "images" not in json.loads((folder / "mine.jsonl").read_text().splitlines()[0])
    assert not (folder / "images").exists()


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
def test_a_large_image_is_written_as_the_model_gets_it(program, written):
    image = Image.new("RGB", (300, 300), "green")
    dataset = Dataset.from_list([make_row("What?", "Green.", [image])] * 4, features=FEATURES)
    folder, _, _ = written(program, dataset=dataset)
    (file,) = (folder / "images").iterdir()
    with Image.open(file) as found:
        assert found.size == (48, 48)


TWICE = {"messages": [user("One?"), user("Two?"), assistant("Three.")], "images": []}
LONG = make_pair("Count.", "one two three " * 300, "one", [])
UNLEARNED = {
    "messages": [user("One?"), assistant("Bad.") | {"train": False}, user("Two?"), assistant("Three.")],
    "images": [],
}
TWO_TURNS = {
    "prompt": [user("One?")],
    "chosen": [assistant("A."), assistant("B.")],
    "rejected": [assistant("C.")],
    "images": [],
}


@pytest.mark.slow
@pytest.mark.parametrize("program", WRITE)
@pytest.mark.parametrize(
    ("method", "row", "features", "why"),
    [
        ("sft", TWICE, FEATURES, r"row 1: turns of user, user, assistant, which .* let user and assistant alternate"),
        ("dpo", LONG, PAIR_FEATURES, r"row 1: \d+ tokens, and max_length is 512: raise max_length"),
        ("dpo", TWO_TURNS, PAIR_FEATURES, "row 1: an answer of several turns"),
    ],
    ids=["turns", "long", "answers"],
)
def test_a_row_that_would_be_cut_or_left_out_there_is_refused(program, method, row, features, why, written):
    with pytest.raises(ValueError, match=why):
        written(program, method, dataset=Dataset.from_list([row] * 4, features=features))


@pytest.mark.slow
def test_an_answer_that_is_not_learned(written):
    rows = Dataset.from_list([UNLEARNED] * 4, features=with_train(FEATURES))
    with pytest.raises(ValueError, match="row 1: an answer that is not learned, which LLaMA-Factory does not train on"):
        written("LLaMA-Factory", dataset=rows)
    folder, _, _ = written("ms-swift", dataset=rows)
    (line, *_) = (folder / "mine.jsonl").read_text().splitlines()
    assert [turn.get("loss") for turn in json.loads(line)["messages"]] == [None, False, None, None]


@pytest.mark.slow
def test_other_images_of_the_rejected_side(written):
    images = [Image.new("RGB", (48, 48), color) for color in ("red", "blue")]
    row = make_pair("What?", "Red.", "Red.", images[:1]) | {"rejected_images": images[1:]}
    dataset = Dataset.from_list([row] * 4)
    with pytest.raises(ValueError, match="row 1: other images for the rejected answer, which LLaMA-Factory does not"):
        written("LLaMA-Factory", "dpo", dataset=dataset)
    folder, _, _ = written("ms-swift", "dpo", dataset=dataset)
    first = json.loads((folder / "mine.jsonl").read_text().splitlines()[0])
    assert len(first["rejected_images"]) == 1 and first["rejected_images"] != first["images"]


# What is refused before anything is written


@pytest.mark.parametrize("program", WRITE)
@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"method": "rloo", "rewards": "exact_match"}, "has no method 'rloo'"),
        ({"model_id": "phi-3-vision"}, "has no template for phi-3-vision, or none that was tried"),
        ({"model_id": "Qwen/Qwen3-VL-8B-Thinking"}, "writes its reasoning first"),
        ({"chat_template": "own.jinja"}, "has its own template of the family"),
        ({"weights": "freeze", "vision": True}, "then trains layers of the language model alone"),
        ({"mlp": False, "vision": True}, "cannot choose layers in both"),
    ],
    ids=lambda case: next(iter(case.values())) if isinstance(case, dict) else "",
)
def test_what_a_program_does_not_have_is_refused(program, changes, why, tmp_path, rows):
    config = replace(config_of(tmp_path), **changes)
    with pytest.raises(ValueError, match=why):
        WRITE[program](rows[METHODS[config.method].rows], tmp_path / "files", config)
    assert not (tmp_path / "files").exists()


@pytest.mark.parametrize(
    ("method", "changes", "why"),
    [
        ("dpo", {"loss": "robust"}, "LLaMA-Factory has one of sigmoid, hinge, ipo"),
        ("dpo", {"loss": "sft"}, "choose method='sft'"),
        ("kto", {"loss": "apo_zero_unpaired"}, "has none but 'kto'"),
        ("dpo", {"loss": "ipo", "label_smoothing": 0.1}, "goes with the loss sigmoid alone"),
        ("sft", {"init_lora_weights": "olora"}, "has default and pissa"),
        ("ppo", {"rewards": "exact_match"}, "takes a reward model alone"),
        ("ppo", {"reward_model": "nowhere"}, "was not trained by LLaMA-Factory"),
        ("grpo", {"rewards": "exact_match"}, "has no method 'grpo'"),
    ],
)
def test_what_llama_factory_does_not_have_is_refused(method, changes, why, tmp_path, rows):
    config = config_of(tmp_path, method, **changes)
    with pytest.raises(ValueError, match=why):
        to_llama_factory(rows[METHODS[method].rows], tmp_path, config)


@pytest.mark.parametrize("program", WRITE)
def test_rows_of_another_kind_and_names_that_are_none(program, tmp_path, rows):
    with pytest.raises(ValueError, match="the rows are pairs, and method 'sft' takes messages"):
        WRITE[program](rows["pairs"], tmp_path, config_of(tmp_path))
    for name in ("", "a/b", "a,b", ".hidden"):
        with pytest.raises(ValueError, match="choose the name of a file"):
            WRITE[program](rows["messages"], tmp_path, config_of(tmp_path), name)
