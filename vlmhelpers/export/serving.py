"""What other programs need to serve a tuned model: llama.cpp and Ollama files, transformers and vLLM a command."""

import json
import math
import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.files import remove_abandoned, sync, temporary_name
from vlmhelpers.common.processes import run_python
from vlmhelpers.export.adapter_files import ADAPTER_CONFIG_FILE, adapter_shapes, read_adapter_config
from vlmhelpers.export.adapters import base_shape, check_tokens
from vlmhelpers.families import FAMILIES, family_of
from vlmhelpers.families.received import read_object
from vlmhelpers.families.towers import plain_name

SCRIPT = "convert_hf_to_gguf.py"
OUTTYPES = ("f32", "f16", "bf16", "q8_0")
SERVERS = ("transformers", "vllm")
# Program -> the field of `Family` that says why not.
AGAINST = {"transformers serve": "not_by_transformers_serve", "vLLM": "not_by_vllm", "Ollama": "not_by_ollama"}
_CHANGE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")  # values of init_lora_weights that change the base
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
    up, and PATH are searched. LLAMA_CPP_PYTHON names the Python for it. The tiny bases' tokenizers are refused. Earlier
    files are replaced once both new ones are whole. Raises ValueError for another architecture or `outtype`,
    FileNotFoundError without a merged model or a converter, RuntimeError with the converter's last words.
    """
    if outtype not in OUTTYPES:
        raise ValueError(f"outtype={outtype!r}: choose one of {', '.join(OUTTYPES)}")
    merged, out = Path(merged).resolve(), Path(out)
    if not (merged / "config.json").is_file():
        raise FileNotFoundError(f"{merged} has no config.json: pass the folder that merge has written")
    config = read_object(merged / "config.json")
    if config.get("quantization_config"):
        raise ValueError(
            f"{merged} is stored quantized, and the converter takes 16 bits: convert what merge has written"
        )
    architectures = config.get("architectures")
    convertible = [name for family in FAMILIES.values() for name in family.gguf_architectures]
    if architectures not in [[name] for name in convertible]:
        known = f"does not have {architectures}, only {' and '.join(convertible)}"
        raise ValueError(f"llama.cpp's converter {known}: serve_command finds who serves the merged model")
    script = find_converter(llama_cpp)
    out.mkdir(parents=True, exist_ok=True)
    files = GgufFiles(out / f"{merged.name}-{outtype}.gguf", out / f"mmproj-{merged.name}-f16.gguf")
    remove_abandoned(out, "gguf")
    temporary = out / temporary_name("gguf")
    temporary.mkdir()
    try:
        _convert(script, merged, temporary / files.model.name, outtype)
        _convert(script, merged, temporary / files.mmproj.name, "f16", "--mmproj")
        for file in (files.model, files.mmproj):
            os.replace(temporary / file.name, file)
        sync(out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
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
    command = [str(script), str(merged), "--outfile", str(file.resolve()), "--outtype", outtype, *options]
    done = run_python(command, python)
    if done.returncode:
        last = "\n".join((done.stderr or done.stdout).strip().splitlines()[-3:])
        raise CannotRun(f"{shlex.join([python, *command])} failed: {last}")
    prefixed = file.with_name(f"mmproj-{file.name}")
    if prefixed.is_file() and not file.is_file():  # some versions put `mmproj-` before the name
        prefixed.rename(file)
    if not file.is_file():
        raise CannotRun(f"{script} ended without an error and without {file.name}: its version has other options")
    sync(file)


def ollama_modelfile(
    model: str | Path, mmproj: str | Path | None = None, system: str | None = None, temperature: float = 0
) -> str:
    """The text of a Modelfile, from which `ollama create NAME -f Modelfile` makes a model.

    `model`: a GGUF file with its `mmproj`, or, safer (ollama/ollama issue 14575), the folder of a merged model. Raises
    FileNotFoundError and, without `mmproj` and for a family that Ollama does not convert, ValueError.
    """
    model = Path(model)
    if model.is_dir():
        _refuse("Ollama", model)
    if model.is_file() and mmproj is None:
        raise ValueError(f"{model} alone sees no images: pass the mmproj file that to_gguf made, too")
    sources = [model, Path(mmproj)] if mmproj else [model]
    if missing := [str(source) for source in sources if not source.exists()]:
        raise FileNotFoundError(f"{missing[0]} is not there: make it with merge or to_gguf")
    if '"""' in (system or ""):
        raise ValueError('system holds """, which ends a text in a Modelfile: write it with other quotes')
    end = "\n" * (system or "").endswith('"')  # else not every reader finds which quotes end the text
    lines = [f"FROM {_from(source.resolve())}" for source in sources] + [
        f"PARAMETER temperature {float(temperature):g}"
    ]
    return "\n".join(lines + [f'SYSTEM """{system}{end}"""'] * bool(system)) + "\n"


