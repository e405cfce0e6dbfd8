r"""Rewards that can be checked, as GRPOTrainer and RLOOTrainer take them, from functions that score one answer.

A reward's name in the logs is also its text in a settings file, which `parse_reward` reads: `matches:An? \w+`.
"""

import inspect
import json
import math
import re
from collections.abc import Callable, Iterable, Sequence
from difflib import get_close_matches
from typing import Any

from vlmhelpers.common.numbers import find_numbers
from vlmhelpers.common.printable import printable
from vlmhelpers.data.schema import message_text
from vlmhelpers.data.turns import split_thinking
from vlmhelpers.evaluation.metrics import normalized_match
from vlmhelpers.evaluation.scoring import parse_fields

Reward = Callable[..., list[float | None]]

_OF_A_SAMPLE = {"prompts": "prompt", "completions": "completion"}
_SHOWN = 80  # characters of an answer in an error
_FENCED = re.compile(r"```(?:json)?\s*(\{.*\})\s*```", re.DOTALL | re.IGNORECASE)
_TEXT = re.compile(r"(?:(-?\d*\.?\d+)\s*\*\s*)?([^:]*)(?::(.*))?", re.DOTALL)  # weight, name, setting
_SLACK = 1 + 1e-9  # as 20.05 - 20 is a little over 0.05 in floating point


def as_reward(score: Callable[..., float | None], name: str | None = None) -> Reward:
    """TRL's form of `score(text, **columns)`, which gives one answer's reward, or None where it does not apply.

    `text` is the answer without its reasoning; `columns` are the sample's `prompt`, its `completion` (all that the
    model wrote), its values of the dataset's columns, and the trainer's `trainer_state`, `log_extra` and `log_metric`.
    What `score` does not need it takes as `**_`. Without a `name` the reward has that of `score`: `@as_reward`.

    The reward takes B completions (strings, or lists of messages) and, by keyword, columns of B values, and returns B
    values. It raises ValueError for a column that is missing or of another length, and where `score` fails or gives no
    finite number, with the row (the column `row`, else the index in the batch) and the answer.
    """
    name = name or score.__name__
    columns = list(inspect.signature(score).parameters.values())[1:]
    needed = [c.name for c in columns if c.default is c.empty and c.kind is not c.VAR_KEYWORD]

    def reward(completions: Sequence, **given: Any) -> list[float | None]:
        samples = _samples(name, needed, len(completions), {"completions": completions} | given)
        return [_scored(score, name, index, sample) for index, sample in enumerate(samples)]

    reward.__name__, reward.__doc__ = name, score.__doc__
    return reward


def _samples(name, needed, count, given):
    given = {_OF_A_SAMPLE.get(key, key): values for key, values in given.items()}
    columns = {key: values for key, values in given.items() if isinstance(values, Sequence)}
    if missing := [column for column in needed if column not in given]:
        names = " and a column ".join(map(repr, missing))
        there = f"Those there are: {', '.join(sorted(columns))}. Add it to the dataset."
        raise ValueError(printable(f"reward {name} needs a column {names}. {there}"))
    for key, values in columns.items():
        if len(values) != count:
            raise ValueError(printable(f"reward {name}: {len(values)} values of {key!r} for {count} completions"))
    return [given | {key: values[index] for key, values in columns.items()} for index in range(count)]


def _scored(score, name, index, sample):
    text = split_thinking(_text(sample["completion"]))[1]
    try:
        value = score(text, **sample)
        if value is not None and not math.isfinite(value := float(value)):
            raise ValueError(f"the reward is {value}: let it be a number, or None")
    except Exception as error:
        row = f"row {sample['row']}" if "row" in sample else f"sample {index} of the batch (counted from 0)"
        message = f"reward {name}, {row} ({_start(text)}): {type(error).__name__}: {error}"
        raise ValueError(printable(message)) from error
    return value


def _start(text):
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "…")


def _text(completion):
    content = completion if isinstance(completion, str) else completion[-1]["content"] or ""  # None: a call of a tool
    return content if isinstance(content, str) else message_text({"content": content})


@as_reward
def exact_match(text: str, /, answer: str, **_) -> float:
    """1.0 where the answer is the expected one, the column `answer`, as `normalized_match` compares; else 0.0."""
    return normalized_match(text, split_thinking(answer)[1])


def json_fields(parsed: float = 0.0) -> Reward:
    """The share of the fields of the JSON object in the column `answer` that the answer has alike; others do not count.

    The answer has to be one JSON object and nothing else, but for a code fence; it gets 0.0 otherwise. `parsed`, in
    0..1, is the part of the reward that any JSON object gets. Values are compared as `evaluate` does. An expected
    answer without fields is an error.
    """
    if not 0 <= parsed < 1:
        raise ValueError(f"json_fields: the part for parsing is {parsed}: choose one from 0 to below 1")

    def score(text, /, answer, **_):
        found, expected = _json_fields(text), _json_fields(split_thinking(answer)[1])
        if not expected:
            raise ValueError(f"the expected answer is no JSON object with fields: {_start(answer)}")
        if found is None:
            return 0.0
        return parsed + (1 - parsed) * sum(found.get(key) == expected[key] for key in expected) / len(expected)

    return as_reward(score, f"json_fields:{parsed:g}" if parsed else "json_fields")


