"""What llama.cpp, Ollama, servers and the Hub get. None of them runs here, only what they are told is tested."""

import json
import os
import shlex
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import save_file

from vlmhelpers.export.hub import push
from vlmhelpers.export.serving import find_converter, ollama_modelfile, serve_command, to_gguf, vllm_command
from vlmhelpers.families import tiny_model

# Stands in for llama.cpp's script: notes what it was called with, and puts mmproj- before a name as that one does.
CONVERTER = """
import json, pathlib, sys
here = pathlib.Path(__file__).parent
with open(here / "calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
if (here / "fail").exists():
    sys.exit("NotImplementedError: BPE pre-tokenizer was not recognized")
out = pathlib.Path(sys.argv[sys.argv.index("--outfile") + 1])
out = out.with_name("mmproj-" + out.name) if PREFIX and "--mmproj" in sys.argv else out
out.write_bytes(b"GGUF")
"""


@pytest.fixture
def converter(tmp_path, monkeypatch):
    """A folder llama.cpp with a stand-in for the converter."""
    monkeypatch.delenv("LLAMA_CPP", raising=False)
    folder = tmp_path / "llama.cpp"
    folder.mkdir()
    (folder / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("PREFIX", "True"))
    return folder


@pytest.mark.parametrize("prefix", ["True", "False"])
def test_the_converter_is_run_for_both_files(prefix, converter, tmp_path):
    (converter / "convert_hf_to_gguf.py").write_text(CONVERTER.replace("PREFIX", prefix))
    files = to_gguf(tiny_model("qwen3-vl"), tmp_path / "gguf", llama_cpp=converter, outtype="q8_0")
    assert files.model.name == "qwen3-vl-q8_0.gguf" and files.mmproj.name == "mmproj-qwen3-vl-f16.gguf"
    assert sorted(path.name for path in files.model.parent.iterdir()) == [files.mmproj.name, files.model.name]
    calls = [json.loads(line) for line in (converter / "calls.jsonl").read_text().splitlines()]
    merged = str(tiny_model("qwen3-vl"))
    names = [Path(call.pop(2)).name for call in calls]
    assert names == [files.model.name, files.mmproj.name]
    assert calls[0] == [merged, "--outfile", "--outtype", "q8_0"]
    assert calls[1] == [merged, "--outfile", "--outtype", "f16", "--mmproj"]
    assert "0.0 MiB" in repr(files)


def test_the_converters_own_words_are_shown(converter, tmp_path):
    (converter / "fail").touch()
    with pytest.raises(RuntimeError, match="pre-tokenizer was not recognized"):
        to_gguf(tiny_model("qwen2.5-vl"), tmp_path / "gguf", llama_cpp=converter)


@pytest.mark.parametrize("family", ["llama-3.2-vision", "phi-3-vision"])
def test_families_without_a_converter_are_named_before_anything_runs(family, converter, tmp_path):
    with pytest.raises(ValueError, match=r"does not have \['(Mllama|Phi3V)For"):
        to_gguf(tiny_model(family), tmp_path / "gguf", llama_cpp=converter)
    assert not (converter / "calls.jsonl").exists() and not (tmp_path / "gguf").exists()


def test_where_the_converter_is_found(converter, tmp_path, monkeypatch):
    script = converter / "convert_hf_to_gguf.py"
    assert find_converter(script) == find_converter(converter) == script
    monkeypatch.chdir(tmp_path)
    assert find_converter() == script
    monkeypatch.setenv("LLAMA_CPP", str(converter))
    monkeypatch.chdir("/")
    assert find_converter() == script
    monkeypatch.setenv("LLAMA_CPP", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match="git clone .*requirements-convert_hf_to_gguf.txt"):
        find_converter()


@pytest.mark.skipif("LLAMA_CPP" not in os.environ, reason="needs a checkout of llama.cpp in LLAMA_CPP")
def test_llama_cpp_itself_is_reached(tmp_path):
    """It refuses the tiny tokenizers, which it has never seen; with a real tokenizer it converts."""
    try:
        files = to_gguf(tiny_model("qwen2.5-vl"), tmp_path)
    except RuntimeError as error:
        assert "pre-tokenizer" in str(error)
    else:
        assert files.model.read_bytes()[:4] == files.mmproj.read_bytes()[:4] == b"GGUF"


