"""A run of the tiny Qwen2.5-VL that has learned to answer otherwise than its base, with what a stopped one leaves."""

import json
import shutil

import pytest

from vlmhelpers.samples.sample_data import write_sample
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.run import train


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """The run's folder; nobody changes it."""
    folder = tmp_path_factory.mktemp("commands")
    sample = folder / "sample.jsonl"
    write_sample(sample, 40)
    rows = [json.loads(line) for line in sample.read_text().splitlines()]
    sample.write_text("".join(json.dumps(row | {"response": "Sold out."}) + "\n" for row in rows))
    train(
        RunConfig(
            model_id="qwen2.5-vl",
            dataset=str(sample),
            output_dir=str(folder / "run"),
            test_rows=6,
            bits=16,
            lora_r=4,
            lora_alpha=32,
            batch_size=8,
            gradient_accumulation_steps=1,
            max_steps=24,
            warmup_steps=0,
            learning_rate=1e-2,
            max_grad_norm=1.0,
            save_steps=12,
        )
    )
    return folder / "run"


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the run, which a test may change."""
    return shutil.copytree(trained, tmp_path / "run")


@pytest.fixture
def stopped(run):
    """The same, as if it had been stopped at its end, before anything but checkpoints was written."""
    shutil.rmtree(run / "adapter")
    (run / "results.json").unlink()
    return run
