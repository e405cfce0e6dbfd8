"""A body becomes the settings of a run, or sentences that the command line would say."""

import re
from pathlib import Path

import pytest

from vlmhelpers.service.places import Root
from vlmhelpers.service.request import BESIDE, RENAMED, JobRequest, UnusableRequest, as_config, read_request
from vlmhelpers.training.config import RunConfig

PAGE = Path(__file__).parents[2] / "docs" / "jobs.md"
BODY = {
    "name": "vision-model-1",
    "base_model": "Qwen/Qwen2.5-VL-3B-Instruct",
    "dataset_path": "./data/vision_dataset.jsonl",
    "output_dir": "./models/vision-model-1",
    "model_type": "vision-language",
    "hyperparameters": {"learning_rate": 2e-5, "num_epochs": 3, "batch_size": 1, "gradient_accumulation_steps": 8},
}


@pytest.fixture
def root(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "vision_dataset.jsonl").write_text("{}")
    (tmp_path / "own.jinja").write_text("x")
    return Root(tmp_path)


def config_of(root, **changes):
    request = read_request(BODY | changes)
    return as_config(request, root, request.output_dir)


def problems_of(root, **changes):
    with pytest.raises(UnusableRequest) as refused:
        config_of(root, **changes)
    return refused.value.problems


def test_the_guides_body_is_a_run(root):
    expected = RunConfig(
        model_id="Qwen/Qwen2.5-VL-3B-Instruct",
        dataset=str(root.folder / "data" / "vision_dataset.jsonl"),
        output_dir=str(root.folder / "models" / "vision-model-1"),
        learning_rate=2e-5,
        epochs=3,
        batch_size=1,
        gradient_accumulation_steps=8,
    )
    assert config_of(root) == expected


def test_every_setting_of_a_run_is_a_hyperparameter(root):
    config = config_of(root, hyperparameters={"epochs": 2, "lora_r": "16", "chat_template": "own.jinja", "seed": 3})
    assert (config.epochs, config.lora_r, config.seed) == (2, 16, 3)
    assert config.chat_template == str(root.folder / "own.jinja")


@pytest.mark.parametrize(
    "changes, name, sentence",
    [
        ({"model": "x"}, "model", "there is no setting 'model'. Did you mean 'base_model'?"),
        ({"lora_r": 8}, "lora_r", "lora_r belongs into hyperparameters, where all settings of a run are"),
        ({"model_type": "text"}, "model_type", "model_type is 'text': it should be 'vision-language'"),
        ({"name": ""}, "name", "name is '': it should have at least 1 character"),
        ({"name": 3}, "name", "name is 3: it should be a valid string"),
        ({"hyperparameters": []}, "hyperparameters", "hyperparameters is []: it should be a valid dictionary"),
        ({"hyperparameters": {"lr": 1}}, "lr", "there is no setting 'lr'. Did you mean 'learning_rate'?"),
        (
            {"hyperparameters": {"num_epochs": -1}},
            "num_epochs",
            "num_epochs is -1: it should be greater than or equal to 0",
        ),
        (
            {"hyperparameters": {"num_epochs": 1, "epochs": 1}},
            "num_epochs",
            "num_epochs and epochs are one setting: give one of them",
        ),
        (
            {"hyperparameters": {"model_id": "x"}},
            "model_id",
            "model_id is no hyperparameter: it is given beside them, as base_model",
        ),
        (
            {"hyperparameters": {"max_steps": 0}},
            "max_steps",
            "max_steps is 0: a number of steps, or -1 to train by epochs",
        ),
        (
            {"dataset_path": "data/none.jsonl"},
            "dataset_path",
            "dataset_path is 'data/none.jsonl': there is no such file or folder under the root of the jobs",
        ),
        (
            {"hyperparameters": {"image_root": "/etc"}},
            "image_root",
            "image_root is '/etc': that is not under the root of the jobs; name what is",
        ),
    ],
)
def test_what_is_wrong_is_said_by_the_clients_names(root, changes, name, sentence):
    assert problems_of(root, **changes) == {name: sentence}


@pytest.mark.parametrize("name", ["image_root", "chat_template", "reward_model", "teacher"])
def test_no_path_leads_out_of_the_root(root, name):
    method = {"reward_model": "ppo", "teacher": "distillation"}.get(name, "sft")
    found = problems_of(root, hyperparameters={name: "../x.jinja", "method": method})
    assert ".." in found[name]


def test_sentences_are_those_of_the_command_line(root):
    values = {"learning_rate": "fast", "no_such": 1, "batch_size": 0}
    needed = {"model_id": "x", "dataset": "x", "output_dir": "x"}
    assert problems_of(root, hyperparameters=values) == RunConfig.problems(needed | values)


@pytest.mark.parametrize("body", [None, [], "text", 3, [BODY]])
def test_a_body_is_an_object(body):
    with pytest.raises(UnusableRequest, match="send an object"):
        read_request(body)


@pytest.mark.parametrize("name", ["name", "base_model", "dataset_path"])
def test_what_is_missing_is_named(name):
    with pytest.raises(UnusableRequest, match=f"^{name} is missing"):
        read_request({key: value for key, value in BODY.items() if key != name})


def test_the_page_has_a_row_for_every_key():
    rows = re.findall(r"^\| `(\w+)` \| `?([^|`]+)`? \|", PAGE.read_text(encoding="utf-8"), re.MULTILINE)
    ours = {theirs: name for name, theirs in BESIDE.items()} | RENAMED
    ours |= {name: name for name in BODY["hyperparameters"] if name not in RENAMED}
    assert {theirs: name for theirs, name in rows if theirs in ours} == ours
    assert {theirs for theirs, _ in rows} >= {*JobRequest.described(), *BODY["hyperparameters"]}
