"""Files of models from others: looked at before transformers reads them, whose errors become one sentence."""

import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

import requests
import torch
from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, PreTrainedConfig, __version__

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
_NETWORK = {"httpx", "httpcore", "requests", "urllib3", "hf_xet"}
_GPU = re.compile(r"\b(CUDA|NCCL|HIP|CUBLAS|CAS|XET)\b", re.IGNORECASE)
_AGAIN = "copy or download it again"
# What transformers reads of a model, processor or adapter, and the most bytes of it: the largest tokenizers have 35 MB.
_CONFIGS = ("config", "*_config", "special_tokens_map", "added_tokens", "chat_template", "*.index")
_SIZES = {f"{name}.json": 16 * 2**20 for name in _CONFIGS} | {"tokenizer.json": 128 * 2**20, "*.jinja": 2**20}
# Of one model, by the names in its configuration: the deepest have some hundred layers, the widest a million words.
_LARGEST = {re.compile(r"(.*_)?(layers|experts|depth)|n_layer"): 1000, re.compile(r"(.*_)?(size|dim)"): 2**24}


def check_folder(folder: str | Path) -> None:
    """Raises ValueError for a file of absurd size in `folder`, or one that holds no JSON object or absurd numbers."""
    for pattern, most in _SIZES.items():
        for path in sorted(Path(folder).glob(pattern)):
            if not path.is_file():
                raise ValueError(f"{path} is no file: {_AGAIN}")
            found = path.stat()
            if found.st_size > most:
                raise ValueError(f"{path} is larger than {most // 2**20} MiB, which no model needs: {_AGAIN}")
            if path.suffix == ".json":
                _check_object(path, (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns))


@lru_cache(maxsize=64)
def _check_object(path, state):
    """The same file is checked once: a run asks forty times, and a published tokenizer takes a quarter of a second."""
    content = read_object(path)
    if path.name == "config.json":
        _check_numbers(path, content)


def read_object(path: str | Path) -> dict:
    """The JSON object in a file. Raises ValueError, which names the file, for anything else."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({type(error).__name__}: {error}): {_AGAIN}") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} holds a {type(content).__name__} instead of a JSON object: {_AGAIN}")
    return content


def _check_numbers(path, content):
    waiting = [content]
    while waiting:
        for name, value in waiting.pop().items():
            if isinstance(value, dict):
                waiting.append(value)
            most = next((most for pattern, most in _LARGEST.items() if pattern.fullmatch(name)), None)
            if most and isinstance(value, int | float) and not -1 <= value <= most:
                raise ValueError(f"{path} says {name} = {value}, and models have 0 to {most:,}: {_AGAIN}")


def tensor_shapes(path: str | Path) -> dict[str, tuple[int, ...]]:
    """The shapes in a safetensors file, whose header alone is read. Raises ValueError where that is damaged."""
    try:
        with safe_open(path, "pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged ({error}): {_AGAIN}") from error


def count_weights(folder: str | Path) -> int | None:
    """How many numbers the safetensors files of a model hold, all there and whole as far as their headers tell.

    Raises FileNotFoundError or ValueError, which name the file. None for weights in PyTorch's own files.
    """
    folder, names = Path(folder), [WEIGHTS]
    if (folder / "adapter_config.json").is_file():  # transformers would load its base, and put it on
        raise ValueError(f"{folder} is the folder of an adapter: load its base, or the model that merge makes of both")
    if not (folder / WEIGHTS).is_file() and (folder / INDEX).is_file():  # the order of transformers
        names = read_object(folder / INDEX).get("weight_map")
        names = sorted(set(map(str, names.values()))) if isinstance(names, dict) else []
        if not names or any(Path(name).name != name for name in names):
            raise ValueError(f"{folder / INDEX} does not say which of its files has which tensor: {_AGAIN}")
    elif not (folder / WEIGHTS).is_file() and any(folder.glob("pytorch_model*.bin*")):
        return None
    total = 0
    for name in names:
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks the weights {name}: copy or download that file, too")
        total += sum(map(math.prod, tensor_shapes(folder / name).values()))
    return total


def _is_of_machine(error):
    """Whether an error speaks of the network or of the GPU."""
    libraries = {kind.__module__.partition(".")[0] for kind in type(error).__mro__}
    return bool(libraries & _NETWORK or (isinstance(error, RuntimeError) and _GPU.search(str(error))))


@contextmanager
def reading(name: str | Path) -> Iterator[None]:
    """While transformers reads a folder or hub id: what it says of contents is a ValueError of one sentence.

    OSError (what is not there) stays, and so do errors that speak of this machine.
    """
    if Path(name).is_dir():
        check_folder(name)
    try:
        yield
    except (OSError, ImportError, MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever the files of others bring about, bare Exceptions of tokenizers included
        if _is_of_machine(error):
            raise
        if "trust_remote_code" in str(error):
            why = "brings code of its own, which is not executed, and transformers itself does not have that model"
            raise ValueError(f"{name} {why}: choose one that it has") from error
        what = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        where = f"{name}: transformers {__version__} cannot read what is there"
        raise ValueError(f"{where} ({what}): get it again, or another version of transformers") from error


def load_config(name: str | Path) -> PreTrainedConfig:
    """The configuration of a model in a folder or on the hub. Raises OSError without it, ValueError for a wrong one."""
    with reading(name):
        return AutoConfig.from_pretrained(name, trust_remote_code=False)


def is_within_reach(model_id: str, file: str) -> bool:
    """Whether a file of a hub id is in the cache, or the hub answers: else each file is waited for half a minute."""
    try:
        if try_to_load_from_cache(model_id, file):
            return True
    except HFValidationError:  # no id
        return False
    if constants.HF_HUB_OFFLINE:
        return False
    with suppress(requests.RequestException):
        return requests.head(constants.ENDPOINT, timeout=5).status_code < 500
    return False
