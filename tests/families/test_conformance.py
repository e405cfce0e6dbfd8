"""What every family has to keep: its names, its towers, and which layers are adapted, quantized and trained.

A family that is added to `FAMILIES` goes through these checks, and so does a model that no family describes.
"""

import copy
import math
from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny_onevision import UNDESCRIBED
from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor

from vlmhelpers.estimation import estimate_memory
from vlmhelpers.families import FAMILIES, PUBLISHED, TOWERS, family_of, find_config
from vlmhelpers.families.family import TINY_LICENSE, UNKNOWN_LICENSE
from vlmhelpers.families.towers import derive_towers
from vlmhelpers.models.lora import keep_adapters_float32, lora_targets
from vlmhelpers.models.vision import cache_vision_features, stop_caching_vision_features

CHOICES = [  # options of lora_targets, the towers that get adapters
    ({}, {"language"}),
    ({"vision": True}, {"language", "vision", "projector"}),
    ({"language": False, "vision": True}, {"vision", "projector"}),
]
SWITCHES = ("packable", "mixable", "images_in_sequence", "caches_pixels", "caches_features", "has_pixel_cap")


def decoder_linears(model):
    """Names of the linear layers in what transformers calls the decoder, an encoder inside it left out."""
    inside = set(model.get_decoder().modules()) - set(model.get_encoder(modality="image").modules())
    return {name for name, module in linears(model).items() if module in inside}


def linears(model):
    return {name: module for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}


def with_adapters(model, **chosen):
    """A copy of the model with adapters that change its answers."""
    torch.manual_seed(0)
    lora = LoraConfig(r=4, target_modules=lora_targets(model, **chosen), init_lora_weights=False)
    tuned = get_peft_model(copy.deepcopy(model), lora).train()
    keep_adapters_float32(tuned)
    return tuned


def gradients_of_a_step(tuned, batch):
    """(loss, gradients of the adapters by name) of a step with gradient checkpointing."""
    tuned.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    tuned.enable_input_require_grads()
    loss = tuned(**batch, use_cache=False).loss
    loss.backward()
    return loss.item(), {name: p.grad for name, p in tuned.named_parameters() if p.requires_grad}


# Names


def test_every_way_of_asking_gives_the_family(described):
    family = FAMILIES[described.name]
    config, processor = AutoConfig.from_pretrained(described.folder), AutoProcessor.from_pretrained(described.folder)
    tuned = get_peft_model(copy.deepcopy(described.model), LoraConfig(target_modules=lora_targets(described.model)))
    published = [model_id for model_id in PUBLISHED if family_of(model_id) is family]
    asked = [described.name, described.folder, str(described.folder), config, processor]
    assert all(family_of(subject) is family for subject in (*asked, *published)) and published
    assert all(family_of(model).name == family.name for model in (described.model, tuned))
    assert type(processor).__name__ in family.processors and config.model_type in family.model_types
    assert family.tiny_base() == described.folder


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_a_published_shape_is_of_exactly_one_family(model_id):
    meant = [family for family in FAMILIES.values() if family.is_meant_by(model_id.lower())]
    assert meant == [family_of(model_id)] == [family_of(find_config(model_id))]


def test_what_a_family_says_of_itself_is_of_the_declared_types(described):
    family = described.family
    assert all(type(getattr(family, name)) is bool for name in SWITCHES)
    assert set(family.gguf_architectures) in (set(), {type(described.model).__name__})
    exec(family.loading_import)
    for model_id in PUBLISHED:
        if family_of(model_id) is family:
            metadata, sentence = family.license_of(model_id)
            assert type(metadata["license"]) is str and sentence and (metadata, sentence) != UNKNOWN_LICENSE
    assert family.license_of(described.name) == TINY_LICENSE and family.license_of("someone/else") == UNKNOWN_LICENSE


# Towers


def test_derived_towers_are_those_described_by_hand(described):
    """Apart from a projector inside the encoder, of which transformers does not know."""
    family, derived = described.family, replace(described.family, **derive_towers(described.model))
    found = {name: (family.tower_of(name), derived.tower_of(name)) for name, _ in described.model.named_parameters()}
    assert {by_hand for by_hand, _ in found.values()} == set(TOWERS)
    for name, (by_hand, tower) in found.items():
        assert tower == by_hand or (by_hand, tower) == ("projector", "vision"), name


def test_the_towers_of_an_undescribed_model_are_derived(load):
    base = load(UNDESCRIBED, 16)
    assert base.family.name == family_of(base.folder).name == family_of(base.processor).name == "generic"
    expected = {"vision_tower": "vision", "multi_modal_projector": "projector", "image_newline": "projector"}
    expected |= {"language_model": "language", "lm_head": "head"}
    for name, _ in base.model.named_parameters():
        assert base.family.tower_of(name) == expected[name.removeprefix("model.").split(".")[0]], name


