"""From rows to tensors: the chat template and its label spans, the collator, packing, cached pixels."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "collator": ["VisionCollator"],
        "mask": ["show_mask"],
        "packing": ["tokenize_rows"],
        "pixel_cache": ["precompute"],
        "preference": ["PreferenceCollator", "RatedCollator"],
        "validation": ["check_dataset"],
    },
)