def _from(path):
    """A path as a Modelfile takes it: to the end of the line, without the spaces there unless quoted."""
    text = _one_line(path)
    return text if text == text.strip() else f'"{text}"'


def _one_line(value):
    if not str(value).isprintable():
        raise ValueError(f"{str(value)!r} holds a line break or another character that is not printed: rename it")
    return str(value)


def serve_command(
    folder: str | Path,
    by: str = "transformers",
    host: str = "127.0.0.1",
    port: int = 8000,
    dtype: torch.dtype | None = None,
    **of_vllm: object,
) -> str:
    """The shell command that serves a model in a folder through OpenAI's interface, by one of `SERVERS`.

    transformers serves a merged model on one machine, one request after the other, by the name of `folder` as it is
    written here. vLLM serves a merged model or an adapter to many users; `of_vllm` are further arguments of
    `vllm_command`: `images`, `name` and, for an adapter, `base_model` (else the base that it names). `dtype`: what is
    computed in; None leaves it to the server. Raises FileNotFoundError for a folder without a model, and ValueError
    for what the server does not take.
    """
    if by not in SERVERS:
        raise ValueError(f"by={by!r}: choose one of {', '.join(SERVERS)}")
    where = {"host": host, "port": port, "dtype": dtype}
    if by == "transformers":
        if of_vllm:
            why = "it calls a model by its folder, has no limit for images and serves no adapters"
            raise ValueError(f"transformers serve takes no {', '.join(of_vllm)}: {why}")
        return shlex.join(["transformers", *transformers_arguments(folder, **where)])
    if not (Path(folder) / ADAPTER_CONFIG_FILE).is_file():
        _need_model(folder)
        return vllm_command(merged=folder, **where, **of_vllm)
    base = of_vllm.pop("base_model", None) or read_adapter_config(folder).get("base_model_name_or_path")
    return vllm_command(base, folder, **where, **of_vllm)


def transformers_arguments(folder: str | Path, host: str, port: int, dtype: torch.dtype | None) -> list[str]:
    """The arguments of `transformers` that serve the merged model in `folder`. Raises the errors of `serve_command`."""
    if (Path(folder) / ADAPTER_CONFIG_FILE).is_file():
        raise ValueError(f"transformers serve takes no adapter alone: merge {folder}, and serve that")
    _need_model(folder)
    _refuse("transformers serve", folder)
    name = _value(folder)
    if "@" in name or name.endswith(".gguf"):  # it takes what follows for a revision, and GGUF's ending for a file
        raise ValueError(f"transformers serve does not read {name!r} as a folder: rename it, without @ and .gguf")
    return ["serve", name, *_where(host, port, dtype)]


