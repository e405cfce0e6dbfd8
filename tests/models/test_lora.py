"""Adapters land where they were meant to, and only they are trained."""

import re

import pytest
import torch
from peft import LoraConfig, get_peft_model
from trl import SFTConfig, SFTTrainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.families import TINY_BASES, family_of, tiny_model
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import describe_trainable, keep_adapters_float32, lora_targets


def linear_layers(model, *towers):
    tower_of = family_of(model).tower_of
    return {n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and tower_of(n) in towers}


def test_nothing_chosen_is_an_error():
    model, _ = load_model(tiny_model("qwen3-vl"), bits=16)
    with pytest.raises(ValueError, match="nothing to adapt"):
        lora_targets(model, language=False)


def test_counts_by_tower_in_4_bits_and_without():
    counts = []
    for bits in (4, 16):
        model, _ = load_model(tiny_model("llama-3.2-vision"), bits=bits)
        adapted = get_peft_model(model, LoraConfig(r=2, target_modules=lora_targets(model)))
        counts.append(describe_trainable(adapted))
    assert counts[0].counts == counts[1].counts
    language, vision = counts[0].counts["language"], counts[0].counts["vision"]
    assert vision[0] == 0 < vision[1] and 0 < language[0] < language[1]
    assert counts[0].total[0] == sum(p.numel() for p in adapted.parameters() if p.requires_grad)
    assert counts[0].total[1] == sum(p.numel() for p in adapted.parameters())
    assert "together" in repr(counts[0])


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_BASES)
@pytest.mark.parametrize("bits", [4, 16])
def test_every_adapter_weight_moves_and_no_frozen_one(family, bits, rows_of, picture, tmp_path):
    model, processor = load_model(tiny_model(family), bits=bits)
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(tmp_path, max_steps=2, learning_rate=1e-2, use_cpu=True, bf16=False, max_length=None,
                       gradient_checkpointing=False, report_to="none", save_strategy="no", disable_tqdm=True,
                       remove_unused_columns=False, per_device_train_batch_size=2),
        train_dataset=rows_of([("What is this?", "A crimson boot.", [picture])] * 4),
        data_collator=VisionCollator(processor),
        processing_class=processor,
        peft_config=LoraConfig(r=4, target_modules=lora_targets(model)),
    )  # fmt: skip
    keep_adapters_float32(trainer.model)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train()
    adapters = {name for name in before if "lora_" in name}
    assert len(adapters) == 2 * sum(hasattr(module, "lora_A") for module in trainer.model.modules())
    for name, p in trainer.model.named_parameters():
        assert torch.equal(p, before[name]) == (name not in adapters), name
        assert p.requires_grad == (name in adapters) and (name not in adapters or p.dtype == torch.float32), name


@pytest.mark.parametrize("family", TINY_BASES)
def test_lower_language_layers_can_be_left_out(family):
    model, _ = load_model(tiny_model(family), bits=16)
    linear = linear_layers(model, "language")
    everywhere, upper = ({n for n in linear if re.fullmatch(lora_targets(model, from_layer=k), n)} for k in (0, 1))
    assert upper == {name for name in everywhere if ".layers.0." not in name} != everywhere
    last = max(int(re.search(r"layers\.(\d+)", name).group(1)) for name in everywhere)
    only_last = re.compile(lora_targets(model, from_layer=last))
    assert {n for n in linear if only_last.fullmatch(n)} == {n for n in everywhere if f".layers.{last}." in n}
    with pytest.raises(ValueError, match="nothing to adapt"):
        lora_targets(model, from_layer=last + 1)


def test_a_model_with_adapters_has_the_same_targets():
    model, _ = load_model(tiny_model("qwen3-vl"), bits=4)
    chosen = lora_targets(model, vision=True)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=lora_targets(model, from_layer=1)))
    assert lora_targets(tuned, vision=True) == lora_targets(model, vision=True) == chosen


@pytest.mark.parametrize("family", TINY_BASES)
def test_attention_and_mlp_are_chosen_apart(family):
    model, _ = load_model(tiny_model(family), bits=16)
    projector = linear_layers(model, "projector")
    layers = {tower: linear_layers(model, tower) for tower in ("language", "vision")}
    attention = {
        tower: {name for name in names if re.search(r"[_.](attn|attention)\.", name)} for tower, names in layers.items()
    }

    def hit(**chosen):
        pattern = lora_targets(model, **chosen)
        return {name for name in linear_layers(model, "language", "vision", "projector") if re.fullmatch(pattern, name)}

    assert set() != attention["language"] != layers["language"]
    assert hit(mlp=False) == attention["language"]
    assert hit(attention=False) == layers["language"] - attention["language"]
    assert hit(language=False, vision=True, mlp=False) == attention["vision"] | projector
    assert hit(language=False, vision=True, attention=False) == layers["vision"] - attention["vision"] | projector
    assert hit(vision=True, attention=False, mlp=False) == projector != set()
    assert hit(mlp=False, from_layer=1) == {name for name in attention["language"] if ".layers.0." not in name}
    with pytest.raises(ValueError, match="nothing to adapt"):
        lora_targets(model, attention=False, mlp=False)
