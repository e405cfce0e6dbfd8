"""The panel driven by code: what is refused, kept, translated, shown of a run, and never taken for HTML."""

import json
import math
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import ipywidgets as widgets
import pytest
import yaml

from vlmhelpers.commands import planning
from vlmhelpers.estimation.memory import Gpu
from vlmhelpers.samples.sample_data import write_sample
from vlmhelpers.studio import Studio, panel
from vlmhelpers.studio.texts import LANGUAGES, texts
from vlmhelpers.training.background import TrainingRun
from vlmhelpers.training.config import RunConfig

pytestmark = pytest.mark.usefixtures("rows")
SOUND = {"dataset": "rows.jsonl", "test_rows": 0, "validation_rows": 0, "sample_answers": 0}


def wait_until(condition, seconds=60):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.02)


def refused(studio):
    """What is refused, by the settings at whose controls it is shown."""
    return {name: f._problem.value for name, f in studio.form.fields.items() if f._problem.value}


# Values


def test_a_wrong_value_is_refused_at_its_control_before_anything_starts(make, evil):
    studio = make(**SOUND)
    start = studio.tabs["run"].buttons["start"]
    assert studio.problems == {} == refused(studio) and not start.disabled
    studio.form.fields["learning_rate"].control.value = evil
    assert list(studio.problems) == list(refused(studio)) == ["learning_rate"]
    assert 'role="alert"' in refused(studio)["learning_rate"] and "<img" not in refused(studio)["learning_rate"]
    assert "studio-refused" in studio.form.fields["learning_rate"].widget._dom_classes
    assert start.disabled
    for act in (lambda: studio.config, studio.start, studio.preflight, lambda: studio.save("x.yaml")):
        with pytest.raises(ValueError, match="^learning_rate is "):
            act()
    studio.form.fields["learning_rate"].control.value = "1e-4"
    assert studio.problems == {} == refused(studio) and not start.disabled
    assert "studio-refused" not in studio.form.fields["learning_rate"].widget._dom_classes
    assert studio.config.learning_rate == 1e-4


def test_a_run_has_one_name_and_what_is_pasted_loses_its_blanks(make):
    studio = make(**SOUND | {"model_id": " qwen3-vl ", "output_dir": "nights/one"})
    assert studio.settings["model_id"] == "qwen3-vl"
    assert list(studio.problems) == ["output_dir"] and "nights/one" in studio.problems["output_dir"]
    studio.set(output_dir="one")
    assert studio.problems == {} and studio.run.folder == studio.folder / "one"


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"dataset": ""}, "dataset"),
        ({"output_dir": None}, "output_dir"),
        ({"method": "none such"}, "method"),
        ({"bits": 5}, "bits"),
        ({"max_steps": 0}, "max_steps"),
        ({"language": False}, "language"),
        ({"cache": "features", "vision": True}, "cache"),
        ({"test_rows": 4, "eval_steps": 5, "validation_rows": "few"}, "validation_rows"),
        ({"chat_template": "chat.txt"}, "chat_template"),
        ({"method": "grpo"}, "rewards"),
        ({"method": "distillation"}, "teacher"),
        ({"method": "dpo", "loss": "hinge+none such"}, "loss"),
        ({"method": "kto", "batch_size": 1}, "batch_size"),
        ({"method": "ppo", "rewards": "exact_match", "weights": "full"}, "weights"),
        ({"init_lora_weights": "pissa", "bits": 4}, "init_lora_weights"),
        ({"backend": "unsloth", "use_dora": True}, "backend"),
    ],
)
def test_what_does_not_go_together_is_refused_at_what_is_to_be_changed(make, settings, name):
    studio = make(**SOUND | settings)
    assert list(studio.problems) == list(refused(studio)) == [name]
    assert studio.form.fields[name].widget.layout.display is None  # it is shown


def test_a_setting_that_is_none_is_refused_with_those_that_are(make):
    for act in (lambda: make(learning_rat=1), lambda: make().set(learning_rat=1)):
        with pytest.raises(ValueError, match="there is no setting 'learning_rat': choose from model_id, "):
            act()
    with pytest.raises(ValueError, match="clock='fast': choose one of None, 'thread'"):
        Studio(clock="fast")
    with pytest.raises(ValueError, match="locale='tlh'"):
        make(locale="tlh")


