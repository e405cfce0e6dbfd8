"""The panel's words in one language. A language is a file of this package; the English help is that of the settings."""

import json
from functools import cache
from pathlib import Path

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


def described() -> tuple[type[Settings], ...]:
    """All settings that the panel shows."""
    return (RunConfig,)


@cache
def texts(language: str) -> dict[str, str]:
    """The panel's texts by key. Raises ValueError for a language that it does not have."""
    if language not in LANGUAGES:
        raise ValueError(f"language={language!r}: choose one of {', '.join(LANGUAGES)}")
    helps = {}
    if language == "en":
        helps = {
            f"help.{name}": setting.description for kind in described() for name, setting in kind.described().items()
        }
    return helps | json.loads((FOLDER / f"{language}.json").read_text(encoding="utf-8"))
