"""Settings of any YAML, JSON and texts: a RunConfig, or one sentence that names the file."""

import json
from dataclasses import fields

import pytest
import yaml
from fuzzing import assert_sentence, folder_with, mutated, names, numbers, only_documented, texts, values
from hypothesis import given
from hypothesis import strategies as st

from vlmhelpers.cli.parser import STEPS
from vlmhelpers.common.printable import one_line
from vlmhelpers.training.config import RunConfig

SETTINGS = sorted(field.name for field in fields(RunConfig))
SOME = [choice for setting in RunConfig.described().values() for choice in setting.choices]
LITERALS = ["010", "1:30", "1e-4", "1_000", ".nan", "-.inf", "2020-01-01", "~", "yes", "0x10", "!!int x", "&a 1", "*a"]
LITERALS += [
    "!!python/name:os.system",
    "!!binary AA",
    "? [1]",
    "[",
    "{",
    "'",
    '"',
    "|",
    ">",
    "%",
    "@",
    "`",
    "- 1",
    "\t1",
]
VALUES = st.one_of(st.sampled_from(SOME), numbers, texts, st.booleans(), st.none(), values)
KEYS = st.one_of(st.sampled_from(SETTINGS), st.sampled_from(SETTINGS), names)
NEEDED = {"model_id": "a", "dataset": "b", "output_dir": "c"}
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=6).map(lambda found: NEEDED | found)


def dumped(mapping, style):
    text = yaml.safe_dump(mapping, allow_unicode=style, default_flow_style=style)
    return text.encode("utf-8", "surrogatepass")


LINES = st.lists(st.tuples(KEYS, st.one_of(st.sampled_from(LITERALS), texts)), max_size=6)
YAML = st.one_of(
    st.builds(dumped, MAPPINGS, st.booleans()),
    LINES.map(lambda lines: "".join(f"{key}: {value}\n" for key, value in lines).encode("utf-8", "surrogatepass")),
)
JSON = MAPPINGS.map(lambda found: json.dumps(found).encode())


def read(name, content):
    with folder_with(**{name: content}) as folder:
        path = folder / name.replace("__", ".")
        with only_documented():
            config = RunConfig.read(path)
            config.save(path)
            assert RunConfig.read(path) == config


@given(mutated(YAML))
def test_yaml(content):
    read("run__yaml", content)


@given(mutated(JSON))
def test_json(content):
    read("run__json", content)


@pytest.mark.parametrize("kind", [RunConfig, *STEPS.values()])
@given(found=st.data())
def test_what_is_wrong_with_values(kind, found):
    """What the panel and the command line show."""
    given_names = st.one_of(st.sampled_from(sorted(kind.described())), names)
    settings = found.draw(st.dictionaries(given_names, VALUES, max_size=6))
    for sentence in kind.problems(settings).values():
        assert one_line(sentence) and len(sentence) < 1000


@given(st.dictionaries(st.sampled_from(SETTINGS), st.one_of(st.sampled_from(SOME).map(str), numbers.map(str), texts)))
def test_texts(found):
    """What --set passes on."""
    with folder_with(run__yaml=dumped(NEEDED, False)) as folder:
        try:
            RunConfig.read(folder / "run.yaml", **found)
        except ValueError as error:
            assert_sentence(str(error).replace("\n", " "), 2000)
