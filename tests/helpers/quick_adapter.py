"""Adapters that change a tiny model's answers, made in seconds."""

import torch
from peft import LoraConfig
from transformers import set_seed

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.families import tiny_model
from vlmhelpers.models.backends import add_lora
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import keep_adapters_float32, lora_targets
from vlmhelpers.samples.drawing import sample_products


def sample_rows(rows_of, n=4):
    """Rows with a question that the tiny models know, and an answer in words that they do not give by themselves."""
    pairs = sample_products(n, "adapter", size=48)
    return rows_of([("What is it?", f"{p.color} {p.color} {p.category}", [image]) for p, image in pairs])


def train_adapter(family, dataset, steps=15, bits=16, r=4, **targets):
    """(PeftModel, processor) after a few steps on all rows at once, far enough to answer otherwise than the base."""
    set_seed(0)
    model, processor = load_model(tiny_model(family), bits=bits)
    lora = LoraConfig(r=r, lora_alpha=4 * r, target_modules=lora_targets(model, **targets), task_type="CAUSAL_LM")
    model = add_lora(model, lora).train()
    keep_adapters_float32(model)
    batch = VisionCollator(processor)(list(dataset))
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.01)
    for _ in range(steps):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval(), processor
