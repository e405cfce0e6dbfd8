"""What a table of keys is made of: a key of another program, and the settings here that it stands for.

One table per program serves both directions: `there` writes a key, `here` reads it. Imports nothing heavy.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from vlmhelpers.common.settings import shown
from vlmhelpers.training.config import RunConfig

# What the trainers here take where a setting is None, and the programs, which may have other defaults, have to be told.
USUAL = {
    "beta": {"dpo": 0.1, "kto": 0.1, "orpo": 0.1, "simpo": 2.0, "cpo": 0.1, "grpo": 0.0, "ppo": 0.05},
    "loss": {"dpo": "sigmoid+sft", "kto": "kto"},
    "label_smoothing": {"dpo": 0.0},
    "simpo_gamma": {"simpo": 1.0},
    "nll_coef": {"orpo": 1.0, "simpo": 0.0, "cpo": 1.0},
    "num_generations": {"grpo": 8},
    "max_completion_length": {"grpo": 512, "ppo": 512},
    "temperature": {"grpo": 1.0, "ppo": 1.0},
}
NO_EFFECT = "it changes nothing that is learned"
_NOTHING = (None, False, "", "none", "None", "no", 0, [], {}, ())


class Differs(ValueError):
    """A value without an exact counterpart: the reason, and what is nearest to it here."""

    def __init__(self, reason: str, **settings: object):
        super().__init__(reason)
        self.settings = settings


@dataclass(frozen=True)
class Key:
    """A key of another program. `there`: its value for a `Run`, None where it is not written. `here`: the settings that
    a value means, beside all keys of the file; it raises `Differs`. `default`: the value there without the key, or a
    function of all keys; None where none is known. `settings`: those of RunConfig that it stands for. `applies`: to
    which runs, by their method and weights.
    """

    name: str
    settings: tuple[str, ...]
    there: Callable[[Any], object]
    here: Callable[[Any, Mapping], dict[str, object]]
    default: Any = None
    note: str = ""
    applies: Callable[[Any], bool] = lambda run: True

    def replaced(self, **changes: Any) -> "Key":
        """The same key with other fields."""
        return replace(self, **changes)

    def default_of(self, keys: Mapping) -> object:
        """The value there for a file without this key."""
        return self.default(keys) if callable(self.default) else self.default


def same(name: str, setting: str | None = None, default: object = None, **more: Any) -> Key:
    """A key whose value is that of one setting, or what the method takes where that is None."""
    setting = setting or name
    return Key(name, (setting,), lambda run: value_of(run.config, setting), lambda v, _: {setting: v}, default, **more)


def switch(name: str, setting: str, default: bool, negated: bool = False, note: str = "", **more: Any) -> Key:
    """A key that is true where a setting is, or where it is not."""
    return Key(
        name,
        (setting,),
        lambda run: getattr(run.config, setting) != negated,
        lambda v, _: {setting: is_true(v) != negated},
        default,
        note or "the opposite of it" * negated,
        **more,
    )


def fixed(name: str, value: object, note: str) -> Key:
    """A key that is always written, whatever the settings are; another value has no counterpart."""

    def here(found, _):
        if str(found).lower() != str(value).lower():
            raise Differs(f"here as if it were {shown(value)}: {note}")
        return {}

    return Key(name, (), lambda run: value, here, note=note)


def for_methods(*methods: str) -> Callable[[Any], bool]:
    """For `Key.applies`."""
    return lambda run: run.method in methods


def for_adapters(run: Any) -> bool:
    """For `Key.applies`."""
    return run.weights == "lora"


def value_of(config: RunConfig, setting: str) -> object:
    """A setting, or what its method takes for None."""
    value = getattr(config, setting)
    return USUAL.get(setting, {}).get(config.method) if value is None else value


def is_true(value: object) -> bool:
    """Whether a value of a YAML file, or the text of one, is a true one."""
    return str(value).lower() in ("true", "yes", "on", "1")


def is_nothing(value: object) -> bool:
    """Whether a value asks for nothing, as none and false do."""
    return any(value is one or (value == one and type(value) is not bool) for one in _NOTHING)


def number(value: object) -> float:
    """A number of a YAML file, in which 1e-4 is a text. Raises Differs for what is none."""
    try:
        return float(value)
    except (TypeError, ValueError):
        raise Differs(f"{shown(value)} is no number") from None


def several(value: object) -> list[str]:
    """A list, or the parts of a text between commas, as texts."""
    parts = value if isinstance(value, list | tuple) else str(value).split(",")
    return [text for part in parts if (text := str(part).strip())]
