"""Tables of products of any bytes and values, with any template of an answer; nothing is downloaded."""

import contextlib
import io

import pandas as pd
from fuzzing import AWKWARD, assert_reasons, folder_with, mutated, numbers, only_documented, texts
from hypothesis import given
from hypothesis import strategies as st

from vlmhelpers.data.readers.products_reader import read_products

COLUMNS = ["title", "category3_code", "full_price", "imageurl"]
CELLS = st.one_of(texts, st.just("a.png"), numbers, st.none(), st.dates(), st.booleans(), st.binary(max_size=5))
PIECES = ["{title}", "{full_price}", "{", "}", "{{", "{}", "{0}", "{title!r}", "{title:>9999999999}", "{title.x}"]
PIECES += ["{full_price:.2f}", "{title[0]}", "{gone}", "{title:{full_price}}", "x", " ", *AWKWARD]
TEMPLATES = st.one_of(st.just("{title}: {full_price}"), st.lists(st.sampled_from(PIECES), max_size=4).map("".join))


def tables():
    """Lists of columns of one length, most of them with the usual names."""
    header = st.one_of(st.just(COLUMNS), st.lists(st.one_of(st.sampled_from(COLUMNS), texts), max_size=6))
    return st.tuples(header, st.lists(st.lists(CELLS, min_size=6, max_size=6), max_size=4))


def read(source, **options):
    with contextlib.redirect_stdout(io.StringIO()), only_documented():
        assert_reasons(read_products(source, download=False, **options))


@given(tables(), TEMPLATES, st.data())
def test_a_csv_of_products(table, template, data):
    header, rows = table
    lines = [header, *[row[: len(header)] for row in rows]]
    content = "\n".join(",".join(map(str, line)) for line in lines).encode("utf-8", "surrogatepass")
    with folder_with(rows__csv=data.draw(mutated(st.just(content)))) as folder:
        read(folder / "rows.csv", response=template)


@given(tables(), TEMPLATES, texts)
def test_a_frame_of_products(table, template, instruction):
    header, rows = table
    frame = pd.DataFrame([row[: len(header)] for row in rows], columns=header, dtype=object)
    with folder_with() as folder:
        read(frame, response=template, instruction=instruction, image_root=folder)


@given(mutated(st.just(b"PAR1" + bytes(40) + b"PAR1")))
def test_a_parquet_of_any_bytes(content):
    with folder_with(rows__parquet=content) as folder:
        read(folder / "rows.parquet")