def test_a_modelfile_names_its_files(tmp_path):
    gguf, mmproj = tmp_path / "model.gguf", tmp_path / "mmproj.gguf"
    gguf.write_bytes(b"GGUF"), mmproj.write_bytes(b"GGUF")
    text = ollama_modelfile(gguf, mmproj, system="Be brief.")
    assert text == f'FROM {gguf}\nFROM {mmproj}\nPARAMETER temperature 0\nSYSTEM """Be brief."""\n'
    assert ollama_modelfile(tmp_path, temperature=0.2) == f"FROM {tmp_path}\nPARAMETER temperature 0.2\n"
    with pytest.raises(ValueError, match="sees no images"):
        ollama_modelfile(gguf)
    with pytest.raises(FileNotFoundError, match="is not there"):
        ollama_modelfile(tmp_path / "none.gguf", mmproj)
    with pytest.raises(ValueError, match="other quotes"):
        ollama_modelfile(gguf, mmproj, system='"""')


def modelfile_system(text):
    """The SYSTEM of a Modelfile as the simplest reader finds it: up to the first three quotes."""
    return text.partition('SYSTEM """')[2].partition('"""')[0]


@pytest.mark.parametrize("system", ['Say "yes"', 'two\nlines "', '"', "plain", "FROM /etc/passwd", '"" x'])
def test_a_system_text_is_read_as_it_was(system, tmp_path):
    text = ollama_modelfile(tmp_path, system=system)
    assert modelfile_system(text).removesuffix("\n") == system and text.endswith('"""\n')


def test_paths_in_a_modelfile(tmp_path):
    for name, written in (("a b", "{}"), ('it\'s "so"', "{}"), ("end ", '"{}"')):
        (tmp_path / name).mkdir()
        assert ollama_modelfile(tmp_path / name).startswith(f"FROM {written.format(tmp_path / name)}\n")
    (tmp_path / "a\nSYSTEM b").mkdir()
    with pytest.raises(ValueError, match="line break.*rename it"):
        ollama_modelfile(tmp_path / "a\nSYSTEM b")
    with pytest.raises(ValueError):
        ollama_modelfile(tmp_path, temperature="0\nFROM x")


def write_adapter(folder, *names, **config):
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 16} | config))
    rank = config.get("r", 16)
    save_file(
        {f"base_model.model.{name}": torch.zeros(rank, 2) for name in names}, folder / "adapter_model.safetensors"
    )
    return folder


LANGUAGE = "model.language_model.layers.0.self_attn.q_proj.lora_A.weight"
VISION = "model.visual.blocks.0.attn.qkv.lora_A.weight"


@pytest.mark.parametrize("rank, served", [(4, 8), (16, 16), (24, 32), (300, 320)])
def test_vllm_gets_a_rank_that_it_takes(rank, served, tmp_path):
    adapter = write_adapter(tmp_path / "a b", LANGUAGE, r=rank)
    command = shlex.split(vllm_command("Qwen/Qwen3-VL-2B-Instruct", adapter, images=2))
    assert command[:3] == ["vllm", "serve", "Qwen/Qwen3-VL-2B-Instruct"] and f"tuned={adapter}" in command
    assert command[command.index("--max-lora-rank") + 1] == str(served)
    assert json.loads(command[command.index("--limit-mm-per-prompt") + 1]) == {"image": 2}


