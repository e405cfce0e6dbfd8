"""Answers and scores of a tuned model and its base: saved, gone on with, and read again."""

import json
from dataclasses import replace
from unittest import mock

import pytest

from vlmhelpers.commands import evaluating
from vlmhelpers.commands.answering import batch_options, rows_to_answer
from vlmhelpers.commands.evaluating import EvaluationResult, evaluate_run
from vlmhelpers.commands.exporting import export_run
from vlmhelpers.commands.generating import generate_answers
from vlmhelpers.commands.settings import Evaluating, Exporting, Generating
from vlmhelpers.commands.tuned import find_run, load_tuned, use_tuned
from vlmhelpers.data.schema import answer_of
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.run import load_held_out

pytestmark = pytest.mark.slow

FAMILY = "qwen2.5-vl"


def evaluated(run, **settings):
    return evaluate_run(Evaluating(model=str(run), **settings))


def test_a_run_is_compared_with_its_base_by_its_held_out_rows(run):
    told = []
    settings = Evaluating(model=str(run), prompted=True, ablation=True, metrics="anls, Token F1")
    result = evaluate_run(settings, lambda *progress: told.append(progress))
    assert list(result.answers) == ["base", "prompted", "tuned"] and result.answers["tuned"] == ["Sold out."] * 6
    assert ("base", 0, 6) in told and ("tuned", 6, 6) in told and ("ablation", 6, 6) in told
    assert list(result.evaluations["base"].scores) == ["exact match", "ANLS", "token F1"]
    assert result.comparison.difference == 1 and len(result.comparison.pairs) == 3
    assert result.ablation.verdict.startswith("It does not use the image")
    assert "tuned minus base: +100.0 points" in str(result) and str(run / "evaluation") in str(result)
    assert "It does not use the image" in result._repr_html_() and result.browser.kinds["gained"] == list(range(6))
    saved = json.loads((run / "evaluation" / "evaluation.json").read_text())
    assert saved["scores"]["tuned"]["exact match"]["value"] == 1 and saved["rows"] == 6
    assert saved["differences"]["tuned minus base"]["value"] == 1 and saved["verdict"] == result.ablation.verdict
    assert str(result.speeds["tuned"]).endswith(" together on cpu") and str(result.speeds["base"]) in str(result)
    assert result._repr_html_().count(" tokens/s, an answer in ") == 3
    again = EvaluationResult.read(run)
    assert again.answers == result.answers and again.comparison == result.comparison and again.speeds == result.speeds
    assert repr(again.evaluations) == repr(result.evaluations)


def test_what_is_answered_is_not_answered_again_but_by_other_settings(run):
    first = evaluated(run, rows=4, base=False)
    assert list(first.answers) == ["tuned"] and first.comparison is None
    tuned = load_tuned(run)
    with mock.patch.object(tuned.model, "generate", wraps=tuned.model.generate) as asked:
        again = evaluate_run(Evaluating(model=str(run), rows=4, base=False), tuned=tuned)
        assert asked.call_count == 0 and again.speeds == first.speeds != {}
        shorter = evaluate_run(Evaluating(model=str(run), rows=4, base=False, max_new_tokens=1), tuned=tuned)
    assert asked.call_count == 1 and shorter.answers != first.answers


def test_an_evaluation_of_other_rows_or_other_weights_is_not_read(run):
    with pytest.raises(FileNotFoundError):
        EvaluationResult.read(run)
    evaluated(run, rows=2)
    weights = run / "adapter" / "adapter_model.safetensors"
    weights.write_bytes((run / "checkpoint-12" / weights.name).read_bytes())
    with pytest.raises(ValueError, match="of other weights than now: evaluate the run again"):
        EvaluationResult.read(run)


def test_an_evaluation_of_another_form_is_not_read_and_costs_an_export_only_its_scores(run):
    (run / "evaluation").mkdir()
    for text in ("{}", "[]", "no JSON", '{"rows": 6, "answers": {"tuned": ["a"]}}', '{"rows": [], "answers": {}}'):
        (run / "evaluation" / "evaluation.json").write_text(text)
        with pytest.raises(ValueError, match="of another version: evaluate the run again"):
            EvaluationResult.read(run)
    assert "no scores" in str(export_run(Exporting(model=str(run), form="adapter")))


