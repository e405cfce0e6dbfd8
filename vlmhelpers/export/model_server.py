"""`transformers serve` in a process of its own: a merged model that any client of OpenAI's interface can ask."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch

from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.files import temporary_folder
from vlmhelpers.common.printable import printable
from vlmhelpers.common.processes import running_python
from vlmhelpers.export.serving import transformers_arguments

_PACKAGES = ("fastapi", "openai", "uvicorn")
_READY = re.compile(r"Uvicorn running on (http://\S+)")


@dataclass(frozen=True)
class ModelServer:
    """Where a model is served: `base_url` is for a client, `model` the name that requests give it."""

    base_url: str
    model: str


@contextmanager
def serve_model(
    folder: str | Path, port: int = 0, dtype: torch.dtype | None = None, seconds: float = 600
) -> Iterator[ModelServer]:
    """Serves the merged model in a folder with `transformers serve`, to this machine alone, while a `with` lasts.

    `port`: 0 for a free one. `dtype`: what is computed in; None for that of the weights. Nothing is asked of the Hub.
    Raises ImportError without the packages of the extra "serve", the errors of `serve_command`, RuntimeError with the
    server's last words where it ends, and TimeoutError where it does not answer after so many `seconds`.
    """
    if missing := [package for package in _PACKAGES if not find_spec(package)]:
        raise ImportError(f"transformers serve needs {' and '.join(missing)}: pip install {' '.join(_PACKAGES)}")
    arguments = transformers_arguments(folder, "127.0.0.1", port, dtype)
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    with temporary_folder() as place:
        log = Path(place) / "log"
        with running_python(["-m", "transformers.cli.transformers", *arguments], log, environment) as child:
            yield ModelServer(f"{_address(child, log, seconds)}/v1", str(folder))


def _address(child, log, seconds):
    """The address that the server prints once it answers."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        code, text = child.poll(), log.read_text(encoding="utf-8", errors="replace")
        if code is not None:
            raise CannotRun(f"transformers serve has ended: {printable(text.strip()[-1000:])}")
        if found := _READY.search(text):
            return found[1]
        time.sleep(0.1)
    raise TimeoutError(f"transformers serve does not answer after {seconds:g} seconds")
