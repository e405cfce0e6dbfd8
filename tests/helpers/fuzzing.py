"""What the tests of tests/fuzz share: texts of all kinds, files of an example, and what an error may look like."""

import copy
import functools
import json
import tempfile
from contextlib import contextmanager
from pathlib import Path

from datasets import Dataset
from hypothesis import settings
from hypothesis import strategies as st

from vlmhelpers.common.printable import one_line
from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.rules import merge_problems, row_problems

# What has broken readers of text before: marks, directions, halves of pairs, NULs, formulas, quotes, placeholders.
AWKWARD = [
    "", " ", "\n", "\r\n", "\t", "\0", "\ufeff", "\u202e", "\u2028", "\x1b[31m", "\ue000", "\ufffd", "\u00e9", "\ufdfa",
    "\U0001f468\u200d\U0001f467", "\u0301" * 50, "\u0663", "a" * 300, "=1+1", "'", '"', '""', ",", ";", "|",
    "\\", "{}", "{title}", "%s", "%(name)s", "<image>", "<|im_end|>", "<image_00>", "<img>a.png</img>", "<video>",
    "nan",     "NaN", "Infinity", "-0", "1e999", "null", "true", "0", "1_000", "../a.png", "/dev/null", "file:///etc/passwd",
    "http://localhost:1/a", "data:image/png;base64,AA==", "C:\\a.png",
]  # fmt: skip
texts = st.one_of(st.sampled_from(AWKWARD), st.text(max_size=30), st.lists(st.sampled_from(AWKWARD)).map("".join))
numbers = st.one_of(st.integers(), st.floats(), st.just(10**400), st.just(2**63))


FORMS = Path(__file__).parent.parent / "data" / "forms"


@functools.cache
def sample_rows() -> list[dict]:
    """The rows of all JSON files of tests/data/forms."""
    lists = [json.loads(file.read_text(encoding="utf-8")) for file in sorted(FORMS.glob("*.json"))]
    lines = [line for file in sorted(FORMS.glob("*.jsonl")) for line in file.read_text(encoding="utf-8").splitlines()]
    found = [row for rows in lists for row in (rows if isinstance(rows, list) else [rows])]
    return [row for row in [*found, *map(json.loads, filter(None, lines))] if isinstance(row, dict)]


@functools.cache
def sample_values() -> list:
    """Every value inside them, and every name as a text."""
    found = []

    def visit(value):
        found.append(value)
        for part in value.items() if isinstance(value, dict) else value if isinstance(value, list) else ():
            found.extend(part[:1] if isinstance(value, dict) else ())
            visit(part[1] if isinstance(value, dict) else part)

    for row in sample_rows():
        visit(row)
    return found


names = st.deferred(lambda: st.sampled_from([value for value in sample_values() if isinstance(value, str)]) | texts)
values = st.recursive(
    st.one_of(texts, numbers, st.booleans(), st.none(), st.deferred(lambda: st.sampled_from(sample_values()))),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(names, inner, max_size=3)),
    max_leaves=6,
)


@st.composite
def rows(draw):
    """A row of a form, in which a few parts are gone, doubled, renamed or something else; or any object."""
    row = copy.deepcopy(draw(st.sampled_from(sample_rows())))
    for _ in range(draw(st.integers(0, 3))):
        row = _changed(draw, row)
    return row if isinstance(row, dict) else {"messages": row}


def _changed(draw, value):
    """The value with one part of it, found by walking down, changed."""
    deeper = isinstance(value, dict | list) and value and draw(st.integers(0, 4))
    if not deeper:
        return draw(values)
    if isinstance(value, list):
        place, what = draw(st.integers(0, len(value) - 1)), draw(st.sampled_from(["other", "gone", "twice"]))
        new = {"other": lambda: [_changed(draw, value[place])], "gone": list, "twice": lambda: [value[place]] * 2}
        return value[:place] + new[what]() + value[place + 1 :]
    name, what = draw(st.sampled_from(sorted(value))), draw(st.sampled_from(["other", "gone", "renamed", "more"]))
    others = {key: part for key, part in value.items() if key != name}
    new = {
        "other": lambda: {name: _changed(draw, value[name])},
        "gone": dict,
        "renamed": lambda: {draw(names): value[name]},
        "more": lambda: {name: value[name], draw(names): draw(values)},
    }
    return others | new[what]()


def mutated(content: st.SearchStrategy[bytes]) -> st.SearchStrategy[bytes]:
    """Bytes as they are, or cut, doubled or overwritten in one or two places."""
    change = st.tuples(st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8))

    def apply(content, changes):
        for place, gone, new in changes:
            start = int(place * len(content))
            content = content[:start] + new + content[start + gone :]
        return content

    return st.builds(apply, content, st.one_of(st.just([]), st.lists(change, max_size=2)))


def share(part: float) -> settings:
    """For a test whose examples take longer than others': this part of the profile's number of them."""
    return settings(max_examples=max(1, int(settings().max_examples * part)))


@contextmanager
def folder_with(**files: bytes):
    """A folder for one example, with files by their names, in which "__" stands for the dot."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        for name, content in files.items():
            Path(folder, name.replace("__", ".")).write_bytes(content)
        yield Path(folder)


def assert_sentence(text: str, length: int = 500) -> None:
    """An error or a reason is a printable line that nobody has to scroll."""
    assert text and text == one_line(text) and len(text) <= length, text


def assert_reasons(dataset: Dataset) -> None:
    """Rows that cannot be used say why, and what to do, in a short line each."""
    for row in stream_plain_rows(dataset, dataset.column_names, "checking"):
        for text in merge_problems(row_problems(row)):
            assert_sentence(text, 299)


@contextmanager
def only_documented(*documented: type[Exception]):
    """Nothing but ValueError, OSError and what else is documented may come out, with a sentence."""
    try:
        yield
    except (ValueError, OSError, *documented) as error:
        assert_sentence(one_line(str(error)))
