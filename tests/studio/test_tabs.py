"""The tabs: files found and recognized, rows shown, a chat, all without a model; then all of it with the tiny one."""

import io
import json
from dataclasses import replace
from datetime import datetime
from urllib.request import urlopen

import pytest
from markupsafe import Markup
from PIL import Image

import vlmhelpers as vlm
from vlmhelpers.common.display import Html
from vlmhelpers.samples.sample_data import write_sample
from vlmhelpers.studio.tabs import chat, data
from vlmhelpers.studio.tabs.data import find_files
from vlmhelpers.studio.talk import Turn
from vlmhelpers.studio.texts import texts

pytestmark = pytest.mark.usefixtures("rows")
SETTINGS = {"bits": 16, "lora_r": 4, "max_steps": 16, "logging_steps": 1, "save_steps": 100, "batch_size": 4}
SETTINGS |= {"test_rows": 4, "validation_rows": 4, "sample_answers": 1, "eval_steps": 8}


def png(color="red"):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


# Data


def test_files_of_rows_are_found_the_nearest_first(tmp_path, monkeypatch):
    there = "b.jsonl a.CSV z/rows.parquet a/c.json a/deep/d.jsonl"
    others = ".hidden/e.jsonl run/checkpoint-3/f.json run/held_out/g.jsonl notes.txt run/evaluation/tuned.jsonl"
    others += " run/progress.jsonl run/process.json run/samples.json run/results.json run/adapter/adapter_config.json"
    others += " run/adapter/tokenizer.json run/evaluation/evaluation.json run/log_history.txt node_modules/h.json"
    for name in f"{there} {others}".split():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "z" / "circle").symlink_to(tmp_path)
    assert find_files(tmp_path) == [
        str(tmp_path / name) for name in "a.CSV b.jsonl a/c.json z/rows.parquet".split()
    ] + [str(tmp_path / "a" / "deep" / "d.jsonl")]
    monkeypatch.chdir(tmp_path)
    assert find_files("")[:3] == find_files(".")[:3] == ["a.CSV", "b.jsonl", "a/c.json"]
    assert find_files(tmp_path / "none") == find_files("b.jsonl") == []


def test_a_folder_of_thousands_hides_no_file_nearby(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "_MOST_FOLDERS", 20)
    monkeypatch.setattr(data, "_MOST_FILES", 15)
    for number in range(30):
        (tmp_path / "a" / f"{number:02}" / "deep").mkdir(parents=True)
        (tmp_path / "a" / f"{number:02}" / "rows.json").touch()
    (tmp_path / "z").mkdir()
    (tmp_path / "z" / "rows.json").touch()
    found = find_files(tmp_path)
    assert len(found) == 15 and found[0] == str(tmp_path / "z" / "rows.json")


def test_a_file_is_recognized_as_it_is_chosen(make, tmp_path, shown):
    write_sample(tmp_path / "rows.jsonl", 4, size=48)
    write_sample(tmp_path / "pairs.jsonl", 4, answers="pairs", size=48)
    studio = make()
    tab, words = studio.tabs["data"], texts("en")
    studio.data_folder.control.value = str(tmp_path)
    offered = studio.form.fields["dataset"].control.options
    assert offered == (str(tmp_path / "pairs.jsonl"), str(tmp_path / "rows.jsonl"))
    studio.form.fields["dataset"].control.value = offered[1]
    assert words["rows.messages"] in shown(tab.form_of_file).text and 'role="alert"' not in tab.form_of_file.value
    assert "response" in studio.form.fields["response_field"].control.options
    studio.set(method="dpo")
    assert words["method.dpo"] in shown(tab.form_of_file).text and 'role="alert"' in tab.form_of_file.value
    studio.set(dataset=offered[0])
    assert words["rows.pairs"] in shown(tab.form_of_file).text and 'role="alert"' not in tab.form_of_file.value
    studio.speak("de")
    assert texts("de")["rows.pairs"] in shown(tab.form_of_file).text
    studio.set(dataset=tmp_path / "none.jsonl")
    assert shown(tab.form_of_file).text == "" and "none.jsonl" in studio.problems["dataset"]
    studio.set(dataset="")
    assert tab.form_of_file.value == ""


def test_text_of_data_is_never_taken_for_html(make, tmp_path, shown, evil):
    write_sample(tmp_path / "rows.jsonl", 2, size=48)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    file = tmp_path / "<img src=x onerror=alert(1)>.jsonl"
    file.write_text("".join(json.dumps(row | {"text": evil, evil: evil}) + "\n" for row in rows))
    studio = make(dataset=file, test_rows=0, validation_rows=0, sample_answers=0)
    tab = studio.tabs["data"]
    assert evil in shown(tab.form_of_file).text
    for name in ("preview", "check"):
        tab.buttons[name].click()
        assert not shown(tab.out).text.startswith("\u26a0")
    file.write_text(f"{evil}\n")
    studio.tabs["data"].recognize()
    tab.buttons["check"].click()
    for widget in (studio.widget, tab.form_of_file, tab.out):
        shown(widget)


