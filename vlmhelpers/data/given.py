"""What is given to a function as rows and answers: a Dataset in any format, or a list; refused where it is neither."""

from collections.abc import Iterable, Mapping, Sequence, Sized
from numbers import Integral

import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, Features, Image, IterableDataset, List, concatenate_datasets
from PIL import Image as PilImage

from vlmhelpers.common.images import UnusableImage, open_image
from vlmhelpers.common.printable import one_line
from vlmhelpers.data.rows import plain_rows, stream_plain_rows
from vlmhelpers.data.rules import null_problems, row_number
from vlmhelpers.data.schema import CONVERSATIONS, FEATURES, KINDS, TRAIN, all_images, kind_of, with_train

Rows = Dataset | Iterable[dict] | dict


def given_rows(rows: Rows, kind: str | None = "messages") -> Dataset:
    """A Dataset of all rows whose rows are plain Python values with decoded images; one with a transform as it is.

    rows: a Dataset in any format, a row, or an iterable of rows, as `make_row` makes them. kind: what they have to be,
    a key of KINDS; None for any. Raises ValueError, with a remedy, for all else.
    """
    dataset = rows if isinstance(rows, Dataset) else _from_rows(rows, kind or "messages")
    found = kind_of(dataset.column_names)
    if kind not in (None, found):
        remedy = (
            "vlm.data.to_rows(dataset) makes them" if kind == "messages" else f"vlm.data.make_{kind[:-1]} makes one"
        )
        raise ValueError(f"the rows are {_NAMES.get(found, found)}, and {_NAMES.get(kind, kind)} are needed: {remedy}")
    if found == "messages":
        _refuse_strings(dataset)
    refuse_nulls(dataset)
    return dataset if dataset.format["type"] == "custom" else _plain(dataset)


def decoded_row(dataset: Dataset, index: int) -> dict:
    """A row of `given_rows` with its images decoded.

    Raises ValueError, with the row's number and a remedy, for an image that cannot be, and OSError as `open_image`.
    """
    try:
        return dataset[index]
    except Exception:  # of decoders; what a transform raises stays
        (row,) = plain_rows(dataset, [index])
        for image in filter(None, all_images(row)):
            try:
                open_image(image)
            except UnusableImage as error:
                raise ValueError(f"row {row_number(row, index)}: {error}") from error
        raise


_NAMES = {"messages": "rows of messages", "rated": "rated rows"}


def _refuse_strings(dataset):
    content = _content_of(dataset.features["messages"])
    if not isinstance(content, List | None):
        remedy = "vlm.data.read_dataset(dataset) makes the rows that are needed"
        raise ValueError(f"the content of messages is {content}, not a list of parts: {remedy}")


def _content_of(column):
    """The feature of the contents in a column of messages; None for another column."""
    message = getattr(column, "feature", None)
    return message.get("content") if isinstance(message, dict) else None


def refuse_nulls(dataset: Dataset) -> None:
    """Raises ValueError, with the row's number and a remedy, where a turn or a part is null: no step can read it."""
    features = dataset.features
    conversations = [name for name in CONVERSATIONS if isinstance(_content_of(features.get(name)), List)]
    if not any(_count_nulls(dataset.data.column(name)) for name in conversations):  # of all rows, in no time
        return
    for index, row in enumerate(stream_plain_rows(dataset, conversations, "looking for nulls")):
        for problem, remedy in (found for turns in row.values() for found in null_problems(turns or [])):
            raise ValueError(f"row {index + 1}: {problem}: {remedy}, or leave out what check_dataset rejects")


def _count_nulls(column):
    turns = pc.list_flatten(column)
    parts = pc.list_flatten(pc.struct_field(turns, "content"))
    return turns.null_count + parts.null_count


def _plain(dataset):
    plain = dataset.with_format(None)  # a copy
    of_images = {name: List(Image()) for name, feature in plain.features.items() if _holds_images(feature)}
    plain.info.features = Features({**plain.features, **of_images})
    return plain


def _holds_images(feature):
    return isinstance(feature, List) and isinstance(feature.feature, Image)


