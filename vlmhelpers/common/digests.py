"""Digests that tell whether something has changed: xxh3, fast enough for weights and images, not for secrets."""

from collections.abc import Iterable

import xxhash


def digest(*values: object) -> str:
    """32 hex digits of some values: bytes as they are, everything else by its `repr`."""
    found = xxhash.xxh3_128()
    for value in values:
        data = value if isinstance(value, bytes) else repr(value).encode("utf-8", "surrogatepass")
        found.update(len(data).to_bytes(8, "little"))
        found.update(data)
    return found.hexdigest()


def digest_of_pieces(first: object, length: int, pieces: Iterable[bytes]) -> str:
    """`digest(first, data)` for the data of `length` bytes that comes in pieces, and is never whole in memory."""
    found = xxhash.xxh3_128()
    beginning = repr(first).encode("utf-8", "surrogatepass")
    found.update(len(beginning).to_bytes(8, "little") + beginning + length.to_bytes(8, "little"))
    for piece in pieces:
        found.update(piece)
    return found.hexdigest()


def tensors_digest(named_tensors: Iterable[tuple]) -> str:
    """32 hex digits of (name, tensor) pairs, of every bit of them."""
    import torch

    found = xxhash.xxh3_128()
    for name, tensor in named_tensors:
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().flatten().contiguous().cpu().view(torch.uint8).numpy().data)
    return found.hexdigest()


def changed_settings(before: dict, now: dict) -> list[str]:
    """The sorted names of the settings that are not the same in both."""
    return sorted(name for name in before | now if before.get(name) != now.get(name))
