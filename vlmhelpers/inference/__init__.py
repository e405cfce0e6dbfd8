"""Answers of a model: in resumable batches, or streamed."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "generation": ["generate", "stream_answer", "stream_conversation"],
        "likelihood": ["rank_pairs", "sequence_logps"],
    },
)
