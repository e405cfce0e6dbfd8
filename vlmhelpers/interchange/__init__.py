"""Runs that move: to and from the files of LLaMA-Factory and ms-swift."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "imported": ["Imported"],
        "llama_factory": ["from_llama_factory", "llama_factory_yaml", "to_llama_factory"],
        "swift": ["from_swift", "swift_yaml", "to_swift"],
    },
)
