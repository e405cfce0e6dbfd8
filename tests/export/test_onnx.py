"""onnxruntime answers as the model that was exported, whatever the prompt; what cannot be exported is refused."""

import json
import shutil

import numpy as np
import pytest
import torch
from quick_adapter import sample_rows, train_adapter

from vlmhelpers.export import onnx as exporter
from vlmhelpers.export.adapters import merge, save_adapter
from vlmhelpers.export.onnx import to_onnx
from vlmhelpers.export.onnx_check import check_onnx
from vlmhelpers.export.onnx_runtime import OnnxModel
from vlmhelpers.families import tiny_model
from vlmhelpers.models.loading import load_weights

pytestmark = pytest.mark.slow

TINY_BASES = ("phi-3-vision", "qwen3-vl")


@pytest.fixture(scope="module")
def exported(rows_of, tmp_path_factory):
    """Merges an adapter and exports the model, once per family: (folder of the export, of the merged model, rows)."""
    made = {}

    def make(family):
        if family not in made:
            folder, learned = tmp_path_factory.mktemp("onnx"), sample_rows(rows_of)
            adapter = save_adapter(*train_adapter(family, learned), folder / "adapter")
            merged = merge(adapter, folder / "merged", dtype=torch.float32)
            made[family] = to_onnx(merged, folder / "onnx"), merged, learned
        return made[family]

    return make


@pytest.fixture(scope="module")
def mixed(rows_of, picture):
    """Rows of one image, of none, of a wide one, and of two: no size or length as in the example of the export."""
    wide, question = picture.resize((130, 60)), "What is it? " * 8
    rows = [("What is it?", "", [picture]), (question, "", []), (question, "", [wide]), ("Both?", "", [picture, wide])]
    return rows_of(rows)


@pytest.mark.parametrize("family", TINY_BASES)
def test_answers_and_logits_are_those_of_the_merged_model(family, exported, mixed):
    folder, merged, learned = exported(family)
    check = check_onnx(folder, merged, mixed, max_new_tokens=12).raise_if_wrong()
    assert check.distance < 1e-4 and "4 of 4 answers are the model's" in repr(check) and "<table" in check._repr_html_()
    tuned = check_onnx(folder, merged, learned).raise_if_wrong()
    wanted = [row["messages"][-1]["content"][0]["text"] for row in learned]
    assert sum(map(str.__eq__, tuned.answers["onnx"], wanted)) >= 3


@pytest.mark.parametrize("family", TINY_BASES)
def test_rows_of_a_batch_are_padded_on_either_side(family, exported, mixed):
    folder, merged, _ = exported(family)
    onnx, model = OnnxModel(folder), load_weights(merged, dtype=torch.float32).eval()
    rows = [mixed[i] for i in (0, 2, 3)]
    for batch in (onnx.collator.prompts(rows), onnx.collator([{**r, "messages": answered(r)} for r in rows])):
        batch.pop("labels", None)
        with torch.inference_mode():
            expected = model(**batch).logits.numpy()
        is_text = (batch["attention_mask"].bool() & (batch["input_ids"] != onnx.numbers["image_token_id"])).numpy()
        assert 0 < is_text.sum() < is_text.size
        assert np.abs(onnx.logits(batch) - expected)[is_text].max() < 1e-4


def answered(row):
    answer = {"role": "assistant", "content": [{"type": "text", "text": "A blue hat."}]}
    return [row["messages"][0], answer]


def test_beyond_the_short_factors_of_positions_all_is_computed_anew(exported, mixed):
    folder, merged, _ = exported("phi-3-vision")
    onnx, model = OnnxModel(folder), load_weights(merged, dtype=torch.float32).eval()
    limit = onnx.numbers["restart_length"]
    assert limit == 4096
    ids = torch.randint(5, 900, (1, limit + 4), generator=torch.Generator().manual_seed(0))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.inference_mode():
        expected = model(**batch, logits_to_keep=1).logits[0, 0]
    assert np.abs(onnx.logits(batch)[0, -1] - expected.numpy()).max() < 1e-3 < 1 < expected.abs().max()
    usual, computed = onnx.generate([mixed[0]], 8), []
    length = onnx.collator.prompts([mixed[0]])["input_ids"].shape[1]
    onnx.numbers["restart_length"], make = length + 1, onnx._inputs
    onnx._inputs = lambda batch: computed.append(batch["input_ids"].shape[1]) or make(batch)
    assert onnx.generate([mixed[0]], 8) == usual and computed == [length, length + 2]


def test_other_weights_are_found_out(exported, tmp_path):
    folder, merged, learned = exported("phi-3-vision")
    broken = shutil.copytree(folder, tmp_path / "broken")
    data = np.fromfile(broken / "decoder.onnx.data", np.float32)
    data[::2] *= -1
    data.tofile(broken / "decoder.onnx.data")
    check = check_onnx(broken, merged, learned)
    assert (
        not check and "answers are not the model's" in repr(check) and "of the largest from the model's" in repr(check)
    )
    with pytest.raises(ValueError, match="not what it should be"):
        check.raise_if_wrong()
    base = check_onnx(folder, tiny_model("phi-3-vision"), learned, rows=2)
    assert not base and len(base.rows) == 2
    (broken / "vision.onnx").unlink()
    with pytest.raises(FileNotFoundError, match="has no vision.onnx"):
        OnnxModel(broken)
    with pytest.raises(ValueError, match="nothing to compare"):
        check_onnx(folder, merged, learned.select([]))


def test_what_cannot_be_exported_is_refused_before_anything_is_loaded(tmp_path, monkeypatch):
    out = tmp_path / "onnx"
    with pytest.raises(ValueError, match="llama-3.2-vision, which has no ONNX export here: its text attends"):
        to_onnx(tiny_model("llama-3.2-vision"), out)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava"}))
    with pytest.raises(ValueError, match="is not known here"):
        to_onnx(tmp_path, out)
    monkeypatch.setattr(exporter, "find_spec", lambda name: name != "onnxruntime")
    with pytest.raises(ImportError, match="ONNX needs onnxruntime: pip install"):
        to_onnx(tiny_model("phi-3-vision"), out)
    with pytest.raises(ImportError, match="ONNX needs onnxruntime"):
        OnnxModel(tmp_path)
    assert not out.exists()
