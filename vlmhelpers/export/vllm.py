"""The command that serves a model with vLLM, and whether vLLM will take the adapter."""

import json
import shlex

from vlmhelpers.export.adapters import read_adapter_config, tensor_names
from vlmhelpers.families.towers import tower_of

# What --max-lora-rank may be: MaxLoRARanks in vllm.config.lora, in 0.14.
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)


def vllm_command(base_model=None, adapter=None, merged=None, images=1, name="tuned", port=8000):
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
        rank = _served_rank(adapter)
        command = ["vllm", "serve", str(base_model), "--enable-lora", "--lora-modules", f"{name}={adapter}"]
        command += ["--max-lora-rank", str(rank)]
    command += ["--limit-mm-per-prompt", json.dumps({"image": images}), "--port", str(port)]
    return shlex.join(command)


def _served_rank(adapter):
    """The smallest rank of vLLM's that holds the adapter. Raises ValueError where vLLM does not take it."""
    outside = [name for name in tensor_names(adapter) if tower_of(name) != "language"]
    config = read_adapter_config(adapter)
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