def test_a_switch_takes_truth_values_and_texts_of_them(make):
    studio = make(**SOUND)
    assert studio.set(use_dora="true").config.use_dora and not studio.set(use_dora=False).config.use_dora
    with pytest.raises(ValueError, match="use_dora is 'perhaps': choose True or False"):
        studio.set(lora_r=3, use_dora="perhaps")
    assert studio.config.lora_r == 3


def test_every_default_comes_back_from_its_control(make):
    studio = make(**SOUND)
    folder = str(studio.folder / "run-1")
    assert studio.config == RunConfig(model_id="qwen3-vl", dataset="rows.jsonl", output_dir=folder)


def test_values_come_back_as_they_were_to_the_last_bit(make):
    values = {"learning_rate": 1 / 3, "max_grad_norm": 1e-300, "adam_beta2": 0.1 + 0.2, "lora_dropout": math.ulp(1)}
    values |= {"epochs": 3, "max_steps": -1, "seed": 2**32 - 1, "max_pixels": 2**40, "gradient_checkpointing": False}
    values |= {"bits": 16, "cache": "none", "report_to": "trackio", "init_lora_weights": "gaussian", "use_rslora": True}
    field, folder = 'a "b" <c> {d}', Path("ein Ordner/名")
    folder.mkdir(parents=True)
    Path("named.jsonl").write_text(json.dumps({field: "What?", "response": "a hat"}))
    values |= {"text_field": field, "image_root": str(folder), "lr_scheduler_type": "linear", "dataset": "named.jsonl"}
    values |= {"validation_rows": 2, "load_best_model_at_end": True, "eval_steps": 7, "early_stopping_patience": 2}
    studio = make(**SOUND | values)
    assert studio.problems == {}
    assert {name: getattr(studio.config, name) for name in values} == values
    studio.set(**dict.fromkeys(("learning_rate", "bits", "max_pixels", "gradient_checkpointing", "image_root")))
    config = studio.config
    assert [config.learning_rate, config.bits, config.max_pixels, config.gradient_checkpointing] == [None] * 4
    assert config.image_root is None and config.epochs == 3


# What has no use


def test_what_the_method_has_no_use_for_is_hidden_and_comes_back(make):
    studio = make(**SOUND | {"method": "dpo", "beta": 0.25, "bits": 4, "lora_r": 8})
    assert is_shown(studio, "beta") and studio.config.beta == 0.25 and not is_shown(studio, "cache")
    studio.set(method="sft")
    assert not is_shown(studio, "beta", "loss", "rewards") and "beta" not in studio.settings
    assert studio.config.beta is None and is_shown(studio, "cache")
    studio.set(weights="freeze")
    assert not is_shown(studio, "lora_r", "bits", "use_dora") and is_shown(studio, "last_layers")
    assert studio.config.lora_r is None
    studio.set(method="dpo", weights="lora")
    assert studio.config == replace(studio.config, beta=0.25, bits=4, lora_r=8) and is_shown(studio, "beta", "lora_r")


def is_shown(studio, *names):
    displays = {studio.form.fields[name].widget.layout.display for name in names}
    assert len(displays) == 1
    return displays == {None}


def test_what_needs_held_out_rows_is_hidden_without_them(make):
    studio = make(**SOUND | {"early_stopping_patience": 3, "validation_rows": 4, "sample_answers": 2})
    assert is_shown(studio, "early_stopping_patience", "sample_answers")
    studio.set(validation_rows=0)
    assert not is_shown(studio, "early_stopping_patience", "sample_answers", "eval_steps")
    assert studio.config.early_stopping_patience is None and studio.config.sample_answers == 0
    studio.set(test_rows=4)
    assert is_shown(studio, "sample_answers", "eval_steps")
    studio.set(method="reward")  # which answers nothing
    assert not is_shown(studio, "sample_answers", "eval_steps")


