"""How a family is asked for, what it says of itself, and what transformers tells of those that nobody describes."""

import copy

import pytest
import torch
from bases import DESCRIBED
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForImageTextToText

from vlmhelpers.families import FAMILIES, PUBLISHED, TINY_BASES, family_of, find_config
from vlmhelpers.families.family import TINY_LICENSE, UNKNOWN_LICENSE
from vlmhelpers.families.towers import derive_towers
from vlmhelpers.models.loading import load_processor
from vlmhelpers.models.lora import lora_targets

SWITCHES = ("packable", "mixable", "images_in_sequence", "caches_pixels", "caches_features", "has_pixel_cap")
described = pytest.mark.parametrize("base", DESCRIBED, indirect=True)


@described
def test_every_way_of_asking_gives_the_family(base):
    family = FAMILIES[base.family.name]
    config, processor = AutoConfig.from_pretrained(base.folder), load_processor(base.folder)
    tuned = get_peft_model(copy.deepcopy(base.model), LoraConfig(target_modules=lora_targets(base.model)))
    published = [model_id for model_id in PUBLISHED if family_of(model_id) is family]
    asked = [family.name, base.folder, str(base.folder), config, processor, *published]
    assert published and all(family_of(subject) is family for subject in asked)
    assert all(family_of(model).name == family.name for model in (base.model, tuned))
    assert type(processor).__name__ in family.processors
    if base.name in TINY_BASES:
        assert family.tiny_base() == base.folder


@pytest.mark.parametrize("model_id", PUBLISHED)
def test_a_published_shape_is_of_exactly_one_family(model_id):
    meant = [family for family in FAMILIES.values() if family.is_meant_by(model_id.lower())]
    assert meant == [family_of(model_id)] == [family_of(find_config(model_id))]


@described
def test_what_a_family_says_of_itself_is_of_the_declared_types(base):
    family = FAMILIES[base.family.name]
    assert all(type(getattr(family, name)) is bool for name in SWITCHES)
    if base.name == family.name and family.gguf_architectures:
        assert type(base.model).__name__ in family.gguf_architectures
    exec(family.loading_import)
    published = [model_id for model_id in PUBLISHED if family_of(model_id) is family]
    known = [found for found in map(family.license_of, published) if found != UNKNOWN_LICENSE]
    assert known and all(type(metadata["license"]) is str and sentence for metadata, sentence in known)
    assert family.license_of(family.name) == TINY_LICENSE and family.license_of("someone/else") == UNKNOWN_LICENSE


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
