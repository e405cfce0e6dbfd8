"""A saved adapter says where it comes from, loads by its own card, and names no folder of this machine."""

import re
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard
from peft import IA3Config, LoraConfig, get_peft_model
from quick_adapter import sample_rows, train_adapter
from transformers import set_seed

from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.export.adapter_files import read_adapter_config
from vlmhelpers.export.adapters import attach, find_base, load_processor, merge, portable_name, save_adapter
from vlmhelpers.export.hub import push
from vlmhelpers.export.serving import vllm_command
from vlmhelpers.families import family_of, tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import lora_targets


class Comparison:
    def __repr__(self):
        return "tuned minus base: +50.0%"


@pytest.fixture(scope="module")
def saved(rows_of, tmp_path_factory):
    """A folder with an adapter and its card, and what went into it."""
    dataset = sample_rows(rows_of)
    model, processor = train_adapter("qwen2.5-vl", dataset)
    answers = generate(model, processor, dataset, progress=False)
    with model.disable_adapter():
        before = evaluate(generate(model, processor, dataset, progress=False), dataset)
    tuned = evaluate(answers, dataset)
    folder = tmp_path_factory.mktemp("saved") / "adapter"
    source = folder.parent / "rows.jsonl"
    source.write_text("{}\n")
    save_adapter(
        model,
        processor,
        folder,
        dataset=dataset,
        source=source,
        evaluations={"base": before, "tuned": tuned},
        comparison=Comparison(),
        notes="It describes drawn products.",
    )
    return folder, dataset, answers, tuned


def test_the_card_says_what_the_adapter_is(saved):
    folder, dataset, _, tuned = saved
    card = ModelCard.load(folder / "README.md")
    assert (card.data.base_model, card.data.library_name) == ("qwen2.5-vl", "peft")
    assert card.data.pipeline_tag == "image-text-to-text" and card.data.license == "apache-2.0"
    assert {r.metric_name: r.metric_value for r in card.data.eval_results}["exact match"] == round(
        tuned.scores["exact match"].value, 4
    )
    score = tuned.scores["exact match"]
    assert f"| exact match | tuned | {score.value:.1%} | [{score.low:.1%}, {score.high:.1%}] | 4 |" in card.text
    assert "- 4 rows" in card.text and "file `rows.jsonl`, SHA-256 `" in card.text and "tuned minus base" in card.text
    assert "r = 4, alpha = 16" in card.text and "by tower: language " in card.text
    assert re.search(r"- peft \d", card.text) and "It describes drawn products." in card.text
    assert "falls under the base's license" in card.text


def test_no_path_of_this_machine_is_written(saved):
    folder = saved[0]
    assert read_adapter_config(folder)["base_model_name_or_path"] == "qwen2.5-vl"
    for path in folder.iterdir():
        assert str(Path.cwd()).encode() not in path.read_bytes(), path.name
        assert str(folder.parent).encode() not in path.read_bytes(), path.name


def test_the_code_of_the_card_loads_what_was_saved(saved, monkeypatch):
    folder, dataset, answers, _ = saved
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), flags=re.S)
    monkeypatch.chdir(folder)
    names = {}
    exec(code, names)
    assert generate(names["model"].float(), names["processor"], dataset, progress=False) == answers


def test_bases_are_named_for_other_machines(tmp_path):
    assert portable_name(tiny_model("phi-3-vision")) == "phi-3-vision"
    assert portable_name("Qwen/Qwen3-VL-2B-Instruct") == "Qwen/Qwen3-VL-2B-Instruct"
    assert portable_name("/home/x/hub/models--Qwen--Qwen3-VL-2B-Instruct/snapshots/abc") == "Qwen/Qwen3-VL-2B-Instruct"
    assert portable_name(tmp_path) == tmp_path.name and portable_name("/not/here/model") == "model"


def license_of(base):
    return family_of(base).license_of(base)


def test_licenses_of_the_known_bases():
    assert license_of("meta-llama/Llama-3.2-11B-Vision-Instruct")[0] == {"license": "llama3.2"}
    assert license_of("unsloth/Qwen2.5-VL-3B-Instruct")[0]["license_name"] == "qwen-research"
    assert license_of("Qwen/Qwen2.5-VL-7B-Instruct")[0] == {"license": "apache-2.0"}
    assert license_of("microsoft/Phi-3.5-vision-instruct")[0] == {"license": "mit"}
    assert license_of("someone/else")[0] == {} and "look it up" in license_of("someone/else")[1]