def _need_model(folder):
    if not (Path(folder) / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: pass the folder that merge has written")


def _where(host, port, dtype):
    named = ["--dtype", str(dtype).removeprefix("torch.")] if dtype else []
    return ["--host", _value(host), "--port", str(port), *named]


def vllm_command(
    base_model: str | Path | None = None,
    adapter: str | Path | None = None,
    merged: str | Path | None = None,
    images: int = 1,
    name: str = "tuned",
    port: int = 8000,
    host: str = "127.0.0.1",
    dtype: torch.dtype | None = None,
) -> str:
    """The shell command that serves a base with an adapter, or a merged model, through vLLM's OpenAI interface.

    `images`: how many a prompt may have. `name`: what requests call the tuned model. `host`: vLLM itself would listen
    to every machine. `dtype`: None for vLLM's choice. Raises ValueError for an adapter that vLLM ignores or rejects:
    tensors outside the language model, on routers or embeddings, DoRA, trained biases, whole layers, single trained
    tokens, scales of single modules, ranks > 512; for a family that it does not have; for names and paths that no
    command can hold.
    """
    if (merged is None) == (adapter is None) or (adapter is not None and base_model is None):
        raise ValueError("pass base_model and adapter, or merged alone")
    _refuse("vLLM", merged or base_model)
    if merged is not None:
        if (Path(merged) / ADAPTER_CONFIG_FILE).is_file():
            raise ValueError(f"{merged} has an adapter: pass base_model and adapter, or merge it first")
        command = ["vllm", "serve", _value(merged), "--served-model-name", _value(name)]
    else:
        module = f"{_value(name)}={_one_line(adapter)}"
        if module.count("=") > 1 or "," in module:  # vLLM reads these signs itself
            module = json.dumps({"name": name, "path": str(adapter)})
        command = ["vllm", "serve", _value(base_model), "--enable-lora", "--lora-modules", module]
        command += ["--max-lora-rank", str(served_rank(adapter, base_model))]
    limit = ["--limit-mm-per-prompt", json.dumps({"image": images})]
    return shlex.join([*command, *limit, *_where(host, port, dtype)])


def _refuse(program, model):
    family = family_of(model)
    if reason := getattr(family, AGAINST[program]):
        remedy = "Serve it with transformers (serve_command)"
        if family.not_by_transformers_serve:
            remedy = "Load it with transformers, as load_model does, and ask it with generate"
        raise ValueError(f"{program} does not serve this model: {reason}. {remedy}")


def _value(value):
    if str(value).startswith("-"):
        raise ValueError(
            f"{str(value)!r} would be read as an option: write a path as ./{value}, or choose another name"
        )
    return _one_line(value)


def _not_served(shape):
    """Two tests of a tensor's name, by a base's shape: is it outside the language model, and does it choose experts?

    Of a base that cannot be read, by the usual names.
    """
    if shape is None:
        outside = re.compile(r"(?<![a-z])(visual|vision|projector|connector|aligner|merger|lm_head)(?![a-z])").search
        return outside, re.compile(r"\.(gate|router)\.lora_").search
    family = family_of(shape)
    return lambda name: family.tower_of(name) != "language", lambda name: not family.is_adapted(_module(name))


def _module(tensor):
    return plain_name(tensor).partition(".lora_")[0]


def _has_own_scales(config):
    """Whether some modules have another scale than all others: lora_alpha / r, by rsLoRA lora_alpha / sqrt(r).

    vLLM takes that of r and lora_alpha for all.
    """
    ranks, alphas = (config.get(name) or {} for name in ("rank_pattern", "alpha_pattern"))
    rank, alpha = config.get("r", 8), config.get("lora_alpha", 8)
    power = 0.5 if config.get("use_rslora") else 1
    return not all(
        math.isclose(alphas.get(name, alpha) / ranks.get(name, rank) ** power, alpha / rank**power)
        for name in {*ranks, *alphas}
    )


def served_rank(adapter: str | Path, base: str | Path) -> int:
    """The `max_lora_rank` for an adapter. Raises ValueError for one that vLLM does not serve, or serves as another.

    And for one whose tokenizer has tokens that the base lacks.

    Source: vllm/lora/peft_helper.py, which reads few fields of a configuration, and lora_model.py, which takes pairs of
    matrices and passes over saved embeddings.
    """
    config, names, shape = read_adapter_config(adapter), adapter_shapes(adapter), base_shape(base)
    if shape is not None:
        check_tokens(adapter, shape)
    is_outside, is_router = _not_served(shape)
    outside, routers = ([name for name in names if is_of(name)] for is_of in (is_outside, is_router))
    others = [name for name in names if not name.endswith((".lora_A.weight", ".lora_B.weight"))]
    rank = max([config.get("r", 8), *(config.get("rank_pattern") or {}).values()])
    start = str(config.get("init_lora_weights"))
    reasons = {
        f"{len(outside)} of its tensors are outside the language model (such as {outside[:1]})": outside,
        f"{len(others)} of its tensors are no matrices of LoRA on linear layers (such as {others[:1]})": others,
        f"it adapts what chooses experts (such as {routers[:1]})": routers,
        "it uses DoRA": config.get("use_dora"),
        "it has trained biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "it replaces whole layers (modules_to_save)": config.get("modules_to_save"),
        "it trains single tokens (trainable_token_indices)": config.get("trainable_token_indices"),
        "it adapts experts (target_parameters)": config.get("target_parameters"),
        "it works from certain tokens on (alora_invocation_tokens)": config.get("alora_invocation_tokens"),
        f"it stands on other weights than its base's (init_lora_weights={start!r})": start.startswith(_CHANGE_BASE),
        "its modules differ in scale (rank_pattern, alpha_pattern)": _has_own_scales(config),
        f"its rank {rank} is more than {RANKS[-1]}": rank > RANKS[-1],
    }
    if found := [reason for reason, holds in reasons.items() if holds]:
        raise ValueError(f"vLLM does not serve the adapter in {adapter}: {', '.join(found)}. Merge it and serve that")
    return next(allowed for allowed in RANKS if allowed >= rank)