def test_rows_are_previewed_with_their_images_and_the_label_mask(make, tmp_path, elements):
    write_sample(tmp_path / "rows.jsonl", 8, size=48)
    studio = make(dataset=tmp_path / "rows.jsonl", test_rows=2, validation_rows=2)
    found = elements(studio.preview(2)._repr_html_())
    assert len([tag for tag, _ in found.tags if tag == "img"]) >= 2
    assert "8" in str(studio.check())
    (tmp_path / "rows.jsonl").write_text('{"text": "no image and no answer", "response": ""}\n')
    with pytest.raises(ValueError, match="has no row that can be used among the first 50"):
        studio.preview()


@pytest.mark.slow
def test_rows_that_the_chosen_models_template_refuses_are_shown(make, tmp_path):
    write_sample(tmp_path / "rows.jsonl", 3, size=48)
    rows = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    turns = [{"from": "human", "value": f"<image>{rows[0]['text']}"}, {"from": "gpt", "value": rows[0]["response"]}]
    rows[0] = {"conversations": turns, "image": rows[0]["image"], "system": "Be brief."}
    (tmp_path / "rows.json").write_text(json.dumps([rows[0], rows[0] | {"system": ""}]))
    studio = make(dataset=tmp_path / "rows.json", test_rows=0, validation_rows=0, model_id="qwen3-vl")
    assert studio.check().counts["rejected"] == 0
    studio.set(model_id="llama-3.2-vision")
    assert "A system turn does not go with images" in studio.check().rejected[0]["reason"]
    assert "Be brief" not in str(studio.preview())


# Run


def test_a_plan_opens_from_a_line_and_a_short_answer_is_one(make, shown):
    tab = make().tabs["run"]
    tab.show(Html(Markup("<table><tr><td>8 GiB</td></tr></table>"), "24 rows <b>\n8 GiB"))
    assert shown(tab.out).text == "24 rows <b>8 GiB" and [tag for tag, _ in shown(tab.out).tags][:2] == [
        "details",
        "summary",
    ]
    tab.show(Html(Markup("<p>Started.</p>"), "Started."))
    assert tab.out.value == "<p>Started.</p>"


@pytest.mark.slow
def test_tensorboard_is_beside_it_once_for_a_folder(make, elements):
    studio = make()
    tab = studio.tabs["run"]
    tab.buttons["tensorboard"].click()
    assert "report_to=tensorboard" in tab.out.value
    (studio.folder / "run-1").mkdir()
    (studio.folder / "run-1" / "events.out.tfevents.1").touch()
    tab.buttons["tensorboard"].click()
    first = tab.out.value
    (frame,) = [attributes for tag, attributes in elements(first).tags if tag == "iframe"]
    assert frame["title"] == "TensorBoard" and urlopen(frame["src"], timeout=60).status == 200
    tab.buttons["tensorboard"].click()
    assert tab.out.value == first


# Chat


@pytest.fixture
def answering(make, monkeypatch):
    """A panel whose chat answers at once, and the questions that it was asked."""
    studio, asked, turns = make(), [], []

    def ask(question, images=(), base=False, write=lambda: None, **settings):
        asked.append((question, [image.size for image in images], base))
        turns.append(Turn(question, images, {"tuned": f"To {question}"}))
        write()

    monkeypatch.setattr(studio, "chat", ask)
    monkeypatch.setattr(type(studio), "turns", property(lambda panel: turns))
    return studio, asked


def upload(content, name="a.png"):
    about = {"name": name, "type": "image/png", "size": len(content), "last_modified": datetime.now()}
    return about | {"content": memoryview(content)}


def test_a_question_is_sent_with_its_images_once(answering, shown, evil):
    studio, asked = answering
    tab = studio.tabs["chat"]
    tab.buttons["send"].click()
    assert asked == []
    tab.question.value, tab.side_by_side.value = f" {evil} ", True
    tab.upload.set_trait("value", (upload(png()), upload(png())))
    tab.buttons["send"].click()
    assert asked == [(evil, [(8, 8)] * 2, True)] and tab.question.value == "" and not tab.upload.value
    found = shown(tab.talk)
    assert found.text.count(evil) == 2 and [tag for tag, _ in found.tags].count("img") == 2
    assert [a["data-by"] for _, a in found.tags if "data-by" in a] == ["you", "tuned"]
    tab.question.value = "Again?"
    tab.buttons["send"].click()
    assert asked[1:] == [("Again?", [], True)]


