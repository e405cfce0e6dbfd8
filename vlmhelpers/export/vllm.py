"""The command that serves a model with vLLM, and whether vLLM takes the adapter."""

import json
import shlex
from pathlib import Path

from safetensors import safe_open

from vlmhelpers.export.adapters import ADAPTER_WEIGHTS_FILE, read_adapter_config
from vlmhelpers.families import FAMILIES, family_of

# What --max-lora-rank may be: MaxLoRARanks in vllm.config.lora, in 0.14.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_command(
    base_model: str | Path | None = None,
    adapter: str | Path | None = None,
    merged: str | Path | None = None,
    images: int = 1,
    name: str = "tuned",
    port: int = 8000,
) -> str:
    """The shell command that serves a base with an adapter, or a merged model, through vLLM's OpenAI interface.

    Either `base_model` (a hub id or folder) and `adapter` (a folder), or `merged` (a folder). `images`: how many a
    prompt may have. `name`: what requests call the tuned model. vLLM itself is not run here.

    Raises ValueError for an adapter that vLLM does not take: one with tensors outside the language model, which it
    ignores or rejects, one with DoRA, trained biases or whole layers, or of a rank beyond 512. `merge` serves these.
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
    """The smallest rank of vLLM's that holds the adapter. Raises ValueError where vLLM does not take it."""
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
