"""Which library runs the model: Unsloth where an accelerator is present, transformers with peft elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # nothing heavy is imported before Unsloth has had its turn
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, ProcessorMixin

_MARK = "_vlmhelpers_backend"  # on a model: the backend that loaded it


def use_unsloth() -> bool:
    """Imports Unsloth where a CUDA GPU is, prints which library will run the model and why, and returns whether it did.

    Call it before anything imports transformers, trl or peft, which Unsloth rewrites; RuntimeError where it is late.
    """
    import torch

    if not torch.cuda.is_available():
        print("no GPU here, and Unsloth needs one: transformers and peft run the model")
        return False
    late = [name for name in ("transformers", "trl", "peft") if name in sys.modules and "unsloth" not in sys.modules]
    if late:
        raise RuntimeError(
            f"{', '.join(late)} imported before Unsloth: restart the kernel and call use_unsloth() first"
        )
    try:
        import unsloth
    except ImportError as error:
        print(f"transformers and peft run the model: Unsloth cannot be imported ({error})")
        return False
    print(f"Unsloth {unsloth.__version__} runs the model")
    return True


def choose_backend(backend: str) -> str:
    """`"auto"` as `"unsloth"` once Unsloth is imported, else as `"transformers"`.

    Raises ValueError for another name, RuntimeError for Unsloth that was not imported.
    """
    if backend not in ("auto", "unsloth", "transformers"):
        raise ValueError(f"backend={backend!r}: choose auto, unsloth or transformers")
    imported = "unsloth" in sys.modules
    if backend == "unsloth" and not imported:
        raise RuntimeError(
            "Unsloth is not imported: call use_unsloth() first in a fresh kernel, on a machine with a GPU"
        )
    return "unsloth" if imported and backend != "transformers" else "transformers"


def load_with_unsloth(model_id: str | Path, bits: int | None, dtype: torch.dtype) -> PreTrainedModel:
    """The model as Unsloth's FastVisionModel loads it, without adapters."""
    from unsloth import FastVisionModel

    model, _ = FastVisionModel.from_pretrained(
        model_id, load_in_4bit=bits == 4, dtype=dtype, use_gradient_checkpointing="unsloth"
    )
    setattr(model, _MARK, "unsloth")
    return model


def add_lora(model: PreTrainedModel, lora: LoraConfig, seed: int = 3407) -> torch.nn.Module:
    """`model` with the adapters that `lora` describes; Unsloth's trainers ignore `SFTTrainer(peft_config=...)`.

    `seed`: of the adapters' random start with Unsloth; elsewhere `transformers.set_seed` decides.
    """
    if getattr(model, _MARK, None) != "unsloth":
        from peft import get_peft_model

        return get_peft_model(model, lora)
    from unsloth import FastVisionModel

    tuned = FastVisionModel.get_peft_model(
        model,
        r=lora.r,
        lora_alpha=lora.lora_alpha,
        lora_dropout=lora.lora_dropout,
        bias=lora.bias,
        target_modules=lora.target_modules,
        use_rslora=lora.use_rslora,
        random_state=seed,
    )
    setattr(tuned, _MARK, "unsloth")
    return tuned


def unsloth_collator(model: PreTrainedModel, processor: ProcessorMixin) -> Callable:
    """Unsloth's own `UnslothVisionDataCollator` with its defaults; ImportError without unsloth_zoo.

    Its module works without a GPU, though Unsloth refuses to be imported there: so it is loaded by itself.
    """
    loaded = "unsloth_zoo" in sys.modules
    if not loaded:
        spec = importlib.util.find_spec("unsloth_zoo")
        if spec is None:
            raise ImportError("unsloth_zoo is not installed: pip install unsloth (Linux only)")
        sys.modules["unsloth_zoo"] = package = types.ModuleType("unsloth_zoo")
        package.__path__ = list(spec.submodule_search_locations)
    try:
        from unsloth_zoo.vision_utils import UnslothVisionDataCollator
    finally:
        if not loaded:
            del sys.modules["unsloth_zoo"]
    return UnslothVisionDataCollator(model, processor)


@contextmanager
def eval_mode(model: torch.nn.Module) -> Iterator[None]:
    """Puts the model into eval mode, and back into the mode it was in."""
    was_training = model.training
    _train(model, False)
    try:
        yield
    finally:
        _train(model, was_training)


def _train(model, training):
    if getattr(model, _MARK, None) != "unsloth":
        model.train(training)
        return
    from unsloth import FastVisionModel

    (FastVisionModel.for_training if training else FastVisionModel.for_inference)(model)
