"""The address of the project stands in one place, and `make repository` writes it to the others."""

import json

import pytest
import repository
from readme_tables import ROOT, find_notebooks

PYPROJECT = (
    '[project]\nname = "vlm"\n[project.urls]\nRepository = "https://github.com/your_name/vlm-notebooks"  # here\n'
)
BADGES = (
    "[a](https://colab.research.google.com/github/other/vlm-notebooks/blob/main/notebooks/01_a.ipynb)\r\n[b]({})\r\n"
)
KAGGLE = "https://kaggle.com/kernels/welcome?src=https://github.com/other/vlm-notebooks/blob/main/notebooks/01_a.ipynb"


@pytest.fixture
def root(tmp_path):
    """A project of three files; its notebook names another owner, and has a layout that no writer of JSON makes."""
    for folder in ("notebooks", "tools"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pyproject.toml").write_bytes(PYPROJECT.encode())
    (tmp_path / "README.md").write_bytes(BADGES.format(KAGGLE).encode() + b"github.com/ggml-org/llama.cpp, your_name\n")
    cell = {"source": ['R = "https://github.com/your_name/vlm-notebooks"\n', '"your_name" in R; "é"']}
    (tmp_path / "notebooks" / "01_a.ipynb").write_bytes(json.dumps({"cells": [cell]}, indent=3).encode())
    return tmp_path


def contents(root):
    return {path.name: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_the_address_and_nothing_else_changes(root):
    before = contents(root)
    changed = repository.write("a-b/new.name", root)
    assert {path.name for path in changed} == before.keys()
    old = (b"github.com/your_name/vlm-notebooks", b"github.com/other/vlm-notebooks", b"github/other/vlm-notebooks")
    new = (b"github.com/a-b/new.name", b"github.com/a-b/new.name", b"github/a-b/new.name")
    for name, text in before.items():
        for one, other in zip(old, new, strict=True):
            text = text.replace(one, other)
        assert contents(root)[name] == text
    assert repository.current(root) == "a-b/new.name"


def test_a_second_time_changes_nothing_and_another_name_is_written_over_it(root):
    before = contents(root)
    repository.write("your_name/vlm-notebooks", root)
    same = contents(root)
    assert same["pyproject.toml"] == before["pyproject.toml"]
    assert repository.write("your_name/vlm-notebooks", root) == []
    repository.write("a/b", root)
    repository.write("your_name/vlm-notebooks", root)
    assert contents(root) == same


@pytest.mark.parametrize("name", ["", "owner", "owner/", "a/b/c", "my_name/vlm", "https://github.com/a/b", "a/b c"])
def test_what_is_no_repository_is_refused(root, name):
    before = contents(root)
    with pytest.raises(ValueError, match="give owner/name"):
        repository.write(name, root)
    assert contents(root) == before


def test_all_files_have_the_address_of_pyproject():
    current = repository.current(ROOT)
    found = {(path, owner) for path, text, pattern in repository.mentions(ROOT) for _, owner in pattern.findall(text)}
    assert {(path, owner) for path, owner in found if owner != current} == set()
    assert {*find_notebooks(ROOT / "notebooks"), ROOT / "tools" / "setup_cell.py"} <= {path for path, _ in found}
