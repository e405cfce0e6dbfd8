"""The code beside the panel: it is what a notebook may hold, and trains what the run does, to the last bit."""

import ast
import functools
import itertools
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import nbformat
import pytest
import yaml
from public_names import ROOMS, names_of

import vlmhelpers as vlm
from vlmhelpers import cli
from vlmhelpers.families import tiny_model
from vlmhelpers.samples.drawing import caption, sample_products
from vlmhelpers.studio.code import cells, command_line, yaml_text
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.run import load_held_out, train

ODD = 'it\'s "odd"\\ \n# %%\n{{ config }} {% x %} \'\'\' """'
SAMPLED = {"max_completion_length": 4, "temperature": 3.0}
OF_METHOD = {  # settings that a method needs, or which change what it does
    "dpo": {"beta": 0.2, "label_smoothing": 0.1},
    "kto": {"batch_size": 3},  # of ten rows one would be left over
    "simpo": {"simpo_gamma": 0.5},
    "reward": {"center_rewards_coefficient": 0.01},
    "grpo": SAMPLED | {"rewards": "0.5*length_within:3; length_within:4", "num_generations": 4, "validation_rows": 2},
    "rloo": SAMPLED | {"rewards": "length_within:3", "gradient_accumulation_steps": None},
    "ppo": SAMPLED | {"rewards": "length_within:3", "critic_learning_rate": 1e-2, "validation_rows": 2},
    "distillation": SAMPLED | {"teacher": "qwen3-vl"},
}
VARIANTS = {
    "plain": {},
    "named": {"image_root": "pictures", "text_field": "q", "image_field": "i", "response_field": "a"},
    "adapters": {"lora_dropout": 0.1, "use_rslora": True, "use_dora": True, "lora_r": 8, "vision": True, "mlp": False},
    "pissa": {"init_lora_weights": "pissa", "bits": None},
    "vision": {"language": False, "vision": True, "gradient_checkpointing": True},
    "features": {"cache": "features", "report_to": "tensorboard"},
    "unsloth": {"backend": "unsloth"},
    "filled": {"learning_rate": 1e-5, "lora_alpha": 3, "epochs": 0.5, "max_steps": -1, "max_pixels": 99999}
    | {"adam_beta2": 0.9, "max_grad_norm": 0.0, "warmup_steps": 0, "max_length": 4096, "batch_size": 1, "lora_r": 2},
    "full": {"weights": "full"},
    "freeze": {"weights": "freeze", "last_layers": 2},
    "validated": {"validation_rows": 2, "test_rows": 2, "eval_steps": 3},
    "best": {"validation_rows": 2, "early_stopping_patience": 2, "load_best_model_at_end": True, "sample_answers": 3},
    "streamed": {"streaming": True, "dataset": "shards/*.parquet", "max_steps": 5},
    "sampled": {"test_rows": 2, "sample_answers": 3, "chat_template": "folder/other.jinja"},
    "odd": {"dataset": ODD, "output_dir": ODD, "model_id": ODD, "text_field": ODD}
    | {"image_root": ODD, "image_field": ODD, "response_field": ODD, "chat_template": f"{ODD}.jinja"},
}
PACKAGES = ["vlmhelpers", *ROOMS, "vlmhelpers.training.methods"]
PUBLIC = {*PACKAGES, *(f"{package}.{name}" for package in PACKAGES for name in names_of(package))}
PATH = re.compile(r"(vlm|methods)(\.\w+)+")


def settings_of(method="sft", **more):
    required = {"model_id": "qwen3-vl", "dataset": "rows.jsonl", "output_dir": "outputs/studio", "method": method}
    return RunConfig(**required | OF_METHOD.get(method, {}) | more)


def every_config():
    """Every method with every variant that it takes."""
    for method, (name, variant) in itertools.product(METHODS, VARIANTS.items()):
        values = {"model_id": "qwen3-vl", "dataset": "rows.jsonl", "output_dir": "outputs/studio", "method": method}
        values |= OF_METHOD.get(method, {}) | variant
        if not RunConfig.problems(values):
            yield pytest.param(RunConfig(**values), id=f"{method}-{name}")


every = pytest.mark.parametrize("config", [*every_config()])


