"""What the families say by hand: names of models, published shapes, caps, batches for estimates, repaired templates."""

import copy
import re

import pytest
import torch
import transformers as hf
from jinja2 import Environment
from PIL import Image
from random_families import BUILDERS
from transformers import AutoModelForImageTextToText

from vlmhelpers.estimation.dry_run import dry_run_of_answering, make_batch, make_meta_model
from vlmhelpers.families import FAMILIES, PUBLISHED, family_of, find_config

IDS = {
    "Qwen/Qwen2-VL-2B-Instruct": "qwen2-vl",
    "unsloth/Qwen2-VL-7B-Instruct-bnb-4bit": "qwen2-vl",
    "Qwen/Qwen2.5-VL-32B-Instruct": "qwen2.5-vl",
    "Qwen/Qwen3-VL-8B-Thinking": "qwen3-vl",
    "Qwen/Qwen3-VL-32B-Instruct": "qwen3-vl",
    "Qwen/Qwen3-VL-30B-A3B-Instruct": "qwen3-vl-moe",
    "Qwen/Qwen3-VL-235B-A22B-Thinking": "qwen3-vl-moe",
    "Qwen/Qwen3.5-0.8B": "qwen3.5",
    "Qwen/Qwen3.5-27B": "qwen3.5",
    "Qwen/Qwen3.5-35B-A3B": None,  # another model type
    "Qwen/Qwen3-8B": None,
    "OpenGVLab/InternVL3_5-1B-HF": "internvl",
    "OpenGVLab/InternVL3-8B-hf": "internvl",
    "OpenGVLab/InternVL2_5-8B-MPO-hf": "internvl",
    "OpenGVLab/InternVL3-8B": None,  # needs the code of its publisher
    "LiquidAI/LFM2-VL-450M": "lfm2-vl",
    "LiquidAI/LFM2.5-VL-1.6B": "lfm2-vl",
    "LiquidAI/LFM2-1.2B": None,
    "google/gemma-3-4b-it": "gemma-3",
    "unsloth/gemma-3-27b-it-unsloth-bnb-4bit": "gemma-3",
    "google/gemma-3-1b-it": None,  # has no images
    "google/gemma-4-E2B-it": "gemma-4",
    "google/gemma-4-31B-it": "gemma-4",
    "HuggingFaceTB/SmolVLM-Instruct": "smolvlm",
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": "smolvlm",
    "HuggingFaceM4/Idefics3-8B-Llama3": "smolvlm",
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": "mistral-3",
    "mistralai/Mistral-Small-3.2-24B-Instruct-2506": "mistral-3",
    "mistralai/Ministral-3-8B-Instruct-2512": "mistral-3",
    "mistral-community/pixtral-12b": "mistral-3",
    "mistralai/Mistral-Small-24B-Instruct-2501": None,  # has no images
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": "llava-onevision",
    "llava-hf/llava-v1.6-mistral-7b-hf": "llava-next",
    "llava-hf/llava-1.5-7b-hf": None,
    "zai-org/GLM-4.1V-9B-Thinking": "glm-4v",
    "zai-org/GLM-4.5V": None,
    "thisisiron/Ovis2-2B-hf": "ovis2",
    "AIDC-AI/Ovis2-2B": None,
    "meta-llama/Llama-3.2-11B-Vision-Instruct": "llama-3.2-vision",
    "microsoft/Phi-3.5-vision-instruct": "phi-3-vision",
}
# In billions, from the pages and papers of the models. Gemma 4's with its embeddings of each layer; Qwen3.5's without
# the layer that guesses a second token, which transformers leaves out.
SIZES = {
    "HuggingFaceTB/SmolVLM-256M-Instruct": 0.256,
    "HuggingFaceTB/SmolVLM-500M-Instruct": 0.507,
    "HuggingFaceTB/SmolVLM2-256M-Video-Instruct": 0.256,
    "HuggingFaceTB/SmolVLM2-500M-Video-Instruct": 0.507,
    "HuggingFaceTB/SmolVLM2-2.2B-Instruct": 2.25,
    "LiquidAI/LFM2-VL-450M": 0.45,
    "LiquidAI/LFM2-VL-1.6B": 1.6,
    "OpenGVLab/InternVL3-1B-hf": 0.94,
    "OpenGVLab/InternVL3-2B-hf": 2.09,
    "OpenGVLab/InternVL3_5-1B-HF": 1.060897792,
    "OpenGVLab/InternVL3_5-2B-HF": 2.35,
    "OpenGVLab/InternVL3_5-8B-HF": 8.53,
    "Qwen/Qwen2-VL-2B-Instruct": 2.21,
    "Qwen/Qwen2-VL-7B-Instruct": 8.29,
    "Qwen/Qwen3-VL-30B-A3B-Instruct": 31.1,
    "Qwen/Qwen3.5-0.8B": 0.85,
    "google/gemma-3-4b-it": 4.3,
    "google/gemma-3-12b-it": 12.2,
    "google/gemma-3-27b-it": 27.4,
    "google/gemma-4-E2B-it": 5.1,
    "google/gemma-4-E4B-it": 8.0,
    "llava-hf/llava-onevision-qwen2-0.5b-ov-hf": 0.894,
    "llava-hf/llava-onevision-qwen2-7b-ov-hf": 8.03,
    "llava-hf/llava-v1.6-mistral-7b-hf": 7.57,
    "mistralai/Mistral-Small-3.1-24B-Instruct-2503": 24.0,
    "thisisiron/Ovis2-1B-hf": 1.27,
    "thisisiron/Ovis2-2B-hf": 2.46,
    "zai-org/GLM-4.1V-9B-Thinking": 10.3,
}
# One of each family, and SmolVLM of both kinds.
ESTIMATED = (
    *("HuggingFaceTB/SmolVLM-256M-Instruct", "HuggingFaceTB/SmolVLM2-256M-Video-Instruct", "LiquidAI/LFM2-VL-450M"),
    *("OpenGVLab/InternVL3_5-1B-HF", "Qwen/Qwen2-VL-2B-Instruct", "Qwen/Qwen3.5-0.8B", "google/gemma-3-4b-it"),
    *("google/gemma-4-E2B-it", "llava-hf/llava-onevision-qwen2-0.5b-ov-hf", "llava-hf/llava-v1.6-mistral-7b-hf"),
    *("mistralai/Mistral-Small-3.1-24B-Instruct-2503", "thisisiron/Ovis2-1B-hf", "zai-org/GLM-4.1V-9B-Thinking"),
    "Qwen/Qwen3-VL-30B-A3B-Instruct",
)
# The settings of the published models.
IMAGE_PROCESSORS = {
    "internvl": hf.GotOcr2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True),
    "ovis2": hf.Ovis2ImageProcessor(size={"height": 448, "width": 448}, crop_to_patches=True),
    "lfm2-vl": hf.Lfm2VlImageProcessor(),
    "gemma-4": hf.Gemma4ImageProcessor(),
    "smolvlm": hf.SmolVLMImageProcessor(size={"longest_edge": 2048}, max_image_size={"longest_edge": 512}),
    "mistral-3": hf.PixtralImageProcessor(size={"longest_edge": 1540}, patch_size=14),
    "glm-4v": hf.Glm4vImageProcessor(size={"shortest_edge": 12544, "longest_edge": 9633792}),
}
CAPPED = ["internvl", "ovis2", "lfm2_vl", "gemma4", "smolvlm", "idefics3", "mistral3", "pixtral", "glm4v"]
MADE = [*CAPPED, "gemma3", "llava_onevision", "llava_next", "qwen2_vl", "qwen3_vl_moe", "qwen3_5"]


