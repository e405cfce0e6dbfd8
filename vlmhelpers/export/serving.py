"""What other programs need to serve a tuned model: llama.cpp and Ollama files, and vLLM a command. None is run here."""

import json
import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from safetensors import safe_open

from vlmhelpers.export.adapters import ADAPTER_WEIGHTS_FILE, read_adapter_config
from vlmhelpers.families import FAMILIES, family_of

SCRIPT = "convert_hf_to_gguf.py"
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # for --max-lora-rank: MaxLoRARanks in vllm.config.lora, in 0.14


@dataclass(frozen=True)
class GgufFiles:
    """The language model, and `mmproj`, which turns images into its tokens."""

    model: Path
    mmproj: Path

    def __repr__(self):
        return "\n".join(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)" for path in (self.model, self.mmproj))


def to_gguf(
    merged: str | Path, out: str | Path, llama_cpp: str | Path | None = None, outtype: str = "f16"
) -> GgufFiles:
    """Converts the merged model in the folder `merged` with llama.cpp's own converter, into files in `out`.

    The language model gets `outtype`, one of `OUTTYPES`, vision tower and projector f16. `llama_cpp`: a checkout from
    2026 on (those of 2025 fail on transformers 5) or its script; else LLAMA_CPP, a folder llama.cpp here or one level
    up, and PATH are searched. LLAMA_CPP_PYTHON names the Python for it. The tiny bases' tokenizers are refused. Raises
    ValueError for another architecture or `outtype`, FileNotFoundError without a merged model or a converter,
    RuntimeError with the converter's last words.
    """
    if outtype not in OUTTYPES:
        raise ValueError(f"outtype={outtype!r}: choose one of {', '.join(OUTTYPES)}")
    merged, out = Path(merged).resolve(), Path(out)
    if not (merged / "config.json").is_file():
        raise FileNotFoundError(f"{merged} has no config.json: pass the folder that merge has written")
    (architecture,) = json.loads((merged / "config.json").read_text(encoding="utf-8"))["architectures"]
    convertible = [name for family in FAMILIES.values() for name in family.gguf_architectures]
    if architecture not in convertible:
        known = f"does not have {architecture}, only {' and '.join(convertible)}"
        raise ValueError(f"llama.cpp's converter {known}: serve the merged model with transformers or vLLM")
    script = find_converter(llama_cpp)
    out.mkdir(parents=True, exist_ok=True)
    files = GgufFiles(out / f"{merged.name}-{outtype}.gguf", out / f"mmproj-{merged.name}-f16.gguf")
    _convert(script, merged, files.model, outtype)
    _convert(script, merged, files.mmproj, "f16", "--mmproj")
    return files


def find_converter(llama_cpp: str | Path | None = None) -> Path:
    """The path of llama.cpp's converter. Raises FileNotFoundError, with how to get it."""
    named = llama_cpp or os.environ.get("LLAMA_CPP")
    paths = list(map(Path, [named] if named else filter(None, ["llama.cpp", "../llama.cpp", shutil.which(SCRIPT)])))
    for script in (path if path.is_file() else path / SCRIPT for path in paths):
        if script.is_file():
            return script.resolve()
    raise FileNotFoundError(
        f"no {SCRIPT} in {', '.join(map(str, paths))}: `git clone --depth 1 https://github.com/ggml-org/llama.cpp`, "
        "`pip install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt` in an environment of its own, and "
        "pass llama_cpp='llama.cpp'"
    )


def _convert(script, merged, file, outtype, *options):
    python = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
    command = [python, str(script), str(merged), "--outfile", str(file.resolve()), "--outtype", outtype, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise RuntimeError(f"{' '.join(command)} failed: {last}")
    prefixed = file.with_name(f"mmproj-{file.name}")
    if prefixed.is_file() and not file.is_file():  # some versions put `mmproj-` before the name
        prefixed.rename(file)
    if not file.is_file():
        raise RuntimeError(f"{script} ended without an error and without {file}: its version has other options")


def ollama_modelfile(
    model: str | Path, mmproj: str | Path | None = None, system: str | None = None, temperature: float = 0
) -> str:
    """The text of a Modelfile, from which `ollama create NAME -f Modelfile` makes a model.

    `model`: a GGUF file with its `mmproj`, or, safer (ollama/ollama issue 14575), the folder of a merged model. Raises
    FileNotFoundError or, without `mmproj`, ValueError.
    """
    model = Path(model)
    if model.is_file() and mmproj is None:
        raise ValueError(f"{model} alone sees no images: pass the mmproj file that to_gguf made, too")
    sources = [model, Path(mmproj)] if mmproj else [model]
    if missing := [str(source) for source in sources if not source.exists()]:
        raise FileNotFoundError(f"{missing[0]} is not there: make it with merge or to_gguf")
    if '"""' in (system or ""):
        raise ValueError('system holds """, which ends a text in a Modelfile: write it with other quotes')
    lines = [f"FROM {source.resolve()}" for source in sources] + [f"PARAMETER temperature {temperature}"]
    return "\n".join(lines + [f'SYSTEM """{system}"""'] * bool(system)) + "\n"


def vllm_command(
    base_model: str | Path | None = None,
    adapter: str | Path | None = None,
    merged: str | Path | None = None,
    images: int = 1,
    name: str = "tuned",
    port: int = 8000,
) -> str:
    """The shell command that serves a base with an adapter, or a merged model, through vLLM's OpenAI interface.

    `images`: how many a prompt may have. `name`: what requests call the tuned model. Raises ValueError for an adapter
    that vLLM ignores or rejects: tensors outside the language model, DoRA, trained biases, whole layers, ranks > 512.
    """
    if (merged is None) == (adapter is None) or (adapter is not None and base_model is None):
        raise ValueError("pass base_model and adapter, or merged alone")
    if merged is not None:
        command = ["vllm", "serve", str(merged), "--served-model-name", name]
    else:
        command = ["vllm", "serve", str(base_model), "--enable-lora", "--lora-modules", f"{name}={adapter}"]
        command += ["--max-lora-rank", str(_served_rank(adapter, base_model))]
    return shlex.join([*command, "--limit-mm-per-prompt", json.dumps({"image": images}), "--port", str(port)])


def _served_rank(adapter, base):
    config, family = read_adapter_config(adapter), family_of(base)
    families = [family] if family.name in FAMILIES else FAMILIES.values()  # an unknown one may use any known name
    with safe_open(Path(adapter) / ADAPTER_WEIGHTS_FILE, "pt") as weights:
        outside = [name for name in weights.keys() if any(known.tower_of(name) != "language" for known in families)]
    rank = max([config["r"], *(config.get("rank_pattern") or {}).values()])
    reasons = {
        f"{len(outside)} of its tensors are outside the language model (such as {outside[:1]})": outside,
        "it uses DoRA": config.get("use_dora"),
        "it has trained biases": config.get("bias", "none") != "none",
        "it replaces whole layers (modules_to_save)": config.get("modules_to_save"),
        f"its rank {rank} is more than {RANKS[-1]}": rank > RANKS[-1],
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"vLLM does not serve the adapter in {adapter}: {', '.join(found)}. Merge it and serve that")
    return next(allowed for allowed in RANKS if allowed >= rank)
