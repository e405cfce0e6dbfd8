"""Which library runs the model; Unsloth itself needs a GPU, so a stand-in of its interface takes its calls here."""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType, SimpleNamespace

import pytest
import torch
from peft import LoraConfig
from PIL import Image

from vlmhelpers.families import tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.backends import add_lora, choose_backend, eval_mode, unsloth_collator, use_unsloth
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import describe_trainable, fingerprint, lora_targets


@pytest.fixture
def unsloth(monkeypatch):
    """A module in Unsloth's place that notes the calls, and loads with transformers what it is asked for."""
    calls = []

    class FastVisionModel:
        @staticmethod
        def from_pretrained(name, **options):
            calls.append(("load", name, options))
            return load_model(name, bits=16, backend="transformers")

        @staticmethod
        def get_peft_model(model, **options):
            calls.append(("adapt", options))
            return model

        @staticmethod
        def for_inference(model):
            calls.append("inference")
            return model.eval()

        @staticmethod
        def for_training(model):
            calls.append("training")
            return model.train()

    module = ModuleType("unsloth")
    module.__spec__ = ModuleSpec("unsloth", None)
    module.FastVisionModel, module.__version__ = FastVisionModel, "0"
    monkeypatch.setitem(sys.modules, "unsloth", module)
    return SimpleNamespace(calls=calls)


def test_without_a_gpu_unsloth_is_left_alone(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert use_unsloth() is False
    assert "transformers and peft run the model" in capsys.readouterr().out
    assert "unsloth" not in sys.modules


def test_too_late_an_import_of_unsloth_is_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(RuntimeError, match="transformers.* imported before Unsloth: restart the kernel"):
        use_unsloth()


def test_auto_takes_unsloth_once_it_is_imported(unsloth):
    assert choose_backend("auto") == choose_backend("unsloth") == "unsloth"
    assert choose_backend("transformers") == "transformers"


def test_a_backend_that_is_not_there_is_refused():
    assert choose_backend("auto") == "transformers"
    with pytest.raises(RuntimeError, match="use_unsloth"):
        choose_backend("unsloth")
    with pytest.raises(ValueError, match="'vllm': choose auto, unsloth or transformers"):
        choose_backend("vllm")


def test_unsloth_loads_adapts_and_changes_modes(unsloth, rows_of):
    model, processor = load_model(tiny_model("qwen3-vl"), bits=4)
    kind, name, options = unsloth.calls[0]
    assert (kind, name, options["load_in_4bit"]) == ("load", tiny_model("qwen3-vl"), True)
    lora = LoraConfig(r=4, lora_alpha=8, target_modules=lora_targets(model))
    tuned = add_lora(model, lora)
    kind, options = unsloth.calls[1]
    assert (kind, options["r"], options["lora_alpha"]) == ("adapt", 4, 8)
    assert options["target_modules"] == lora_targets(model)
    tuned.train()
    generate(tuned, processor, rows_of([("What is the opposite of big?", "Small.", [])]), progress=False)
    assert unsloth.calls[2:] == ["inference", "training"] and tuned.training


def test_peft_adapts_what_transformers_loaded():
    model, _ = load_model(tiny_model("qwen3-vl"), bits=16)
    before = fingerprint(model, "vision", "projector")
    tuned = add_lora(model, LoraConfig(r=4, target_modules=lora_targets(model)))
    trained = describe_trainable(tuned).counts
    assert trained["language"][0] > 0 == trained["vision"][0] == trained["projector"][0]
    assert fingerprint(tuned, "vision", "projector") == before
    with eval_mode(tuned):
        assert not tuned.training
    assert tuned.training


def test_a_fingerprint_shows_the_smallest_change():
    model, _ = load_model(tiny_model("qwen3-vl"), bits=16)
    vision, projector = fingerprint(model, "vision"), fingerprint(model, "projector")
    weight = next(p for n, p in model.named_parameters() if "visual.blocks.0" in n)
    weight.data.view(-1)[0] = torch.nextafter(weight.data.view(-1)[0], torch.tensor(9.0))
    assert fingerprint(model, "vision") != vision
    assert fingerprint(model, "projector") == projector
    with pytest.raises(ValueError, match="no weights in sound"):
        fingerprint(model, "vision", "sound")


@pytest.mark.skipif(sys.platform != "linux", reason="Unsloth is installed on Linux only")
def test_unsloths_own_collator_runs_here_and_trains_on_prompts():
    before = set(sys.modules)
    model, processor = load_model(tiny_model("qwen2.5-vl"), bits=16)
    processor.image_processor.size = {"shortest_edge": 32**2, "longest_edge": 4096**2}
    picture = Image.new("RGB", (1280, 960))
    messages = [
        {"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "What is it?"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "A bag."}]},
    ]
    batch = unsloth_collator(model, processor)([{"messages": messages}])
    labels = batch["labels"][0]
    assert "What is it?" in processor.tokenizer.decode(labels[labels != -100])
    assert (batch["image_grid_thw"][0] * processor.image_processor.patch_size).tolist()[1:] == [384, 512]
    assert "unsloth_zoo" not in set(sys.modules) - before
