"""Rewards that can be checked as a plugin of ms-swift, which needs no vlmhelpers where it runs."""

import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from vlmhelpers.common import numbers
from vlmhelpers.common.files import atomic_file
from vlmhelpers.data import turns
from vlmhelpers.evaluation import metrics
from vlmhelpers.training import rewards

# By name: an expression of the answer's text, the expected answer and the reward's setting.
SCORES = {
    "exact_match": "normalized_match(text, answer)",
    "length_within": "1 <= len(text.split()) <= int(setting)",
    "matches": "re.fullmatch(setting, text) is not None",
    "number_within": "within(_last_number(text), _last_number(answer), setting)",
}
_HEAD = '''"""Rewards of a run of vlmhelpers for GRPO in ms-swift, which imports this file."""

import re
import unicodedata

from swift.rewards import ORM, orms
'''
_TAIL = """
def within(found, expected, setting):
    tolerance = float(setting.removesuffix("%")) * (abs(expected) / 100 if setting.endswith("%") else 1)
    return found is not None and abs(found - expected) <= tolerance * _SLACK


def make(name, weight, score, setting):
    class Reward(ORM):
        def __init__(self, *_, **__):
            pass

        def __call__(self, completions, solution, **_):
            pairs = zip(completions, solution)
            texts = ((split_thinking(text)[1], split_thinking(answer)[1]) for text, answer in pairs)
            return [weight * float(score(text, answer, setting)) for text, answer in texts]

    orms[name] = Reward

"""


def unknown_rewards(text: str) -> list[str]:
    """Those that the plugin does not have."""
    return [reward for reward in rewards.split_rewards(text) if rewards.reward_parts(reward)[1] not in SCORES]


def write_plugin(path: Path, text: str) -> None:
    """Writes the plugin of the rewards in a text. Raises ValueError as `parse_rewards`."""
    rewards.parse_rewards(text)
    with atomic_file(path, encoding="utf-8") as file:
        file.write("\n".join([_HEAD, *_sources(text), _TAIL, *_calls(text)]))


def _sources(text) -> Iterator[str]:
    """What the scores are made of, as it stands in this package."""
    for module, names in ((metrics, ("_OPENING", "_CLOSING", "_ARTICLES")), (turns, ("THINK_TAGS",))):
        yield from (_constant(name, getattr(module, name)) for name in names)
    yield _constant("_SLACK", rewards._SLACK)
    for function in (metrics._normalized, metrics.normalized_match, turns.split_thinking):
        yield "\n" + inspect.getsource(function)
    if "number_within" in {rewards.reward_parts(reward)[1] for reward in rewards.split_rewards(text)}:
        yield "\n# This needs Babel: pip install babel\n" + inspect.getsource(numbers)
        yield "\n" + inspect.getsource(rewards._last_number)


def _constant(name, value):
    if isinstance(value, re.Pattern):
        return f"{name} = re.compile({value.pattern!r}, {int(value.flags)})"
    return f"{name} = {value!r}"


def _calls(text):
    for reward in rewards.split_rewards(text):
        weight, name, setting = rewards.reward_parts(reward)
        yield f"make({reward!r}, {float(weight or 1)!r}, lambda text, answer, setting: {SCORES[name]}, {setting!r})"
    yield ""
