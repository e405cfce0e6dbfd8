"""Adapters of others: whatever their files say, `merge` makes a model of them or says in one sentence what is wrong."""

import json
import os
import shutil
import struct

import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from vlmhelpers.export import adapter_files
from vlmhelpers.export.adapters import merge, save_adapter
from vlmhelpers.families import tiny_model
from vlmhelpers.models.backends import add_lora
from vlmhelpers.models.loading import load_model

SLOW = r"(([a-z_.0-9]+)+)+$x"  # takes longer than anybody waits

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    model = add_lora(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj", init_lora_weights=False))
    return save_adapter(model, processor, tmp_path_factory.mktemp("sound") / "adapter")


@pytest.fixture
def received(sound, tmp_path):
    return shutil.copytree(sound, tmp_path / "received")


def change(folder, **values):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def refused(folder, reason, base=None, error=ValueError):
    out = folder.parent / "merged"
    with pytest.raises(error, match=reason):
        merge(folder, out, base=base)
    assert not out.exists()


NUMBERS, TEXTS = [None, [1, None], {"a": 1}, "x", 10**400], [[1, None], {"a": {"b": [1]}}, -3, 1.5]
KINDS = {"r": [*NUMBERS, -3, 1.5, 0], "lora_alpha": NUMBERS, "target_modules": TEXTS, "modules_to_save": [*TEXTS, "x"]}
KINDS |= {"rank_pattern": [None, [1], "x", {"a": "b"}], "alpha_pattern": [None, [1], "x", {"a": "b"}]}
KINDS |= {"exclude_modules": TEXTS, "layers_pattern": TEXTS, "base_model_name_or_path": TEXTS, "bias": [*TEXTS, "x"]}
KINDS |= {"peft_type": [*TEXTS, None, "LOHA", "PROMPT_TUNING"], "use_dora": [*TEXTS, "x"], "init_lora_weights": TEXTS}
KINDS |= {"megatron_config": TEXTS, "layer_replication": [[[0, 1]]]}


def short(value):
    return str(value)[:20]


@pytest.mark.parametrize(
    "name, value", [(name, value) for name, values in KINDS.items() for value in values], ids=short
)
def test_odd_types_are_named(name, value, received):
    change(received, **{name: value})
    refused(received, f"adapter_config.json: {name} is .*only LoRA adapters")


@pytest.mark.parametrize(
    "text", ["[]", "null", "5", '"x"', "", "[" * 100_000, '{"r": 2', '{"r": ' * 5000, "{" + " " * 2**24]
)
def test_what_is_no_configuration_is_named(text, received):
    (received / "adapter_config.json").write_text(text)
    refused(received, "adapter_config.json .*(JSON|MiB).*copy or download it again")


@pytest.mark.parametrize("values", [{"r": 10_000_000}, {"r": 3}, {"r": 3, "rank_pattern": {"q_proj": 4}}])
def test_ranks_are_those_of_the_tensors(values, received):
    change(received, **values)
    refused(received, r"says r = .*lora_A.weight has the shape \[2, 128\]")


@pytest.mark.parametrize("values", [{"rank_pattern": {"q_proj": 10_000_000}}, {"target_modules": ["q_proj", "k_proj"]}])
def test_memory_is_only_taken_for_what_the_files_hold(values, received):
    change(received, **values)
    refused(received, "does not fit its base")


SLOW_PATTERNS = [{"target_modules": SLOW}, {"exclude_modules": SLOW}, {"modules_to_save": [SLOW]}]
SLOW_PATTERNS += [{"rank_pattern": {SLOW: 2}}, {"alpha_pattern": {SLOW: 2}}, {"layers_pattern": [SLOW]}]


@pytest.mark.parametrize("values", SLOW_PATTERNS[::3], ids=str)
def test_patterns_that_take_for_ever_are_refused(values, received):
    change(received, **values)
    refused(received, "a pattern of modules that takes too long")


def test_every_pattern_is_tried(received, monkeypatch):
    monkeypatch.setattr(adapter_files, "_try_patterns", lambda patterns, names: f"{len(patterns)} tried")
    change(received, **{name: value for values in SLOW_PATTERNS for name, value in values.items()})
    refused(received, "6 tried")


def test_broken_patterns_and_more_names_than_modules(received):
    change(received, target_modules="((")
    refused(received, "a pattern of modules that is none")
    change(received, target_modules=[f"m{i}" for i in range(10_000)])
    refused(received, "names 10,000 modules or patterns")


def tensors(file, change):
    save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file, {"format": "pt"})


