"""What both programs' tables have in common: how values are read, what is refused, what is said."""

import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

from vlmhelpers.common.settings import shown
from vlmhelpers.interchange.keys import Differs, Key, is_nothing, is_true, number, same, several
from vlmhelpers.training.config import RunConfig

if TYPE_CHECKING:
    from vlmhelpers.interchange.rows import Turns
    from vlmhelpers.interchange.writing import Run

# The linear layers of a language model's layer, by the names that most architectures give them.
ATTENTION, MLP = ("q_proj", "k_proj", "v_proj", "o_proj"), ("gate_proj", "up_proj", "down_proj")
_TRACKERS = ("none", "tensorboard", "trackio", "wandb")


def nothing(value: object, keys: Mapping) -> dict:
    """For a key that is read elsewhere, or that this machine decides here."""
    return {}


def model_here(value: object, keys: Mapping) -> dict:
    """A model's id or folder."""
    return {"model_id": str(value)}


def template_here(value: object, keys: Mapping) -> dict:
    """The program's own name of a chat template."""
    raise Differs("the model's own chat template is used here: vlm.show_mask shows what it makes of a row")


def cap_here(without: int) -> Callable:
    """A cap on pixels; `without` and more means none."""
    return lambda value, _: {} if number(value) >= without else {"max_pixels": value}


def bits_here(value: object, keys: Mapping) -> dict:
    """Bits of the frozen weights."""
    if is_nothing(value):
        return {"bits": 16}
    if number(value) != 4:
        raise Differs(f"{shown(value)} bits, and here are 4 and 16: 16 were taken", bits=16)
    return {"bits": 4}


def targets_here(all_names: tuple[str, ...]) -> Callable:
    """Which layers get adapters; `all_names` stand for all linear layers."""

    def here(value, _):
        names = set(several(value))
        if names & set(all_names):
            return {"attention": True, "mlp": True}
        found = {"attention": bool(names & set(ATTENTION)), "mlp": bool(names & set(MLP))}
        if not names or names != _names_of(**found):
            kinds = found if any(found.values()) else {"attention": True, "mlp": True}
            raise Differs(f"{shown(value)}: here {', '.join(sorted(_names_of(**kinds)))} get adapters", **kinds)
        return found

    return here


def _names_of(attention, mlp):
    return set(ATTENTION if attention else ()) | set(MLP if mlp else ())


def adapted(run: "Run") -> list[str]:
    """The names of the layers that get adapters, where those are not all."""
    config = run.config
    if config.attention and config.mlp:
        return []
    return [*(ATTENTION if config.attention else ()), *(MLP if config.mlp else ())]


def with_vision(tower: str) -> Callable:
    """For the projector, which is trained together with the vision encoder, whose key is `tower`."""

    def here(value, keys):
        if is_true(value) != is_true(keys.get(tower, True)):
            raise Differs("the projector and the vision encoder are trained together here, or both frozen")
        return {}

    return here


def batch_here(value: object, keys: Mapping) -> dict:
    """Rows on the device; KTO needs two."""
    kto = "kto" in (keys.get("stage"), keys.get("rlhf_type"))
    if kto and number(value) < 2:
        raise Differs("KTO compares each row with the others of its batch here: 2 was taken", batch_size=2)
    return {"batch_size": value}


def steps_there(run: "Run") -> int | None:
    """Optimizer steps, where they end the training."""
    return run.config.max_steps if run.config.max_steps > 0 else None


def schedule_here(value: object, keys: Mapping) -> dict:
    """A schedule of the learning rate."""
    names = RunConfig.described()["lr_scheduler_type"].choices
    if value not in names:
        raise Differs(f"{shown(value)} is no schedule here: cosine was taken, of {', '.join(names)}")
    return {"lr_scheduler_type": value}


def warmup_here(value: object, keys: Mapping) -> dict:
    """Steps of the warm-up, or below 1 a share of all."""
    if 0 < number(value) < 1:
        return ratio_here(value, keys)
    if not number(value) and number(keys.get("warmup_ratio") or 0):
        return {}
    return {"warmup_steps": int(number(value))}


def ratio_here(value: object, keys: Mapping) -> dict:
    """A share of the steps for the warm-up, which is known where the number of steps is."""
    share, steps = number(value), int(number(keys.get("max_steps", -1)))
    if not share:
        return {}
    if steps < 1:
        raise Differs(f"{share:g} of the steps, and warmup_steps is a number of them: set it")
    return {"warmup_steps": math.ceil(share * steps)}


def checkpoints(run: "Run") -> bool:
    """Whether activations are computed anew in the backward pass."""
    chosen = run.config.gradient_checkpointing
    return run.on_gpu if chosen is None else chosen


def save_steps_there(run: "Run") -> int:
    """With the best weights kept, transformers asks for checkpoints where it validates."""
    return run.config.validated_every if run.config.tracks_best else run.config.save_steps


def strategy_here(value: object, keys: Mapping) -> dict:
    """When it is validated."""
    if value not in ("steps", "no", False):
        raise Differs("validations come after so many steps here: see eval_steps")
    return {}


