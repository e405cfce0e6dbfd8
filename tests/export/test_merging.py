"""A merged model answers as its adapter from its own folder, and whatever went wrong is found."""

import json
import os
import re
import shutil
import sys
import traceback
from dataclasses import replace
from types import SimpleNamespace

import psutil
import pytest
import torch
from peft import LoraConfig
from phi3_vision_parts import publish
from quick_adapter import sample_rows, train_adapter
from safetensors.torch import load_file, save_file

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.commands.tuned import load_tuned
from vlmhelpers.export import adapters, probing, verification
from vlmhelpers.export.adapters import attach, merge, save_adapter
from vlmhelpers.export.hub import merged_card
from vlmhelpers.export.serving import vllm_command
from vlmhelpers.export.verification import check_export
from vlmhelpers.families import TINY_BASES, tiny_model
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.backends import add_lora
from vlmhelpers.models.loading import load_model, load_processor
from vlmhelpers.models.lora import lora_targets


@pytest.fixture(scope="module")
def adapter_of(rows_of, tmp_path_factory):
    """Makes the adapter of a family once, with adapters in all towers: (folder, its rows, its answers)."""
    made = {}

    def make(family):
        if family not in made:
            dataset = sample_rows(rows_of)
            model, processor = train_adapter(family, dataset, vision=True)
            folder = save_adapter(model, processor, tmp_path_factory.mktemp("adapters") / family)
            made[family] = folder, dataset, generate(model, processor, dataset, progress=False)
        return made[family]

    return make


@pytest.fixture(scope="module")
def merged(adapter_of, tmp_path_factory):
    """(the folder of a merged Qwen2.5-VL, the adapter's, the rows)."""
    adapter, dataset, _ = adapter_of("qwen2.5-vl")
    return merge(adapter, tmp_path_factory.mktemp("merged") / "model"), adapter, dataset


@pytest.fixture
def in_this_process(monkeypatch):
    """Saves the time that a fresh process takes to start, where it is not what is tested."""

    def run(command, *_):
        try:
            probing._main(*map(str, command[2:]))
        except Exception:
            return SimpleNamespace(returncode=1, stderr=traceback.format_exc())
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(probing, "run_python", run)
    monkeypatch.setattr(probing, "quiet", lambda: None)


@pytest.mark.slow
@pytest.mark.parametrize("family", TINY_BASES)
def test_merged_weights_answer_as_the_adapter(family, adapter_of, tmp_path):
    adapter, dataset, answers = adapter_of(family)
    out = merge(adapter, tmp_path / "merged", dtype=torch.float32)
    model, processor = load_model(out, bits=16)
    assert generate(model, processor, dataset, progress=False) == answers
    base, _ = load_model(tiny_model(family), bits=16)
    assert generate(base, processor, dataset, progress=False) != answers
    for name in (*(p.name for p in adapter.iterdir() if p.suffix == ".jinja" or "token" in p.name), "config.json",
                 "generation_config.json", "processor_config.json", "preprocessor_config.json"):  # fmt: skip
        assert (out / name).is_file(), name
    assert "quantization_config" not in json.loads((out / "config.json").read_text())
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.slow
def test_code_that_is_not_in_the_folder_is_not_named_there(tmp_path):
    (tmp_path / "base").mkdir()
    publish(tmp_path / "base")
    assert "auto_map" in (tmp_path / "base/config.json").read_text()
    model, processor = load_model(tmp_path / "base", bits=16)
    model = add_lora(model, LoraConfig(r=2, target_modules=["qkv_proj"]))
    adapter = save_adapter(model, processor, tmp_path / "adapter")
    merged = merge(adapter, tmp_path / "merged", base=tmp_path / "base")
    files = [file for folder in (adapter, merged) for file in folder.glob("*.json")]
    assert len(files) > 8 and not [file for file in files if '"auto_map"' in file.read_text()]
    load_model(merged, bits=16)


