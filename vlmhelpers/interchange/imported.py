"""What a file of another program means here: settings, what has no counterpart, and defaults that differ."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from pydantic import ValidationError

from vlmhelpers.common.printable import one_line, printable
from vlmhelpers.common.settings import sentence_of, shown
from vlmhelpers.interchange.keys import USUAL, Differs, Key, is_nothing
from vlmhelpers.training.config import RunConfig


@dataclass(frozen=True)
class Program:
    """Another program: its name, the version that the tables were made with, and its keys.

    without: keys that no setting here stands for, with the reason. kind: of the run that a file describes, its method
    and weights; raises Differs.
    """

    name: str
    version: str
    keys: tuple[Key, ...]
    without: Mapping[str, str]
    kind: Callable[[Mapping], tuple[str, str]]


@dataclass(frozen=True, repr=False)
class Imported:
    """A run of another program as one of this package. Prints as a table.

    config: its settings here. unmapped: what of the file has no counterpart, key -> reason. defaults: what the file
    leaves to the program, whose default is not the one here, key -> (setting, value that was taken over).
    """

    config: RunConfig
    unmapped: dict[str, str] = field(default_factory=dict)
    defaults: dict[str, tuple[str, object]] = field(default_factory=dict)
    program: str = ""

    def _sections(self):
        usual = RunConfig.described()
        settings = {name: getattr(self.config, name) for name in usual}
        chosen = [(name, one_line(shown(value))) for name, value in settings.items() if value != usual[name].default]
        yield "settings", ("setting", "value"), chosen
        taken = [(key, f"{name} = {shown(value)}") for key, (name, value) in self.defaults.items()]
        yield f"defaults of {self.program} that differ, and were taken over", ("key", "setting"), taken
        reasons = [(one_line(key), one_line(reason)) for key, reason in self.unmapped.items()]
        yield "without an exact counterpart here", ("key", "why"), reasons

    def __repr__(self):
        lines = []
        for title, _, rows in self._sections():
            width = max((len(row[0]) for row in rows), default=0)
            lines += [f"{title}:", *(f"  {first:<{width}}  {second}" for first, second in rows or [("none", "")]), ""]
        return printable("\n".join(lines).rstrip())

    def _repr_html_(self):
        from markupsafe import Markup

        from vlmhelpers.common.display import html_table

        tables = ((title, html_table(heads, rows)) for title, heads, rows in self._sections() if rows)
        return Markup("").join(Markup("<b>{}</b>{}").format(title, table) for title, table in tables)


def import_keys(program: Program, path: Path, keys: Mapping[str, object], found: dict[str, object]) -> Imported:
    """The `Imported` of a file's keys. `found`: settings that are known already, such as the dataset.

    Raises ValueError, with the file and a remedy, for what cannot be a run here.
    """
    keys = {str(name): value for name, value in keys.items()}
    settings, unmapped, defaults = {}, {}, {}
    method, weights = _kind(program, path, keys)
    run = SimpleNamespace(method=method, weights=weights)
    for key in program.keys:
        if key.name in keys and keys[key.name] is not None:
            settings |= _read(key, run, keys, unmapped)
        elif key.applies(run) and (default := key.default_of(keys)) is not None:
            applied = _applied(key, default, keys, method, unmapped)
            settings |= applied
            defaults |= dict.fromkeys([key.name] if applied else (), next(iter(applied.items()), None))
    unmapped |= _unknown(program, keys)
    unmapped |= found.pop("unmapped", {})
    settings |= {"method": method, "weights": weights} | found
    return Imported(_config(path, settings, program), unmapped, defaults, program.name)


def _kind(program, path, keys):
    try:
        return program.kind(keys)
    except Differs as error:
        raise ValueError(printable(f"{path}: {error}")) from None


def _read(key, run, keys, unmapped):
    """The settings that a key of the file means; notes what of it has no counterpart."""
    value = keys[key.name]
    try:
        found = key.here(value, keys)
    except Differs as error:
        unmapped[key.name] = str(error)
        return error.settings
    if key.applies(run):
        return found
    if key.settings:
        unmapped[key.name] = f"it counts for other methods or weights than {run.method}, {run.weights}"
    return {}


def _applied(key, default, keys, method, unmapped):
    """The settings that a default there means, where they differ from those here."""
    try:
        found = key.here(default, keys)
    except Differs as error:
        unmapped[key.name] = f"not in the file, so {shown(default)} there: {error}"
        found = error.settings
    return {name: value for name, value in found.items() if value != _own_default(name, method)}


def _own_default(name, method):
    default = RunConfig.described()[name].default
    return USUAL.get(name, {}).get(method) if default is None else default


def _unknown(program, keys):
    """Key -> reason, of those that no setting stands for and that ask for something."""
    known, found = {key.name for key in program.keys}, {}
    for name in (name for name in keys if name not in known):
        if name in program.without:
            found |= {} if is_nothing(keys[name]) else {name: program.without[name]}
        else:
            near = difflib.get_close_matches(name[:50], known, n=1)
            meant = f" (is {near[0]} meant?)" if near else ""
            found[name] = f"no setting here{meant}, and what it does is not known here"
    return found


def _config(path, settings, program):
    settings = {name: value for name, value in settings.items() if value is not None}
    try:
        return RunConfig(**settings)
    except ValidationError as error:
        problems = "; ".join(_sentence(problem, program) for problem in error.errors())
        raise ValueError(printable(f"{path}, as settings of a run here: {problems}")) from None


def _sentence(problem, program):
    name = "".join(problem["loc"])
    if problem["type"] == "missing":
        keys = " or ".join(key.name for key in program.keys if name in key.settings)
        return f"there is no {keys or name}: add a line for it"
    return sentence_of(problem, RunConfig)
