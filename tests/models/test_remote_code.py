"""Folders that bring code of their own: it is never run, nobody is asked, and one sentence says so."""

import io
import json
import shutil
import sys

import pytest
from peft import LoraConfig
from quick_adapter import sample_rows

from vlmhelpers.estimation.planning import preflight
from vlmhelpers.export.adapters import find_base, merge, save_adapter
from vlmhelpers.export.serving import vllm_command
from vlmhelpers.export.verification import check_export
from vlmhelpers.families import find_config, tiny_model
from vlmhelpers.models.backends import add_lora
from vlmhelpers.models.loading import choose_model, load_model, load_processor

CODE = "open({file!r}, 'w').close()\nclass X: pass\n"
NAMES = {"config": "AutoConfig", "model": "AutoModelForImageTextToText", "tokenizer": "AutoTokenizer"}
NAMES |= {"processor": "AutoProcessor", "image processor": "AutoImageProcessor"}


class Asked(io.StringIO):
    """A terminal where somebody would answer yes."""

    def readline(self, *_):
        pytest.fail("somebody was asked")

    read = __next__ = readline


@pytest.fixture
def executed(tmp_path, monkeypatch):
    """The file that the code of a folder makes when it is run."""
    monkeypatch.setattr(sys, "stdin", Asked())
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("somebody was asked"))
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "modules"))
    yield tmp_path / "executed"
    assert not (tmp_path / "executed").exists()


def bring_code(folder, executed, parts=tuple(NAMES), known=False):
    """`folder` with code for these parts, of a model type or classes that transformers does not have, or does."""
    (folder / "evil.py").write_text(CODE.format(file=str(executed)))
    auto_map = {NAMES[part]: ["evil.X", None] if part == "tokenizer" else "evil.X" for part in parts}
    for name in ("config", "tokenizer_config", "processor_config", "preprocessor_config", "adapter_config"):
        file = folder / f"{name}.json"
        if file.is_file():
            content = json.loads(file.read_text()) | {"auto_map": auto_map}
            if not known:
                changes = {"config": {"model_type": "evil"}, "tokenizer_config": {"tokenizer_class": "EvilTokenizer"}}
                changes |= {"processor_config": {"processor_class": "EvilProcessor"}}
                content |= changes.get(name, {})
            file.write_text(json.dumps(content))
    return folder


@pytest.fixture
def received(tmp_path, executed):
    """A folder as one would download it, with code for all its parts."""
    return bring_code(shutil.copytree(tiny_model("qwen2.5-vl"), tmp_path / "received"), executed)


@pytest.mark.parametrize("load", [load_model, load_processor, find_config, lambda path: load_model(choose_model(path))])
def test_a_model_with_code_is_refused(load, received):
    with pytest.raises(ValueError, match="brings code of its own, which is not executed"):
        load(received)


@pytest.mark.parametrize("part", NAMES)
def test_what_transformers_has_loads_without_the_code(part, tmp_path, executed):
    folder = bring_code(shutil.copytree(tiny_model("qwen2.5-vl"), tmp_path / "known"), executed, [part], known=True)
    model, processor = load_model(folder, bits=16)
    assert type(model).__module__.startswith("transformers.") and type(processor).__module__.startswith("transformers.")


@pytest.fixture
def adapter(tmp_path):
    model, processor = load_model(tiny_model("qwen2.5-vl"), bits=16)
    model = add_lora(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    return save_adapter(model, processor, tmp_path / "adapter")


def test_exports_refuse_code_of_a_base(adapter, received, rows_of, tmp_path):
    dataset = sample_rows(rows_of, 1)
    for use in (
        lambda: merge(adapter, tmp_path / "merged", base=received),
        lambda: find_base(adapter, received),
        lambda: check_export(received, adapter, dataset, base=received),
        lambda: preflight(dataset, load_processor(tiny_model("qwen2.5-vl")), received),
    ):
        with pytest.raises(ValueError, match="brings code of its own, which is not executed"):
            use()
    assert not (tmp_path / "merged").exists()
    assert vllm_command(received, adapter).startswith("vllm serve ") and "trust" not in vllm_command(received, adapter)


def test_an_adapter_with_code(adapter, executed, tmp_path):
    bring_code(adapter, executed)
    with pytest.raises(ValueError, match="brings code of its own, which is not executed"):
        merge(adapter, tmp_path / "merged")