def test_what_the_model_has_no_use_for_is_hidden_once_its_family_is_known(make):
    studio = make(**SOUND, max_pixels=50176)
    studio.set(model_id="llama-3.2-vision")  # whose images are of one size
    wait_until(lambda: studio.refresh() or not is_shown(studio, "max_pixels"))
    assert is_shown(studio, "backend") and "max_pixels" not in studio.settings
    studio.set(model_id="phi-3-vision")  # which Unsloth does not load
    wait_until(lambda: studio.refresh() or not is_shown(studio, "backend"))
    studio.set(model_id="qwen2.5-vl")
    assert is_shown(studio, "max_pixels", "backend") and studio.config.max_pixels == 50176


# Languages


def test_all_languages_keep_all_values_and_change_nothing(make):
    studio = make(**SOUND | {"method": "dpo", "learning_rate": "schnell", "bits": 4, "cache": "pixels"})
    fields = [*studio.form.fields.values(), studio.gpu, studio.data_folder]
    fields += [field for tab in studio.tabs.values() for form in forms_of(tab) for field in form.fields.values()]
    before, changed = [field.value for field in fields], []
    for field in fields:
        field.on_change(lambda name=field.name: changed.append(name))
    for locale in [*LANGUAGES, "en"]:
        studio.speak(locale)
        words = texts(locale)
        assert [field.value for field in fields] == before and studio.problems.keys() == {"learning_rate"}
        assert [studio.view._tab.get_title(number) for number in range(8)] == [
            words[f"tab.{name}"] for name in studio.tabs
        ]
        assert studio.form.fields["learning_rate"].control.description == words["label.learning_rate"]
        assert words["help.learning_rate"] in studio.form.fields["learning_rate"]._help.value.replace("&#39;", "'")
        assert (words["choice.none"], "none") in studio.form.fields["bits"].control.options
        assert studio.form.fields["lora_r"].control.placeholder == words["choice.none"]
        assert studio.tabs["chat"].buttons["send"].description == words["button.send"]
        assert words["state.new"] in studio.tabs["run"].state.value
    assert changed == [] and studio.locale == "en"


def forms_of(tab):
    return [tab.form] if hasattr(tab, "form") else [*getattr(tab, "forms", {}).values()]


@pytest.mark.parametrize("locale", LANGUAGES)
def test_every_control_has_a_label_and_the_state_is_said_in_words(make, inside, elements, locale):
    studio = make(locale=locale)
    kinds = widgets.Button, widgets.Checkbox, widgets.Combobox, widgets.Dropdown, widgets.FileUpload, widgets.Text
    controls = [part for part in inside(studio.widget) if isinstance(part, (*kinds, widgets.Textarea))]
    assert len(controls) > 80 and all(control.description.strip() for control in controls)
    assert ("div", {"role": "status", "class": "studio-state", "data-state": "new"}) in elements(
        studio.tabs["run"].state.value
    ).tags


@pytest.mark.slow
def test_choosing_a_language_by_hand_keeps_it_for_the_next_panel(make):
    make().view._languages.value = "ko"
    assert make().locale == "ko" and make(locale="ja").locale == "ja" and make().locale == "ja"


# Settings that are kept


def test_settings_are_there_again_for_the_next_panel(make):
    studio = make(**SOUND, learning_rate="fast", method="dpo", beta=0.3, use_dora=True, output_dir="run-7")
    studio.set(method="sft")
    again = make()
    assert again.form.values == studio.form.values and again.problems == studio.problems
    assert again.set(method="dpo", learning_rate=None).config.beta == 0.3
    assert make(beta=0.4).config.beta == 0.4


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["", "{", "- a", "3", "locale: tlh", "locale: [1]", "method: nope", "use_dora: perhaps", "output_dir: null"]
    + [
        "lora_r: [1, {a: 2}]",
        "none such: 3\n7: 8",
        "bits: 2020-01-01",
        "learning_rate: .nan",
        "\0",
        "validation_rows:",
    ],
)
def test_a_broken_file_of_settings_stops_nothing(make, text):
    studio = make(**SOUND)
    (studio.folder / "studio.yaml").write_text(text)
    again = make(dataset="rows.jsonl", method="sft")
    again.set(**SOUND, lora_r=None, bits=None, learning_rate=None, output_dir="run-1")
    assert again.problems == {} and again.locale == "en" and "run-1" in (studio.folder / "studio.yaml").read_text()


