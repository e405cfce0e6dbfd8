"""A frozen vision tower is computed once per step, and what is learned stays the same."""

import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForImageTextToText, AutoProcessor, set_seed

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import make_row
from vlmhelpers.families import TINY_BASES, family_of, tiny_model
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import lora_targets
from vlmhelpers.models.vision import stop_gradients_at_frozen_vision


@pytest.fixture(scope="module", params=TINY_BASES)
def family(request):
    return request.param


@pytest.fixture(scope="module")
def batch(family, picture):
    processor = AutoProcessor.from_pretrained(tiny_model(family))
    return VisionCollator(processor)([make_row("What is this?", "A bag.", [picture])])


def with_adapters(family, rest, vision=False):
    """(model, how often a linear layer of its vision tower was called) as it is trained with checkpointing."""
    model = AutoModelForImageTextToText.from_pretrained(tiny_model(family), dtype=torch.float32)
    if rest:
        stop_gradients_at_frozen_vision(model)
    set_seed(0)
    model = get_peft_model(model, LoraConfig(r=4, target_modules=lora_targets(model, vision=vision))).train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()
    tower_of = family_of(model).tower_of
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and tower_of(n) == "vision"]
    calls = []
    next(m for n, m in layers if "lora" not in n).register_forward_pre_hook(lambda *_: calls.append(1))
    return model, calls


def step(model, batch):
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def test_the_frozen_tower_is_computed_once_and_the_gradients_are_the_same(family, batch):
    (plain, calls), (resting, our_calls) = (with_adapters(family, rest) for rest in (False, True))
    (loss, gradients), (our_loss, our_gradients) = step(plain, batch), step(resting, batch)
    assert our_loss == loss and our_gradients.keys() == gradients.keys() and gradients
    assert all(torch.equal(our_gradients[name], gradients[name]) for name in gradients)
    # Two where the pixels themselves are embeddings.
    assert len(our_calls) == 1 and len(calls) == (
        2 if family in ("qwen2.5-vl", "internvl") else 1
    )  # who embeds pixels so


def test_adapters_in_the_tower_are_trained_as_ever(family, batch):
    gradients = [step(with_adapters(family, rest, vision=True)[0], batch)[1] for rest in (False, True)]
    assert any(".visual.blocks." in name or ".vision_" in name for name in gradients[0])
    assert gradients[0].keys() == gradients[1].keys()
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_load_model_does_it_and_a_copy_has_a_tower_of_its_own(family, batch):
    model, _ = load_model(tiny_model(family), bits=16)
    copied = copy.deepcopy(model)
    (name, tower), *others = [
        (n, m) for n, m in model.named_modules() if "forward" in vars(m) and "vision" == family_of(model).tower_of(n)
    ]
    assert not others
    expected = copied(**batch).logits
    with torch.no_grad():
        for parameter in tower.parameters():
            parameter.zero_()
    assert copied.get_submodule(name) is not tower and torch.equal(copied(**batch).logits, expected)
    assert not torch.equal(model(**batch).logits, expected)
