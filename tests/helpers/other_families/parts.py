"""What these builders share beyond the parts of `random_families`."""

from random_families import parts, vocabularies

CLIP = parts.VISION | {"model_type": "clip_vision_model", "projection_dim": 64}
SIGLIP = parts.VISION | {"model_type": "siglip_vision_model", "vision_use_head": False}
UNSIZED = {name: value for name, value in parts.VISION.items() if name != "image_size"}
LINEAR = {  # linear attention but in the last layer, as Qwen 3.5 and its kin have it
    "layer_types": ["linear_attention", "linear_attention", "full_attention"], "linear_key_head_dim": 32,
    "linear_value_head_dim": 32, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
HALF = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


def chatml_tokenizer(specials=(), named=None):
    """A byte-level vocabulary with the control tokens of ChatML; arguments as of `vocabularies.byte_level`."""
    control = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return vocabularies.byte_level([*control, *specials], named, eos_token="<|im_end|>", pad_token="<|endoftext|>")


def llama_tokenizer(specials=(), named=None):
    """A SentencePiece vocabulary with the control tokens of Llama 2; arguments as of `vocabularies.llama`."""
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    tokenizer = vocabularies.llama(specials, named, **names)
    tokenizer.init_kwargs["legacy"] = True  # the class does not save it, and would write fewer spaces when read again
    return tokenizer


def areas(patch, least=4, most=16):
    """From `least` to `most` tokens an image, as areas in pixels; 2 x 2 patches are a token."""
    token = (2 * patch) ** 2
    return {"shortest_edge": least * token, "longest_edge": most * token}


def chat_template(turn, image, reply, start=""):
    """A template that writes `start`, then `turn` for each message, then `reply` where an answer is asked for.

    `turn` is in Jinja, with CONTENT where the message's text and images stand; an image becomes `image`.
    """
    part = f"{{% if p.type == 'image' %}}{image}{{% elif p.type == 'text' %}}{{{{ p.text }}}}{{% endif %}}"
    parts_of = "{% for p in m.content %}" + part + "{% endfor %}"
    content = "{% if m.content is string %}{{ m.content }}{% else %}" + parts_of + "{% endif %}"
    turns = "{% for m in messages %}" + turn.replace("CONTENT", content) + "{% endfor %}"
    return start + turns + "{% if add_generation_prompt %}" + reply + "{% endif %}"


def named_roles(user, assistant, system="CONTENT\n"):
    """A turn for `chat_template` that is written in another way by each role."""
    by_role = f"{{% if m.role == 'user' %}}{user}{{% elif m.role == 'assistant' %}}{assistant}"
    return by_role + f"{{% else %}}{system}{{% endif %}}"
