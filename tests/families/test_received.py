"""Files of models from others: what transformers would stumble over is named before."""

import json
import os
import shutil

import httpx
import pytest

from vlmhelpers.families import find_config, tiny_model
from vlmhelpers.families import received as module
from vlmhelpers.families.received import check_folder, read_object, reading
from vlmhelpers.models.loading import load_model, load_processor

pytestmark = pytest.mark.slow


@pytest.fixture
def received(tmp_path):
    return shutil.copytree(tiny_model("qwen2.5-vl"), tmp_path / "received")


@pytest.mark.parametrize("name", ["config", "tokenizer", "tokenizer_config", "processor_config", "generation_config"])
@pytest.mark.parametrize("text", ["[]", "null", "7", "", "{", "[" * 100_000])
def test_what_is_no_json_object_is_named(name, text, received):
    (received / f"{name}.json").write_text(text)
    with pytest.raises(ValueError, match=rf"received/{name}.json .*JSON.*: copy or download it again"):
        load_model(received, bits=16)


def test_a_file_is_parsed_once_until_it_changes(received, monkeypatch):
    parsed = []
    monkeypatch.setattr(module, "read_object", lambda path: parsed.append(path.name) or read_object(path))
    check_folder(received)
    assert "tokenizer.json" in parsed and len(set(parsed)) == len(parsed)
    check_folder(received)
    assert len(set(parsed)) == len(parsed)
    (received / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="tokenizer.json holds a list"):
        check_folder(received)


@pytest.mark.parametrize(
    "name, size", [("config.json", 2**25), ("tokenizer.json", 2**28), ("chat_template.jinja", 2**22)]
)
def test_absurd_sizes_are_refused_unread(name, size, received):
    os.truncate(received / name, size)
    with pytest.raises(ValueError, match=rf"{name} is larger than \d+ MiB"):
        load_processor(received)


@pytest.mark.parametrize("name, value", [("num_hidden_layers", 10**9), ("hidden_size", 10**12), ("vocab_size", -5)])
def test_absurd_numbers_are_refused(name, value, received):
    file = received / "config.json"
    config = json.loads(file.read_text())
    file.write_text(json.dumps(config | {"text_config": config["text_config"] | {name: value}}))
    with pytest.raises(ValueError, match=f"config.json says {name} = "):
        find_config(received)


@pytest.mark.parametrize("name", ["config", "tokenizer", "tokenizer_config", "processor_config"])
@pytest.mark.parametrize("value", [None, 5, "x", [], {"a": []}], ids=str)
def test_odd_types_are_one_sentence_that_names_the_folder(name, value, received):
    """Each value of a file is once another; some may be without effect."""
    file = received / f"{name}.json"
    content = json.loads(file.read_text())
    for key in [*content][:25]:
        file.write_text(json.dumps(content | {key: value}))
        try:
            load_processor(received)
            find_config(received)
        except (ValueError, OSError) as error:
            assert str(received) in str(error) and "\n" not in str(error), key


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs a pipe")
def test_a_pipe_is_not_waited_for(received):
    (received / "config.json").unlink()
    os.mkfifo(received / "config.json")
    with pytest.raises(ValueError, match="config.json is no file"):
        load_processor(received)


def test_a_folder_without_weights(received):
    (received / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="lacks the weights model.safetensors"):
        load_model(received, bits=16)


def test_a_configuration_of_a_larger_model_takes_no_memory(received):
    """Without its part on the text, it is transformers' own: that of 7 billion parameters."""
    file = received / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"text_config": None}))
    with pytest.raises(ValueError, match=r"config.json describes \d[\d,]{9,} parameters, and its weights are"):
        load_model(received, bits=16)


def test_the_index_of_an_earlier_model_does_not_count(received):
    (received / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": {"a": "model-00001-of-2.safetensors"}})
    )
    load_model(received, bits=16)


@pytest.mark.parametrize("error", [httpx.ReadTimeout("slow"), RuntimeError("CUDA error: out of memory")])
def test_errors_of_the_network_and_the_gpu_are_not_the_files_fault(received, error):
    with pytest.raises(type(error)), reading(received):
        raise error
