"""Tensors in a cache: they come back as they were, or not at all."""

import pytest
import torch

from vlmhelpers.common.tensor_files import load_tensors, save_tensors

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([7, 8]), "c": torch.ones(3, dtype=torch.bfloat16)}


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "tensors.safetensors"
    assert save_tensors(TENSORS, path) == path.stat().st_size
    return path


def test_tensors_come_back_bit_for_bit(path):
    loaded = load_tensors(path)
    assert loaded.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], tensor)


def test_a_view_is_stored_as_what_it_shows(tmp_path):
    save_tensors({"a": TENSORS["a"].T}, tmp_path / "view")
    assert torch.equal(load_tensors(tmp_path / "view")["a"], TENSORS["a"].T)


DAMAGES = {
    "emptied": lambda data: b"",
    "zeroed": lambda data: bytes(len(data)),
    "its values zeroed": lambda data: data[:-8] + bytes(8),
    "cut in half": lambda data: data[: len(data) // 2],
    "cut at the end": lambda data: data[:-1],
    "longer": lambda data: data + b"x",
    "another shape": lambda data: data.replace(b"[2,3]", b"[3,2]"),
    "another name": lambda data: data.replace(b'"a"', b'"d"'),
    "without a digest": lambda data: data.replace(b'"digest"', b'"dagest"'),
    "another kind of file": lambda data: b"<html>" * 20,
    "a header without end": lambda data: b"\xff" * 8 + data[8:],
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_file_is_removed(path, name):
    data = path.read_bytes()
    assert DAMAGES[name](data) != data
    path.write_bytes(DAMAGES[name](data))
    with pytest.raises(FileNotFoundError, match="tensors.safetensors was damaged"):
        load_tensors(path)
    assert not path.exists()


def test_a_flipped_bit_is_found_wherever_a_value_lies(path):
    data = path.read_bytes()
    start = 8 + int.from_bytes(data[:8], "little")
    for place in range(start, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(FileNotFoundError):
            load_tensors(path)


def test_flipped_bits_of_the_header_never_give_other_values(path):
    data = path.read_bytes()
    for place in range(8 + int.from_bytes(data[:8], "little")):
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        try:
            loaded = load_tensors(path)
        except FileNotFoundError:
            continue
        assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())


def test_a_file_that_is_not_there_is_no_damaged_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        load_tensors(tmp_path / "none")
