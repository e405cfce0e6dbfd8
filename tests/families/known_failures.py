"""Checks that are known to fail, and why: (name of a base, name of a check) -> the reason, for docs/families.md.

A test of one of these has to fail; one that passes again is an error, so that this list says no more than is true.
"""

_TEMPLATE = "its chat template writes a list of parts as Python does, so each row is refused: give it another template"
_REWRITTEN = "peft rewrites the targets of this model, so add_lora refuses, and says what helps"
_IMAGES = "its processor refuses rows without an image"
_SEEN = "the images of a batch see each other in transformers (5.17): use a batch size of 1"
_SHAPES = "transformers (5.17) takes images of one shape in a batch alone"
_KINDS = "its processor names token kinds that its generate refuses"

_REASONS = {
    "emu3": {"the model sees that a batch pads its images to the largest: use a batch size of 1": ("mixed", "answers")},
    "ernie4_5_vl_moe": {
        "its prompt ends with a blank, and a row whose answer the tokenizer joins with that is refused": ("control",)
    },
    "glm4v_moe": {
        _TEMPLATE: ("images", "mixed", "labels", "control", "system", "prompt", "inputs", "bf16", "counts"),
        _REWRITTEN: ("adapters", "4 bits", "train", "merge"),
    },
    "hunyuan_vl": {
        "transformers (5.17) numbers images through a batch, so a row has other positions than alone": ("mixed",)
    },
    "minicpmv4_6": {_SHAPES: ("mixed", "bf16", "train", "answers")},
    "minimax_m3_vl": {_SEEN: ("mixed",), _KINDS: ("answers", "merge")},
    "paligemma": {
        _IMAGES: ("labels", "system", "inputs", "counts", "answers"),
        "its processor adds a line break to each text, so no row begins with its prompt": ("mixed", "prompt"),
        "its tokenizer has tokens for which the tiny model has no embedding": ("merge",),
    },
    "qwen3_omni_moe_thinker": {_REWRITTEN: ("adapters", "4 bits", "bf16", "train", "merge")},
}
KNOWN_FAILURES: dict[tuple[str, str], str] = {
    (f"generic-{kind}", check): reason
    for kind, reasons in _REASONS.items()
    for reason, checks in reasons.items()
    for check in checks
}
