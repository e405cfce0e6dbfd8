"""Runs on a stream: they learn, leave bad rows out, hold the first ones out, and go on to the same last bit."""

import csv
import json
from pathlib import Path

import pytest
import torch
from compare_runs import losses, weights

from vlmhelpers.training import callbacks, pipeline
from vlmhelpers.training.run import load_held_out, train

GONE = {"text": "What?", "image": "images/gone.png", "response": "A bag."}


@pytest.fixture(scope="module")
def shards(sample, tmp_path_factory):
    """The 48 rows in three files, of which the second has one more, whose image is missing."""
    folder = tmp_path_factory.mktemp("shards")
    lines = sample.read_text().splitlines()
    for number in range(3):
        part = lines[16 * number : 16 * number + 16] + [json.dumps(GONE)] * (number == 1)
        (folder / f"{number}.jsonl").write_text("\n".join(part))
    return folder / "*.jsonl"


@pytest.fixture(scope="module")
def config(sample, shards, config_of, tmp_path_factory):
    """More steps than the rows last for once; six of them are held out."""
    held = {"test_rows": 4, "validation_rows": 2, "eval_steps": 6}
    options = {"streaming": True, "dataset": shards, "image_root": sample.parent, "max_steps": 8, **held}
    options["lora_dropout"] = 0.1  # random numbers, too
    return lambda name: config_of(tmp_path_factory.mktemp(name) / "run", **options)


@pytest.fixture(scope="module")
def whole(config):
    return train(config("whole"))


@pytest.mark.slow
def test_a_stream_trains_and_says_what_it_left_out(whole):
    assert whole.steps == 8 and whole.rows == {"read": 71, "rejected": 1, "trained": 64, "test": 4}
    assert all(tensor.abs().max() > 0 for name, tensor in weights(whole).items() if "lora_B" in name)
    assert any("eval_loss" in entry for entry in whole.history)
    with open(Path(whole.folder).with_name("rejected.csv"), encoding="utf-8-sig", newline="") as file:
        (row,) = csv.DictReader(file)
    assert Path(row["shard"]).name == "1.jsonl" and row["source_row"] == "17" and "gone.png" in row["reason"]


@pytest.mark.slow
def test_the_first_rows_are_held_out_and_nothing_of_them_is_trained_on(whole, config, shards, sample):
    test, examples = load_held_out(Path(whole.folder).parent).values()
    assert test["row"] == [1, 2, 3, 4] and examples["row"] == list(range(7, 15))


@pytest.mark.slow
def test_an_interrupted_run_goes_on_to_the_same_last_bit(whole, config, monkeypatch, capsys):
    settings = config("interrupted")

    class Interrupt(callbacks.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 7:  # the checkpoint is that of step 6, in the second pass
                raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pipeline, "watch", lambda trainer: trainer.add_callback(Interrupt()))
        with pytest.raises(KeyboardInterrupt):
            train(settings)
    resumed = train(settings)
    assert "checkpoint-6" in capsys.readouterr().out
    assert all(torch.equal(tensor, weights(whole)[name]) for name, tensor in weights(resumed).items())
    assert torch.equal(losses(whole)[-2:], losses(resumed)[-2:]) and whole.rows == resumed.rows


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"max_steps": None}, "no epochs: choose max_steps"),
        ({"max_steps": None, "epochs": 2}, "no epochs: choose max_steps"),
        ({"cache": "pixels"}, "what may come but once is not kept; choose 'none'"),
        ({"method": "dpo"}, "only 'sft' trains on a stream"),
    ],
)
def test_what_a_stream_cannot_do_is_refused(config_of, changes, why):
    with pytest.raises(ValueError, match=f"streaming is true.*{why}"):
        config_of("out", streaming=True, **changes)
