"""All that differs from one model architecture to another: one `Family` object each."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "phi3_vision.tiles": ["show_crops"],
        "towers": ["tower_of"],
    },
)
