"""From 4 bits to a merged model, with the published vocabularies: each step as with the tiny bases."""

import functools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from compare_runs import distance, losses
from real_vocabularies import BUILDERS

from vlmhelpers.data.readers.jsonl_reader import read_jsonl
from vlmhelpers.export.adapters import attach, merge
from vlmhelpers.export.verification import check_export
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model
from vlmhelpers.samples.drawing import sample_products
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.run import train

pytestmark = pytest.mark.slow

ANSWERS = ["<b>Bag</b>, 120 $", "一个红色的包 👜", "def f():\n    return '<s>'", "السعر ٢٠", "Red.", '{"a": [1, 2]}']
MOST_TOKENS = 6  # of an answer
PIXELS = {"qwen2.5-vl": 64 * 28**2, "qwen3-vl": 64 * 32**2, "phi-3-vision": 336**2}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    """A JSONL file of rows with images of two shapes."""
    folder = tmp_path_factory.mktemp("real")
    lines = []
    for i, (answer, (_, image)) in enumerate(zip(ANSWERS, sample_products(len(ANSWERS), "real", 96), strict=True)):
        image.resize((96, 96 if i % 2 else 160)).save(folder / f"{i}.png")
        lines.append({"text": f"What is in picture {i}?", "image": f"{i}.png", "response": answer})
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def config_of(folder_of, dataset, tmp_path_factory):
    """The settings of a short run of a model by its name, which the first call trains."""

    @functools.cache
    def trained(name):
        config = RunConfig(
            folder_of(name), dataset, tmp_path_factory.mktemp(name) / "run", bits=4, lora_r=4, lora_alpha=64,
            max_steps=4, save_steps=2, logging_steps=1, batch_size=3, gradient_accumulation_steps=1,
            learning_rate=5e-2, warmup_steps=0, max_length=1024, max_pixels=PIXELS.get(name), backend="transformers",
        )  # fmt: skip
        train(config)
        return config

    return trained


@pytest.mark.parametrize("name", BUILDERS)
def test_what_was_trained_over_4_bits_answers_and_is_merged(name, config_of, tmp_path):
    config = config_of(name)
    result = train(config)  # which finds it finished
    assert losses(result)[-1] < losses(result)[0]
    rows = read_jsonl(config.dataset)
    model, processor = load_model(config.model_id, 4, config.max_pixels, backend="transformers")
    tuned = attach(model, result.adapter)
    together, apart = (generate(tuned, processor, rows, size, MOST_TOKENS, progress=False) for size in (4, 1))
    assert together == apart
    del model, tuned
    merged = merge(result.adapter, tmp_path / "merged")
    check_export(merged, result.adapter, rows, rows=2, max_new_tokens=MOST_TOKENS).raise_if_wrong()


def test_an_interrupted_run_ends_with_the_same_weights(config_of, tmp_path):
    config = config_of("phi-3-vision")
    whole = train(config)
    kept = shutil.copytree(whole.adapter, tmp_path / "adapter")
    shutil.rmtree(whole.adapter)
    shutil.rmtree(Path(config.output_dir) / "checkpoint-4")
    (Path(config.output_dir) / "results.json").unlink()
    resumed = train(config)
    assert losses(whole).tolist() == losses(resumed).tolist()
    assert distance(replace(whole, folder=str(kept)), resumed) < 1e-4
