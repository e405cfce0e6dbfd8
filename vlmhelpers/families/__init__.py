"""All that differs from one model architecture to another: one `Family` object each."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=["phi3_vision"],
    submod_attrs={
        "family": ["TOWERS", "Family"],
        "phi3_vision.tiles": ["show_crops"],
        "published": ["PUBLISHED"],
        "registry": ["FAMILIES", "TINY_BASES", "family_of", "find_config", "tiny_model"],
    },
)