def test_settings_are_saved_and_loaded(make, tmp_path):
    studio = make(**SOUND, learning_rate=1e-5)
    code = studio.view.code
    code.buttons["save"].click()
    file = studio.folder / "settings.yaml"
    assert RunConfig.read(file).learning_rate == 1e-5 and str(file) in code.out.value
    studio.set(learning_rate=1, output_dir="run-2")
    code.buttons["load"].click()
    assert studio.config.learning_rate == 1e-5 and studio.run.folder.name == "run-2"
    code.file.value = str(tmp_path / "<b>none</b>.yaml")
    code.buttons["load"].click()
    assert 'role="alert"' in code.out.value and "&lt;b&gt;none" in code.out.value
    code.file.value = str(tmp_path / "settings.txt")
    code.buttons["save"].click()
    assert "no .json, .yaml or .yml file" in code.out.value


def test_the_code_pane_shows_what_the_settings_do(make, shown, evil):
    studio = make(**SOUND, lora_r=5)
    assert yaml.safe_load(shown(studio.view.code.ways["yaml"]).text)["lora_r"] == 5
    assert "".join(studio.cells) == shown(studio.view.code.ways["cells"]).text
    Path(evil.replace("/", "")).write_text('{"text": "What?", "response": "a hat"}')
    studio.set(lora_r=6, dataset=evil.replace("/", ""))
    assert yaml.safe_load(shown(studio.view.code.ways["yaml"]).text)["lora_r"] == 6
    for way, key in (("llama-factory", "lora_rank"), ("swift", "lora_rank")):
        assert yaml.safe_load(shown(studio.view.code.ways[way]).text)[key] == 6
        assert f"--to {way}" in shown(studio.view.code.ways[way]).text
    studio.set(model_id="phi-3-vision")
    assert "LLaMA-Factory has no template for phi-3-vision" in shown(studio.view.code.ways["llama-factory"]).text
    studio.set(lora_r="many")
    assert all("lora_r is 'many'" in shown(way).text for way in studio.view.code.ways.values())


# Runs


ENTRIES = [
    {"event": "training", "step": 0, "max_steps": 8},
    {"event": "samples", "step": 0, "answers": ["red cup"]},
    *({"step": step, "max_steps": 8, "loss": 4 / step, "learning_rate": 1e-4} for step in (1, 2, 3)),
    {"step": 3, "max_steps": 8, "eval_loss": 1.25},
    {"step": 4, "max_steps": 8, "loss": 0.5, "seconds_left": 90, "memory": 2**30, "tokens_per_second": 1234.5},
    {"event": "samples", "step": 4, "answers": ["blue cup", "a hat"]},
]
SAMPLES = [{"prompt": f"What is {n}?", "expected": "blue", "images": ["data:image/webp;base64,AA=="]} for n in (1, 2)]


def test_a_panel_finds_a_run_that_is_going_on(make, fake_run, shown):
    fake_run(entries=ENTRIES, samples=SAMPLES, log="one\ntwo\n")
    tab = make(**SOUND).tabs["run"]
    assert 'data-state="training"' in tab.state.value and tab.bar.value == 0.5
    words = shown(tab.state).text
    assert "4" in words and "8" in words and "0.5" in words and "90 s" in words and "1,234" in words and "1.0" in words
    charts = [attributes for tag, attributes in shown(tab.charts).tags if tag == "svg"]
    assert [chart["data-last-step"] for chart in charts] == ["4", "3"]
    assert all(chart["role"] == "img" for chart in charts) and "1.25" in charts[0]["aria-label"]
    assert "two" in shown(tab.log).text
    samples = shown(tab.samples)
    assert all(answer in samples.text for answer in ("red cup", "blue cup", "a hat"))
    assert len([tag for tag, _ in samples.tags if tag == "img"]) == 2  # though at first there was one answer
    assert tab.buttons["start"].disabled and not tab.buttons["stop"].disabled and not tab.buttons["abort"].disabled


