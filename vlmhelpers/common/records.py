"""Values that a notebook measured, kept inside its outputs: for tests, and for the table in the README."""

import json
import math
from pathlib import Path
from typing import Any

from vlmhelpers.common.display import Html, in_notebook
from vlmhelpers.common.printable import one_line, shortened

MIMETYPE = "application/vnd.vlmhelpers.record+json"


def record(name: str, value: Any, shown: Html | None = None) -> None:
    """Show a measured value on one line, and keep it in the notebook's output under `name`; elsewhere it is printed.

    `shown` takes the line's place. `value`: what JSON can hold, else TypeError; NumPy's and torch's scalars, too.
    ValueError for NaN and infinity.
    """
    if not isinstance(name, str) or not name:
        raise TypeError(f"a record's name is a string that is not empty, not {name!r}")
    value = _plain(value, name)
    text = json.dumps(value, ensure_ascii=False)
    line = one_line(f"{name} = {text if len(text) <= 120 else text[:119] + '…'}")
    data = {"text/plain": repr(shown), "text/html": shown._repr_html_()} if shown else {"text/plain": line}
    if in_notebook():
        from IPython.display import display

        display({MIMETYPE: {"name": name, "value": value}, **data}, raw=True)
    else:
        print(data["text/plain"])


def read_records(notebook: str | Path | dict) -> dict[str, Any]:
    """The values recorded in an executed notebook (nbformat 4: its path, or loaded), by name; of one name the last."""
    if not isinstance(notebook, dict):
        notebook = json.loads(Path(notebook).read_text(encoding="utf-8"))
    outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
    entries = [output["data"][MIMETYPE] for output in outputs if MIMETYPE in output.get("data", {})]
    return {entry["name"]: entry["value"] for entry in entries}


def _plain(value: Any, name: str) -> Any:
    """`value` as JSON's own types."""
    if getattr(value, "ndim", None) == 0 and hasattr(value, "item"):
        value = value.item()  # a NumPy or torch scalar
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{_called(name)}: {value} is no measurement; find out where it comes from")
    if value is None or isinstance(value, (str, int, float)):
        return value
    if isinstance(value, (list, tuple)):
        return [_plain(item, f"{name}[{i}]") for i, item in enumerate(value)]
    if isinstance(value, dict):
        if others := [key for key in value if not isinstance(key, str)]:
            key = shortened(repr(others[0]), 100)
            raise TypeError(f"{_called(name)}: the key {key} is no string, and JSON's keys are strings")
        return {key: _plain(item, f"{name}[{key!r}]") for key, item in value.items()}
    remedy = "pass value.tolist()" if hasattr(value, "tolist") else "pass numbers, strings, lists or dicts"
    raise TypeError(f"{_called(name)}: JSON cannot hold a {type(value).__name__}; {remedy}")


def _called(name):
    return f"record {shortened(one_line(name), 200)}"