def test_settings_that_the_loaded_model_does_not_have_are_refused(run):
    tuned = load_tuned(run)
    for model in (FAMILY, str(run / "checkpoint-12")):
        with pytest.raises(ValueError, match=f"model is {model}, and the model that is loaded is .*adapter"):
            evaluate_run(Evaluating(model=model), tuned=tuned)
    for wrong in ({"bits": 4}, {"backend": "transformers"}):
        with pytest.raises(ValueError, match=f"{[*wrong][0]} is .*: load it with the other"):
            use_tuned(Evaluating(model=str(run), **wrong), tuned)
    settings = Generating(model=str(run / "adapter"), bits=16, dataset="rows.jsonl", output="answers.jsonl")
    assert use_tuned(settings, tuned) is tuned


def test_a_file_is_read_by_the_fields_of_the_run(trained, run, tmp_path):
    names = {"text_field": "q", "image_field": "photo", "response_field": "a"}
    RunConfig.read(run / "run_config.yaml", **names).save(run / "run_config.yaml")
    image = json.loads((trained.parent / "sample.jsonl").read_text().splitlines()[0])["image"]
    file, usual = tmp_path / "rows.jsonl", tmp_path / "usual.jsonl"
    file.write_text(json.dumps({"q": "What?", "photo": image, "a": "A bag."}))
    usual.write_text(json.dumps({"text": "What?", "response": "A bag."}))
    output, root = str(tmp_path / "answers.jsonl"), str(trained.parent)
    settings = Generating(model=str(run), dataset=str(file), output=output, image_root=root)
    (row,) = rows_to_answer(settings, find_run(settings.model))
    assert len(row["images"]) == 1 and answer_of(row) == "A bag."
    assert len(rows_to_answer(replace(settings, dataset=str(usual)), run)) == 1
    assert len(generate_answers(settings).answers) == 1


def test_only_rows_without_an_answer_are_answered_by_a_guess(run, tmp_path):
    tuned, rows = load_tuned(run), load_held_out(run)["test"]
    settings = Evaluating(model=str(run))
    asked = rows.map(lambda row: {"messages": row["messages"][:-1]})
    assert batch_options(settings, tuned, asked) == {"max_new_tokens": 256, "batch_size": 16, "split": True}
    assert batch_options(settings, tuned, rows)["max_new_tokens"] == 32
    with mock.patch.object(type(tuned.values), "fit_answers", side_effect=ValueError("no memory is known")):
        with pytest.raises(ValueError, match="no memory is known"):
            batch_options(settings, tuned, rows)


def test_an_untuned_model_answers_the_rows_of_a_file(trained, tmp_path):
    dataset = str(trained.parent / "sample.jsonl")
    result = evaluated("qwen2.5-vl", dataset=dataset, rows=3, output=str(tmp_path), system="Be brief.")
    assert list(result.answers) == ["base"] and len(result.dataset) == 3
    assert result.dataset[0]["messages"][0]["role"] == "system"
    with pytest.raises(ValueError, match="no held-out rows: name a dataset"):
        evaluated("qwen2.5-vl")
    with pytest.raises(ValueError, match="give an instruction"):
        evaluated("qwen2.5-vl", dataset=dataset, output=str(tmp_path), prompted=True)


def test_rows_without_images_are_not_ablated(run, tmp_path):
    (tmp_path / "text.jsonl").write_text(json.dumps({"text": "Write 3 as a word.", "response": "<b>Three."}))
    result = evaluated(run, dataset=str(tmp_path / "text.jsonl"), ablation=True, output=str(tmp_path / "out"))
    assert result.ablation is None and result.notes[0].startswith("No image ablation: no two rows")
    assert result.notes[0] in str(result) and "No image ablation" in result._repr_html_()
    assert "<b>" not in result.browser._repr_html_().replace("&lt;b&gt;", "")


def test_rows_without_an_expected_answer_are_refused_before_any_is_answered(run, tmp_path):
    asked = load_held_out(run)["test"].map(lambda row: {"messages": row["messages"][:-1]})
    with mock.patch.object(evaluating, "rows_to_answer", return_value=asked):
        with mock.patch.object(evaluating, "generate", side_effect=AssertionError):
            with pytest.raises(ValueError, match=r"row 0 \(counted from 0\): the row does not end with an assistant"):
                evaluated(run, output=str(tmp_path))


def test_an_unknown_metric_is_refused_before_anything_is_loaded():
    with mock.patch.object(evaluating, "use_model", side_effect=AssertionError):
        with pytest.raises(ValueError, match="there is no 'beauty'; choose all, or some of"):
            evaluated("run", metrics="anls, beauty")
