"""Any source of rows, in any form, with the reader that its rows ask for."""

import os

from datasets import Dataset, DatasetDict

from vlmhelpers.data.readers.field_names import CSV_NAMES, FieldNames
from vlmhelpers.data.readers.message_rows import MessageRows
from vlmhelpers.data.readers.opening import Source, open_source
from vlmhelpers.data.readers.preference_reader import find_reader, read_preferences, read_prompts, read_rated

_OF_KIND = {  # kind -> its reader, and what that calls the field of the answer
    "pairs": (read_preferences, "chosen_field"),
    "rated": (read_rated, "completion_field"),
    "prompts": (read_prompts, "answer_field"),
}


def read_dataset(
    source: str | os.PathLike | Dataset | DatasetDict,
    kind: str | None = None,
    image_root: str | os.PathLike | None = None,
    instruction: str | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    response_field: str | None = None,
    download: bool = False,
    cache_dir: str | os.PathLike | None = None,
    **rules: object,
) -> Dataset:
    """Reads rows of any form (docs/data-forms.md lists them) from any source into a `datasets.Dataset`.

    source: a file (JSON, JSONL, CSV, Parquet, a WebDataset shard), a folder or pattern of such files, an imagefolder
        with metadata, a Dataset, or a dataset of the Hub, see opening.open_source. Embedded images stay embedded.
    kind: of the rows, a key of KINDS; None: what the first of them hold. For the other arguments see read_jsonl, for
    image_root, columns and errors vlmhelpers.data.readers.
    """
    opened = open_source(source)
    kind = kind or kind_in(opened, text_field)
    if kind not in ("messages", *_OF_KIND):
        raise ValueError(f"kind={kind!r}: choose one of messages, {', '.join(_OF_KIND)}")
    if kind == "messages":
        first = {"first": CSV_NAMES} if opened.is_table else {}
        names = FieldNames(text_field, image_field, response_field, instruction, **first)
        return MessageRows(opened, names, image_root, download, cache_dir, **rules).read("read_dataset")
    if instruction is not None:
        raise ValueError(f"instruction: rows of {kind} have their own questions; leave it out")
    reader, answer_field = _OF_KIND[kind]
    return reader(opened, image_root, text_field, image_field, **{answer_field: response_field})


def kind_in(source: Source, text_field: str | None = None) -> str:
    """The kind of the rows of a Source, by the first one that has fields, its question in `text_field`, if named."""
    if source.made:
        return source.made
    first = next((row.fields for row in source.ahead() if row.fields), {})
    reader = find_reader(first, text_field)
    return next((kind for kind, (found, _) in _OF_KIND.items() if found.__name__ == reader), "messages")
