"""What follows from validations: training that ends early, the best weights kept, answers sampled on the way."""

import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from compare_runs import weights
from transformers import TrainerCallback, TrainerControl, TrainerState

from vlmhelpers.common.file_digests import read_digest
from vlmhelpers.families import tiny_model
from vlmhelpers.training import pipeline, sampled_answers
from vlmhelpers.training.background import TrainingRun
from vlmhelpers.training.callbacks import BestValidation
from vlmhelpers.training.checkpoints import load_best
from vlmhelpers.training.pipeline import fresh_processor
from vlmhelpers.training.progress import Stopped, say
from vlmhelpers.training.run import RunResult, train

# At this rate the loss soon goes up and down.
RESTLESS = {"learning_rate": 0.05, "lr_scheduler_type": "constant", "max_steps": 14, "validation_rows": 8}
RESTLESS |= {"early_stopping_patience": 1, "load_best_model_at_end": True, "save_steps": 4}


@pytest.mark.parametrize(
    ("metric", "values", "best", "ended"),
    [
        ("eval_loss", [3.0, 2.0, 2.0, float("nan")], 2, 4),  # as good is not better
        ("eval_loss", [3.0, 4.0, 2.0, 5.0, 1.0], 5, None),
        ("eval_reward", [-3.0, -2.0, -2.5, -2.5], 2, 4),
        ("eval_reward", [None, None], None, 2),
    ],
)
def test_validations_in_a_row_without_a_better_one_end_the_training(metric, values, best, ended):
    callback, state, control = BestValidation(metric, 2, saves=True), TrainerState(), TrainerControl()
    saved = []
    for state.global_step, value in enumerate(values, start=1):
        control.should_save = False
        state.log_history.append({metric: value, "step": state.global_step})
        callback.on_evaluate(None, state, control)
        saved += [state.global_step] * control.should_save
        if control.should_training_stop:
            break
    assert (state.best_global_step, state.global_step if control.should_training_stop else None) == (best, ended)
    assert best is None or best in saved
    again = TrainerControl()
    BestValidation(metric, 2, saves=True).on_train_begin(None, state, again)
    assert again.should_training_stop == control.should_training_stop


class StopAt(TrainerCallback):
    """Asks a run to stop after a step, as a user does."""

    def __init__(self, folder, step):
        self.folder, self.step = folder, step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            TrainingRun(self.folder).stop()


@pytest.fixture
def stopped_at(monkeypatch):
    """Trains until a step, after which the run is stopped."""
    make = pipeline.make_trainer

    def train_until(config, step):
        def make_trainer(*arguments):
            trainer = make(*arguments)
            trainer.add_callback(StopAt(config.output_dir, step))
            return trainer

        with monkeypatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(pipeline, "make_trainer", make_trainer)
            train(config)

    return train_until


@pytest.mark.slow
def test_a_run_that_ends_early_keeps_its_best_weights_however_often_it_is_stopped(
    config_of, tmp_path, stopped_at, capsys
):
    config = config_of(tmp_path / "whole", **RESTLESS)
    result = train(config)
    losses = {entry["step"]: entry["eval_loss"] for entry in result.history if "eval_loss" in entry}
    assert result.best_step == min(losses, key=losses.get) == result.steps - 1 and 1 < result.steps < 14
    assert f"ended early, at step {result.steps} of 14: no validation was better than" in capsys.readouterr().out
    ends = [entry for entry in TrainingRun(config.output_dir).entries() if entry.get("event") == "early_stopped"]
    assert [(entry["step"], entry["best_step"]) for entry in ends] == [(result.steps, result.best_step)]
    final = Path(result.adapter) / "adapter_model.safetensors"
    best, last = (tmp_path / "whole" / f"checkpoint-{step}" / final.name for step in (result.best_step, result.steps))
    assert read_digest(final) == read_digest(best) != read_digest(last)
    assert train(config) == RunResult.read(config.output_dir)

    parts = config_of(tmp_path / "parts", **RESTLESS)
    for step in (2, result.best_step, result.steps):  # at the last one it would have ended anyway
        stopped_at(parts, step)
    resumed = train(parts)
    assert (resumed.steps, resumed.best_step) == (result.steps, result.best_step)
    assert read_digest(Path(resumed.adapter) / final.name) == read_digest(final)

    # Killed before it was saved, with its best weights damaged meanwhile.
    shutil.rmtree(resumed.adapter)
    (tmp_path / "parts" / "results.json").unlink()
    damaged = tmp_path / "parts" / best.parent.name / final.name
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="has the best weights, and .* load_best_model_at_end=False keeps the last"):
        train(parts)
    kept = train(config_of(tmp_path / "parts", **RESTLESS | {"load_best_model_at_end": False}))
    assert read_digest(Path(kept.adapter) / final.name) == read_digest(last)
    with pytest.raises(ValueError, match="changed: early_stopping_patience"):
        train(config_of(tmp_path / "whole", **RESTLESS | {"early_stopping_patience": 2}))
    with pytest.raises(ValueError, match="changed: steps between validations"):
        train(config_of(tmp_path / "whole", **RESTLESS | {"eval_steps": 3}))


