"""Estimated memory against what a real step allocates on a GPU, and the speed of such steps.

The models have the published shapes and random weights, which are made on the GPU: nothing is downloaded.
"""

import gc
import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "helpers"))  # for the module that these tests share with those on a CPU
import random_model  # noqa: E402

from vlmhelpers.estimation.memory import estimate_memory  # noqa: E402
from vlmhelpers.families import find_config  # noqa: E402

MODELS = {"qwen2.5-vl": "Qwen/Qwen2.5-VL-3B-Instruct", "qwen3-vl": "Qwen/Qwen3-VL-2B-Instruct"}
IMAGE_TOKENS, BATCH_SIZE = 768, 2
UNSLOTH = Path(__file__).with_name("unsloth_speed.py")


@pytest.fixture(autouse=True)
def an_empty_gpu():
    gc.collect()
    torch.cuda.empty_cache()


@pytest.fixture
def made():
    """Makes (configuration, processor, rows) for a family."""

    def make(family, rows):
        config = find_config(MODELS[family])
        processor = random_model.make_processor(family, config, IMAGE_TOKENS)
        return config, processor, random_model.make_rows(rows, 448)

    return make


@pytest.mark.parametrize("family", MODELS)
@pytest.mark.parametrize(("bits", "logits"), [(4, "labeled"), (4, "all"), (16, "labeled")])
def test_the_estimate_is_within_15_percent_of_the_peak(family, bits, logits, made, tmp_path):
    config, processor, rows = made(family, 4 * BATCH_SIZE)
    tokens, image_tokens, labeled = random_model.lengths(processor, rows, BATCH_SIZE)
    model = random_model.make_model(config, bits, "cuda")
    trainer = random_model.make_trainer(model, processor, rows, tmp_path, BATCH_SIZE, 2, logits)
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    peak = torch.cuda.max_memory_allocated()
    kept = labeled if logits == "labeled" else None
    estimate = estimate_memory(MODELS[family], tokens, image_tokens, BATCH_SIZE, bits, labeled_tokens=kept)
    print(f"\n{estimate}\nmeasured: {peak / 2**30:.2f} GiB; estimated / measured = {estimate.total / peak:.3f}")
    assert estimate.total == pytest.approx(peak, rel=0.15)


@pytest.mark.parametrize("family", MODELS)
def test_samples_per_second(family, made, tmp_path):
    config, processor, rows = made(family, 32)
    ways = {"ours": (rows, "labeled"), "TRL's own path": (random_model.for_trls_collator(rows, processor), None)}
    for name, (data, logits) in ways.items():
        for steps in (1, 8):  # the first to warm up
            model = random_model.make_model(config, 4, "cuda")
            trainer = random_model.make_trainer(model, processor, data, tmp_path, BATCH_SIZE, steps, logits)
            speed = trainer.train().metrics["train_samples_per_second"]
            del model, trainer
            gc.collect()
            torch.cuda.empty_cache()
        print(f"\n{family}, {name}: {speed:.2f} samples/s")
        assert speed > 0


@pytest.mark.skipif(importlib.util.find_spec("unsloth") is None, reason="Unsloth is not installed")
def test_samples_per_second_of_unsloth(made, tmp_path):
    config, processor, _ = made("qwen3-vl", 1)
    model = random_model.make_model(config, 16, "cuda")
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    del model
    gc.collect()
    torch.cuda.empty_cache()
    command = [sys.executable, UNSLOTH, tmp_path / "model", str(BATCH_SIZE)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert run.returncode == 0, run.stderr[-3000:]
    print(f"\nqwen3-vl, Unsloth: {run.stdout.splitlines()[-1]} samples/s")