def header(file, text):
    file.write_bytes(struct.pack("<Q", len(text)) + text.encode())


OVERLAP = '{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"b":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}}'
DAMAGES = {
    "cut": lambda file: os.truncate(file, file.stat().st_size // 2),
    "cut in the header": lambda file: os.truncate(file, 100),
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "empty": lambda file: file.write_bytes(b""),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"x"),
    "huge header": lambda file: file.write_bytes(struct.pack("<Q", 2**62)),
    "list": lambda file: header(file, "[]"),
    "overlap": lambda file: header(file, OVERLAP),
    "huge shape": lambda file: header(
        file, '{"a":{"dtype":"F32","shape":[99999999999,99999999999],"data_offsets":[0,4]}}'
    ),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_damaged_weights_are_named(damage, sound, received, tmp_path):
    damage(received / "adapter_model.safetensors")
    refused(received, r"adapter_model.safetensors is damaged .*copy or download it again")
    base = shutil.copytree(tiny_model("qwen3-vl"), tmp_path / "base")
    damage(base / "model.safetensors")
    with pytest.raises(ValueError, match=r"model.safetensors is damaged .*copy or download it again"):
        merge(sound, tmp_path / "merged", base=base)


def flip(file):
    file.write_bytes(file.read_bytes().replace(b".q_proj", b".q_prok", 1))


def test_a_flipped_name_in_a_header_is_noticed(sound, received, tmp_path):
    flip(received / "adapter_model.safetensors")
    refused(received, "does not fit its base")
    base = shutil.copytree(tiny_model("qwen3-vl"), tmp_path / "base")
    flip(base / "model.safetensors")
    with pytest.raises(ValueError, match="lack 1 tensors of the model, such as .*q_proj.weight"):
        merge(sound, tmp_path / "merged", base=base)


def test_a_base_without_all_its_files(sound, tmp_path):
    base = tmp_path / "base"
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    model.save_pretrained(base, max_shard_size="1MB")
    processor.save_pretrained(base)
    index, shard = base / "model.safetensors.index.json", sorted(base.glob("*.safetensors"))[0]
    whole, content = index.read_text(), shard.read_bytes()
    for text in ("[]", "{}", '{"weight_map": null}', '{"weight_map": {"a": "../b.safetensors"}}', whole[:200]):
        index.write_text(text)
        with pytest.raises(ValueError, match="index.json"):
            merge(sound, tmp_path / "merged", base=base)
    index.write_text(whole)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=f"lacks the weights {shard.name}"):
        merge(sound, tmp_path / "merged", base=base)
    shard.write_bytes(content)
    assert merge(sound, tmp_path / "merged", base=base).is_dir()


def test_tensors_that_no_adapter_has(received):
    file = received / "adapter_model.safetensors"
    sound = load_file(file)
    save_file({f"x{i}.lora_A.weight": torch.zeros(0, 0) for i in range(3000)}, file)
    refused(received, "3000 empty tensors")
    save_file({f"x{i}.lora_A.weight": torch.zeros(2, 1) for i in range(3000)}, file)
    refused(received, "has 3,000 tensors, its base has modules for")
    save_file(sound | {"base_model.model.x.weight": torch.zeros(3000, 3000)}, file)
    refused(received, "4 times those of its base")
    save_file(sound, file)
    tensors(file, lambda tensor: tensor * float("nan"))
    refused(received, "cannot be merged .*NaN")


def test_the_folder_of_an_adapter_is_no_model(received):
    shutil.copyfile(tiny_model("qwen3-vl") / "config.json", received / "config.json")
    with pytest.raises(ValueError, match="is the folder of an adapter"):
        load_model(received, bits=16)
