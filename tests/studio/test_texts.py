"""The panel's languages: each says all that the panel does, in its own words, and none says more."""

import ast
import re
from functools import cache
from pathlib import Path
from string import Formatter

import pytest

from vlmhelpers.studio.texts import FOLDER, GROUPS, LANGUAGES, texts, word
from vlmhelpers.training import background, progress
from vlmhelpers.training.methods.catalog import METHODS

OTHERS = [language for language in LANGUAGES if language != "en"]
# What is called the same in every script.
NAMES = {
    "Beta",
    "DoRA",
    "GGUF",
    "GRPO",
    "LoRA alpha",
    "ONNX",
    "PPO",
    "RLOO",
    "SimPO gamma",
    "TensorBoard",
    "Top-p",
    "YAML",
    "rsLoRA",
}


def placeholders(text):
    return sorted(name for _, name, _, _ in Formatter().parse(text) if name is not None)


def test_each_language_has_a_file_and_no_other_file_is_there():
    assert {path.name for path in FOLDER.iterdir()} == {f"{language}.json" for language in LANGUAGES}


def test_a_language_that_is_not_there_is_refused_with_those_that_are():
    with pytest.raises(ValueError, match="locale='tlh': choose one of en, zh, de"):
        texts("tlh")


@pytest.mark.parametrize("language", OTHERS)
def test_a_language_has_the_keys_and_placeholders_of_english(language):
    english, words = texts("en"), texts(language)
    assert words.keys() == english.keys()
    different = {key for key in english if placeholders(words[key]) != placeholders(english[key])}
    assert not different


@pytest.mark.parametrize("language", LANGUAGES)
def test_a_text_is_one_plain_line(language):
    wrong = {key: text for key, text in texts(language).items() if not text.strip() or text != text.strip()}
    wrong |= {key: text for key, text in texts(language).items() if set("<&\n\r\t") & set(text)}
    assert not wrong


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_setting_has_a_label_and_a_help(language):
    words = texts(language)
    for group, (_, names) in GROUPS.items():
        assert all(word(words, kind, name, group) for name in names for kind in ("label", "help"))


@pytest.mark.parametrize("language", ["zh", "ja", "ko", "ru"])
def test_nothing_but_names_is_left_in_english(language):
    english, words = texts("en"), texts(language)
    same = {text for key, text in words.items() if text == english[key] and re.search("[A-Za-z]", plain(text))}
    assert same <= NAMES


def plain(text):
    return "".join(literal for literal, *_ in Formatter().parse(text))


def test_every_text_is_used():
    """Its key is written out in the panel, or put together there of a beginning and a name."""
    unused = [key for key in texts("en") if key not in names() and not is_put_together(key)]
    assert not unused, "remove them from every language"


def is_put_together(key):
    return key.split(".")[0] + "." in beginnings() and key.split(".")[-1] in names()


@cache
def names():
    """Texts in the code of the panel, names of settings, of their values, of methods, of their rows, and states."""
    found = {node.value for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    found |= set(METHODS) | {method.rows for method in METHODS.values()}
    for kind, of_group in GROUPS.values():
        for setting in (kind.described()[name] for name in of_group):
            found |= {setting.name, *map(str, setting.choices)}
    return found


@cache
def beginnings():
    """What the keys begin with that are put together, such as button. of f"button.{name}"."""
    joined = [node.values[0] for tree in trees() for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)]
    return {part.value for part in joined if isinstance(part, ast.Constant)} | {"label.", "help."}


@cache
def trees():
    paths = [*FOLDER.parent.rglob("*.py"), background.__file__, progress.__file__]
    return [ast.parse(Path(path).read_text(encoding="utf-8")) for path in paths]
