"""A short run of the tiny Qwen2.5-VL, for the tests of this folder."""

import json

import pytest
from accelerate import notebook_launcher

from vlmhelpers.samples.sample_data import write_sample
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.run import RunResult, train


@pytest.fixture(scope="session")
def sample(tmp_path_factory):
    """A JSONL file of 48 rows whose answers the tiny base does not know."""
    path = tmp_path_factory.mktemp("sample") / "sample.jsonl"
    write_sample(path, 48)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row | {"response": f"Sold out: {row['response']}"}) + "\n" for row in rows))
    return path


@pytest.fixture(scope="session")
def config_of(sample):
    """Makes the settings of a short run on the sample into that folder."""

    def make(output_dir, **changes):
        settings = {"model_id": "qwen2.5-vl", "dataset": sample, "output_dir": output_dir, "bits": 16, "lora_r": 4}
        settings |= {"batch_size": 8, "gradient_accumulation_steps": 1, "max_steps": 6, "warmup_steps": 0}
        settings |= {"learning_rate": 1e-3, "logging_steps": 1, "save_steps": 3}
        return RunConfig(**settings | changes)

    return make


@pytest.fixture(scope="session")
def alone(config_of, tmp_path_factory):
    """The result of the run on one process, as a notebook starts it, with 8 rows in a step."""
    folder = tmp_path_factory.mktemp("alone")
    notebook_launcher(train, (config_of(folder),), num_processes=1)
    return RunResult.read(folder)