def test_a_question_that_failed_is_there_to_be_sent_again(answering, monkeypatch, evil):
    studio, asked = answering
    tab = studio.tabs["chat"]
    tab.question.value = "What is it?"
    tab.upload.set_trait("value", (upload(b"no image", name=evil),))
    tab.buttons["send"].click()
    assert "not an image" in tab.out.value and "<img" not in tab.out.value and tab.question.value == "What is it?"
    tab.upload.set_trait("value", (upload(png()),))
    monkeypatch.setattr(studio, "chat", lambda *args, **options: 1 / 0)
    tab.buttons["send"].click()
    assert "ZeroDivisionError" in tab.out.value and tab.question.value == "What is it?" and len(tab.upload.value) == 1
    studio.worker.do(lambda: tab.buttons["send"].click(), print, print)
    assert texts("en")["busy"] in tab.out.value and tab.question.value == "What is it?" and not asked


def test_a_chat_goes_with_its_model(answering, monkeypatch):
    studio, _ = answering
    tab = studio.tabs["chat"]
    tab.question.value = "What is it?"
    tab.buttons["send"].click()
    assert "What is it?" in tab.talk.value
    monkeypatch.setattr(type(studio), "turns", property(lambda panel: []))
    studio.refresh()
    assert tab.talk.value == ""
    for name in ("clear", "unload"):
        tab.buttons[name].click()
        assert tab.out.value == ""


class Upload7:
    """What of ipywidgets 7.7.1's FileUpload is used: `value` follows the counter, as it does there."""

    def __init__(self, files):
        self.metadata, self.data = [{"name": name, "type": "image/png"} for name in files], list(files.values())
        self._counter = len(files)

    def __setattr__(self, name, value):
        super().__setattr__(name, value)
        if name == "_counter":
            files = zip(self.metadata, self.data, strict=True)
            self.value = {about["name"]: {"metadata": about, "content": content} for about, content in files}


def test_an_upload_of_ipywidgets_7_is_read_and_emptied():
    upload = Upload7({"a.png": png(), "b.png": png("blue")})
    assert [image.getpixel((0, 0)) for image in chat.uploaded(upload)] == [(255, 0, 0), (0, 0, 255)]
    chat.empty(upload)
    assert upload.value == {} and chat.uploaded(upload) == []
    with pytest.raises(ValueError, match="a.png: not an image"):
        chat.uploaded(Upload7({"a.png": b"text"}))


# With a model


@pytest.mark.slow
def test_a_run_from_its_start_to_its_export(make, tmp_path, shown):
    """Started, stopped, gone on with, talked to, evaluated, exported: it learns what `train` does, to the last bit."""
    write_sample(tmp_path / "rows.jsonl", 32, size=48)
    studio = make(dataset=tmp_path / "rows.jsonl", model_id="qwen2.5-vl", seed=3, **SETTINGS)
    run, words = studio.tabs["run"], texts("en")
    assert studio.start().rows["trained"] == 24
    with pytest.raises(ValueError, match="run-1"):
        studio.start()
    run.buttons["stop"].click()  # it ends after its first step
    assert studio.run.state == "stopping"
    assert studio.watch() == "stopped" and 'data-state="stopped"' in run.state.value, studio.run.log_lines()
    assert max(studio.run.history()) == 1 and run.buttons["start"].description == words["button.resume"]
    run.buttons["start"].click()
    assert studio.worker.is_busy is False and studio.watch() == "finished", studio.run.log_lines()
    assert run.bar.value == 1 and 'data-last-step="16"' in run.charts.value
    assert words["samples.step"].format(step=16) in shown(run.samples).text

    turn = studio.chat("What is it?", [Image.new("RGB", (48, 48), "red")], base=True, max_new_tokens=4)
    assert set(turn.answers) == {"base", "tuned"} and studio.turns == [turn]
    result = studio.evaluate(rows=2, max_new_tokens=4)
    assert {name: len(answers) for name, answers in result.answers.items()} == {"base": 2, "tuned": 2}
    evaluate, export = studio.tabs["evaluate"], studio.tabs["export"]
    evaluate.form.fill({"rows": 2, "max_new_tokens": 4, "metrics": "ANLS"})
    evaluate.buttons["evaluate"].click()
    assert "ANLS" in shown(evaluate.out).text and len(evaluate.browser.children) == 1
    export.forms["export"].fill({"form": "adapter", "check": False})
    export.buttons["export"].click()
    assert studio.turns == [] and str(studio.run.folder) in shown(export.out).text and "\u26a0" not in export.out.value

    vlm.train(replace(studio.config, output_dir=str(tmp_path / "by_hand")))
    trained, by_hand = (
        folder / "adapter" / "adapter_model.safetensors" for folder in (studio.run.folder, tmp_path / "by_hand")
    )
    assert trained.read_bytes() == by_hand.read_bytes()
