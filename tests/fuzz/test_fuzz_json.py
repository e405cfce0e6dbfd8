"""JSON and JSONL of any form, and of none: rows that are kept or have a reason, or one sentence."""

import json

import pytest
from fuzzing import assert_reasons, folder_with, mutated, only_documented, rows, texts, values
from hypothesis import given
from hypothesis import strategies as st

from vlmhelpers.data.readers.dataset_reader import read_dataset
from vlmhelpers.data.readers.jsonl_reader import read_alpaca, read_jsonl
from vlmhelpers.data.readers.preference_reader import read_preferences, read_prompts, read_rated
from vlmhelpers.data.readers.recognition import read_rows

READERS = [read_dataset, read_jsonl, read_rows, read_alpaca, read_preferences, read_rated, read_prompts]


@st.composite
def files(draw):
    """The bytes of a list, or of lines, of rows."""
    found = draw(st.lists(st.one_of(rows(), rows(), values), min_size=1, max_size=4))
    ascii_only = draw(st.booleans())
    if draw(st.booleans()):
        text = json.dumps(found, ensure_ascii=ascii_only, indent=draw(st.sampled_from([None, 1])))
    else:
        lines = [json.dumps(row, ensure_ascii=ascii_only) for row in found]
        text = draw(st.sampled_from(["\n", "\r\n", "\n\n"])).join(lines)
    return text.encode(draw(st.sampled_from(["utf-8", "utf-8-sig", "utf-8", "utf-16"])), "surrogatepass")


def try_all(readers, **files):
    with folder_with(**files) as folder:
        for read in readers:
            with only_documented():
                assert_reasons(read(folder / next(iter(files)).replace("__", ".")))


@given(files())
def test_rows_of_all_forms(content):
    try_all(READERS, rows__jsonl=content)


@given(mutated(files()))
def test_bytes_that_were_rows(content):
    try_all([read_dataset], rows__json=content)


OPEN = st.sampled_from(["[", '{"messages": ', '{"a": [', "[{}, ", '"x", '])


@given(st.lists(OPEN, min_size=1, max_size=4), st.integers(1, 300))
def test_deep_nesting(pieces, depth):
    try_all([read_dataset, read_alpaca], rows__json="".join(pieces * depth).encode())


@given(st.lists(rows(), min_size=1, max_size=3), texts, texts, texts, texts)
def test_fields_by_any_names(found, text, image, response, instruction):
    content = "\n".join(map(json.dumps, found)).encode()
    with folder_with(rows__jsonl=content) as folder:
        for options in ({"instruction": instruction}, {"text_field": text, "response_field": response}):
            with only_documented():
                assert_reasons(read_dataset(folder / "rows.jsonl", image_field=image or None, **options))


@pytest.mark.parametrize("reader", READERS)
@given(row=rows())
def test_a_row_alone(reader, row):
    try_all([reader], rows__json=json.dumps([row]).encode())