def _json_fields(text):
    """The fields of a text that is a JSON object, as `parse_fields` gives them, or None."""
    fenced = _FENCED.fullmatch(text)
    text = fenced[1] if fenced else text
    try:
        return parse_fields(text) if isinstance(json.loads(text), dict) else None
    except (ValueError, RecursionError):
        return None


def number_within(tolerance: float, relative: bool = False) -> Reward:
    """1.0 where the last number of the answer is within `tolerance` of the last one of the column `answer`; else 0.0.

    `relative`: the tolerance is a share of the expected number, 0.05 for 5%. Numbers are read by `find_numbers`:
    "1.299,00 €" is 1299. An expected answer without a number is an error.
    """
    if not 0 <= tolerance < math.inf:
        raise ValueError(f"number_within: the tolerance is {tolerance}: choose a number from 0 up")

    def score(text, /, answer, **_):
        found, expected = _last_number(text), _last_number(split_thinking(answer)[1])
        if expected is None:
            raise ValueError(f"the expected answer has no number: {_start(answer)}")
        most = tolerance * (abs(expected) if relative else 1)
        return found is not None and abs(found - expected) <= most * _SLACK

    return as_reward(score, f"number_within:{100 * tolerance:g}%" if relative else f"number_within:{tolerance:g}")


def _last_number(text):
    return next(reversed(find_numbers(text)), None)


def matches(pattern: str) -> Reward:
    """1.0 where the regular expression matches the whole answer; else 0.0. Raises ValueError for what is none."""
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"matches: {pattern!r} is no regular expression: {error}") from None
    return as_reward(lambda text, /, **_: compiled.fullmatch(text) is not None, f"matches:{pattern}")


def length_within(most: int) -> Reward:
    """1.0 where the answer has one to `most` words, as spaces part them; else 0.0, also where it is empty."""
    if most < 1:
        raise ValueError(f"length_within: {most} words: choose a number from 1 up")
    return as_reward(lambda text, /, **_: 1 <= len(text.split()) <= most, f"length_within:{most}")


def combine(rewards: Iterable[Reward], weights: Iterable[float], name: str | None = None) -> Reward:
    """The sum of rewards, ours or others of TRL's form, each times its weight; without a `name`, it is that sum's.

    As in TRL, None counts as 0, and the sum is None only where all are. Raises ValueError unless each has a weight.
    """
    rewards, weights = list(rewards), list(weights)
    if len(rewards) != len(weights) or not rewards:
        raise ValueError(f"{len(weights)} weights for {len(rewards)} rewards: give one for each")

    def reward(completions: Sequence, **given: Any) -> list[float | None]:
        samples = zip(*(part(completions=completions, **given) for part in rewards), strict=True)
        return [_weighted_sum(values, weights) for values in samples]

    pairs = zip(weights, rewards, strict=True)
    reward.__name__ = name or " + ".join(f"{weight:g}*{part.__name__}" for weight, part in pairs)
    return reward


def _weighted_sum(values, weights):
    known = [weight * value for weight, value in zip(weights, values, strict=True) if value is not None]
    return sum(known) if known else None


def _number_within(tolerance):
    relative = tolerance.endswith("%")
    return number_within(float(tolerance.removesuffix("%")) / (100 if relative else 1), relative)


_REWARDS = {  # by name: what takes the setting as a text, and an example
    "exact_match": (lambda: exact_match, "exact_match"),
    "json_fields": (lambda parsed="0": json_fields(float(parsed)), "json_fields:0.1"),
    "length_within": (lambda most: length_within(int(most)), "length_within:20"),
    "matches": (matches, r"matches:An? \w+"),
    "number_within": (_number_within, "number_within:0.5 or number_within:5%"),
}


def parse_rewards(text: str) -> list[Reward]:
    r"""The rewards that a text names, a `;` between two: `exact_match; 0.1*length_within:20`.

    In a regular expression a `;` is written `\;`, which matches the same. Raises ValueError as `parse_reward`.
    """
    return list(map(parse_reward, split_rewards(text)))


def split_rewards(text: str) -> list[str]:
    """The texts of the single rewards, as `parse_reward` takes them."""
    return [part.strip() for part in re.findall(r"(?:\\.|[^;])+", text, re.DOTALL) if part.strip()]


def reward_parts(text: str) -> tuple[str | None, str, str | None]:
    """The weight, the name and the setting in the text of one reward; None for what is not there."""
    return _TEXT.fullmatch(text.strip()).groups()


def parse_reward(text: str) -> Reward:
    r"""The reward that a text names, as a settings file holds it: `exact_match`, `json_fields` or `json_fields:0.1`,
    `length_within:20`, `matches:An? \w+`, `number_within:0.5` or `number_within:5%` (of the expected number).

    A weight may come first: `0.2*exact_match`. Raises ValueError for another text, with the nearest name and them all.
    """
    weight, name, setting = reward_parts(text)
    if name not in _REWARDS:
        meant = get_close_matches(name[:50], _REWARDS, n=1, cutoff=0)[0]
        there = f"There are: {', '.join(_REWARDS)}. A ; inside of a pattern is written \\;"
        raise ValueError(f"there is no reward {name!r}. Did you mean {meant!r}? {there}")
    make, example = _REWARDS[name]
    try:
        reward = make() if setting is None else make(setting)
    except (TypeError, ValueError) as error:
        why = error if isinstance(error, ValueError) else "it has a setting too many, or none where one belongs"
        raise ValueError(printable(f"reward {text!r}: {why}. Write it as in {example}.")) from None
    return combine([reward], [float(weight)]) if weight else reward
