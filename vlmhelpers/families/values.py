"""Values of a training run that suit a kind of model, each with its reason; a family's own take their place.

`USUAL` are the values that public recipes for adapters of models of billions of parameters agree on (the examples of
LLaMA-Factory, Unsloth and ms-swift; Hu et al. 2021, arXiv:2106.09685, for rank and scale); none was measured here on
a published model. `TINY` are those of the tiny bases, measured by the notebooks.
"""

USUAL = {
    "learning_rate": (1e-4, "usual for adapters: 1e-4 to 2e-4; full fine-tuning takes a tenth of it"),
    "lora_r": (16, "usual; more for what the base has never seen, less for small data"),
    "lora_alpha": (16, "as lora_r: a scale of 1"),
    "epochs": (3, "usual: 1 to 3"),
    "max_steps": (-1, "by epochs"),
    "warmup_steps": (10, "usual"),
    "adam_beta2": (0.999, "AdamW's own"),
    "max_grad_norm": (1.0, "usual"),
    "max_length": (2048, "a budget per row: images get a pixel cap for it, nothing is cut"),
    "replay": (0.0, "none"),
}
# Adapters by other methods take a lower rate, or another one: the examples for adapters of LLaMA-Factory (dpo, orpo and
# simpo by one file, kto, reward, ppo) and of TRL (grpo, rloo, distillation).
_RATES = dict.fromkeys(["dpo", "kto", "orpo", "simpo", "cpo"], 5e-6) | dict.fromkeys(["grpo", "rloo", "ppo"], 1e-5)
_RATES |= {"reward": 1e-4, "distillation": 2e-4}
USUAL_BY_METHOD = {name: {"learning_rate": (rate, f"usual for adapters by {name}")} for name, rate in _RATES.items()}
OF_ADAPTERS = 10  # the rate of adapters is so many times that of full fine-tuning
USUAL_FOR_TEXT = {"replay": (0.1, "a tenth of rows about images keeps what the model sees: notebook 2")}

TINY = USUAL | {
    "learning_rate": (2e-3, "a tiny model needs more: measured"),
    "lora_r": (64, "a tiny model needs more: measured"),
    "lora_alpha": (64, "as lora_r: a scale of 1"),
    "max_steps": (300, "what the tiny model needs"),
    "epochs": (1, "not asked: max_steps is set"),
    "warmup_steps": (30, "no setbacks at so high a rate"),
    "adam_beta2": (0.98, "no setbacks at so high a rate"),
    "max_grad_norm": (0.3, "no setbacks at so high a rate"),
    "bits": (4, "QLoRA, as for the real model"),
    "batch_size": (16, "fits any machine"),
    "gradient_accumulation_steps": (1, "the whole batch fits"),
    "answer_batch_size": (50, "fits any machine"),
}

_TINY_OTHER = {
    "learning_rate": (1e-3, "a tiny model needs more: measured"),
    "max_steps": (60, "what the tiny model needs"),
    "warmup_steps": (5, "a tenth of the steps"),
    "adam_beta2": USUAL["adam_beta2"],
    "max_grad_norm": USUAL["max_grad_norm"],
    "batch_size": (8, "fits any machine"),
}
_TINY_SAMPLES = {"batch_size": (32, "several samples of each prompt"), "max_steps": (40, "what the tiny model needs")}
_TINY_REWARD = {"batch_size": (16, "fits any machine"), "max_steps": (200, "what the tiny model needs")}
TINY_BY_METHOD = dict.fromkeys(_RATES, _TINY_OTHER) | {
    "simpo": _TINY_OTHER | {"learning_rate": (5e-4, "half of what other methods take: measured")},
    "reward": _TINY_OTHER | _TINY_REWARD | {"learning_rate": TINY["learning_rate"]},
    "grpo": _TINY_OTHER | _TINY_SAMPLES,
    "rloo": _TINY_OTHER | _TINY_SAMPLES,
    "ppo": _TINY_OTHER | _TINY_SAMPLES | {"batch_size": (16, "fits any machine")},
    "distillation": _TINY_OTHER | {"batch_size": (16, "fits any machine")},
}
