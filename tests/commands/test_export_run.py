"""Exports of a run: whole and checked, for llama.cpp, or with a card; and what would be sent to the Hub."""

import shutil

import pytest

from vlmhelpers.commands.evaluating import evaluate_run
from vlmhelpers.commands.exporting import export_run, push_run
from vlmhelpers.commands.settings import Evaluating, Exporting, Merging, Pushing
from vlmhelpers.families import tiny_model

pytestmark = pytest.mark.slow

CONVERTER = """
import pathlib, sys
pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1]).write_bytes(b"GGUF")
"""


def test_a_merged_model_is_checked_and_served_by_commands(run):
    exported = export_run(Merging(model=str(run), dtype="float32"))
    assert exported.ok and exported.check.agreement.value == 1 and (run / "merged" / "config.json").is_file()
    assert exported.commands[0].startswith(f"transformers serve {run / 'merged'} ")
    assert exported.commands[1].startswith(f"vllm serve {run / 'merged'} ")
    assert exported.commands[2] == f"ollama create tuned -f {run / 'merged.Modelfile'}"
    assert (run / "merged.Modelfile").read_text().startswith(f"FROM {run / 'merged'}\n")
    assert f"merged -> {run / 'merged'}" in str(exported) and "ollama create" in exported._repr_html_()
    with pytest.raises(FileExistsError, match="choose another folder"):
        export_run(Merging(model=str(run)))


def test_without_held_out_rows_it_says_that_it_was_not_checked(run):
    shutil.rmtree(run / "held_out")
    exported = export_run(Exporting(model=str(run), output=str(run / "out")))
    assert exported.check is None and exported.ok and "Not checked" in str(exported)


def test_gguf_files_are_made_of_a_merged_model_that_goes(run, tmp_path):
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    exported = export_run(Exporting(model=str(run), form="gguf", llama_cpp=str(tmp_path), check=False))
    names = ["Modelfile", "merged-f16.gguf", "mmproj-merged-f16.gguf"]
    assert sorted(path.name for path in (run / "gguf").iterdir()) == names
    assert exported.commands == [f"ollama create tuned -f {run / 'gguf' / 'Modelfile'}"]


def test_an_earlier_merged_model_stays_whatever_becomes_of_the_files(run, tmp_path):
    (run / "merged").mkdir()
    (run / "merged" / "model.safetensors").write_bytes(b"precious")
    (tmp_path / "convert_hf_to_gguf.py").write_text(CONVERTER)
    settings = Exporting(model=str(run), form="gguf", output=str(run), llama_cpp=str(tmp_path), check=False)
    assert export_run(settings).ok and (run / "merged-f16.gguf").is_file()
    (tmp_path / "convert_hf_to_gguf.py").write_text("raise SystemExit(1)")
    with pytest.raises(RuntimeError, match="failed"):
        export_run(settings)
    assert (run / "merged" / "model.safetensors").read_bytes() == b"precious"
    assert not list(run.glob("*.part"))


def test_without_a_converter_nothing_is_merged(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    with pytest.raises(FileNotFoundError, match="git clone"):
        export_run(Exporting(model=str(run), form="gguf"))
    assert not (run / "gguf").exists()


def test_graphs_for_onnxruntime_are_made_of_a_merged_model_and_compared_with_it(run):
    exported = export_run(Exporting(model=str(run), form="onnx", dtype="float32"))
    assert exported.ok and exported.check.answers["onnx"] == ["Sold out."] * 6
    assert (run / "onnx" / "decoder.onnx").is_file() and not list(run.glob("*.part"))
    assert f"OnnxModel({str(run / 'onnx')!r})" in str(exported) and "logits are at most" in str(exported)


def test_an_adapter_gets_a_card_with_the_last_scores_and_can_be_pushed(run):
    without = export_run(Exporting(model=str(run), form="adapter", output=str(run / "plain")))
    assert "no scores" in str(without)
    evaluate_run(Evaluating(model=str(run)))
    exported = export_run(Exporting(model=str(run), form="adapter"))
    card = (run / "adapter_with_card" / "README.md").read_text()
    assert not exported.notes and "exact match" in card
    assert exported.commands[0].startswith(f"vllm serve {tiny_model('qwen2.5-vl')} --enable-lora")
    upload = push_run(Pushing(folder=exported.folder, repo_id="me/adapter"))
    assert upload.url is None and upload.private and "README.md" in upload.files


def test_a_whole_model_is_served_where_it_lies(run):
    shutil.rmtree(run / "adapter")
    shutil.copytree(tiny_model("qwen2.5-vl"), run / "model")
    exported = export_run(Exporting(model=str(run)))
    assert exported.folder == str(run / "model") and "a whole model already" in str(exported)
    with pytest.raises(ValueError, match="no adapter: choose form=merged"):
        export_run(Exporting(model=str(run), form="adapter"))


def test_what_a_run_leaves_has_no_card_to_push(run):
    with pytest.raises(ValueError, match="export the run with form=adapter"):
        push_run(Pushing(folder=str(run / "adapter"), repo_id="me/adapter"))
    with pytest.raises(FileNotFoundError, match="export the run first"):
        push_run(Pushing(folder=str(run / "gone"), repo_id="me/adapter"))