@every
def test_cells_are_short_define_nothing_and_name_what_is_public(config):
    found = cells(config)
    assert all(cell and cell == cell.strip() and len(cell.splitlines()) <= 25 for cell in found)
    for node in ast.walk(ast.parse("\n".join(found))):
        assert not isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.Lambda))
        if isinstance(node, ast.Attribute) and (path := PATH.fullmatch(ast.unparse(node))):
            assert path[0].replace("vlm.", "vlmhelpers.").replace("methods.", "vlmhelpers.training.methods.") in PUBLIC


def test_cells_are_as_the_linter_and_the_formatter_leave_them(tmp_path):
    for number, parameters in enumerate(every_config()):
        found = [nbformat.v4.new_code_cell(cell) for cell in cells(parameters.values[0])]
        nbformat.write(nbformat.v4.new_notebook(cells=found), tmp_path / f"{number:03}_{parameters.id}.ipynb")
    root = Path(__file__).parents[2]
    for command in (["check"], ["format", "--diff"]):
        options = ["--config", str(root / "pyproject.toml"), "--no-cache", str(tmp_path)]
        done = subprocess.run([sys.executable, "-m", "ruff", *command, *options], capture_output=True, text=True)
        assert not done.returncode, done.stdout[-4000:] + done.stderr


@every
def test_the_yaml_gives_the_same_settings_wherever_it_lies(config, tmp_path):
    (tmp_path / "run.yaml").write_text(yaml_text(config), encoding="utf-8")
    assert RunConfig.read(tmp_path / "run.yaml") == config.with_absolute_paths()


def test_the_yaml_holds_what_is_required_and_what_was_changed():
    assert list(yaml.safe_load(yaml_text(settings_of(lora_r=8)))) == ["model_id", "dataset", "output_dir", "lora_r"]


