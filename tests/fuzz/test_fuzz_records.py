"""Records of any value: what JSON holds comes back, anything else is refused; and numbers of any text."""

import contextlib
import io
import json

import numpy as np
from fuzzing import names, only_documented, texts, values
from hypothesis import given
from hypothesis import strategies as st

from vlmhelpers.common import records
from vlmhelpers.common.printable import one_line
from vlmhelpers.evaluation import first_number

OTHERS = st.sampled_from([np.float32("nan"), np.int64(3), np.arange(3), b"x", {1: 2}, {1, 2}, object(), (1, [2]), 1j])


@given(names, st.one_of(values, OTHERS, st.lists(OTHERS, max_size=2)))
def test_a_record_comes_back(name, value):
    shown = io.StringIO()
    with only_documented(TypeError):
        plain = records._plain(value, name)
        with contextlib.redirect_stdout(shown):
            records.record(name, value)
        line = shown.getvalue().removesuffix("\n")
        assert line == one_line(line)
        entry = json.loads(json.dumps({"name": name, "value": plain}))
        notebook = {"cells": [{}, {"outputs": [{}, {"data": {records.MIMETYPE: entry}}]}]}
        assert records.read_records(notebook) == {name: plain}


AMOUNTS = st.builds(
    "{}{}{}{}".format,
    st.sampled_from(["", "$", "€ ", "EUR ", "-", "+", "(", "Price: ", "₹", "kr."]),
    st.from_regex(r"[0-9]{1,4}([.,' \u00a0\u202f][0-9]{1,3}){0,4}", fullmatch=True),
    st.sampled_from(["", "e5", "E-3", "%", ".-", ",-", " €", "/100", "x2"]),
    texts,
)


@given(st.one_of(texts, AMOUNTS, st.text(alphabet="0123456789.,'eE-+$€ ()%٣٤\u00a0", max_size=400)))
def test_the_first_number_of_any_text(text):
    found = first_number(text)
    assert found is None or (isinstance(found, int | float) and found == found)