@pytest.mark.slow
def test_sixteen_bits_by_default_and_in_shards(adapter_of, tmp_path):
    out = merge(adapter_of("qwen3-vl")[0], tmp_path / "merged", max_shard_size="1MB")
    shards = list(out.glob("*.safetensors"))
    assert len(shards) > 1 and (out / "model.safetensors.index.json").is_file()
    assert {tensor.dtype for shard in shards for tensor in load_file(shard).values()} == {torch.bfloat16}


@pytest.fixture
def no_memory(monkeypatch):
    """Half a megabyte of memory, and what was merged into files."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**19))
    mapped, map_tensor = [], adapters._mapped
    monkeypatch.setattr(adapters, "_mapped", lambda *arguments: mapped.append(1) or map_tensor(*arguments))
    return mapped


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="needs the memory there")
def test_short_memory_merges_into_files_with_the_same_result(adapter_of, tmp_path, no_memory, monkeypatch):
    adapter, base = adapter_of("qwen3-vl")[0], tiny_model("qwen3-vl")
    dtype = load_file(base / "model.safetensors")["lm_head.weight"].dtype
    merge(adapter, tmp_path / "short", dtype=dtype)
    layers = sum("lora_A" in name for name in load_file(adapter / "adapter_model.safetensors"))
    assert len(no_memory) >= layers > 0
    monkeypatch.undo()
    merge(adapter, tmp_path / "whole", dtype=dtype)
    files = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert sorted(path.name for path in (tmp_path / "short").iterdir()) == files
    for name in files:
        assert (tmp_path / "short" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_short_memory_for_another_number_format_is_said(adapter_of, tmp_path, no_memory):
    with pytest.raises(MemoryError, match=r"in torch.float16 needs 0.0 GiB of memory, .* serve the adapter unmerged"):
        merge(adapter_of("qwen3-vl")[0], tmp_path / "merged", dtype=torch.float16)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_good_merge_passes(merged):
    out, adapter, dataset = merged
    check = check_export(out, adapter, dataset, rows=4, max_new_tokens=12, four_bit=True).raise_if_wrong()
    answers = check.answers
    assert check.ok and answers["export"] == answers["adapter"] != answers["base"] and check.agreement.value == 1
    assert check.distance < 0.05 < check.base_distance and len(answers["adapter in 4 bits"]) == 4
    assert "4 of 4 rows" in repr(check) and "<td" in check._repr_html_()


@pytest.mark.slow
@pytest.mark.parametrize("has_card", [True, False])
def test_the_card_of_a_merged_model_loads_it(has_card, merged, tmp_path, monkeypatch):
    out, adapter, _ = merged
    card = merged_card(adapter if has_card else tmp_path, "qwen2.5-vl")
    data = card.data
    assert (data.base_model, data.library_name, data.license) == ("qwen2.5-vl", "transformers", "apache-2.0")
    assert ("# Adapter merged into qwen2.5-vl" in card.text) == ("## LoRA" in card.text) == has_card
    (code,) = re.findall(r"```python\n(.*?)```", card.text, flags=re.DOTALL)
    monkeypatch.chdir(out)
    names = {}
    exec(code, names)
    assert "peft" not in code and names["model"].dtype == torch.bfloat16 and names["processor"].image_processor
    assert not has_card or (out / "README.md").read_text() == str(card)


@pytest.mark.slow
def test_the_base_in_place_of_the_export_fails(merged, in_this_process):
    _, adapter, dataset = merged
    check = check_export(tiny_with_all_files(merged), adapter, dataset, rows=2, max_new_tokens=12)
    assert not check and any("every answer is the base's" in problem for problem in check.problems)
    with pytest.raises(ValueError, match="are not the adapter's, such as row 0"):
        check.raise_if_wrong()


def tiny_with_all_files(merged):
    """The base's weights in a copy of the merged folder: what an adapter that does nothing leaves."""
    copy = copy_of(merged[0], "base")
    shutil.copyfile(tiny_model("qwen2.5-vl") / "model.safetensors", copy / "model.safetensors")
    return copy


def copy_of(folder, name):
    return shutil.copytree(folder, folder.parent / name, dirs_exist_ok=True)