@pytest.mark.parametrize("folder", ["outputs/studio", "it's a run; touch $(x)", "-folder"])
def test_the_command_trains_from_the_file_of_the_run(folder, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config, trained = settings_of(output_dir=folder), []
    monkeypatch.setattr(vlm, "train", lambda *arguments: trained.append(arguments))
    Path(folder).mkdir(parents=True)
    config.save(Path(folder, "run.yaml"))
    python, *flags, module, command, file = shlex.split(command_line(config))
    assert [python, *flags, module] == ["python", "-m", "vlmhelpers"]
    assert cli.main([command, file]) == 0
    assert trained == [(config.with_absolute_paths(), False)]


@pytest.mark.parametrize("text", [ODD, "", "'", '"', "\\", "\\'", '\\"', '\'""', "''\"", "\r\t\u2028\U0001f600é\x7f"])
def test_a_text_cannot_leave_its_literal(text):
    config = settings_of(dataset=f"d{text}", output_dir=f"o{text}", text_field=f"t{text}")
    tree = ast.parse("\n".join(cells(config)))
    constants = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    assert {f"d{text}", f"o{text}", f"t{text}"} <= constants
    assert len(list(ast.walk(tree))) == len(list(ast.walk(ast.parse("\n".join(cells(settings_of(text_field="x")))))))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder with a JSONL file of each kind of rows, about 14 drawn products; one row cannot be used."""
    folder = tmp_path_factory.mktemp("data")
    rows = {"messages": [], "pairs": [], "rated": [], "prompts": []}
    for number, (product, image) in enumerate(sample_products(14, "cells", 32)):
        image.save(folder / f"{number}.png")
        asked, long = {"prompt": "Describe this product.", "images": [f"{number}.png"]}, caption(product)
        short = long.partition(" for ")[0] + "."
        rows["messages"].append({"text": asked["prompt"], "image": f"{number}.png", "response": short})
        rows["pairs"].append(asked | {"chosen": short, "rejected": long})
        rows["rated"].append(asked | {"completion": short if number % 2 else long, "label": bool(number % 2)})
        rows["prompts"].append(asked | {"answer": short})
    for kind, of_kind in rows.items():
        (folder / f"{kind}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in of_kind))
    texts = [
        {"text": f"Which product is number {n}?", "response": row["response"]} for n, row in enumerate(rows["messages"])
    ]
    (folder / "texts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in texts))
    lines = [f"{row['text']},{row['image']},{row['response']}\n" for row in rows["messages"]]
    (folder / "rows.csv").write_text("".join(["instruction,image,caption\n", *lines]))
    template = (tiny_model("qwen3-vl") / "chat_template.jinja").read_text()
    (folder / "other.jinja").write_text("{{- 'Look at it.' }}" + template)
    (folder / "3.png").write_bytes(b"no image")
    return folder


@pytest.fixture(scope="module")
def adapter(data, tmp_path_factory):
    """Trains a reward model, or a teacher, once each."""

    @functools.cache
    def make(method):
        return train(short_run(data, tmp_path_factory.mktemp(method), method, learning_rate=1e-2)).adapter

    return make


def short_run(data, folder, method="sft", **more):
    values = {"dataset": str(data / f"{METHODS[method].rows}.jsonl"), "output_dir": str(folder), "bits": 16}
    values |= {"max_steps": 2, "batch_size": 4, "gradient_accumulation_steps": 1, "logging_steps": 1, "lora_r": 4}
    return settings_of(method, **values | {"test_rows": 3, "learning_rate": 1e-2} | OF_METHOD.get(method, {}) | more)


def run_cells(config):
    """Runs the cells one after another, and gives what they have named."""
    names = {}
    for cell in cells(config):
        exec(compile(cell, "a cell", "exec"), names)
    return names


def assert_same_as_the_run(config, folder):
    """The cells, run one after another, leave what the run leaves."""
    result, trainer = train(config), run_cells(replace(config, output_dir=str(folder)))["trainer"]
    assert trainer.state.global_step == result.steps
    made, expected = folder / Path(result.folder).name, Path(result.folder)
    files = [path.name for path in expected.iterdir() if path.suffix in (".safetensors", ".jinja")]
    assert any(name.endswith(".safetensors") for name in files)
    for name in files:
        assert (made / name).read_bytes() == (expected / name).read_bytes(), name
    if config.test_rows:
        held_out = [load_held_out(place)["test"].select_columns("messages")[:] for place in (folder, config.output_dir)]
        assert held_out[0] == held_out[1]


OTHERS = {  # what else is trained than a method's adapter: its method, and the settings
    "texts": (
        "sft",
        {"dataset": "texts.jsonl", "epochs": 0.5, "max_steps": None, "batch_size": None, "lora_dropout": 0.2},
    ),
    "adapters": ("sft", {"use_rslora": True, "use_dora": True, "vision": True, "mlp": False, "bits": 4, "seed": 5}),
    "features": ("sft", {"cache": "features", "validation_rows": 2, "gradient_checkpointing": True}),
    "pissa": ("sft", {"init_lora_weights": "pissa"}),
    "full": ("sft", {"weights": "full", "vision": True}),
    "best": (
        "sft",
        {"validation_rows": 3, "load_best_model_at_end": True, "early_stopping_patience": 1, "max_steps": 5},
    ),
    "freeze": ("orpo", {"weights": "freeze", "last_layers": 2}),
    "template": ("sft", {"chat_template": "other.jinja", "sample_answers": 1, "dataset": "rows.csv"}),
    "full-dpo": ("dpo", {"weights": "full"}),
    "full-kto": ("kto", {"weights": "full", "loss": "apo_zero_unpaired"}),
    "full-grpo": ("grpo", {"weights": "full", "beta": 0.1}),
    "chosen-for": ("dpo", {"batch_size": None, "gradient_accumulation_steps": None, "lora_r": None, "bits": None}),
}


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_cells_train_the_adapter_of_the_run(method, data, adapter, tmp_path):
    more = {"reward_model": adapter("reward")} if method in ("rloo", "ppo") else {}
    more |= {"teacher": adapter("sft")} if method == "distillation" else {}
    assert_same_as_the_run(short_run(data, tmp_path / "run", method, **more), tmp_path / "cells")


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_cells_train_what_the_settings_say(name, data, tmp_path, monkeypatch):
    method, more = OTHERS[name]
    monkeypatch.chdir(data)
    assert_same_as_the_run(short_run(data, tmp_path / "run", method, **more), tmp_path / "cells")


@pytest.mark.slow
def test_cells_go_on_in_a_fresh_process_with_a_run_that_was_interrupted(data, tmp_path):
    config = short_run(data, tmp_path, save_steps=1)
    adapter = Path(train(config).folder, "adapter_model.safetensors")
    expected = adapter.read_bytes()
    shutil.rmtree(adapter.parent)
    shutil.rmtree(tmp_path / "checkpoint-2")
    script = "\n\n".join(cells(config))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=data)
    assert f"going on from {tmp_path / 'checkpoint-1'}" in done.stdout, done.stderr[-2000:]
    assert adapter.read_bytes() == expected
