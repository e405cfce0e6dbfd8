"""A model of any published shape with random weights, and one run of TRL's trainer on it, on a GPU or a CPU.

For tests that measure memory and speed: neither depends on what the weights are.
"""

import copy

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from datasets import Dataset, Features, Value
from peft import LoraConfig
from torch import nn
from transformers import AutoModelForImageTextToText, AutoProcessor
from trl import SFTConfig, SFTTrainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, answer_of, make_row, user
from vlmhelpers.families import family_of, tiny_model
from vlmhelpers.models.lora import keep_adapters_float32, lora_targets
from vlmhelpers.models.vision import stop_gradients_at_frozen_vision
from vlmhelpers.samples.drawing import sample_products

QUESTION = "Describe this product."


def make_processor(family, config, image_tokens):
    """The tiny processor of a Qwen family for another shape; the token ids in `config` become the processor's.

    It resizes every image to about `image_tokens` tokens.
    """
    processor = AutoProcessor.from_pretrained(tiny_model(family))
    tokenizer, vision = processor.tokenizer, config.vision_config
    config.image_token_id = processor.image_token_id
    config.video_token_id = processor.video_token_id
    config.vision_start_token_id = tokenizer.convert_tokens_to_ids("<|vision_start|>")
    config.vision_end_token_id = tokenizer.convert_tokens_to_ids("<|vision_end|>")
    image_processor = processor.image_processor
    image_processor.patch_size, image_processor.merge_size = vision.patch_size, vision.spatial_merge_size
    pixels = image_tokens * (vision.patch_size * vision.spatial_merge_size) ** 2
    image_processor.size = {"shortest_edge": pixels, "longest_edge": pixels}
    return processor


def make_model(config, bits, device):
    """The model with random weights in bfloat16, its language model's linear layers in NF4 with `bits=4`."""
    with torch.device(device):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), dtype=torch.bfloat16)
    family_of(model).prepare(model)
    stop_gradients_at_frozen_vision(model)
    if bits == 4:
        tower_of = family_of(model).tower_of
        linear = [(n, m) for n, m in model.named_modules() if isinstance(m, nn.Linear) and tower_of(n) == "language"]
        for name, module in linear:
            parent, _, leaf = name.rpartition(".")
            setattr(model.get_submodule(parent), leaf, _in_4_bits(module, device))
        model.is_loaded_in_4bit = True
    return model


def _in_4_bits(linear, device):
    layer = Linear4bit(
        linear.in_features, linear.out_features, linear.bias is not None, torch.bfloat16, True, "nf4", device="meta"
    )
    layer.bias = linear.bias
    weight = linear.weight.data
    layer.weight = Params4bit(weight, requires_grad=False, compress_statistics=True, quant_type="nf4").to(device)
    return layer


def make_rows(number, size):
    """Drawn images of `size` x `size` pixels, with a question and an answer of the same lengths in every row."""
    products = sample_products(number, "random model", size)
    rows = [make_row(QUESTION, "A plain red bag, price: $20.", [image]) for _, image in products]
    return Dataset.from_list(rows, features=FEATURES)


def make_lora(model, vision=False, r=16):
    """Adapters where the notebooks put them."""
    return LoraConfig(r=r, lora_alpha=r, target_modules=lora_targets(model, vision=vision), task_type="CAUSAL_LM")


def make_trainer(model, processor, rows, folder, batch_size, steps, logits="labeled", gradient_checkpointing=True):
    """TRL's trainer as the notebooks set it up for a real model: bfloat16, adapters in float32, two batches a step.

    Adapters that `model` has already stay. `logits` goes to the collator; None is for TRL's own, with its own loss.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    arguments = SFTConfig(
        output_dir=folder, max_steps=steps, per_device_train_batch_size=batch_size, gradient_accumulation_steps=2,
        learning_rate=1e-5, max_length=None, remove_unused_columns=False, bf16=True, use_cpu=on_cpu,
        loss_type="nll" if logits else "chunked_nll", gradient_checkpointing=gradient_checkpointing,
        dataloader_pin_memory=not on_cpu, logging_steps=100, save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    collator = VisionCollator(processor, logits=logits) if logits else None
    lora = None if hasattr(model, "peft_config") else make_lora(model)
    trainer = SFTTrainer(model, arguments, collator, rows, processing_class=processor, peft_config=lora)
    keep_adapters_float32(trainer.model)
    return trainer


def for_trls_collator(rows, processor):
    """The same rows as prompt and completion, which TRL's own collator takes."""
    prompt = processor.apply_chat_template([user(QUESTION, images=1)], add_generation_prompt=True)
    end = processor.tokenizer.eos_token
    made = [
        {"prompt": prompt, "completion": answer_of(row) + end, "images": row["images"]}
        for row in rows.with_format("arrow")[:].to_pylist()
    ]
    features = {"prompt": Value("string"), "completion": Value("string"), "images": FEATURES["images"]}
    return Dataset.from_list(made, features=Features(features))


def lengths(processor, rows, batch_size):
    """(tokens, image tokens, labeled tokens) of a row of the batch, as `estimate_memory` takes them."""
    batch = VisionCollator(processor, logits="labeled")(list(rows.select(range(batch_size))))
    image_tokens = int((batch["input_ids"] == processor.image_token_id).sum()) // batch_size
    return batch["input_ids"].shape[1], image_tokens, len(batch["logits_to_keep"])
