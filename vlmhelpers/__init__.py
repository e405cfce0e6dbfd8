"""Helpers for notebooks that fine-tune vision-language models.

The everyday names are here; everything else is reached by its room, such as `vlmhelpers.evaluation.by_slice`. Names
and rooms are loaded when they are first used, so that `import vlmhelpers` costs nothing: it loads neither torch nor
transformers, which leaves a notebook time to choose a GPU or to import Unsloth before them.
"""

import lazy_loader as lazy

from vlmhelpers.common.version import VERSION as __version__

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=[
        "batches",
        "cli",
        "commands",
        "common",
        "data",
        "estimation",
        "evaluation",
        "export",
        "families",
        "inference",
        "interchange",
        "models",
        "samples",
        "service",
        "studio",
        "training",
    ],
    submod_attrs={
        "batches": ["VisionCollator", "check_dataset", "show_mask"],
        "common": ["check_claims", "peak_memory", "quiet", "record", "show_versions"],
        "data": ["read_alpaca", "read_csv", "read_dataset", "read_jsonl", "read_products", "show_rows", "split"],
        "estimation": ["preflight", "suggest"],
        "evaluation": ["compare", "evaluate", "image_ablation"],
        "export": ["check_export", "merge"],
        "inference": ["generate"],
        "models": ["choose_model", "load_model", "lora_targets"],
        "studio": ["Studio"],
        "training": ["RunConfig", "train"],
    },
)
__all__ += ["__version__"]
