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
