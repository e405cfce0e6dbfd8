"""Paths of jobs stay under their root, however they are written and whatever links lead out."""

import os

import pytest

from vlmhelpers.service.places import Root


@pytest.fixture
def root(tmp_path):
    folder = tmp_path / "root"
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "rows.jsonl").write_text("{}")
    (folder / "shards").mkdir()
    for number in (1, 2):
        (folder / "shards" / f"{number}.jsonl").write_text("{}")
    (tmp_path / "secret.jsonl").write_text("{}")
    (folder / "out.jsonl").symlink_to(tmp_path / "secret.jsonl")
    (folder / "up").symlink_to(tmp_path)
    (folder / "near").symlink_to(folder / "data")
    (folder / "circle").symlink_to(folder / "circle")
    return Root(folder)


@pytest.mark.parametrize(
    "value", ["data/rows.jsonl", "./data//rows.jsonl", "near/rows.jsonl", "new/folder", "$(ls) ;é"]
)
def test_what_is_under_the_root_is_found(root, value):
    found = root.path("dataset_path", value)
    assert found.is_relative_to(root.folder) and found == root.path("dataset_path", str(root.folder / value))


BAD = [
    "../secret.jsonl",
    "data/../../secret.jsonl",
    "data/../data/rows.jsonl",
    "/etc/passwd",
    "/",
    "//etc",
    "out.jsonl",
]
BAD += [
    "up",
    "up/secret.jsonl",
    "circle/x",
    "~/x",
    "~root/x",
    "data/~x",
    "a\nb",
    "a\tb",
    "a\x1b[2J",
    "a\u202eb",
    "a\0b",
]
BAD += ["x" * 201, "ü" * 101, "x/" * 501, "data/" + "y" * 300]


@pytest.mark.parametrize("value", BAD, ids=repr)
def test_what_leads_elsewhere_is_refused(root, value):
    with pytest.raises(ValueError, match="^dataset_path is "):
        root.path("dataset_path", value)


def test_a_sibling_whose_name_begins_alike_is_elsewhere(root):
    root.folder.with_name("root-of-others").mkdir()
    with pytest.raises(ValueError, match="not under the root"):
        root.path("image_root", str(root.folder.with_name("root-of-others")))


def test_a_file_has_to_be_there_and_a_device_is_none(root):
    assert root.existing("dataset_path", "data/rows.jsonl").is_file()
    with pytest.raises(ValueError, match="no such file"):
        root.existing("dataset_path", "data/others.jsonl")
    os.mkfifo(root.folder / "pipe.jsonl")  # whoever opened it would wait for ever
    with pytest.raises(ValueError, match="no such file"):
        root.existing("dataset_path", "pipe.jsonl")


def test_all_shards_of_a_pattern_are_under_the_root(root):
    assert root.shards("dataset_path", "shards/*.jsonl") == root.folder / "shards" / "*.jsonl"
    assert root.shards("dataset_path", "data/rows.jsonl") == root.folder / "data" / "rows.jsonl"
    for value, reason in [("*.jsonl", "under the root"), ("up/*.jsonl", "under the root"), ("**/**/x", "once")]:
        with pytest.raises(ValueError, match=reason):
            root.shards("dataset_path", value)
    with pytest.raises(ValueError, match="no file"):
        root.shards("dataset_path", "shards/*.tar")


def test_models_are_folders_under_the_root_hub_ids_or_families(root, tmp_path, monkeypatch):
    (root.folder / "org" / "model").mkdir(parents=True)
    assert root.model("base_model", "org/model") == str(root.folder / "org" / "model")
    for name in ("Qwen/Qwen2.5-VL-3B-Instruct", "qwen2.5-vl", "org/other"):
        assert root.model("base_model", name) == name
    for value in ("up", "../root", "/etc", "a/b/c", "-rf", ".hidden/x", "org/..", "https://x/y", "x" * 97, "a b"):
        with pytest.raises(ValueError, match="^base_model is "):
            root.model("base_model", value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "its" / "own").mkdir(parents=True)  # transformers would read it from here
    with pytest.raises(ValueError, match="not under the root"):
        root.model("base_model", "its/own")


def test_the_root_has_to_be_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="no folder"):
        Root(tmp_path / "none")
