"""What the tests of JSONL rows share: objects written to a file and read again, and what is wrong with a row."""

import json

from datasets import Image, List

from vlmhelpers.data.readers.jsonl_reader import read_jsonl
from vlmhelpers.data.rules import split_problem


def write_and_read(folder, *values, **options):
    """read_jsonl of objects, from a file in `folder`, with images undecoded."""
    path = folder / "rows.jsonl"
    path.write_text("".join(f"{json.dumps(value)}\n" for value in values))
    return undecoded(read_jsonl(path, **options))


def undecoded(dataset):
    return dataset.cast_column("images", List(Image(decode=False)))


def reason_of(row):
    return split_problem(row["problem"])[0]
