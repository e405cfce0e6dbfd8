"""Small Phi-3-Visions for tests: weights and a picture that every machine makes alike, and files as if published."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, processors, trainers

from vlmhelpers.families.phi3_vision import Phi3VConfig, Phi3VForCausalLM

REFERENCE = json.loads((Path(__file__).parents[1] / "families" / "phi3_vision" / "reference.json").read_text())


def hash_noise(name, count):
    """`count` numbers in [-1, 1) from an integer hash of `name` and the place: no random generator is involved."""
    mask = np.uint64(0xFFFFFFFF)
    bits = (np.arange(count, dtype=np.uint64) * np.uint64(2654435761) + np.uint64(zlib.crc32(name.encode()))) & mask
    for _ in range(2):
        bits = ((bits ^ (bits >> np.uint64(16))) * np.uint64(0x45D9F3B)) & mask
    return (bits ^ (bits >> np.uint64(16))).astype(np.float64) / 2**31 - 1.0


def published_name(name):
    """A parameter's name in the published files: CLIP stands under one more module there."""
    return name.replace("img_processor.", "img_processor.vision_model.")


@torch.no_grad()
def fill(model):
    """Sets every weight by its published name, as for the original's recorded answers; returns the model."""
    for name, parameter in model.named_parameters():
        value = hash_noise(published_name(name), parameter.numel()).reshape(parameter.shape)
        if name.endswith("weight") and ("norm" in name or "layrnorm" in name):
            value = 1 + 0.2 * value
        elif not name.endswith("GN"):
            value = value * (0.1 if value.ndim > 1 else 0.05)
        parameter.copy_(torch.from_numpy(value.astype(np.float32)))
    return model.eval()


def reference_image(width=300, height=200):
    """Squares of 20 x 20 pixels in hashed colors."""
    columns, rows = width // 20, height // 20
    pixels = ((hash_noise("image", rows * columns * 3) + 1) * 127.5).astype(np.uint8).reshape(rows, columns, 3)
    return Image.fromarray(pixels).resize((width, height), Image.Resampling.NEAREST)


def reference_model(attention="eager", **changes):
    """The model of the recorded answers: two layers, hidden size 96, CLIP of two layers at 336 pixels."""
    config = Phi3VConfig(**REFERENCE["config"] | changes, vision_config=REFERENCE["clip_config"])
    config._attn_implementation = attention
    return fill(Phi3VForCausalLM(config))


def publish(folder, **changes):
    """Writes `folder` as the published repositories are: their keys, names and claims, with small weights.

    `changes`: other values of the configuration.

    The tokenizer has few words, but the rules of Llama's: a blank before every piece of text, and control tokens of
    which some swallow what follows them.
    """
    config = {name: value for name, value in REFERENCE["config"].items() if name != "pad_token_id"}
    config |= changes | {
        "architectures": ["Phi3VForCausalLM"],
        "auto_map": {
            "AutoConfig": "configuration_phi3_v.Phi3VConfig",
            "AutoModelForCausalLM": "modeling_phi3_v.Phi3VForCausalLM",
        },
        "_attn_implementation": "flash_attention_2",
        "torch_dtype": "bfloat16",
        "transformers_version": "4.38.1",
    }
    small = Phi3VConfig(**config | {"vision_config": {**_SMALL_CLIP}})
    model = fill(Phi3VForCausalLM(small))
    # What the published files cannot say: their CLIP is always the large one.
    _write(folder / "config.json", config | {"vision_config": _SMALL_CLIP})
    _write(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 32000})
    weights = {published_name(name): weight.contiguous() for name, weight in model.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    auto_map = {
        "AutoProcessor": "processing_phi3_v.Phi3VProcessor",
        "AutoImageProcessor": "image_processing_phi3_v.Phi3VImageProcessor",
    }
    _write(
        folder / "preprocessor_config.json",
        {
            "auto_map": auto_map,
            "num_crops": 4,
            "image_mean": [0.48145466, 0.4578275, 0.40821073],
            "image_std": [0.26862954, 0.26130258, 0.27577711],
            "processor_class": "Phi3VProcessor",
            "image_processor_type": "Phi3VImageProcessor",
            "num_img_tokens": 144,
        },
    )
    _write_tokenizer(folder)
    return model


_SMALL_CLIP = REFERENCE["clip_config"] | {"hidden_size": 64, "num_attention_heads": 4}


def _write(path, value):
    path.write_text(json.dumps(value))


def _write_tokenizer(folder):
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    ends = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(ends)
    first = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    text = ["What is shown in this image ?", "Product: Check Wool Scarf", "A red bag."]
    tokenizer.train_from_iterator(text, trainers.BpeTrainer(special_tokens=first, show_progress=False))
    fillers = [f"<|placeholder{i}|>" for i in range(32000 - tokenizer.get_vocab_size())]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in fillers])
    named = {32000: "<|endoftext|>", 32001: "<|assistant|>", 32006: "<|system|>", 32007: "<|end|>", 32010: "<|user|>"}
    named[32044] = "<|image|>"
    for place in range(32000, 32045):
        name = named.get(place, f"<|reserved{place}|>")
        swallows = name in ("<|assistant|>", "<|image|>")
        tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False, rstrip=swallows)])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(folder / "tokenizer.json"))
    _write(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": True,
            "bos_token": "<s>",
            "eos_token": "<|endoftext|>",
            "pad_token": "<|endoftext|>",
            "unk_token": "<unk>",
            "legacy": False,
            "model_max_length": 131072,
            "tokenizer_class": "LlamaTokenizer",
            "processor_class": "Phi3VProcessor",
            "chat_template": "{% for m in messages %}{{ '<|' + m['role'] + '|>\n' + m['content'] + '<|end|>\n' }}"
            "{% endfor %}",
        },
    )
