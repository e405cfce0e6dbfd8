"""Rows that a reader has made already: of a Dataset, or of a file that was written from one."""

from datasets import Features, Image

from vlmhelpers.data.readers.source import SourceRow
from vlmhelpers.data.rows import READER_FEATURES, ImageRoot
from vlmhelpers.data.rules import is_of_reader, split_problem
from vlmhelpers.data.schema import KINDS, REJECTED_IMAGES, with_train


def made_kind(features: Features | dict | None) -> str | None:
    """The kind of rows that a reader has made, by the features of their columns; None for what others wrote."""
    features = features or {}
    if features.get("row") != READER_FEATURES["row"]:
        return None
    return next((kind for kind, wanted in KINDS.items() if _has(features, wanted)), None)


def _has(features, wanted):
    wanted = {name: [feature] for name, feature in wanted.items()}
    if "messages" in wanted:
        wanted["messages"].append(with_train(KINDS["messages"])["messages"])
    has_images = isinstance(getattr(features.get("images"), "feature", None), Image)  # decoded or not
    return has_images and all(features.get(name) in right for name, right in wanted.items() if name != "images")


def said_in(fields: dict, kind: str) -> dict:
    """The schema's fields of such a row, without those of its source, which were read."""
    return {name: value for name, value in fields.items() if name in (*KINDS[kind], *REJECTED_IMAGES)}


def made_again(row: SourceRow, kind: str, root: ImageRoot | None) -> dict:
    """The same row, with what its reader said about it; images that are not embedded are looked for in `root`."""
    row.used.update(row.fields)
    row.number = row.fields["row"]
    if is_of_reader(row.fields):
        row.notes.append(row.fields["note"])
        row.problems += [split_problem(row.fields["problem"])] * bool(row.fields["problem"])
    built = said_in(row.fields, kind)
    return built | {name: row.get_images(map(_source, built[name] or []), root) for name in built if "images" in name}


def _source(image):
    return image["path"] if image and not image["bytes"] else image
