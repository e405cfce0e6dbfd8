"""Own weights are trained where they were meant to be, and nowhere else."""

import copy
import re

import pytest
import torch
from safetensors.torch import load_file
from trl import SFTConfig, SFTTrainer

from vlmhelpers.batches import VisionCollator
from vlmhelpers.data.schema import make_row
from vlmhelpers.families import TINY_BASES, TOWERS, family_of
from vlmhelpers.inference.generation import generate
from vlmhelpers.models import load_model, restore_dtypes, train_only

LAST = {"towers": ["language"], "last_layers": 1}

# Phi-3 takes the states of the layer before the last one.
UNUSED = r"img_processor\.(encoder\.layers\.3|post_layernorm)\."


def trained(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def of_towers(model, *towers):
    tower_of = family_of(model).tower_of
    return {name for name, _ in model.named_parameters() if tower_of(name) in towers}


def last_of_language(model, number):
    """The names in the last layers of the language tower."""
    found = {name: re.search(r"layers\.(\d+)\.", name) for name in of_towers(model, "language")}
    layers = sorted({int(match[1]) for match in found.values() if match})[-number:]
    return {name for name, match in found.items() if match and int(match[1]) in layers}


@pytest.mark.parametrize("family", TINY_BASES)
def test_towers_and_last_layers(tiny, family):
    model, _ = tiny(family)
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    cases = [
        ({}, set(sizes)),
        ({"towers": ["vision"]}, of_towers(model, "vision")),
        ({"towers": ["language", "projector"]}, of_towers(model, "language", "projector")),
        ({"towers": ["language"], "last_layers": 1}, last_of_language(model, 1)),
        ({"last_layers": 1}, last_of_language(model, 1) | of_towers(model, "vision", "projector", "head")),
        ({"last_layers": 0}, of_towers(model, "vision", "projector", "head")),
        ({"towers": ["projector"], "last_layers": 2}, of_towers(model, "projector")),
        ({"towers": ["language"], "last_layers": 99}, last_of_language(model, 99)),
    ]
    for settings, expected in cases:  # one after another: what was frozen before is trained again
        table = train_only(model, **settings)
        assert trained(model) == expected != set(), settings
        for tower in TOWERS:
            names = of_towers(model, tower)
            assert table.counts[tower] == (sum(sizes[n] for n in names & expected), sum(sizes[n] for n in names))
    assert 0 < len(last_of_language(model, 1)) < len(last_of_language(model, 99)) < len(of_towers(model, "language"))


@pytest.mark.parametrize("family", TINY_BASES)
@pytest.mark.parametrize(
    "settings", [{"towers": ["vision", "projector"]}, {"towers": ["language"], "last_layers": 1}, {"last_layers": 0}]
)
def test_training_changes_exactly_these(tiny, family, settings, picture):
    model, processor = tiny(family)
    train_only(model, **settings)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    batch = VisionCollator(processor)([make_row("What is this?", "A crimson boot.", [picture])])
    for _ in range(2):
        model(**batch).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed == {name for name in trained(model) if not re.search(UNUSED, name)} != set()


def test_refusals(tiny):
    model, _ = tiny("qwen3-vl")
    with pytest.raises(ValueError, match="^towers: ears, tongue: choose from vision, projector, language, head$"):
        train_only(model, ["tongue", "vision", "ears"])
    with pytest.raises(ValueError, match="last_layers=-1: a number of layers"):
        train_only(model, last_layers=-1)
    for settings in ({"towers": []}, {"towers": ["language"], "last_layers": 0}):
        with pytest.raises(ValueError, match="nothing would be trained"):
            train_only(model, **settings)


@pytest.mark.slow
def test_weights_of_4_bits_are_refused(tiny):
    with pytest.raises(ValueError, match="4 bits cannot be trained: load the model with bits=16"):
        train_only(tiny("qwen3-vl", bits=4)[0])


# Models in 16 bits


def dtypes(model):
    return {name: parameter.dtype for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("family", TINY_BASES)
def test_what_is_trained_becomes_float32_and_what_no_longer_is_gets_its_bits_back(tiny, family, picture):
    model, processor = tiny(family)
    model.to(torch.bfloat16)
    batch = VisionCollator(processor)([make_row("What is this?", "A crimson boot.", [picture])])
    tied = {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(dtypes(model))
    for settings in (LAST, {"towers": ["vision", "projector"]}, {"towers": ["head"]}, {}):
        train_only(model, **settings)
        full = {name for name, dtype in dtypes(model).items() if dtype == torch.float32}
        assert full == trained(model) and set(dtypes(model).values()) <= {torch.float32, torch.bfloat16}
        with torch.no_grad():
            assert model(**batch).loss.isfinite()  # without a trainer
    assert {name for name, _ in model.named_parameters(remove_duplicate=False)} - set(dtypes(model)) == tied
    restore_dtypes(model)
    assert set(dtypes(model).values()) == {torch.bfloat16}


def test_a_deep_copy_computes_with_its_own_weights(tiny, picture):
    model, processor = tiny("qwen3-vl")
    batch = VisionCollator(processor)([make_row("What is this?", "A crimson boot.", [picture])])
    train_only(model.to(torch.bfloat16), **LAST)
    other = copy.deepcopy(model)
    before = model(**batch).loss
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert torch.equal(model(**batch).loss, before) and not torch.equal(other(**batch).loss, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "settings"), [*((family, LAST) for family in TINY_BASES), ("qwen3-vl", {}), ("qwen2.5-vl", {})]
)
def test_small_steps_are_kept_and_the_model_is_saved_in_its_bits(tiny, family, settings, picture, rows_of, tmp_path):
    model, processor = tiny(family)
    train_only(model.to(torch.bfloat16), **settings)
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    rows = rows_of([("What is this?", "A crimson boot.", [picture])] * 2)
    args = SFTConfig(
        tmp_path, max_steps=1, learning_rate=1e-5, warmup_steps=0, bf16=True, use_cpu=True, loss_type="nll",
        gradient_checkpointing=True, max_length=None, remove_unused_columns=False, report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = SFTTrainer(model, args, VisionCollator(processor), rows, processing_class=processor)
    trainer.train()
    after = torch.cat([model.get_parameter(name).detach().flatten() for name in before])
    before = torch.cat([parameter.flatten() for parameter in before.values()])
    moved, lost = (after - before).abs(), after.bfloat16() == before.bfloat16()
    assert moved[moved > 0].median().item() == pytest.approx(1e-5, rel=0.05)  # Adam's first step is the rate
    assert lost[moved > 0].float().mean() > 0.9  # by rounding to 16 bits
    answer = generate(model, processor, rows, max_new_tokens=4)
    restore_dtypes(model)
    assert generate(model, processor, rows, max_new_tokens=4) == answer
    trainer.save_model(tmp_path / "saved")
    files = [load_file(file) for file in (tmp_path / "saved").glob("*.safetensors")]
    assert {tensor.dtype for file in files for tensor in file.values()} == {torch.bfloat16}
    processor.save_pretrained(tmp_path / "saved")
    loaded, _ = load_model(tmp_path / "saved", bits=16, backend="transformers")
    assert all(torch.equal(p, model.get_parameter(n)) for n, p in loaded.bfloat16().named_parameters())
