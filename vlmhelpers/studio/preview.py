"""The first rows of a run's data as the model will get them: with images, and with the tokens that are trained."""

from markupsafe import Markup

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.mask import show_mask
from vlmhelpers.batches.preference import PreferenceCollator, RatedCollator
from vlmhelpers.common.display import Html
from vlmhelpers.data.report import show_rows
from vlmhelpers.data.schema import kind_of
from vlmhelpers.data.validation import check_dataset
from vlmhelpers.models.loading import resolve_model
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.pipeline import fresh_processor
from vlmhelpers.training.run import read_rows

_COLLATORS = {"messages": VisionCollator, "pairs": PreferenceCollator, "rated": RatedCollator}  # prompts have no labels
_LOOKED_AT = 50  # rows, of which unusable ones are left out


def preview(config: RunConfig, rows: int = 3) -> Html:
    """Some sound rows as a table, and the label mask of the first. Raises ValueError where the first 50 have none."""
    dataset = read_rows(config)
    report = check_dataset(dataset.select(range(min(_LOOKED_AT, len(dataset)))))
    if not len(report.dataset):
        raise ValueError(f"{config.dataset} has no row that can be used among the first {_LOOKED_AT}: {report!r}")
    shown = show_rows(report.dataset, range(min(rows, len(report.dataset))))
    collate = _COLLATORS.get(kind_of(report.dataset.column_names))
    if collate is None:
        return shown
    mask = show_mask(collate(fresh_processor(config, resolve_model(config.model_id)[0])), report.dataset[0])
    return Html(Markup(shown.markup) + Markup(mask.markup), f"{shown.text}\n{mask.text}")