def test_a_model_without_adapters_is_refused(tmp_path):
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    with pytest.raises(TypeError, match="has no adapters"):
        save_adapter(model, processor, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_bases_that_are_not_to_be_had_or_quantized(saved, tmp_path):
    with pytest.raises(FileNotFoundError, match="base=..."):
        find_base(saved[0], "someone/not-here")
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        find_base(tmp_path)
    config = (tiny_model("qwen3-vl") / "config.json").read_text()
    folder = tmp_path / "Qwen3-VL-2B-Instruct-unsloth-bnb-4bit"
    folder.mkdir()
    quantized = '{"quantization_config": {"load_in_4bit": true, "quant_method": "bitsandbytes"},' + config.strip()[1:]
    (folder / "config.json").write_text(quantized)
    with pytest.raises(ValueError, match="base='.*Qwen3-VL-2B-Instruct'"):
        find_base(saved[0], folder)


@pytest.fixture(scope="module")
def several(rows_of):
    """A model with the adapters "mine", the active one, "other" and "critic", and its processor; rows to answer."""
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    set_seed(0)
    tuned = get_peft_model(model, LoraConfig(r=4, target_modules=lora_targets(model)), adapter_name="mine")
    for rank, name in enumerate(("other", "critic"), start=1):
        tuned.add_adapter(name, LoraConfig(r=rank, target_modules=lora_targets(tuned.get_base_model())))
    for name, parameter in tuned.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.3)
    return tuned.eval(), processor, sample_rows(rows_of)


@pytest.mark.slow
@pytest.mark.parametrize("name, rank", [("mine", 4), ("other", 1)])
def test_the_active_adapter_is_saved_whatever_its_name(name, rank, several, tmp_path):
    model, processor, dataset = several
    model.set_adapter(name)
    expected = generate(model, processor, dataset, progress=False)
    folder = save_adapter(model, processor, tmp_path / "adapter")
    assert read_adapter_config(folder)["r"] == rank and not any(path.is_dir() for path in folder.iterdir())
    attached = attach(load_model(tiny_model("qwen3-vl"), bits=16)[0], folder)
    assert generate(attached, processor, dataset, progress=False) == expected
    merged = merge(folder, tmp_path / "merged", dtype=torch.float32)
    assert generate(load_model(merged, bits=16)[0], processor, dataset, progress=False) == expected
    assert "--max-lora-rank" in vllm_command("qwen3-vl", folder) and push(folder, "me/mine").files
    model.set_adapter("mine")


def test_what_is_no_one_adapter_is_said(several, tmp_path):
    model, processor, _ = several
    with pytest.raises(ValueError, match="the model has adapters already: load the base anew"):
        attach(model, tmp_path)
    model.base_model.set_adapter(["mine", "other"])
    with pytest.raises(
        ValueError, match=r"2 of the model's adapters are active \(mine, other, critic\), and one is saved"
    ):
        save_adapter(model, processor, tmp_path / "adapter")
    model.set_adapter("mine")
    model.save_pretrained(tmp_path / "raw", selected_adapters=["mine", "other"])
    for use in (
        find_base,
        lambda folder: vllm_command("qwen3-vl", folder),
        lambda folder: merge(folder, tmp_path / "m"),
    ):
        with pytest.raises(FileNotFoundError, match=r"no adapter_config.json: pass .*raw.mine or .*raw.other"):
            use(tmp_path / "raw")
    with pytest.raises(TypeError, match="a PeftModel is no folder: save it with save_adapter"):
        merge(model, tmp_path / "m")
    with pytest.raises(ValueError, match="has an adapter: pass base_model and adapter, or merge it"):
        vllm_command(merged=tmp_path / "raw" / "mine")


def test_an_adapter_of_another_kind_is_named(tmp_path, tiny):
    model, processor = tiny("qwen3-vl")
    other = get_peft_model(model, IA3Config(target_modules=lora_targets(model), feedforward_modules=[]))
    with pytest.raises(ValueError, match="'default' is of the type IA3, and only LoRA"):
        save_adapter(other, processor, tmp_path / "adapter")


@pytest.mark.slow
def test_the_processor_beside_the_folder_of_a_named_adapter_is_its_own(several, tmp_path):
    model, processor, _ = several
    model.save_pretrained(tmp_path, selected_adapters=["mine"])
    processor.save_pretrained(tmp_path)
    template = tmp_path / "chat_template.jinja"
    template.write_text(template.read_text() + "{# mine #}")
    assert load_processor(tmp_path / "mine", str(tiny_model("qwen3-vl"))).chat_template.endswith("{# mine #}")