@pytest.mark.parametrize(
    "names, config, reason",
    [
        ([LANGUAGE, VISION], {}, "1 of its tensors are outside the language model"),
        ([LANGUAGE], {"use_dora": True}, "DoRA"),
        ([LANGUAGE], {"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ([LANGUAGE], {"trainable_token_indices": [3, 5]}, "trainable_token_indices"),
        ([LANGUAGE], {"r": 8, "rank_pattern": {"q_proj": 1024}}, "rank 1024"),
        ([LANGUAGE], {"r": 16, "rank_pattern": {"q_proj": 8}}, "differ in scale"),
        ([LANGUAGE], {"use_rslora": True, "rank_pattern": {"q": 32}, "alpha_pattern": {"q": 16}}, "differ in scale"),
        ([LANGUAGE], {"r": 16, "alpha_pattern": {"q_proj": 32}}, "differ in scale"),
        ([LANGUAGE], {"lora_bias": True}, "biases"),
        ([LANGUAGE], {"alora_invocation_tokens": [1]}, "alora_invocation_tokens"),
        ([LANGUAGE], {"init_lora_weights": "pissa_niter_4"}, "other weights than its base's"),
        ([LANGUAGE, "lm_head.lora_A.weight"], {}, "1 of its tensors are outside"),
        ([LANGUAGE, "model.language_model.embed_tokens.base_layer.weight"], {}, "1 of its tensors are no matrices"),
        ([LANGUAGE, "model.language_model.layers.0.mlp.gate.lora_A.weight"], {}, "what chooses experts"),
    ],
)
def test_what_vllm_does_not_take_is_to_be_merged(names, config, reason, tmp_path):
    with pytest.raises(ValueError, match=f"{reason}.*Merge it"):
        vllm_command("base", write_adapter(tmp_path / "adapter", *names, **config))


@pytest.mark.parametrize("alpha, further", [(64, {}), (32, {"use_rslora": True})])
def test_ranks_of_single_modules_with_the_scale_of_all_are_served(alpha, further, tmp_path):
    config = {"r": 16, "lora_alpha": 16, "rank_pattern": {"k_proj": 64}, "alpha_pattern": {"k_proj": alpha}} | further
    command = shlex.split(vllm_command("base", write_adapter(tmp_path / "adapter", LANGUAGE, **config)))
    assert command[command.index("--max-lora-rank") + 1] == "64"


@pytest.mark.parametrize(
    "family, reason, remedy",
    [
        ("llama-3.2-vision", "after version 0.10.2", r"\(serve_command\)"),
        ("phi-3-vision", "publisher", "ask it with generate"),
    ],
)
def test_families_that_vllm_does_not_have_are_named(family, reason, remedy, tmp_path):
    adapter = write_adapter(tmp_path / "adapter", LANGUAGE)
    for options in ({"base_model": family, "adapter": adapter}, {"merged": tiny_model(family)}):
        with pytest.raises(ValueError, match=f"vLLM does not serve this model: .*{reason}.*{remedy}"):
            vllm_command(**options)


def test_a_merged_model_is_served_by_either_to_this_machine_alone(tmp_path):
    folder = shutil.copytree(tiny_model("qwen3-vl"), tmp_path / "a b")
    words = shlex.split(serve_command(folder, port=8123, dtype=torch.bfloat16))
    assert words[:3] == ["transformers", "serve", str(folder)]
    assert words[3:] == ["--host", "127.0.0.1", "--port", "8123", "--dtype", "bfloat16"]
    words = shlex.split(serve_command(folder, "vllm", images=2, name="mine", dtype=torch.float16))
    assert words[:3] == ["vllm", "serve", str(folder)] and words[words.index("--served-model-name") + 1] == "mine"
    assert words[words.index("--host") + 1] == "127.0.0.1" and words[words.index("--dtype") + 1] == "float16"
    assert json.loads(words[words.index("--limit-mm-per-prompt") + 1]) == {"image": 2}


def test_an_adapter_is_served_by_vllm_alone_beside_the_base_that_it_names(tmp_path):
    adapter = write_adapter(tmp_path / "adapter", LANGUAGE, base_model_name_or_path="Qwen/Qwen3-VL-2B-Instruct")
    assert serve_command(adapter, "vllm") == vllm_command("Qwen/Qwen3-VL-2B-Instruct", adapter)
    assert serve_command(adapter, "vllm", base_model="base") == vllm_command("base", adapter)
    with pytest.raises(ValueError, match="takes no adapter alone: merge"):
        serve_command(adapter)


@pytest.mark.parametrize(
    "name, options, error",
    [
        ("none", {}, "none has no config.json: pass the folder that merge has written"),
        ("none", {"by": "vllm"}, "none has no config.json"),
        ("qwen3-vl", {"by": "ollama"}, "choose one of transformers, vllm"),
        ("qwen3-vl", {"name": "mine"}, "takes no name: it calls a model by its folder"),
        ("me@main", {}, "rename it, without @"),
        ("phi-3-vision", {}, "transformers serve does not serve this model: .*phi3_v"),
    ],
)
def test_what_a_server_does_not_take_is_said_before_it_starts(name, options, error, tmp_path):
    family = name if name == "phi-3-vision" else "qwen3-vl"
    if name != "none":
        shutil.copytree(tiny_model(family), tmp_path / name)
    with pytest.raises((FileNotFoundError, ValueError), match=error):
        serve_command(tmp_path / name, **options)


def test_a_quantized_model_is_not_converted(converter, tmp_path):
    folder = shutil.copytree(tiny_model("qwen3-vl"), tmp_path / "merged")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"quantization_config": {"load_in_8bit": True}}))
    with pytest.raises(ValueError, match="is stored quantized, and the converter takes 16 bits"):
        to_gguf(folder, tmp_path / "out", converter)


