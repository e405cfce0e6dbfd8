"""Choosing and loading models, in 4 bits and without."""

import json
import shutil

import bitsandbytes as bnb
import pytest
import torch
from PIL import Image

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.families import TINY_BASES, family_of, tiny_model
from vlmhelpers.models import loading as models
from vlmhelpers.models.loading import choose_model, load_model

PUBLISHED = {
    "llama-3.2-vision": "meta-llama/Llama-3.2-11B-Vision-Instruct",
    "qwen2.5-vl": "unsloth/Qwen2.5-VL-7B-Instruct-bnb-4bit",
    "qwen3-vl": "Qwen/Qwen3-VL-2B-Thinking",
    "phi-3-vision": "microsoft/Phi-3.5-vision-instruct",
    "internvl": "OpenGVLab/InternVL3_5-8B-HF",
}


@pytest.mark.parametrize("family", TINY_BASES)
def test_without_a_gpu_the_tiny_base_of_the_family_stands_in(family, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_model(PUBLISHED[family]) == str(tiny_model(family)) == choose_model(family)
    assert "no GPU here" in capsys.readouterr().out


def test_with_a_gpu_the_named_model_is_taken(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a card")
    monkeypatch.setattr(models, "hidden_gpu", lambda: None)
    assert choose_model(PUBLISHED["qwen3-vl"]) == PUBLISHED["qwen3-vl"]
    assert "a card" in capsys.readouterr().out


def test_a_real_model_is_never_replaced_where_a_gpu_is_there_that_torch_cannot_use(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(models, "hidden_gpu", lambda: "the driver 1 sees a GPU that torch 2 cannot use")
    with pytest.raises(RuntimeError, match="2B-Thinking needs a GPU, and the driver 1 sees a GPU that torch 2"):
        choose_model(PUBLISHED["qwen3-vl"])
    assert choose_model("qwen3-vl") == str(tiny_model("qwen3-vl"))


def test_folders_are_taken_and_unknown_families_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_model(tmp_path) == str(tmp_path)
    with pytest.raises(ValueError, match="some/unknown-model.*llama-3.2-vision"):
        choose_model("some/unknown-model")
    with pytest.raises(ValueError, match="no tiny base is called 'gpt'"):
        tiny_model("gpt")


def test_four_bits_learn_after_an_evaluation(rows_of, picture):
    model, processor = load_model(tiny_model("qwen3-vl"), bits=4)
    batch = VisionCollator(processor)(list(rows_of([("What is this?", "Nothing.", [picture])] * 2)))
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    head = model.model.language_model.embed_tokens.weight.requires_grad_()
    with torch.no_grad():
        before = model(**batch).loss
    model(**batch).loss.backward()
    assert head.grad.norm() > 0
    with torch.no_grad():
        head -= 0.1 * head.grad
        assert model(**batch).loss < before


def test_without_bits_nothing_is_quantized():
    model, _ = load_model(tiny_model("qwen2.5-vl"), bits=16)
    assert not any(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())
    with pytest.raises(ValueError, match="bits=8"):
        load_model(tiny_model("qwen2.5-vl"), bits=8)


@pytest.mark.parametrize("family", ["qwen2.5-vl", "qwen3-vl"])
def test_the_pixel_cap_takes_effect(family):
    photo = Image.new("RGB", (640, 480))
    tokens = []
    for max_pixels in (16 * 16 * 9, 16 * 16 * 4):
        _, processor = load_model(tiny_model(family), bits=16, max_pixels=max_pixels)
        grid = processor.image_processor([photo], return_tensors="pt")["image_grid_thw"]
        tokens.append(int(grid.prod()) // 4)
    assert tokens[0] <= 9 and tokens[1] <= 4 and tokens[1] < tokens[0]


def test_the_pixel_cap_of_phi_counts_tiles():
    photo = Image.new("RGB", (640, 640))
    for tiles, tokens in ((1, 25), (4, 55), (16, 169)):
        _, processor = load_model(tiny_model("phi-3-vision"), bits=16, max_pixels=tiles * 48**2 + 100)
        assert processor(images=photo, text="<|image_1|>")["input_ids"][0].count(processor.image_token_id) == tokens
    with pytest.raises(ValueError, match="max_pixels=2000 is less than one tile of Phi-3-Vision: 2304 pixels"):
        load_model(tiny_model("phi-3-vision"), bits=16, max_pixels=2000)


def test_both_published_names_of_phi_are_known():
    for name in ("microsoft/Phi-3-vision-128k-instruct", "microsoft/Phi-3.5-vision-instruct"):
        assert family_of(name).name == "phi-3-vision"
    assert family_of("microsoft/Phi-3-mini-4k-instruct").name == "generic"


def test_names_belong_to_towers():
    names = {
        "model.visual.merger.mlp.0": "projector",
        "model.visual.blocks.0.attn.qkv": "vision",
        "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.default": "language",
        "lm_head": "head",
    }
    qwen, llama = (family_of(models.meta_model(tiny_model(name))) for name in ("qwen3-vl", "llama-3.2-vision"))
    assert {name: qwen.tower_of(name) for name in names} == names
    assert llama.tower_of("model.multi_modal_projector") == "projector"


def test_skipped_modules_are_full_names():
    assert models.not_in_4_bits(tiny_model("llama-3.2-vision")) == [
        "model.vision_model",
        "model.multi_modal_projector",
        "lm_head",
    ]


@pytest.mark.parametrize(
    "stored, bits, message",
    [
        ({"load_in_8bit": True}, 16, r"is stored in 8 bits, .* trained here: name the model with 16-bit"),
        ({"load_in_8bit": True, "quant_method": "bitsandbytes"}, 4, "is stored in 8 bits"),
        ({"load_in_4bit": True, "quant_method": "bitsandbytes"}, 16, "is stored in 4 bits: choose bits=4"),
        ({"quant_method": "bitsandbytes"}, 4, r"is stored quantized \(bitsandbytes\)"),
        (
            {"quant_method": "gptq", "bits": 4},
            4,
            r"is stored quantized \(gptq\), .* neither quantized again nor trained",
        ),
        ({"quant_method": "fp8"}, 16, r"is stored quantized \(fp8\), .*: name the model with 16-bit weights"),
        ({"quant_method": "torchao"}, 16, r"is stored quantized \(torchao\)"),
    ],
)
def test_weights_that_are_stored_in_other_bits_are_refused(stored, bits, message, tmp_path):
    folder = shutil.copytree(tiny_model("qwen3-vl"), tmp_path / "base")
    config, said = json.loads((folder / "config.json").read_text()), {"quantization_config": stored}
    for changed in (config | said, config | {"text_config": config["text_config"] | said}):
        (folder / "config.json").write_text(json.dumps(changed))
        with pytest.raises(ValueError, match=message):
            load_model(folder, bits=bits)
