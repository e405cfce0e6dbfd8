"""The first rows of a run's data as the model will get them: with images, and with the tokens that are trained."""

from contextlib import suppress

from datasets import Dataset
from markupsafe import Markup

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.mask import show_mask
from vlmhelpers.batches.preference import PreferenceCollator, RatedCollator
from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.common.display import Html
from vlmhelpers.data.readers.recognition import read_rows
from vlmhelpers.data.report import Report, show_rows
from vlmhelpers.models.loading import resolve_model
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.pipeline import fresh_processor

_COLLATORS = {"messages": VisionCollator, "pairs": PreferenceCollator, "rated": RatedCollator}  # prompts have no labels
_LOOKED_AT = 50  # rows, of which unusable ones are left out


def read(config: RunConfig, kind: str) -> Dataset:
    """The rows of the settings' file as rows of a kind, whatever the method."""
    return read_rows(config.dataset, kind, config.image_root, **config.named_fields)


def check(config: RunConfig, kind: str, rows: int | None = None) -> Report:
    """The validation report of all rows, or of the first; also of what the model does not take, if it is known."""
    dataset, processor = read(config, kind), None
    with suppress(OSError, ValueError):  # rows can be looked at before there is a model
        processor = fresh_processor(config, resolve_model(config.model_id)[0])
    looked_at = dataset.select(range(min(rows or len(dataset), len(dataset))))
    return check_dataset(looked_at, processor)


def preview(config: RunConfig, kind: str, rows: int = 3) -> Html:
    """Some sound rows as a table, and the label mask of the first. Raises ValueError where the first 50 have none."""
    report = check(config, kind, _LOOKED_AT)
    if not len(report.dataset):
        raise ValueError(f"{config.dataset} has no row that can be used among the first {_LOOKED_AT}: {report!r}")
    shown = show_rows(report.dataset, range(min(rows, len(report.dataset))))
    if kind not in _COLLATORS:
        return shown
    processor = fresh_processor(config, resolve_model(config.model_id)[0])
    mask = show_mask(_COLLATORS[kind](processor), report.dataset[0])
    return Html(Markup(shown.markup) + Markup(mask.markup), f"{shown.text}\n{mask.text}")