def on_meta(model_type, **settings):
    with torch.device("meta"):
        return AutoModelForImageTextToText.from_config(AutoConfig.for_model(model_type, **settings))


def test_a_model_without_an_encoder_has_a_projector_and_one_with_vision_inside_its_decoder_is_refused():
    fuyu = on_meta("fuyu", num_hidden_layers=1)
    towers = {"vision": (), "audio": (), "head": ("lm_head",), "projector": ("model.vision_embed_tokens",)}
    assert derive_towers(fuyu) == towers
    git = on_meta("git", num_hidden_layers=1, vision_config={"num_hidden_layers": 1})
    with pytest.raises(ValueError, match="GitForCausalLM has its vision inside the decoder: describe its towers"):
        family_of(git)


# Adapters and quantized layers


@pytest.mark.parametrize(("chosen", "towers"), CHOICES)
def test_adapters_are_on_all_linear_layers_of_the_chosen_towers_and_nowhere_else(base, chosen, towers):
    tuned = with_adapters(base.model, **chosen)
    adapted = {
        name.removeprefix("base_model.model.") for name, module in tuned.named_modules() if hasattr(module, "lora_A")
    }
    assert adapted == {name for name in linears(base.model) if base.family.tower_of(name) in towers}
    assert {base.family.tower_of(name) for name in adapted} == towers
    assert adapted & decoder_linears(base.model) == (decoder_linears(base.model) if "language" in towers else set())
    assert all(p.requires_grad == (".lora_" in name) for name, p in tuned.named_parameters())


def test_exactly_the_linear_layers_of_the_decoder_are_in_4_bits(base_in_4_bits):
    model = base_in_4_bits.model
    quantized = {name: module for name, module in linears(model).items() if isinstance(module, bnb.nn.Linear4bit)}
    assert quantized.keys() == decoder_linears(model) != set()
    for module in quantized.values():
        assert (module.weight.quant_type, module.weight.quant_state.nested) == ("nf4", True)
        assert module.compute_dtype == torch.float32 and not module.support_avx512bf16_for_cpu
    others = [p for p in model.parameters() if not isinstance(p, bnb.nn.Params4bit)]
    assert {p.dtype for p in others} == {torch.float32}


def test_a_step_in_4_bits_reaches_every_adapter(base_in_4_bits, rows):
    batch = base_in_4_bits.collator(rows[:1])
    loss, gradients = gradients_of_a_step(with_adapters(base_in_4_bits.model), batch)
    assert math.isfinite(loss) and all(grad.isfinite().all() and grad.any() for grad in gradients.values())


def test_a_step_in_16_bits_reaches_every_adapter(base, rows):
    """Without autocast: the model itself has to take the collator's float32 pixels."""
    batch = base.collator([rows[0], rows[2]])
    model = AutoModelForImageTextToText.from_pretrained(base.folder, dtype=torch.bfloat16)
    loss, gradients = gradients_of_a_step(with_adapters(model), batch)
    with torch.no_grad():
        assert loss == pytest.approx(with_adapters(base.model)(**batch).loss.item(), rel=0.03)
    assert all(grad.isfinite().all() and grad.any() for grad in gradients.values())


def test_features_are_cached_or_refused(base, rows, tmp_path):
    if not base.family.caches_features:
        able = ", ".join(name for name, family in FAMILIES.items() if family.caches_features)
        with pytest.raises(ValueError, match=f"^{type(base.model).__name__}: its features .* only those of {able}$"):
            cache_vision_features(base.model, tmp_path)
        return
    model, batch = copy.deepcopy(base.model).requires_grad_(False), base.collator([rows[2], rows[0]])
    expected = model(**batch).logits
    cache_vision_features(model, tmp_path)
    for _ in range(2):
        torch.testing.assert_close(model(**batch).logits, expected, atol=2e-5, rtol=1e-4)
    assert len(list(tmp_path.rglob("*.safetensors"))) == 3
    stop_caching_vision_features(model)


# The estimate of memory


@pytest.mark.slow
def test_a_dry_run_needs_more_with_images_and_more_with_adapters_on_their_tower(described):
    image_tokens = described.family.states_per_image(described.model.config) or 60
    text, seen, adapted = (
        estimate_memory(described.folder, 100, tokens, vision=vision, gradient_checkpointing=False)
        for tokens, vision in ((0, False), (image_tokens, False), (image_tokens, True))
    )
    assert text.flops < seen.flops < adapted.flops
    assert text.kept <= seen.kept < adapted.kept
    assert text.weights == seen.weights == adapted.weights


def test_a_dry_run_of_an_undescribed_model_is_refused_by_its_type(load):
    with pytest.raises(ValueError, match="no batch can be made for a 'llava_onevision' without its weights"):
        estimate_memory(load(UNDESCRIBED, 16).folder, 100, 60)
