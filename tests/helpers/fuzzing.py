"""What the tests of tests/fuzz share: texts of all kinds, files of an example, and what an error may look like."""

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
