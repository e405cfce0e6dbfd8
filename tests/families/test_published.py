"""Names that are known before transformers is loaded are those of the families themselves; others are looked up."""

import json
import os

import pytest

from vlmhelpers.common.environment import data_dir
from vlmhelpers.common.processes import run_python
from vlmhelpers.families import FAMILIES, family_of, find_config, published


def test_the_names_are_those_of_the_families_with_a_tiny_base():
    has_base = {family.name for family in FAMILIES.values() if (data_dir() / "tiny" / family.name).is_dir()}
    assert set(published.NAMES) == has_base and len(published.NAMES) == len(has_base)


def test_every_published_model_has_a_shape():
    assert published.PUBLISHED and all(find_config(name).get_text_config().hidden_size for name in published.PUBLISHED)


def cached(hub, model_id, published_id, **text):
    """Puts a configuration into a hub cache, as a download does."""
    config = json.loads((published.SHAPES / published_id / "config.json").read_text())
    config.get("text_config", config).update(text)
    folder = hub / f"models--{model_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs/main").write_text("1234")
    (folder / "snapshots/1234").mkdir(parents=True)
    (folder / "snapshots/1234/config.json").write_text(json.dumps(config))


ASK = """
import json, sys
from vlmhelpers.families import family_of, find_config
found = {name: (family_of(name).name, find_config(name).get_text_config().intermediate_size) for name in sys.argv[1:]}
print(json.dumps(found))
"""


@pytest.mark.slow
def test_sizes_and_names_that_no_list_has_come_from_the_hubs_configuration(tmp_path):
    qwen, llama = "Qwen/Qwen2.5-VL-7B-Instruct", "meta-llama/Llama-3.2-11B-Vision-Instruct"
    cached(tmp_path, "Qwen/Qwen2.5-VL-32B-Instruct", qwen, intermediate_size=64)
    cached(tmp_path, "meta-llama/Llama-3.2-90B-Vision-Instruct", llama, intermediate_size=100)
    cached(tmp_path, "acme/invoice-reader", qwen, intermediate_size=27)
    cached(tmp_path, "acme/qwen3-vl-2b-pruned", "Qwen/Qwen3-VL-2B-Instruct", intermediate_size=20)
    expected = {
        "Qwen/Qwen2.5-VL-32B-Instruct": ["qwen2.5-vl", 64],
        "meta-llama/Llama-3.2-90B-Vision-Instruct": ["llama-3.2-vision", 100],
        "acme/invoice-reader": ["qwen2.5-vl", 27],  # whose name says nothing
        "acme/qwen3-vl-2b-pruned": ["qwen3-vl", 20],  # not the 6,144 of the model that it is named after
        "acme/qwen3-vl-2b-other": ["qwen3-vl", 6144],  # out of reach, so by its name
        "unsloth/Qwen3-VL-2B-Instruct-bnb-4bit": ["qwen3-vl", 6144],
    }
    script = tmp_path / "ask.py"
    script.write_text(ASK)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HUB_CACHE": str(tmp_path)}
    done = run_python([script, *expected], env=environment)
    assert json.loads(done.stdout) == expected, done.stderr


def test_a_name_that_no_hub_can_have_is_an_error_with_a_remedy():
    for name in ("no such/model/at all", "???"):
        assert family_of(name).name == "generic"
        with pytest.raises(ValueError, match=r"the shape of .* is not known here; .*config\.json"):
            find_config(name)
