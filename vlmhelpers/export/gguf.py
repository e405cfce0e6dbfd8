"""A merged model in the format of llama.cpp, and the file from which Ollama makes a model."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from vlmhelpers.families import FAMILIES

SCRIPT = "convert_hf_to_gguf.py"
OUTTYPES = ("f32", "f16", "bf16", "q8_0")


@dataclass(frozen=True)
class GgufFiles:
    """The two files of a converted model: the language model, and `mmproj`, which turns images into its tokens."""

    model: Path
    mmproj: Path

    def __repr__(self):
        return "\n".join(f"{path} ({path.stat().st_size / 2**20:.1f} MiB)" for path in (self.model, self.mmproj))


def to_gguf(
    merged: str | Path, out: str | Path, llama_cpp: str | Path | None = None, outtype: str = "f16"
) -> GgufFiles:
    """Converts the merged model in the folder `merged` with llama.cpp's own converter, into files in `out`.

    The converter is run twice: for the language model in `outtype` ("f32", "f16", "bf16" or "q8_0"), and with
    `--mmproj` for the vision tower and projector in f16. `llama_cpp`: a checkout of llama.cpp or the script itself;
    else the variable LLAMA_CPP, a folder llama.cpp here or one level up, and PATH are searched. It runs on the Python
    that LLAMA_CPP_PYTHON names, else on this one. Take a checkout of 2026: converters of 2025 fail on transformers 5
    (KeyError: 'rope_scaling'). The tiny bases' own tokenizers are refused ("BPE pre-tokenizer was not recognized").
    Whether the files answer as the merged model does has to be seen in llama.cpp, for example with llama-mtmd-cli.

    Raises ValueError for an architecture that the converter does not have and another `outtype`, FileNotFoundError
    without a merged model or a converter, RuntimeError with the converter's last words.
    """
    if outtype not in OUTTYPES:
        raise ValueError(f"outtype={outtype!r}: choose one of {', '.join(OUTTYPES)}")
    merged, out = Path(merged).resolve(), Path(out)
    _check_architecture(merged)
    script = find_converter(llama_cpp)
    out.mkdir(parents=True, exist_ok=True)
    files = GgufFiles(out / f"{merged.name}-{outtype}.gguf", out / f"mmproj-{merged.name}-f16.gguf")
    _convert(script, merged, files.model, outtype)
    _convert(script, merged, files.mmproj, "f16", "--mmproj")
    return files


def _check_architecture(merged):
    config = merged / "config.json"
    if not config.is_file():
        raise FileNotFoundError(f"{merged} has no config.json: pass the folder that merge has written")
    (architecture,) = json.loads(config.read_text(encoding="utf-8"))["architectures"]
    convertible = [name for family in FAMILIES.values() for name in family.gguf_architectures]
    if architecture not in convertible:
        raise ValueError(
            f"llama.cpp's converter does not have {architecture}, only {' and '.join(convertible)} of the families "
            "here: serve the merged model with transformers or vLLM"
        )


def find_converter(llama_cpp: str | Path | None = None) -> Path:
    """The path of llama.cpp's convert_hf_to_gguf.py. Raises FileNotFoundError, with how to get it."""
    named = llama_cpp or os.environ.get("LLAMA_CPP")
    paths = [named] if named else filter(None, ["llama.cpp", "../llama.cpp", shutil.which(SCRIPT)])
    paths = list(map(Path, paths))
    for script in (path if path.is_file() else path / SCRIPT for path in paths):
        if script.is_file():
            return script.resolve()
    raise FileNotFoundError(
        f"no {SCRIPT} in {', '.join(map(str, paths))}. Get it with `git clone --depth 1 "
        "https://github.com/ggml-org/llama.cpp`, install what it needs into an environment of its own with `pip "
        "install -r llama.cpp/requirements/requirements-convert_hf_to_gguf.txt`, and pass llama_cpp='llama.cpp'"
    )


def _convert(script, merged, file, outtype, *options):
    """Runs the converter; it may name a file differently, by putting `mmproj-` before it."""
    python = os.environ.get("LLAMA_CPP_PYTHON", sys.executable)
    command = [python, str(script), str(merged), "--outfile", str(file.resolve()), "--outtype", outtype, *options]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise RuntimeError(f"{' '.join(command)} failed: {last}")
    prefixed = file.with_name(f"mmproj-{file.name}")
    if prefixed.is_file() and not file.is_file():
        prefixed.rename(file)
    if not file.is_file():
        raise RuntimeError(f"{script} ended without an error and without {file}: its version has other options")


def ollama_modelfile(
    model: str | Path, mmproj: str | Path | None = None, system: str | None = None, temperature: float = 0
) -> str:
    """The text of a Modelfile; `ollama create NAME -f Modelfile` makes a model of it.

    `model` is the folder of a merged model, which Ollama converts itself, or a GGUF file with its `mmproj`. The folder
    is the safer source: Ollama's own engine does not take every model in two files (ollama/ollama issue 14575). The
    chat template comes from the model's own files. Ollama is not run here: only the files that it names are checked.

    Raises FileNotFoundError for a file that is missing, ValueError for a GGUF file without its mmproj, which would see
    no images.
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
    lines += [f'SYSTEM """{system}"""'] if system else []
    return "\n".join(lines) + "\n"
