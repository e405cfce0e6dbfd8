"""CSV files of any bytes: a Dataset, whose rows are kept or have a reason, or one sentence."""

from fuzzing import assert_reasons, folder_with, mutated, only_documented, texts
from hypothesis import given
from hypothesis import strategies as st

from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.recognition import read_rows

HEADERS = st.one_of(
    st.just(["image_path", "instruction", "description"]),
    st.lists(st.sampled_from(["image", "text", "response", "rejected", "label", "row", "problem", "messages"])),
    st.lists(texts, max_size=5),
)
ENCODINGS = st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32", "cp1252", "gbk", "shift-jis"])


@st.composite
def tables(draw):
    """The bytes of a table, quoted or not, whose rows may be shorter or longer than its header."""
    separator, end = draw(st.sampled_from(",;\t|")), draw(st.sampled_from(["\n", "\r\n", "\r"]))
    quote = draw(st.sampled_from(['"{}"', "{}", "'{}'"])).format
    cell = st.one_of(texts, texts.map(quote), st.just("a.png"), st.just("x" * 140_000))
    rows = [draw(HEADERS), *draw(st.lists(st.lists(cell, max_size=6), max_size=6))]
    text = end.join(separator.join(row) for row in rows)
    return text.encode(draw(ENCODINGS), "replace" if draw(st.booleans()) else "ignore")


@given(mutated(tables()))
def test_a_csv_of_any_bytes(content):
    with folder_with(rows__csv=content) as folder:
        for read in (read_csv, read_rows):
            with only_documented():
                assert_reasons(read(folder / "rows.csv"))
