"""Sample files are what their readers expect."""

import json

import pytest

from vlmhelpers.data import read_preferences
from vlmhelpers.data.schema import message_text
from vlmhelpers.samples import write_sample


@pytest.mark.parametrize("answers", ["pairs", "untrue_pairs"])
def test_pairs_are_read_as_such(tmp_path, answers):
    write_sample(tmp_path / "s.jsonl", 20, answers=answers)
    pairs = read_preferences(tmp_path / "s.jsonl")
    assert not any(pairs["problem"])
    written = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    for row, line in zip(pairs, written, strict=True):
        chosen, rejected = (message_text(row[side][0]) for side in ("chosen", "rejected"))
        assert (chosen, rejected) == (line["chosen"], line["rejected"])
        assert chosen != rejected
        assert ("$" in rejected) == (answers == "pairs")
        assert "$" not in chosen
