"""Which library runs the model: Unsloth where an accelerator is present, transformers with peft elsewhere."""

import importlib.util
import sys
import types
from contextlib import contextmanager

_MARK = "_vlmhelpers_backend"  # on a model: the backend that loaded it


def use_unsloth():
    """Imports Unsloth where it can run, and prints which library will run the model and why. Returns whether it did.

    Unsloth rewrites transformers, trl and peft while it is imported, so call this before anything imports these.
    Nothing happens on a machine without a CUDA GPU: Unsloth refuses to be imported there.
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
    print(f"Unsloth {unsloth.VERSION} runs the model")
    return True


def choose_backend(backend):
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


def load_with_unsloth(model_id, bits, dtype):
    """The model as Unsloth's FastVisionModel loads it, without adapters."""
    from unsloth import FastVisionModel

    model, _ = FastVisionModel.from_pretrained(
        model_id, load_in_4bit=bits == 4, dtype=dtype, use_gradient_checkpointing="unsloth"
    )
    setattr(model, _MARK, "unsloth")
    return model


def add_lora(model, lora, seed=3407):
    """`model` with the adapters that a peft `LoraConfig` describes, whichever backend loaded it.

    Unsloth's trainers ignore `SFTTrainer(peft_config=...)`, so the adapters go on before the trainer is made. `seed`:
    of the adapters' random start with Unsloth, which sets its own; elsewhere `transformers.set_seed` decides.
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


def unsloth_collator(model, processor):
    """Unsloth's own `UnslothVisionDataCollator` with its defaults, to look at what it does.

    The module that it lives in works without a GPU, though Unsloth refuses to be imported there: so it is loaded by
    itself. Raises ImportError where unsloth_zoo is not installed.
    """
    package = sys.modules.get("unsloth_zoo")
    if package is None:
        spec = importlib.util.find_spec("unsloth_zoo")
        if spec is None:
            raise ImportError("unsloth_zoo is not installed: pip install unsloth (Linux only)")
        package = sys.modules["unsloth_zoo"] = types.ModuleType("unsloth_zoo")
        package.__path__ = list(spec.submodule_search_locations)
        try:
            from unsloth_zoo.vision_utils import UnslothVisionDataCollator
        finally:
            del sys.modules["unsloth_zoo"]
    else:
        from unsloth_zoo.vision_utils import UnslothVisionDataCollator
    return UnslothVisionDataCollator(model, processor)


@contextmanager
def answering(model):
    """Puts the model into its mode for answering, and back into the mode it was in."""
    was_training = model.training
    unsloth = getattr(model, _MARK, None) == "unsloth"
    _switch(model, unsloth, training=False)
    try:
        yield
    finally:
        _switch(model, unsloth, training=was_training)


def _switch(model, unsloth, training):
    if unsloth:
        from unsloth import FastVisionModel

        (FastVisionModel.for_training if training else FastVisionModel.for_inference)(model)
    else:
        model.train(training)