def test_what_a_run_adds_is_shown_at_the_next_look(make, fake_run):
    fake_run(entries=ENTRIES)
    studio = make(**SOUND)
    fake_run(entries=[{"step": 6, "max_steps": 8, "loss": 0.25}])
    studio.refresh()
    tab = studio.tabs["run"]
    assert 'data-last-step="6"' in tab.charts.value and tab.bar.value == 0.75
    linear = tab.charts.value
    tab.log_scale.value = True
    assert tab.charts.value != linear
    fake_run(end="finished")
    studio.refresh()
    assert 'data-state="finished"' in tab.state.value and tab.buttons["stop"].disabled


def test_the_state_of_a_run_is_the_true_one_whatever_happens_to_its_folder(make, fake_run):
    run = fake_run(entries=ENTRIES)
    studio = make(**SOUND)
    tab = studio.tabs["run"]
    shutil.rmtree(run.folder)
    studio.refresh()
    assert 'data-state="new"' in tab.state.value and studio.runs == {}
    fake_run(entries=ENTRIES[:3])
    studio.refresh()
    assert 'data-last-step="1"' in tab.charts.value and tab.bar.value == 1 / 8
    (run.folder / "process.json").write_text("{")
    (run.folder / "samples.json").write_text("{")
    studio.refresh()
    assert 'data-state="new"' in tab.state.value and not tab.buttons["start"].disabled


@pytest.mark.parametrize("end, button", [("stopped", "resume"), ("failed", "resume"), ("finished", "start")])
def test_a_run_that_has_ended_shows_how(make, fake_run, shown, evil, end, button):
    run = fake_run(end=end, error=evil if end == "failed" else None, entries=ENTRIES)
    (run.folder / "checkpoint-4").mkdir()
    studio = make(**SOUND)
    tab = studio.tabs["run"]
    assert texts("en")[f"state.{end}"] in shown(tab.state).text
    assert (evil in shown(tab.state).text) == (end == "failed")
    start = tab.buttons["start"]
    if end == "finished":  # nothing is left to do, unless something has changed
        assert start.disabled and texts("en")["is_finished"] in shown(tab.why).text
        tab.accept.control.value = True
        tab.refresh()
        assert not start.disabled and start.description == texts("en")["button.start"]
    else:
        assert start.description == texts("en")[f"button.{button}"] and not start.disabled
        (run.folder / "checkpoint-4").rmdir()  # it ended before its first one
        tab.refresh()
        assert start.description == texts("en")["button.start"]


def test_what_keeps_a_run_from_starting_is_said_beside_the_button(make, shown, fake_run):
    studio = make(**SOUND | {"dataset": "none.jsonl", "lora_r": "many"})
    why = shown(studio.tabs["run"].why).text
    assert "LoRA rank: lora_r is 'many'" in why and "Dataset: there is no file none.jsonl" in why
    studio.set(dataset="", lora_r=4, text_field="frage")
    assert texts("en")["choose_file"] in shown(studio.tabs["run"].why).text
    studio.set(dataset="rows.jsonl")
    assert studio.problems == {"text_field": "the file has no field frage: choose from text, response"}
    studio.set(text_field="text", output_dir="..")
    assert list(studio.problems) == ["output_dir"]
    assert make(output_dir="x" * 300).problems.keys() == {"output_dir"}


def test_a_run_that_stopped_early_and_its_neighbors_are_shown(make, fake_run, shown):
    early = {"event": "early_stopped", "step": 4, "max_steps": 8, "best_step": 2}
    fake_run(end="finished", entries=[*ENTRIES, early])
    fake_run("run-2", end="stopped")
    tab = make(**SOUND).tabs["run"]
    assert "stopped early; the best validation was at step 2" in shown(tab.state).text and tab.bar.value == 1
    assert "run-2" in shown(tab.others).text and texts("en")["state.stopped"] in shown(tab.others).text


def test_what_came_of_a_button_goes_with_the_run_that_it_was_of(make):
    studio = make(**SOUND)
    studio.tabs["model"].out.value = "an estimate"
    studio.set(lora_r=7)
    assert studio.tabs["model"].out.value == "an estimate"
    studio.set(model_id="phi-3-vision")
    assert studio.tabs["model"].out.value == ""