@pytest.mark.parametrize("model_id", IDS)
def test_an_id_is_one_familys(model_id):
    found = [name for name, family in FAMILIES.items() if family.is_meant_by(model_id.lower())]
    assert found == [IDS[model_id]] * (IDS[model_id] is not None)


@pytest.mark.slow
def test_model_types_are_one_familys_and_ids_of_shapes_are_those_of_their_family():
    types = [kind for family in FAMILIES.values() for kind in family.model_types]
    assert len(types) == len(set(types))
    for name in PUBLISHED:
        assert family_of(find_config(name)).is_meant_by(name.lower()), name


@pytest.mark.slow
@pytest.mark.parametrize("model_id", SIZES)
def test_a_shape_has_the_published_number_of_parameters(model_id):
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(find_config(model_id), trust_remote_code=False)
    counted = sum(parameter.numel() for parameter in model.parameters())
    assert counted == pytest.approx(SIZES[model_id] * 1e9, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("model_id", ESTIMATED)
def test_a_model_of_a_shape_reads_its_batch_for_estimates(model_id):
    config = find_config(model_id)
    assert family_of(config).is_estimated
    model = make_meta_model(config, bits=16, gradient_checkpointing=False)
    assert dry_run_of_answering(model, make_batch(config, tokens=2900, image_tokens=2000)) > 0


@pytest.mark.parametrize("name", IMAGE_PROCESSORS)
def test_caps_of_the_published_settings(name):
    family, own = FAMILIES[name], IMAGE_PROCESSORS[name]
    caps = family.caps(own)
    assert 3 <= len(caps) <= 12 and caps == sorted(set(caps), reverse=True)
    for cap in caps:
        set_lower = copy.deepcopy(own)
        family.set_max_pixels(set_lower, cap)
        assert family.max_pixels(set_lower) == cap
        assert family.caps(type(own)(**set_lower.to_dict())) == family.caps(set_lower)  # as it is saved and read
    assert family.has_pixel_cap


@pytest.mark.parametrize("name", sorted({*IMAGE_PROCESSORS} - {"glm-4v"}))
def test_a_cap_below_the_least_is_an_error(name):
    with pytest.raises(ValueError, match=r"max_pixels=9\b.* \d+ pixels"):
        FAMILIES[name].set_max_pixels(copy.deepcopy(IMAGE_PROCESSORS[name]), 9)


@pytest.mark.parametrize("name", CAPPED)
def test_a_lower_cap_leaves_fewer_tokens_and_can_be_raised_again(name):
    config, processor = BUILDERS[name]()
    family, own = family_of(config), processor.image_processor
    caps, sizes = family.caps(own), [(900, 500)]
    counts = []
    for cap in caps:
        family.set_max_pixels(own, cap)
        counts.append(family.count_image_tokens(processor, sizes))
    assert counts == sorted(counts, reverse=True) and counts[0] > counts[-1]
    family.set_max_pixels(own, caps[0])
    assert family.count_image_tokens(processor, sizes) == pytest.approx(counts[0], rel=0.3)


@pytest.mark.parametrize("name", MADE)
def test_a_batch_for_estimates_has_what_the_processor_makes(name):
    config, processor = BUILDERS[name]()
    family, image = family_of(config), Image.new("RGB", (300, 200), (200, 30, 60))
    batch = processor(text=[family.placeholder(processor, 1)], images=[[image]], return_tensors="pt")
    tokens = batch.pop("input_ids").shape[1]
    ids = torch.zeros(1, tokens + 900, dtype=torch.long)
    made = family.dry_run_inputs(config, ids, tokens)
    assert {*made} == {*batch} - {"attention_mask", "batch_num_images"}
    assert (ids[0, :4] == config.image_token_id).all() and not ids[0, -1]
    for key in {*made} - {"mm_token_type_ids", "token_type_ids"}:
        assert made[key].dim() == batch[key].dim() and made[key].is_meta <= made[key].is_floating_point()


def test_an_answer_of_glm_is_text_and_has_an_end():
    template = (
        "{%- for msg in messages %}{% if msg.role == 'user' %}<|user|>\n{% for item in msg.content %}{{ item.text }}"
        "{% endfor %}{% else %}<|assistant|>\n{{ msg.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
    )
    turns = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant") * 2]
    repaired = FAMILIES["glm-4v"].repair_template(template)
    assert FAMILIES["glm-4v"].repair_template(repaired) == repaired
    text = Environment().from_string(repaired).render(messages=turns)
    assert text == "<|user|>\nuser<|assistant|>\nassistant" * 2 + "<|user|>"
    asked = Environment().from_string(repaired).render(messages=turns[:1], add_generation_prompt=True)
    assert asked == "<|user|>\nuser<|assistant|>\n"


def test_an_answer_of_llava_onevision_follows_its_prompt():
    template = (
        "{% for message in messages %}{{'<|im_start|>' + message['role'] + ' '}}"
        "{% for part in message['content'] %}{{ '\\n' + part['text'] }}{% endfor %}{{'<|im_end|>'}}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )
    turns = [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("user", "assistant")]
    render = Environment().from_string(FAMILIES["llava-onevision"].repair_template(template)).render
    prompt = render(messages=turns[:1], add_generation_prompt=True)
    assert render(messages=turns) == prompt + "assistant<|im_end|>"
    assert re.match(r"<\|im_start\|>user \nuser", prompt)
