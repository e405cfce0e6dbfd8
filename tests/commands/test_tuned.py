"""What a name stands for, and the base that a tuned model is compared with."""

import json
import shutil

import pytest
from transformers import AutoProcessor

from vlmhelpers.commands.tuned import load_tuned
from vlmhelpers.families import tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.progress import write_process
from vlmhelpers.training.run import load_held_out

FAMILY = "qwen2.5-vl"


def answers(loaded, run):
    return generate(*loaded, load_held_out(run)["test"], max_new_tokens=16, progress=False)


@pytest.mark.slow
def test_a_run_stands_for_its_adapter_and_knows_its_base(run):
    tuned = load_tuned(run)
    assert tuned.folder == tuned.adapter == str(run / "adapter") and tuned.run == str(run)
    assert (tuned.base, tuned.bits, tuned.config.lora_r) == (str(tiny_model(FAMILY)), 16, 4)
    assert not tuned.is_base and not tuned.model.training
    learned = answers((tuned.model, tuned.processor), run)
    with tuned.base_model() as base:
        assert answers(base, run) != learned == ["Sold out."] * 6
    assert answers((tuned.model, tuned.processor), run) == learned
    assert load_tuned(run / "adapter").run == str(run)
    assert load_tuned(run / "checkpoint-12").folder == str(run / "checkpoint-12")


@pytest.mark.slow
def test_the_base_sees_the_same_images_and_is_asked_by_its_own_template(run):
    template = AutoProcessor.from_pretrained(run / "adapter", trust_remote_code=False).chat_template
    (run / "adapter" / "chat_template.jinja").write_text(f"{template}{{# another #}}")
    file = run / "adapter" / "processor_config.json"
    values = json.loads(file.read_text())
    values["image_processor"]["size"] |= {"longest_edge": 64 * 28 * 28}
    file.write_text(json.dumps(values))
    tuned = load_tuned(run)
    with tuned.base_model() as (_, processor):
        assert processor.chat_template == processor.tokenizer.chat_template == template != tuned.processor.chat_template
        assert processor.image_processor.size == tuned.processor.image_processor.size
        assert processor.image_processor.size["longest_edge"] == 64 * 28 * 28
    assert tuned.processor.tokenizer.chat_template != template


@pytest.mark.slow
def test_a_stopped_run_stands_for_its_newest_whole_checkpoint(stopped):
    assert load_tuned(stopped).folder == str(stopped / "checkpoint-24")
    (stopped / "checkpoint-24" / "adapter_model.safetensors").write_bytes(b"torn")
    assert load_tuned(stopped).folder == str(stopped / "checkpoint-12")
    assert (stopped / "checkpoint-24").is_dir()


@pytest.mark.slow
def test_a_run_that_was_trained_further_and_stopped_is_not_its_earlier_adapter(run):
    write_process(run, {"pid": 0, "created": 0, "machine": "", "started": 0, "own": True, "end": "stopped"})
    assert load_tuned(run).folder == str(run / "checkpoint-24")


def test_a_run_without_a_checkpoint_has_nothing_to_answer_with(tmp_path):
    config = RunConfig(model_id=FAMILY, dataset="s.jsonl", output_dir=str(tmp_path))
    config.save(tmp_path / "run.yaml")
    with pytest.raises(FileNotFoundError, match="has saved nothing yet: let the run train"):
        load_tuned(tmp_path)


@pytest.mark.slow
def test_a_checkpoint_on_changed_weights_is_refused(stopped):
    config = RunConfig.read(stopped / "run_config.yaml", init_lora_weights="pissa")
    config.save(stopped / "run_config.yaml")
    with pytest.raises(ValueError, match="has not ended: resume it first"):
        load_tuned(stopped)


@pytest.mark.slow
def test_an_adapter_from_elsewhere_finds_its_base_by_its_run(run):
    file = run / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"base_model_name_or_path": "/gone/base"}))
    assert load_tuned(run).base == str(tiny_model(FAMILY))
    alone = shutil.copytree(run / "adapter", run.parent / "elsewhere" / "adapter")
    with pytest.raises(FileNotFoundError, match="Name the folder or the hub id"):
        load_tuned(alone)


@pytest.mark.slow
def test_a_model_of_own_weights_has_its_base_beside_it(stopped):
    shutil.copytree(tiny_model(FAMILY), stopped / "model")
    RunConfig.read(stopped / "run_config.yaml", weights="full").save(stopped / "run_config.yaml")
    for folder in stopped.glob("checkpoint-*"):
        shutil.rmtree(folder)
    tuned = load_tuned(stopped)
    assert (tuned.folder, tuned.adapter, tuned.bits) == (str(stopped / "model"), None, 16) and not tuned.is_base
    with tuned.base_model() as (first, _), tuned.base_model() as (second, _):
        assert first is second and first is not tuned.model


@pytest.mark.slow
def test_an_untuned_model_is_its_own_base_and_a_folder_of_one_has_none(tmp_path, capsys):
    base = load_tuned(FAMILY)
    assert base.is_base and base.bits == 16 and base.run is None
    assert base.note.startswith("the tiny base of qwen2.5-vl") and capsys.readouterr().out == ""
    with base.base_model() as (model, _):
        assert model is base.model
    merged = load_tuned(shutil.copytree(tiny_model(FAMILY), tmp_path / "merged"))
    with pytest.raises(ValueError, match="does not say which model it was made from"), merged.base_model():
        pass


@pytest.mark.parametrize("name", ["gone", "a/b/c"])
def test_a_name_of_nothing_is_an_error(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=f"there is no folder {name}: name a run's"):
        load_tuned(name)
    with pytest.raises(FileNotFoundError, match="holds no run, no adapter and no model"):
        load_tuned(tmp_path)
