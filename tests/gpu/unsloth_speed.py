"""Prints, as its last line, the samples per second of Unsloth on the model in a folder; `test_preflight_gpu` starts it.

A program of its own, as Unsloth has to be imported before transformers.
"""

import sys
from pathlib import Path

from vlmhelpers.models.backends import add_lora, use_unsloth

assert use_unsloth()
sys.path.append(str(Path(__file__).parents[1] / "helpers"))

import random_model  # noqa: E402

from vlmhelpers.models.loading import load_model  # noqa: E402

folder, batch_size = sys.argv[1], int(sys.argv[2])
rows = random_model.make_rows(32, 448)
model, processor = load_model(folder, bits=4, backend="unsloth")
model = add_lora(model, random_model.make_lora(model))
for steps in (1, 8):  # the first to warm up
    trainer = random_model.make_trainer(model, processor, rows, "unsloth", batch_size, steps, logits="all")
    metrics = trainer.train().metrics
print(metrics["train_samples_per_second"])