@pytest.mark.slow
def test_a_checkpoint_knows_how_it_is_validated_where_that_decides(config_of, tmp_path, stopped_at):
    best = {"validation_rows": 8, "early_stopping_patience": 2, "load_best_model_at_end": True}
    config = config_of(tmp_path / "best", **best)
    stopped_at(config, 3)
    for name, change in (
        ("early_stopping_patience", {"early_stopping_patience": 1}),
        ("steps between validations", {"eval_steps": 3}),
        ("validation data", {"validation_rows": 9}),
    ):
        with pytest.raises(ValueError, match=f"changed: .*{name}"):
            train(replace(config, **change))
    without = {"early_stopping_patience": None, "load_best_model_at_end": False, "eval_steps": 3}
    assert train(replace(config, **without)).steps == 6  # as it would be without from its beginning

    plain = config_of(tmp_path / "plain", validation_rows=8)
    stopped_at(plain, 3)
    with pytest.raises(ValueError, match="changed: early_stopping_patience, load_best_model_at_end"):
        train(replace(plain, **best))
    assert train(replace(plain, eval_steps=2)).steps == 6


def test_without_a_best_validation_the_last_weights_stay(capsys):
    load_best(SimpleNamespace(state=TrainerState()))
    assert "the last weights are kept" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("held_out", ["validation_rows", "test_rows"])
def test_answers_sampled_on_the_way_change_nothing(config_of, tmp_path, held_out, monkeypatch, capsys):
    options = {held_out: 6, "max_steps": 4, "lora_dropout": 0.1, "gradient_checkpointing": True}
    without = train(config_of(tmp_path / "without", **options))
    config = config_of(tmp_path / "with", sample_answers=2, eval_steps=3, **options)
    found = train(config)
    expected, trained = weights(without), weights(found)
    assert all(trained[name].equal(tensor) for name, tensor in expected.items()) and expected
    samples = TrainingRun(tmp_path / "with").samples
    assert list(samples["answers"]) == [0, 3, 4]
    assert all(len(answers) == 2 and all(answers) for answers in samples["answers"].values())
    assert len(samples["rows"]) == 2
    for row in samples["rows"]:
        assert row["prompt"] and row["expected"].startswith("Sold out: ") and "Sold" not in row["prompt"]
        assert [uri.partition(",")[0] for uri in row["images"]] == ["data:image/webp;base64"]
    assert "cut off" not in capsys.readouterr().out

    def fail(*arguments, **options):
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(sampled_answers, "generate", fail)
    failed = train(config_of(tmp_path / "failed", sample_answers=2, **options))
    assert all(weights(failed)[name].equal(tensor) for name, tensor in expected.items())
    assert capsys.readouterr().out.count("no answers are sampled from now on: RuntimeError: no memory") == 1


def test_answers_of_steps_that_are_trained_anew_count_once(tmp_path):
    run = TrainingRun(tmp_path)
    assert run.samples == {"rows": [], "answers": {}}
    for step in (0, 2):
        say(tmp_path, event="samples", step=step, answers=["a"])
    say(tmp_path, event="training", step=1)
    assert run.samples["answers"] == {0: ["a"]}


# A chat template of one's own


@pytest.fixture
def template(tmp_path):
    """Writes a chat template, that of the tiny base with a change, and gives its file."""

    def write(old="", new=""):
        text = (tiny_model("qwen2.5-vl") / "chat_template.jinja").read_text(encoding="utf-8")
        assert old in text
        file = tmp_path / "chat.jinja"
        file.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        return file

    return write


@pytest.mark.slow
def test_a_run_learns_with_the_template_that_is_named_and_leaves_it_beside_the_adapter(config_of, tmp_path, template):
    file = template("You are a helpful assistant.", "You sell things.")
    config = config_of(tmp_path / "out", chat_template=file, max_steps=1)
    adapter = Path(train(config).adapter)
    assert (adapter / "chat_template.jinja").read_text(encoding="utf-8") == file.read_text(encoding="utf-8")
    assert train(config).steps == 1
    template("You are a helpful assistant.", "You sell bags.")
    with pytest.raises(ValueError, match="changed: chat_template"):
        train(config)
    (tmp_path / "out" / "results.json").unlink()
    with pytest.raises(ValueError, match="changed: chat template"):
        train(config)


@pytest.mark.slow
def test_a_template_that_cannot_be_used_is_refused(config_of, tmp_path, template):
    with pytest.raises(ValueError, match="chat_template is .*none.jinja, which cannot be read"):
        train(config_of(tmp_path / "out", chat_template=tmp_path / "none.jinja"))
    (file := tmp_path / "endless.jinja").write_text("{% for a in range(9999) %}" * 4 + "{% endfor %}" * 4)
    with pytest.raises(ValueError, match=r"endless.jinja: its chat template cannot be rendered"):
        fresh_processor(config_of(tmp_path / "out", chat_template=file), str(tiny_model("qwen2.5-vl")))
