"""Choosing, loading and quantizing a model, and what of it is trained."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "backends": ["add_lora", "choose_backend", "unsloth_collator", "use_unsloth"],
        "freezing": ["restore_dtypes", "train_only"],
        "loading": ["choose_model", "load_model", "set_max_pixels"],
        "lora": ["describe_trainable", "expert_parameters", "fingerprint", "keep_adapters_float32", "lora_targets"],
        "vision": ["cache_vision_features", "stop_caching_vision_features"],
    },
)