def test_ollama_gets_no_folder_that_it_cannot_convert():
    with pytest.raises(ValueError, match="Ollama does not serve this model: its converter does not have Phi3V"):
        ollama_modelfile(tiny_model("phi-3-vision"))
    assert ollama_modelfile(tiny_model("llama-3.2-vision")).startswith("FROM ")


def test_vllm_serves_a_merged_model_without_lora():
    assert "--enable-lora" not in vllm_command(merged="merged") and "serve merged " in vllm_command(merged="merged")
    for wrong in ({}, {"adapter": "a"}, {"base_model": "b", "adapter": "a", "merged": "m"}):
        with pytest.raises(ValueError, match="base_model and adapter"):
            vllm_command(**wrong)


@pytest.mark.parametrize("name", ["a b", "it's", '"q"', "$(rm x)", "a;b", "a=b", "a,b"])
def test_names_in_a_vllm_command_are_arguments(name, tmp_path):
    adapter = write_adapter(tmp_path / name, LANGUAGE)
    words = shlex.split(vllm_command(tmp_path / name, adapter, name="mine"))
    module = words[words.index("--lora-modules") + 1]
    expected = {"name": "mine", "path": str(adapter)}
    assert words[2] == str(tmp_path / name)
    assert module == f"mine={adapter}" if "=" not in name and "," not in name else json.loads(module) == expected


@pytest.mark.parametrize("values", [{"merged": "a\nb"}, {"merged": "--x"}, {"merged": "m", "name": "-n"}], ids=str)
def test_what_no_command_can_hold_is_refused(values):
    with pytest.raises(ValueError, match="rename it|read as an option"):
        vllm_command(**values)


def test_the_failed_command_can_be_run_again(converter, tmp_path):
    merged = tmp_path / "it's mine"
    merged.mkdir()
    (merged / "config.json").write_text((tiny_model("qwen3-vl") / "config.json").read_text())
    (converter / "fail").touch()
    with pytest.raises(RuntimeError) as caught:
        to_gguf(merged, tmp_path / "gguf", llama_cpp=converter)
    assert shlex.split(str(caught.value).partition(" failed: ")[0])[2] == str(merged)


class Hub:
    """Stands in for HfApi: notes what it is asked to do."""

    calls = []

    def __init__(self, token=None):
        self.calls.append(("token", token))

    def create_repo(self, repo_id, private, exist_ok):
        self.calls.append(("create", repo_id, private))

    def upload_folder(self, repo_id, folder_path, commit_message):
        self.calls.append(("upload", repo_id, sorted(path.name for path in Path(folder_path).iterdir())))
        return f"https://huggingface.co/{repo_id}"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that may be sent, to a hub that is none."""
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    Hub.calls.clear()
    card = "---\nbase_model: qwen3-vl\nlibrary_name: peft\nlicense: apache-2.0\n---\n\n# Adapter\n"
    ModelCard(card).save(tmp_path / "README.md")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"0" * 2**20)
    return tmp_path


def test_nothing_is_sent_unless_asked_for(folder):
    upload = push(folder, "me/adapter")
    assert Hub.calls == [] and upload.url is None and upload.files["adapter_model.safetensors"] == 2**20
    assert "a dry run" in repr(upload) and "1.00 MiB  adapter_model.safetensors" in repr(upload)
    sent = push(folder, "me/adapter", token="t", dry_run=False)
    names = ["README.md", "adapter_model.safetensors"]
    assert Hub.calls == [("token", "t"), ("create", "me/adapter", True), ("upload", "me/adapter", names)]
    assert sent.url == "https://huggingface.co/me/adapter" and "private" in repr(sent)


@pytest.mark.parametrize(
    "name, content, reason",
    [
        ("optimizer.pt", b"", "left over from training"),
        ("training_args.bin", b"", "left over from training"),
        (".env", b"", "looks like a secret"),
        ("notes.md", b"token: hf_" + b"a" * 34, "access token"),
        ("README.md", b"---\nbase_model: qwen3-vl\n---\n", "does not say library_name, license"),
    ],
)
def test_what_should_not_leave_is_refused(name, content, reason, folder):
    (folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=reason):
        push(folder, "me/adapter", dry_run=False)
    assert Hub.calls == []


def test_a_folder_without_card_and_a_name_without_owner(folder):
    with pytest.raises(ValueError, match="owner/name"):
        push(folder, "adapter")
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match="has no README.md"):
        push(folder, "me/adapter")
