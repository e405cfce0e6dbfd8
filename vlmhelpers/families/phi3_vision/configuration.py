"""The configuration of Phi-3-Vision: Phi-3's own, with a CLIP tower."""

from transformers import CLIPVisionConfig, Phi3Config

# CLIP ViT-L/14 at 336 pixels. The published config.json only names it.
_CLIP_L_14_336 = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 336,
    "patch_size": 14,
    "projection_dim": 768,
}


class Phi3VConfig(Phi3Config):
    """As `Phi3Config`, with `vision_config` (a `CLIPVisionConfig` or a dict of it; by default CLIP ViT-L/14 at 336
    pixels) and `image_token_id`, the id that stands in `input_ids` for each token of an image.

    Published files load unchanged: rope scaling of type `su` becomes transformers' `longrope`, and a preference for
    flash attention, which not every machine has, is dropped.
    """

    model_type = "phi3_v"
    sub_configs = {"vision_config": CLIPVisionConfig}

    vision_config: dict | CLIPVisionConfig | None = None
    image_token_id: int = 32044  # <|image|>: in the vocabulary, and unused by the original

    def __post_init__(self, **kwargs):
        vision = _CLIP_L_14_336 if self.vision_config is None else self.vision_config
        self.vision_config = CLIPVisionConfig(**vision) if isinstance(vision, dict) else vision
        for name in ("rope_scaling", "rope_parameters"):
            rope = kwargs.get(name) or getattr(self, name, None)
            if isinstance(rope, dict) and "su" in (rope.get("type"), rope.get("rope_type")):
                factor = self.max_position_embeddings / self.original_max_position_embeddings
                rope = {k: v for k, v in rope.items() if k != "type"} | {"rope_type": "longrope", "factor": factor}
                kwargs["rope_scaling"] = rope
        kwargs.pop("_attn_implementation", None)
        super().__post_init__(**kwargs)