def eval_steps_here(held_out: str) -> Callable:
    """Steps between validations, where `held_out`, a key, takes rows out of the data set."""

    def here(value, keys):
        if is_nothing(keys.get(held_out)) or number(keys[held_out]) < 1:
            raise Differs("no row is held out here: set validation_rows and eval_steps")
        if number(value) < 1:
            raise Differs("a share of the steps, and here it is a number of them")
        return {"eval_steps": int(number(value))}

    return here


def of_validation(setting: str, held_out: str) -> Callable:
    """A setting that needs rows that are held out, by the key `held_out`."""

    def here(value, keys):
        if not is_true(value) and is_nothing(value):
            return {}
        if is_nothing(keys.get(held_out)) or number(keys[held_out]) < 1:
            raise Differs(f"no row is held out here: set validation_rows, and {setting}")
        return {setting: value}

    return here


def choice(value: object, names: Mapping[str, str], setting: str) -> dict:
    """A setting by its name there."""
    if value not in names:
        raise Differs(f"{shown(value)}: here are {', '.join(names)}")
    return {setting: names[value]}


def tracker_here(value: object, keys: Mapping) -> dict:
    """An experiment tracker."""
    names = several(value) or ["none"]
    if names[0] not in _TRACKERS or len(names) > 1:
        known = next((name for name in names if name in _TRACKERS), "none")
        raise Differs(f"{shown(value)}: here one of {', '.join(_TRACKERS)}; {known} was taken", report_to=known)
    return {"report_to": names[0]}


# How long it is trained, and on what: keys that both programs have by the same names.
LENGTH = (
    same("num_train_epochs", "epochs", 3.0),
    Key("max_steps", ("max_steps",), steps_there, lambda value, _: {"max_steps": value}, -1),
)
ON_CPU = Key("use_cpu", (), lambda run: not run.on_gpu or None, nothing, note="chosen here by what is there")


def schedule_keys(usual: str) -> tuple[Key, ...]:
    """The schedule of the learning rate, `usual` without one, and its warm-up."""
    return (
        Key(
            "lr_scheduler_type", ("lr_scheduler_type",), lambda run: run.config.lr_scheduler_type, schedule_here, usual
        ),
        Key("warmup_steps", ("warmup_steps",), lambda run: run.config.warmup_steps, warmup_here, 0),
        Key("warmup_ratio", ("warmup_steps",), lambda run: None, ratio_here, note="a share, here a number"),
    )


def validation_keys(held_out: str, patience: str) -> tuple[Key, ...]:
    """Validations and checkpoints. `held_out`, `patience`: the keys of rows taken out, and of early stopping."""
    return (
        Key("eval_strategy", (), lambda run: "steps" if run.validated else None, strategy_here),
        Key(
            "eval_steps",
            ("eval_steps",),
            lambda run: run.config.validated_every if run.validated else None,
            eval_steps_here(held_out),
        ),
        Key(
            "per_device_eval_batch_size",
            (),
            lambda run: run.config.batch_size if run.validated else None,
            nothing,
            note="that of the training here",
        ),
        Key("save_steps", ("save_steps",), save_steps_there, lambda value, _: {"save_steps": value}, 500),
        Key(
            patience,
            ("early_stopping_patience",),
            lambda run: run.config.early_stopping_patience,
            of_validation("early_stopping_patience", held_out),
            note="validations",
        ),
        Key(
            "load_best_model_at_end",
            ("load_best_model_at_end",),
            lambda run: run.config.tracks_best or None,
            of_validation("load_best_model_at_end", held_out),
        ),
    )


def validation_file_here(value: object, keys: Mapping) -> dict:
    """A file of rows for the validation."""
    raise Differs(
        "rows of their own for the validation, and here they are held out of the dataset: add them to it, and set "
        "validation_rows to their number"
    )


def refusals(program: str, template: str, config: RunConfig) -> Iterator[str]:
    """What neither program does as a run here does it."""
    if not template:
        yield f"{program} has no template for {config.model_id}, or none that was tried: choose another family's model"
    if re.search("thinking", config.model_id, re.IGNORECASE):
        yield f"{config.model_id} writes its reasoning first, which {program} treats in a way of its own: not tried"
    if config.chat_template:
        yield f"chat_template: {program} has its own template of the family; leave it out"
    if config.experts:
        yield f"experts is true: {program} adapts linear layers, which the experts of a mixture are not"
    partial = config.trains_adapters and not (config.attention and config.mlp)
    if partial and config.vision:
        yield f"attention or mlp is false, and vision is true: {program} cannot choose layers in both"
    if config.weights == "freeze" and (config.vision or not config.language):
        yield f"weights is 'freeze': {program} then trains layers of the language model alone; choose vision=False"


def notes(run: "Run", turns: "Turns", program: str) -> Iterator[str]:
    """What both do in another way."""
    if turns.escaped:
        yield (
            f"{turns.escaped} texts hold a mark such as <image>, which {program} would take for an image: it is "
            "written with a space, < image>."
        )
    if run.config.cache != "none":
        yield f"cache is {run.config.cache!r}: {program} has none of it."
    if run.config.sample_answers:
        yield f"sample_answers: {program} answers no rows while it trains."
    if run.config.tracks_best and run.config.save_steps != run.config.validated_every:
        yield f"save_steps is {run.config.validated_every} there: the best weights are kept where it validates."
    if run.config.test_rows:
        yield f"{run.config.test_rows} rows are held out in {run.file('test')}.jsonl, and not trained on."
