"""Tensors in a cache on disk: what a power cut or a bad disk has damaged is noticed."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from vlmhelpers.common.digests import tensors_digest
from vlmhelpers.common.files import atomic_file


def save_tensors(tensors: dict[str, torch.Tensor], path: Path) -> int:
    """Writes a safetensors file with the tensors' digest; returns its size in bytes."""
    tensors = {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}
    with atomic_file(path, "wb", durable=False) as file:
        return file.write(save(tensors, {"digest": tensors_digest(sorted(tensors.items()))}))


def load_tensors(path: Path) -> dict[str, torch.Tensor]:
    """What `save_tensors` wrote. A file with other bytes is removed; raises FileNotFoundError without a whole one."""
    open(path, "rb").close()  # safetensors says that a file is missing whatever keeps it from being opened
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            expected = (file.metadata() or {}).get("digest")
    except SafetensorError:
        tensors, expected = {}, None
    if tensors_digest(sorted(tensors.items())) == expected:
        return tensors
    path.unlink(missing_ok=True)
    raise FileNotFoundError(f"{path} was damaged, and has been removed")
