"""A processor's family follows from its class and, where several have that, from the model that it came with."""

import json

import pytest
from random_families import build
from transformers import AutoProcessor

from vlmhelpers.batches import RatedCollator
from vlmhelpers.data.schema import assistant, user
from vlmhelpers.families import family_of, registry, tiny_model
from vlmhelpers.samples.drawing import sample_products

PICTURES = [picture for _, picture in sample_products(2, "processors", size=64)]


@pytest.fixture
def processor():
    return AutoProcessor.from_pretrained(tiny_model("qwen3-vl"))


def folder_of(tmp_path, model_type):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return str(tmp_path)


@pytest.mark.parametrize(
    ("model_type", "family"),
    [
        ("qwen3_vl", "qwen3-vl"),
        ("qwen3_5", "qwen3.5"),
        ("qwen3_5_moe", "generic"),  # whose processor is of that class, too, and which nobody has described
        ("bert", "qwen3-vl"),  # only the tokenizer came from there
        ("internvl", "qwen3-vl"),
    ],
)
def test_the_model_beside_it_decides_between_families_of_its_class(processor, tmp_path, model_type, family):
    processor.tokenizer.name_or_path = folder_of(tmp_path, model_type)
    assert family_of(processor).name == family


def test_without_a_name_the_working_folder_is_not_asked(processor, tmp_path, monkeypatch):
    folder_of(tmp_path, "qwen3_5")
    monkeypatch.chdir(tmp_path)
    processor.tokenizer.name_or_path = ""
    assert family_of(processor).name == "qwen3-vl"


def test_an_id_of_which_the_hub_has_no_configuration(processor, monkeypatch):
    monkeypatch.setattr(registry, "try_to_load_from_cache", lambda *_: object())  # how the cache says so
    processor.tokenizer.name_or_path = "acme/adapter"
    assert family_of(processor).name == "qwen3-vl"


def test_mismatched_answers_have_the_token_kinds_of_gemma(tmp_path):
    collator = RatedCollator(AutoProcessor.from_pretrained(build("gemma3", tmp_path)))
    rows = [
        {"prompt": [user("What is it?", 1)], "completion": [assistant(text)], "label": True, "images": [picture]}
        for text, picture in zip(("A bag.", "A long red and blue striped scarf."), PICTURES, strict=True)
    ]
    batch = collator(rows)
    assert batch["token_type_ids"].shape == batch["input_ids"].shape
    assert batch["KL_token_type_ids"].shape == batch["KL_input_ids"].shape