def test_the_settings_of_a_run_that_is_chosen_are_taken(make, fake_run, tmp_path, monkeypatch):
    run = fake_run("run-3", end="finished", lora_r=3)
    fake_run("run-4", end="finished", lora_r=4)
    monkeypatch.chdir(tmp_path)
    studio = Studio("studio", clock="none", **SOUND, lora_r=1)
    assert studio.form.fields["output_dir"].control.options == ("run-3", "run-4")
    studio.form.fields["output_dir"].control.value = "run-3"  # whose file has whole paths
    assert studio.config.lora_r == 3 and studio.form.fields["output_dir"].value == "run-3"
    assert studio.run.folder.absolute() == run.folder and studio.others_running == []
    (run.folder / "run.yaml").write_text("{")
    studio.set(output_dir="run-4", lora_r=9)
    studio.form.fields["output_dir"].control.value = "run-3"
    assert studio.config.lora_r == 9


def test_a_run_is_the_same_by_its_name_and_by_its_path(make, fake_run, tmp_path):
    run = fake_run()
    studio = make(**SOUND)
    for name in ("run-1", run.folder, str(run.folder), f"{run.folder}/", "./run-1"):
        studio.set(output_dir=name)
        assert studio.run.folder == run.folder and studio.others_running == []
    studio.set(output_dir=tmp_path / "elsewhere" / "run")
    assert list(studio.problems) == ["output_dir"]  # of another folder is another panel


def test_what_is_started_while_another_run_goes_on_begins_after_it(make, fake_run, monkeypatch):
    running = fake_run()
    fake_run("run-2", end="finished")
    studio = make(**SOUND)
    studio.new_run()
    assert studio.run.folder.name == "run-3" and list(studio.runs) == ["run-1", "run-2"]
    assert studio.others_running == [str(running.folder)]
    assert studio.tabs["run"].buttons["start"].description == texts("en")["button.queue"]
    started = []
    monkeypatch.setattr(TrainingRun, "start", lambda run, *args, **options: started.append((run.folder, options)))
    monkeypatch.setattr("vlmhelpers.commands.preflight", lambda config: planned(config))
    studio.start()
    assert started == [(studio.folder / "run-3", {"after": [str(running.folder)]})]


def planned(config):
    class Plan:
        def raise_if_too_large(self):
            return self

    Plan.config = config
    return Plan()


@pytest.mark.slow
def test_nothing_that_a_running_run_would_feel_is_done(make, fake_run, monkeypatch):
    fake_run()
    monkeypatch.setattr("vlmhelpers.commands.preflight", None)  # seconds of work: it is refused before
    studio = make(**SOUND)
    for act in (studio.start, studio.evaluate, studio.export, lambda: studio.chat("What is it?")):
        with pytest.raises(ValueError, match="run-1"):
            act()
    studio.tabs["run"].buttons["abort"].click()  # in a process that is not its own
    assert 'role="alert"' in studio.tabs["run"].out.value and studio.run.is_running


@pytest.mark.slow
def test_a_run_that_does_not_fit_is_refused_with_what_to_change(make, tmp_path, monkeypatch):
    write_sample(tmp_path / "rows.jsonl", 16, size=48)
    monkeypatch.setattr(planning, "this_gpu", lambda: Gpu("a small one", 0.536))
    monkeypatch.setattr(TrainingRun, "start", None)
    studio = make(**SOUND | {"dataset": tmp_path / "rows.jsonl", "bits": 16, "batch_size": 8})
    with pytest.raises(ValueError, match="a step takes .* GiB, estimated, and a small one has 0.5.* Choose batch"):
        studio.start()
    studio.tabs["run"].buttons["start"].click()
    assert "a small one has 0.5" in studio.tabs["run"].out.value and studio.run.state == "new"
    plan = studio.preflight()
    assert plan.fits is False and studio.form.fields["max_length"].control.placeholder == texts("en")["choice.none"]
    studio.refresh()
    assert studio.form.fields["max_length"].control.placeholder == str(plan.config.max_length)


