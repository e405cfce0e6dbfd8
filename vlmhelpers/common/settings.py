"""Settings that describe themselves: the command line makes its help of them, and the panel its controls."""

import inspect
import os
import re
import reprlib
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import fields
from functools import cache
from types import UnionType
from typing import Any, ClassVar, Literal, NamedTuple, Union, get_args, get_origin

from pydantic import ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.dataclasses import dataclass
from rapidfuzz import process
from rapidfuzz.distance import OSA

_NOTHING = ("", "none", "null")
_LARGEST_NUMBER = 2**63
_SWITCHES = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Setting(NamedTuple):
    """What a setting is: its values, what it is without one, and a description of one line."""

    name: str
    kind: type  # bool, int, float or str
    choices: tuple  # the values that it may have, if they are few
    is_optional: bool  # None is one of its values
    default: Any  # None where one has to be given
    is_required: bool
    description: str
    values: str  # its type as Python writes it


@dataclass(frozen=True, config=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False))
class Settings:
    """Settings of a subclass, whose fields each have a type, a default and a description.

    A text such as "1e-4" or "none" is converted; ValueError for a value that a field does not take. `other_names`: what
    other programs call a setting -> its name here, or "" where there is none.
    """

    other_names: ClassVar[dict[str, str]] = {}

    @field_validator("*", mode="before")
    @classmethod
    def _convert(cls, value: Any, info: ValidationInfo) -> Any:
        annotation = cls.__pydantic_fields__[info.field_name].annotation
        kinds = {kind if isinstance(kind, type) else type(kind) for kind in get_args(annotation) or (annotation,)}
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if isinstance(value, str) and value.lower() in _NOTHING and type(None) in kinds:
            return None
        if isinstance(value, str) and str not in kinds:
            with suppress(ValueError):  # the text spells neither a truth value nor a number
                value = _SWITCHES[value.lower()] if value.lower() in _SWITCHES else float(value)
        if isinstance(value, float) and value.is_integer() and float not in kinds:
            value = int(value)
        if isinstance(value, int) and abs(value) >= _LARGEST_NUMBER:
            raise ValueError("it should be a smaller number")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("it should be without the NUL character")
        return value

    @classmethod
    @cache
    def described(cls) -> dict[str, Setting]:
        """Every setting by name, in their order."""
        return {name: _describe(name, field) for name, field in cls.__pydantic_fields__.items()}

    @classmethod
    def problems(cls, values: dict[str, Any]) -> dict[str, str]:
        """What is wrong with some values, by the setting that is to be changed, a sentence each; empty if nothing is.

        The name is "" for what no single setting tells.
        """
        try:
            cls(**values)
        except ValidationError as error:
            found = {}
            for problem in error.errors():
                sentence = sentence_of(problem, cls)
                words = re.findall(r"\w+", sentence)
                name = "".join(problem["loc"]) or next((word for word in words if word in cls.described()), "")
                found.setdefault(name, sentence)
            return found
        return {}


def _describe(name, field):
    annotation = field.annotation
    parts = get_args(annotation) if get_origin(annotation) in (UnionType, Union, Literal) else (annotation,)
    named = tuple(part for part in parts if not isinstance(part, type) and part is not None)
    kinds = [part if isinstance(part, type) else type(part) for part in parts if part not in (None, type(None))]
    required = field.is_required()
    return Setting(
        name=name,
        kind=kinds[0],
        choices=named,
        is_optional=None in parts or type(None) in parts,
        default=None if required else field.default,
        is_required=required,
        description=field.description,
        values=inspect.formatannotation(annotation),
    )


def sentence_of(problem: dict, settings: type[Settings]) -> str:
    """One of the errors of a pydantic ValidationError, as a sentence that names the setting and its value."""
    name, message = "".join(problem["loc"]), re.sub("^(Input|String)", "it", problem["msg"])
    message = message.removeprefix("Value error, ")
    if problem["type"] == "unexpected_keyword_argument":
        meant = _meant(name, settings)
        return f"there is no setting {shown(name)}" + (f". Did you mean {meant!r}?" if meant else ": leave it out")
    if problem["type"] == "missing":
        return f"{name} is missing: add a line for it"
    return f"{name} is {shown(problem['input'])}: {message}" if name else message


def _meant(name, settings):
    """The setting that another program calls so, or of which the name is a misspelling; what is less alike is not."""
    if name in settings.other_names:
        return settings.other_names[name]
    known = [field.name for field in fields(settings)]
    found = process.extractOne(name[:50], known, scorer=OSA.normalized_similarity, score_cutoff=0.75)
    return found and found[0]


def in_one_sentence(problems: Iterable[str]) -> str:
    """The first three problems, and how many more there are."""
    listed = list(problems)
    more = [f"and {len(listed) - 3} more"] if len(listed) > 3 else []
    return "; ".join([*listed[:3], *more])


def shown(value: Any) -> str:
    """A value as Python writes it, not longer than a sentence bears."""
    brief = reprlib.Repr()
    brief.maxlevel, brief.maxstring, brief.maxother = 1, 100, 100
    try:
        return brief.repr(value)
    except ValueError:  # Python writes no integer of more than 4,300 digits
        return "a huge number"
