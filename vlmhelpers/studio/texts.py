"""The panel's words in one language. A language is a file of this package; the English help is that of the settings."""

import json
from functools import cache
from pathlib import Path

from vlmhelpers.commands.settings import Answering, Evaluating, Exporting, Pushing
from vlmhelpers.common.settings import Settings
from vlmhelpers.training.config import RunConfig

FOLDER = Path(__file__).with_name("languages")
LANGUAGES = {
    "en": "English",
    "zh": "中文",
    "de": "Deutsch",
    "ru": "Русский",
    "ko": "한국어",
    "ja": "日本語",
    "fr": "Français",
    "es": "Español",
}
# The settings that the panel shows, by the group that their keys name where another group's have the same name.
GROUPS: dict[str, tuple[type[Settings], tuple[str, ...]]] = {
    "run": (RunConfig, tuple(RunConfig.described())),
    "evaluating": (
        Evaluating,
        tuple("dataset rows base prompted instruction ablation metrics max_new_tokens batch_size".split()),
    ),
    "chatting": (Answering, ("system", "max_new_tokens", "temperature", "top_p")),
    "exporting": (Exporting, ("form", "output", "dtype", "outtype", "llama_cpp", "check")),
    "pushing": (Pushing, ("folder", "repo_id", "private", "send")),
}


@cache
def texts(locale: str) -> dict[str, str]:
    """The panel's texts by key. Raises ValueError for a language that it does not have."""
    if locale not in LANGUAGES:
        raise ValueError(f"locale={locale!r}: choose one of {', '.join(LANGUAGES)}")
    helps = _helps() if locale == "en" else {}
    return helps | json.loads((FOLDER / f"{locale}.json").read_text(encoding="utf-8"))


def _helps():
    """The settings' own descriptions: help.NAME, or help.GROUP.NAME where NAME has another meaning there."""
    found = {}
    for group, (kind, names) in GROUPS.items():
        for name in names:
            text = kind.described()[name].description
            key = f"help.{name}" if found.setdefault(f"help.{name}", text) == text else f"help.{group}.{name}"
            found[key] = text
    return found


def word(words: dict[str, str], kind: str, name: str, group: str = "run") -> str:
    """The label or help (`kind`) of a setting of a group."""
    return words.get(f"{kind}.{group}.{name}") or words[f"{kind}.{name}"]