def test_text_of_runs_is_never_taken_for_html(make, fake_run, shown, evil):
    entries = [*ENTRIES[:-1], {"event": "samples", "step": 4, "answers": [evil]}]
    sampled = [{"prompt": evil, "expected": evil, "images": ['" onerror="alert(1)']}]
    fake_run(end="failed", error=evil, entries=entries, log=evil, samples=sampled)
    tab = make(**SOUND).tabs["run"]
    for part in (tab.state, tab.log):
        assert evil in shown(part).text
    with pytest.raises(AssertionError):  # a src that is no image, and nothing more than that
        shown(tab.samples)
    assert "<script" not in tab.samples.value and 'onerror="' not in tab.samples.value.replace("&#34;", "'")


# Work


def test_one_thing_is_done_at_a_time_and_what_goes_wrong_is_shown(make, evil):
    studio, out = make(**SOUND), []
    tab = studio.tabs["data"]

    def act():
        assert studio.worker.is_busy and studio.tabs["run"].buttons["start"] is not None
        studio.worker.do(lambda: "quiet", out.append, out.append, beside=True)
        tab.work("check", lambda: out.append("never"))
        assert texts("en")["busy"] in tab.out.value
        return f"found {evil}"

    tab.work("preview", act)
    assert out == ["quiet"] and not studio.worker.is_busy and "found &lt;img" in tab.out.value
    for error in (ValueError(evil), KeyError(evil), MemoryError()):
        tab.work("preview", lambda error=error: (_ for _ in ()).throw(error))
        assert 'role="alert"' in tab.out.value and "<img" not in tab.out.value and not studio.worker.is_busy
    assert "MemoryError" in tab.out.value
    studio.worker.do(lambda: 1 / 0, out.append, out.append, beside=True)
    assert "ZeroDivisionError" in str(out[-1]) and not studio.worker.is_busy


def test_where_the_page_shows_what_a_thread_does_the_kernel_is_free_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setattr(panel, "_EVERY", 0.02)
    studio, go = Studio(tmp_path, clock="thread", **SOUND), threading.Event()
    tab = studio.tabs["data"]
    tab.work("preview", lambda: go.wait(30) and "all of it")
    assert studio.worker.is_busy and texts("en")["working"].format(what=texts("en")["button.preview"]) in tab.out.value
    wait_until(lambda: studio.tabs["run"].buttons["start"].disabled)
    go.set()
    wait_until(lambda: not studio.worker.is_busy)
    assert "all of it" in tab.out.value
    wait_until(lambda: not studio.tabs["run"].buttons["start"].disabled)


def test_a_panel_looks_at_its_run_until_a_newer_one_does(tmp_path, fake_run, monkeypatch):
    monkeypatch.setattr(panel, "_EVERY", 0.02)
    before, looks = set(threading.enumerate()), []
    first = Studio(tmp_path / "studio", clock="thread", **SOUND)
    tick = next(t for t in set(threading.enumerate()) - before if "_keep_fresh" in t.name)
    fake_run(entries=ENTRIES)
    wait_until(lambda: 'data-state="training"' in first.tabs["run"].state.value)
    monkeypatch.setattr(first.tabs["chat"], "refresh", lambda: looks.append(1 / 0))
    wait_until(lambda: "division by zero" in first.tabs["run"].out.value)
    assert tick.is_alive()  # one bad look is not the last
    second = Studio(tmp_path / "studio", clock="thread")
    tick.join(10)
    assert not tick.is_alive()
    Studio(tmp_path / "other", clock="none")
    assert 'data-state="training"' in second.tabs["run"].state.value
    make_idle(second)


def make_idle(studio):
    panel._newest.pop(studio._root)


