"""A saved adapter says where it comes from, loads by its own card, and names no folder of this machine."""

import re
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from quick_adapter import sample_rows, train_adapter

from vlmhelpers.evaluation.scoring import evaluate
from vlmhelpers.export.adapters import find_base, portable_name, read_adapter_config, save_adapter
from vlmhelpers.families import family_of, tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model


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