@pytest.mark.slow
def test_perturbed_weights_and_another_normalization_fail(merged, in_this_process):
    out, adapter, dataset = merged
    copy = copy_of(out, "perturbed")
    weights = load_file(copy / "model.safetensors")
    name = next(name for name in weights if name.endswith("layers.1.mlp.down_proj.weight"))
    weights[name] = weights[name] + 0.2 * torch.randn(weights[name].shape, generator=torch.manual_seed(0)).bfloat16()
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((copy / "processor_config.json").read_text())
    config["image_processor"]["image_mean"] = [0.1, 0.2, 0.3]
    (copy / "processor_config.json").write_text(json.dumps(config))
    check = check_export(copy, adapter, dataset, rows=2, max_new_tokens=12)
    text = "; ".join(check.problems)
    assert "its processor makes other tensors than the adapter's of row 0" in text and "image_mean" in text
    assert "the probabilities of the tokens of the adapter's answers are" in text


@pytest.mark.slow
def test_a_missing_file_is_named(merged):
    out, adapter, dataset = merged
    copy = copy_of(out, "incomplete")
    (copy / "preprocessor_config.json").unlink()
    (copy / "tokenizer.json").unlink()
    check = check_export(copy, adapter, dataset, rows=1, max_new_tokens=2)
    assert [p.rpartition(" ")[2] for p in check.problems][:2] == ["preprocessor_config.json", "tokenizer.json"]


@pytest.mark.slow
def test_what_a_broken_export_says_in_a_fresh_process_is_shown(merged, in_this_process):
    out, adapter, dataset = merged
    broken = copy_of(out, "broken")
    (broken / "config.json").write_text("{}")
    check = check_export(broken, adapter, dataset, rows=1, max_new_tokens=2)
    assert "does not load and answer in a fresh process" in check.problems[0]
    assert "Unrecognized model" in check.problems[0]


