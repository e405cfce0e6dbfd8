"""Which library runs the model: Unsloth where an accelerator is present, transformers with peft elsewhere."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from vlmhelpers.common.errors import CannotRun

if TYPE_CHECKING:  # nothing heavy is imported before Unsloth has had its turn
    import torch
    from peft import LoraConfig
    from transformers import PreTrainedModel, ProcessorMixin

_MARK = "_vlmhelpers_backend"  # on a model: the backend that loaded it


def use_unsloth() -> bool:
    """Imports Unsloth where a CUDA GPU is, prints which library will run the model and why; returns whether it did.

    Raises RuntimeError after an import of transformers, trl or peft, which Unsloth rewrites.
    """
    import torch

    if not torch.cuda.is_available():
        print("no GPU here, and Unsloth needs one: transformers and peft run the model")
        return False
    late = [name for name in ("transformers", "trl", "peft") if name in sys.modules and "unsloth" not in sys.modules]
    if late:
        names = ", ".join(late)
        raise CannotRun(f"{names} imported before Unsloth: restart the kernel and call use_unsloth() first")
    try:
        import unsloth
    except ImportError as error:
        print(f"transformers and peft run the model: Unsloth cannot be imported ({error})")
        return False
    print(f"Unsloth {unsloth.__version__} runs the model")
    return True


def choose_backend(backend: str) -> str:
    """`"auto"` as `"unsloth"` once Unsloth is imported, else as `"transformers"`. RuntimeError for one not imported."""
    if backend not in ("auto", "unsloth", "transformers"):
        raise ValueError(f"backend={backend!r}: choose auto, unsloth or transformers")
    imported = "unsloth" in sys.modules
    if backend == "unsloth" and not imported:
        raise CannotRun("Unsloth is not imported: call use_unsloth() first in a fresh kernel, on a GPU machine")
    return "unsloth" if imported and backend != "transformers" else "transformers"


def load_with_unsloth(model_id: str | Path, bits: int, dtype: torch.dtype) -> PreTrainedModel:
    """The model as Unsloth's FastVisionModel loads it, without adapters."""
    from unsloth import FastVisionModel

    model, _ = FastVisionModel.from_pretrained(
        model_id, load_in_4bit=bits == 4, dtype=dtype, use_gradient_checkpointing="unsloth", trust_remote_code=False
    )
    setattr(model, _MARK, "unsloth")
    return model


def add_lora(model: PreTrainedModel, lora: LoraConfig, seed: int = 3407) -> torch.nn.Module:
    """`model` with adapters by `lora`; `seed` is for their start with Unsloth, elsewhere `set_seed` decides.

    Raises ValueError where peft adapts other layers than those of `lora_targets`.
    """
    if getattr(model, _MARK, None) != "unsloth":
        from peft import get_peft_model

        from vlmhelpers.models.lora import check_adapted, targets_of

        targets, experts = targets_of(model, lora.target_modules), bool(lora.target_parameters)
        tuned = get_peft_model(model, lora)
        check_adapted(tuned, targets, experts)
        return tuned
    from unsloth import FastVisionModel

    names = ("r", "lora_alpha", "lora_dropout", "bias", "target_modules", "use_rslora")
    options = {name: getattr(lora, name) for name in names}
    tuned = FastVisionModel.get_peft_model(model, random_state=seed, **options)
    setattr(tuned, _MARK, "unsloth")
    return tuned


def unsloth_collator(model: PreTrainedModel, processor: ProcessorMixin) -> Callable:
    """Unsloth's own `UnslothVisionDataCollator`, also where there is no GPU; ImportError without unsloth_zoo."""
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