def test_where_threads_show_nothing_the_page_keeps_the_time(tmp_path, fake_run, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", sys)
    studio = Studio(tmp_path / "studio", **SOUND)
    (clock,) = [part for part in studio.widget.children if isinstance(part, widgets.Play)]
    assert studio.clock == "page" and clock.playing and clock.interval == 1000 and clock.layout.display == "none"
    fake_run(entries=ENTRIES)
    clock.value = 1
    assert 'data-last-step="4"' in studio.tabs["run"].charts.value
    studio.tabs["data"].work("preview", lambda: "at once")
    assert "at once" in studio.tabs["data"].out.value


def test_the_clock_of_a_page_with_ipywidgets_7_runs_as_well(tmp_path, monkeypatch):
    class Play(widgets.Play):
        _playing = False

        def has_trait(self, name):
            return name != "playing"

    monkeypatch.setattr(widgets, "Play", Play)
    assert Studio(tmp_path, clock="page").widget.children[-1]._playing is True


def test_it_is_watched_by_a_cell(make, fake_run, monkeypatch):
    monkeypatch.setattr(panel, "_EVERY", 0.01)
    studio = make(**SOUND)
    fake_run(entries=ENTRIES)
    assert studio.watch(0.03) == "training" and 'data-last-step="4"' in studio.tabs["run"].charts.value
    fake_run(end="stopped")
    assert studio.watch() == "stopped"


@pytest.mark.slow
def test_a_cell_after_the_panel_imports_what_it_likes(tmp_path):
    """transformers replaces its module as it is imported: who imports it at the same time has one without names."""
    import subprocess

    code = f"from vlmhelpers.studio import Studio; Studio({str(tmp_path)!r}); from transformers import PreTrainedModel"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# What went wrong once


def test_a_start_is_of_the_run_that_was_chosen_when_it_began(make, monkeypatch):
    studio, started = make(**SOUND | {"output_dir": "one"}), []
    monkeypatch.setattr(TrainingRun, "start", lambda run, config, *rest, after: started.append((run.folder, config)))

    def slow(config, gpu=None):  # while it looks, another run is chosen
        studio.set(output_dir="two", seed=5)
        return planning.Plan(config, None, {}, None, None, None)

    monkeypatch.setattr("vlmhelpers.commands.planning.preflight", slow)
    monkeypatch.setattr("vlmhelpers.commands.preflight", slow)
    studio.start()
    ((folder, config),) = started
    assert folder.name == "one" and config.output_dir.endswith("one") and config.seed == 0


def test_a_cell_that_changes_the_working_directory_does_not_lose_the_run(tmp_path, monkeypatch, fake_run):
    monkeypatch.chdir(tmp_path)
    run = fake_run(end="finished", entries=ENTRIES)
    studio = Studio("studio", clock="none", **SOUND)
    monkeypatch.chdir("/")
    studio.refresh()
    assert studio.run.folder == run.folder.absolute() and studio.run.state == "finished"
    assert studio.settings["output_dir"] == "studio/run-1" and list(studio.runs) == ["run-1"]


def test_a_full_disk_is_said_and_ends_no_panel(make, monkeypatch):
    def full(*args):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(panel, "write_saved", full)
    studio = make(**SOUND)
    studio.set(seed=4)
    assert studio.config.seed == 4 and "No space left" in studio.tabs["run"].out.value


def test_what_the_other_tabs_hold_is_there_in_the_next_panel(make):
    make().tabs["chat"].form.fields["system"].control.value = "Be brief."
    again = make()
    assert again.tabs["chat"].form.values["system"] == "Be brief."
    assert again.tabs["evaluate"].form.values["base"] is True


def test_rows_can_be_looked_at_before_all_else_is_right(make, tmp_path):
    write_sample(tmp_path / "rows.jsonl", 4)
    studio = make(**SOUND | {"dataset": str(tmp_path / "rows.jsonl"), "learning_rate": "fast", "method": "ppo"})
    assert studio.problems and studio.check().counts["kept"] == 4


def test_what_fits_is_hinted_until_a_setting_changes(make, monkeypatch):
    studio = make(**SOUND)
    filled = replace(studio.config, learning_rate=3e-4)
    plan = planning.Plan(filled, None, {}, None, None, None)
    monkeypatch.setattr("vlmhelpers.commands.preflight", lambda *args: plan)
    studio.preflight()
    studio.refresh()
    rate = studio.form.fields["learning_rate"].control
    assert rate.placeholder == "0.0003"
    studio.set(weights="full")
    assert rate.placeholder == texts("en")["choice.none"]


def test_changed_settings_are_accepted_where_that_is_chosen(make, monkeypatch):
    studio, asked = make(**SOUND), []
    monkeypatch.setattr(Studio, "start", lambda self, accept_changes=False: asked.append(accept_changes))
    tab = studio.tabs["run"]
    tab.buttons["start"].click()
    tab.accept.control.value = True
    tab.buttons["start"].click()
    assert asked == [False, True]