def test_the_last_lines_of_a_failed_process_are_shown(merged, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text(f"#!{sys.executable}\nimport sys\nsys.exit('one\\ntwo\\nthree\\nRuntimeError: out of memory')\n")
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    with pytest.raises(RuntimeError, match="in a fresh process: two\nthree\nRuntimeError: out of memory"):
        probing.probe_in_fresh_process(merged[0], merged[2], 2, [])


@pytest.mark.slow
def test_probabilities_of_any_answer_are_those_of_one_pass_over_it(rows_of):
    """Also of an empty one, and of one that no chat template takes back."""
    model, processor = load_model(tiny_model("qwen2.5-vl"), bits=16)
    dataset, end = sample_rows(rows_of).select(range(2)), model.generation_config.eos_token_id
    end = end[0] if isinstance(end, list) else end
    twice = [*processor.tokenizer("</think> a </think>", add_special_tokens=False)["input_ids"], end]
    found = probing.probe(model, processor, dataset, 3, [[end], twice])
    assert [len(likely) for likely in found.probabilities] == [1, len(twice)] and all(map(len, found.tokens))
    for row, answer, likely in zip(dataset, ([end], twice), found.probabilities, strict=True):
        batch = VisionCollator(processor).prompts([row])
        length, answer = batch["input_ids"].shape[1], torch.tensor([answer])
        for name, more in {
            "input_ids": answer,
            "attention_mask": answer * 0 + 1,
            "mm_token_type_ids": answer * 0,
        }.items():
            batch[name] = torch.cat([batch[name], more], dim=1)
        with torch.no_grad():
            whole = model(**batch).logits[0, length - 1 : -1].softmax(-1).gather(1, answer.T)[:, 0]
        torch.testing.assert_close(torch.tensor(likely), whole, rtol=1e-3, atol=1e-5)


def test_answers_are_compared_by_their_tokens():
    one = probing.Probe(["ab"], [[1, 2]], [[0.9, 0.9]], [[0.9, 0.9]], ["x"], {})
    base = probing.Probe(["c"], [[3]], [[0.9]], [[0.1, 0.1]], ["x"], {})
    assert not verification._problems(one, one, base, [0], 1.0, 0.05)
    other = replace(one, tokens=[[7]], own=[[1.0]], probabilities=[[0.86, 0.9]])
    (problem,) = verification._problems(other, one, base, [0], 1.0, 0.05)
    assert problem.endswith("row 0: 'ab' instead of 'ab', written with other tokens")


def test_rounding_excuses_an_answer_that_parts_at_a_nearly_tied_token():
    adapter = probing.Probe(["ab"], [[1, 2, 9]], [[0.9, 0.42, 0.9]], [[0.9, 0.42, 0.9]], ["x"], {})
    base = probing.Probe(["c"], [[3]], [[0.9]], [[0.1, 0.1, 0.1]], ["x"], {})
    tied = replace(adapter, answers=["ac"], tokens=[[1, 5, 9]], own=[[0.9, 0.43, 0.9]], probabilities=[[0.9, 0.4, 0.9]])
    assert not verification._problems(tied, adapter, base, [0], 1.0, 0.05)
    sure = replace(tied, own=[[0.9, 0.5, 0.9]])
    (problem,) = verification._problems(sure, adapter, base, [0], 1.0, 0.05)
    assert "1 of 1 answers are not the adapter's" in problem
    shorter = replace(tied, tokens=[[1, 2]])  # cut off where the adapter goes on
    assert verification._problems(shorter, adapter, base, [0], 1.0, 0.05)


@pytest.mark.slow
def test_an_adapter_that_changes_no_answer_proves_nothing(merged, tmp_path, in_this_process):
    out, adapter, dataset = merged
    idle = shutil.copytree(adapter, tmp_path / "idle")
    tensors = load_file(idle / "adapter_model.safetensors")
    tensors = {name: 0 * tensor if "lora_B" in name else tensor for name, tensor in tensors.items()}
    save_file(tensors, idle / "adapter_model.safetensors")
    check = check_export(out, idle, dataset, rows=[0], max_new_tokens=8)
    assert check.base_distance == 0 and any("proves nothing" in problem for problem in check.problems)
    with pytest.raises(ValueError, match="nothing to compare"):
        check_export(out, adapter, dataset.select([]))


def test_an_adapter_over_4_bits_merges_into_16_bits(rows_of, tmp_path):
    dataset = sample_rows(rows_of)
    model, processor = train_adapter("qwen3-vl", dataset, bits=4)
    out = merge(save_adapter(model, processor, tmp_path / "adapter"), tmp_path / "merged")
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.bfloat16}


@pytest.fixture
def tied(tmp_path):
    """A base that uses one matrix for embeddings and head: (its folder, the model, the processor)."""
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    model.config.tie_word_embeddings = True
    model.tie_weights()
    model.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    return tmp_path / "base", *load_model(tmp_path / "base", bits=16)


@pytest.mark.parametrize("targets, fits", [(r".*language_model.*q_proj", True), (r"lm_head", False)])
def test_tied_embeddings_stay_tied(targets, fits, tied, tmp_path):
    base, model, processor = tied
    model = add_lora(model, LoraConfig(r=2, target_modules=targets, init_lora_weights=False))
    adapter = save_adapter(model, processor, tmp_path / "adapter")
    if not fits:
        with pytest.raises(ValueError, match="one matrix for embeddings and head"):
            merge(adapter, tmp_path / "merged", base=base)
        return
    out, _ = load_model(merge(adapter, tmp_path / "merged", base=base), bits=16)
    assert "lm_head.weight" not in load_file(tmp_path / "merged" / "model.safetensors")
    assert out.get_input_embeddings().weight is out.get_output_embeddings().weight


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{"modules_to_save": ["lm_head"]}, {"modules_to_save": ["embed_tokens"]}, {"trainable_token_indices": [5, 7]}],
    ids=str,
)
def test_saved_embeddings_of_a_tied_base_are_merged(options, tied, tmp_path, rows_of):
    base, model, processor = tied
    model = add_lora(model, LoraConfig(r=2, target_modules=lora_targets(model), init_lora_weights=False, **options))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    batch = VisionCollator(processor)([*rows_of([("What?", "A hat.", [])])])
    merge(save_adapter(model, processor, tmp_path / "adapter"), tmp_path / "merged", base=base, dtype=torch.float32)
    out, _ = load_model(tmp_path / "merged", bits=16)
    with torch.no_grad():
        assert torch.allclose(out(**batch).logits, model.eval()(**batch).logits, atol=1e-3)
    # Programs that go by the configuration would take the embeddings for the head, or leave out what is new.
    same = out.get_input_embeddings().weight.equal(out.get_output_embeddings().weight)
    assert out.config.tie_word_embeddings is same


