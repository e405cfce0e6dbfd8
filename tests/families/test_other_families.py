"""The tiny random models of families that no `Family` object describes: each works, and no architecture is missing."""

import math

import pytest
import torch
from other_families import BUILDERS, ENDS, REFUSED
from random_families import BUILDERS as DESCRIBED
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES

from vlmhelpers.data.schema import assistant, user
from vlmhelpers.families import FAMILIES
from vlmhelpers.samples.drawing import sample_products

MOST_PARAMETERS = 1_400_000


@pytest.fixture(scope="module")
def images():
    """Two images of one size."""
    return [image.resize((120, 80)) for _, image in sample_products(2, "other families", 96)]


def batch(processor, rows):
    """What the processor makes of rows, each a list of images, for a model in float32."""
    texts = [processor.apply_chat_template(talk(len(row)), tokenize=False) for row in rows]
    # Cosmos 3 Edge needs the kinds of the tokens, which its processor leaves out unless it is asked.
    kinds = {"return_mm_token_type_ids": True} if "mm_token_type_ids" in processor.model_input_names else {}
    made = processor(text=texts, images=rows, padding=True, add_special_tokens=False, return_tensors="pt", **kinds)
    return {key: value.float() if value.is_floating_point() else value for key, value in made.items()}


def talk(number_of_images):
    return [user("What color is the bag?", images=number_of_images), assistant("plain red")]


@torch.no_grad()
def lively(config):
    """A model whose answers depend on what is seen: no matrix starts with one value."""
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_config(config).eval()
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.mul_(2) if parameter.std() > 0 else parameter.normal_(0, 0.05)
    return model


def test_every_architecture_is_described_built_or_refused_with_a_reason():
    described = {*DESCRIBED}.union(*(family.model_types for family in FAMILIES.values()))
    assert {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} <= described | {*BUILDERS} | {*REFUSED}
    assert {*BUILDERS} | {*REFUSED} <= {*MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES} - {*DESCRIBED}
    assert not {*BUILDERS} & {*REFUSED} and all(REFUSED.values())


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_model_and_processor_fit_each_other(name, images):
    config, processor = BUILDERS[name]()
    model = lively(config)
    assert config.model_type == name
    assert sum(parameter.numel() for parameter in model.parameters()) < MOST_PARAMETERS
    inputs = batch(processor, [images, []])
    labels = inputs["input_ids"].masked_fill(inputs["attention_mask"] == 0, -100)
    assert math.isfinite(model(**inputs, labels=labels).loss.item())
    first, second = (model(**batch(processor, [[image]])).logits[0, -1] for image in images)
    assert (first - second).abs().max() > 0.01 * first.std()


@pytest.mark.slow
@pytest.mark.parametrize("name", BUILDERS)
def test_a_processor_that_is_read_again_makes_the_same_batches(name, images, tmp_path):
    config, processor = BUILDERS[name]()
    config.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again = AutoProcessor.from_pretrained(tmp_path, trust_remote_code=False)
    built, read = (batch(each, [images, []]) for each in (processor, again))
    assert built.keys() == read.keys() and all(torch.equal(built[key], read[key]) for key in built)


@pytest.mark.parametrize("name", ENDS)
def test_the_ends_of_generation_are_special_tokens(name):
    tokenizer = BUILDERS[name]()[1].tokenizer
    special = {str(token) for token in tokenizer.added_tokens_decoder.values() if token.special}
    assert {*ENDS[name]} <= special
