"""Which settings others leave without a use: the panel does not show them, and a run begins without them."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from vlmhelpers.training.methods.catalog import METHODS, OWN_SETTINGS

if TYPE_CHECKING:
    from vlmhelpers.families import Family

_OF_ADAPTERS = "lora_r lora_alpha lora_dropout use_rslora use_dora init_lora_weights attention mlp experts".split()
_OF_VALIDATION = ("early_stopping_patience", "load_best_model_at_end")


def unused(values: Mapping[str, object], family: "Family | None" = None) -> set[str]:
    """The names of settings without a use; `family`: that of the model, None while it is not known."""
    return set(_unused(values, family))


def _unused(values, family):
    if method := METHODS.get(values["method"]):  # another one is refused
        yield from (name for name in OWN_SETTINGS if name not in method.settings)
    yield from _without_weights(values["weights"])
    yield from _without_rows(values)
    if values["method"] != "sft":
        yield from ("cache", "backend")
    if family is not None and not family.has_pixel_cap:
        yield "max_pixels"
    if family is not None and family.not_by_unsloth:
        yield "backend"


def _without_rows(values) -> Iterator[str]:
    validated, sampled = map(_number, (values["validation_rows"], values["sample_answers"]))
    if not validated:
        yield from _OF_VALIDATION
    if values["method"] == "reward" or not (validated or _number(values["test_rows"])):
        sampled = False
        yield "sample_answers"
    if not (validated or sampled):
        yield "eval_steps"


def _without_weights(weights) -> Iterator[str]:
    if weights != "lora":
        yield from (*_OF_ADAPTERS, "bits")
    if weights != "freeze":
        yield "last_layers"


def _number(text):
    """Whether there is anything but nothing: what is no number is wrong, and stays to be mended."""
    return str(text).strip() not in ("", "0", "none")