def _from_rows(rows, kind):
    if isinstance(rows, Mapping) and rows and all(isinstance(part, Dataset) for part in rows.values()):
        raise ValueError(
            f"the rows are in the splits {', '.join(rows)}: give one of them, as dataset[{next(iter(rows))!r}]"
        )
    if isinstance(rows, IterableDataset):
        raise ValueError("a stream may have no end: give some of its rows, as list(stream.take(100))")
    if hasattr(rows, "columns"):  # of pandas, polars, Arrow: as rows of it come the names or the values of its columns
        remedy = "vlm.data.read_dataset(Dataset.from_pandas(frame)) makes the rows that are needed"
        raise ValueError(f"a {type(rows).__name__} is given as rows: {remedy}")
    if isinstance(rows, str | bytes) or not isinstance(rows, Iterable):
        raise ValueError(f"a {type(rows).__name__} is given as rows: give a Dataset, or a list of rows")
    rows = [rows] if isinstance(rows, Mapping) else list(rows)
    if wrong := [row for row in rows if not isinstance(row, Mapping)]:
        raise ValueError(f"a row is a {type(wrong[0]).__name__}: make rows with vlm.data.make_row")
    if not rows:
        return Dataset.from_dict(dict.fromkeys(KINDS[kind], []), features=KINDS[kind])
    found = kind_of(rows[0])
    return _stored(rows, with_train(FEATURES) if found == "messages" and _some_has_train(rows) else KINDS[found])


def _some_has_train(rows):
    messages = (message for row in rows for message in row.get("messages") or [])
    return any(isinstance(message, Mapping) and TRAIN in message for message in messages)


def _stored(rows, features):
    """A Dataset in memory, with the further columns that rows have."""
    names = dict.fromkeys(name for row in rows for name in row if name not in features)
    further = [column for name in names if (column := _column(name, [row.get(name) for row in rows]))]
    try:
        of_kind = [{name: row.get(name) for name in features} | {"images": _images_of(row)} for row in rows]
        dataset = Dataset.from_list(of_kind, features=features)
        return concatenate_datasets([dataset, *further], axis=1) if further else dataset
    except (pa.ArrowException, TypeError, ValueError, AttributeError, KeyError) as error:
        why = one_line(f"{error}")[:200]
        remedy = "make rows with vlm.data.make_row, or read them with vlm.data.read_dataset"
        raise ValueError(f"the rows are not as make_row makes them ({why}): {remedy}") from error


def _column(name, values):
    """A further column; None for values that no column holds together, as numbers and texts: nobody needs them."""
    try:
        return Dataset.from_dict({name: values})
    except (pa.ArrowException, TypeError, ValueError, AttributeError, KeyError, OverflowError):
        return None


def _images_of(row):
    """The images of a row as a list: one alone, or an array that begins with their number, as of numpy."""
    images = row.get("images")
    if images is None:
        return []
    return [images] if isinstance(images, PilImage.Image | str | bytes | Mapping) else list(images)


def given_texts(texts: Iterable[str], rows: Sized, name: str = "answers") -> list[str]:
    """The list of texts. Raises ValueError unless there is one for each row; `name` is what the message calls them."""
    texts = _listed(texts, name)
    if len(texts) != len(rows):
        raise ValueError(f"{len(texts)} {name} for {len(rows)} rows: give one per row, in row order")
    if wrong := [row for row, text in enumerate(texts) if not isinstance(text, str)]:
        value = one_line(repr(texts[wrong[0]]))[:80]
        remedy = 'give "" where there is none'
        raise ValueError(f"{len(wrong)} {name} are no texts, such as that of row {wrong[0]} from 0, {value}: {remedy}")
    return texts


def texts_of_rows(texts: Iterable[str], indices: Sequence[int], rows: Sized, name: str) -> dict[int, str]:
    """The texts of some rows by their indices, of a list that has one for each row, or for the first of them.

    Raises ValueError, as `given_texts`, where one of those is missing, or no text.
    """
    texts = _listed(texts, name)
    if any(index >= len(texts) for index in indices) or len(texts) > len(rows):
        given_texts(texts, rows, name)
    return dict(zip(indices, given_texts([texts[index] for index in indices], indices, name), strict=True))


def _listed(texts, name):
    """A list of what is given as texts; not of a set, which has them in any order, nor of a table's columns."""
    others = isinstance(texts, str | bytes | Mapping | set | frozenset) or hasattr(texts, "columns")
    if others or not isinstance(texts, Iterable):
        raise ValueError(f"{name}: a {type(texts).__name__} is no list of texts: give one text per row, in row order")
    return list(texts)


def row_indices(rows: Iterable[int] | slice | int, count: int) -> list[int]:
    """The indices from 0 that are meant, also by negative ones; those of a range or slice that there are.

    Raises ValueError for any other of no row.
    """
    if isinstance(rows, slice):
        return [*range(count)[rows]]
    if isinstance(rows, range):
        rows = [index for index in rows if -count <= index < count]
    rows = rows.tolist() if hasattr(rows, "tolist") else rows
    rows = list(rows) if isinstance(rows, Iterable) else [rows]
    if wrong := [row for row in rows if not _is_index(row) or not -count <= row < count]:
        raise ValueError(f"there is no row {wrong[0]!r}: give whole numbers from 0 to {count - 1}, or range(n)")
    return [range(count)[row] for row in rows]


def _is_index(row):
    return isinstance(row, Integral) and not isinstance(row, bool)
