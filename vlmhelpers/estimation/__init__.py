"""Tokens, memory, time and a pixel cap before anything is loaded."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "memory": ["GPUS", "estimate_answering", "estimate_memory", "estimate_time", "memory_table", "smallest_gpu"],
        "planning": ["preflight"],
        "suggestion": ["Values", "suggest"],
    },
)