@pytest.mark.slow
def test_a_tokenizer_that_is_larger_than_the_embeddings_is_refused(adapter_of, tmp_path):
    adapter = shutil.copytree(adapter_of("qwen2.5-vl")[0], tmp_path / "adapter")
    processor = load_processor(adapter)
    processor.tokenizer.add_tokens([f"<part{i}>" for i in range(200)])
    processor.save_pretrained(adapter)
    base, _ = load_model(tiny_model("qwen2.5-vl"), bits=16)
    uses = [
        lambda: attach(base, adapter),
        lambda: merge(adapter, tmp_path / "merged"),
        lambda: vllm_command(tiny_model("qwen2.5-vl"), adapter),
        lambda: load_tuned(adapter),
    ]
    for use in uses:
        with pytest.raises(ValueError, match=r"'<part\d+>', for which the model has no embedding .*base=\.\.\."):
            use()
    with pytest.raises(ValueError, match=r"'<part\d+>', .* call model.resize_token_embeddings"):
        save_adapter(add_lora(base, LoraConfig(r=2, target_modules=["q_proj"])), processor, tmp_path / "saved")
    base, _ = load_model(tiny_model("qwen2.5-vl"), bits=16)
    base.resize_token_embeddings(len(processor.tokenizer))
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    whole, _ = load_model(merge(adapter, tmp_path / "merged", base=tmp_path / "base"), bits=16)
    assert whole.get_input_embeddings().num_embeddings == len(processor.tokenizer)
    model = add_lora(base, LoraConfig(r=2, target_modules=["q_proj"]))  # as it is in memory alone
    with pytest.raises(ValueError, match=r"'<part\d+>', .*Save the resized model .* or save what"):
        save_adapter(model, processor, tmp_path / "saved")
    model, _ = load_model(tmp_path / "base", bits=16)
    save_adapter(add_lora(model, LoraConfig(r=2, target_modules=["q_proj"])), processor, tmp_path / "saved")
    attach(load_model(tmp_path / "base", bits=16)[0], tmp_path / "saved")
    assert "--enable-lora" in vllm_command(tmp_path / "base", tmp_path / "saved")


@pytest.mark.parametrize("change", ["rename", "drop", "other base"])
def test_an_adapter_that_does_not_fit_is_refused(change, adapter_of, tmp_path):
    adapter = shutil.copytree(adapter_of("qwen2.5-vl")[0], tmp_path / "adapter")
    tensors = load_file(adapter / "adapter_model.safetensors")
    name = next(iter(tensors))
    if change == "rename":  # as after a change of names in transformers
        tensors = {key.replace("language_model.layers", "decoder.layers"): value for key, value in tensors.items()}
    if change == "drop":
        del tensors[name]
    save_file(tensors, adapter / "adapter_model.safetensors")
    base = "llama-3.2-vision" if change == "other base" else None
    with pytest.raises(ValueError, match="does not fit its base"):
        merge(adapter, tmp_path / "merged", base=base)
    assert not (tmp_path / "merged").exists() and not list(tmp_path.glob("*.part"))


def test_what_is_refused_before_anything_is_written(adapter_of, tmp_path, monkeypatch):
    adapter = adapter_of("qwen2.5-vl")[0]
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="is not empty"):
        merge(adapter, tmp_path / "full")
    with pytest.raises(FileNotFoundError, match="base=..."):
        merge(adapter, tmp_path / "merged", base="someone/not-here")
    with pytest.raises(FileNotFoundError, match="no adapter_config.json"):
        merge(tmp_path / "full", tmp_path / "merged")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(OSError, match="make room"):
        merge(adapter, tmp_path / "merged")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
