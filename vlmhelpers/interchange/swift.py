"""ms-swift: its keys, and runs to and from its files (`swift sft NAME.yaml`, for other methods `swift rlhf`)."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlmhelpers.common.settings import shown
from vlmhelpers.interchange import shared
from vlmhelpers.interchange.imported import Imported, Program, import_keys
from vlmhelpers.interchange.keys import (
    NO_EFFECT,
    Differs,
    Key,
    fixed,
    for_adapters,
    for_methods,
    is_nothing,
    is_true,
    number,
    same,
    several,
    switch,
    value_of,
)
from vlmhelpers.interchange.sources import Source, find_file, imported_rows
from vlmhelpers.training.config import RunConfig, load_settings

if TYPE_CHECKING:
    from datasets import Dataset

    from vlmhelpers.interchange.writing import Run

_TYPES = {name: name for name in ("dpo", "kto", "orpo", "simpo", "cpo", "grpo")} | {"reward": "rm"}
_INITS = {"default": "true", "gaussian": "gaussian", "pissa": "pissa", "olora": "olora"}
_REFERS = for_methods("dpo", "kto", "orpo", "simpo", "cpo", "grpo")
_LAST_LAYERS = re.compile(r"language_model\\\.layers\\\.\(([\d|]+)\)\\\.")
_SAMPLES = for_methods("grpo")
_PLUGIN = "_rewards.py"  # ending of the file that is written with the rewards
_REWARD = re.compile(r"(?:-?\d*\.?\d+\s*\*\s*)?(?:exact_match|json_fields|length_within|matches|number_within)(?::.*)?")


def _is_freeze(run):
    return run.weights == "freeze"


def _targets_there(run: "Run") -> list[str] | None:
    return None if shared.adapted(run) else ["all-linear"]


def _regex_there(run: "Run") -> str | None:
    names = shared.adapted(run)
    return rf".*language_model\..*\.({'|'.join(names)})" if names else None


def _regex_here(value: object, _: Mapping) -> dict:
    found = re.fullmatch(r"\.\*language_model\\\.\.\*\\\.\(([\w|]+)\)", str(value))
    if not found:
        raise Differs(f"{shown(value)}: layers are chosen by attention and mlp here, and all of them were taken")
    return shared.targets_here(())(found[1].split("|"), {})


def _layers_there(run: "Run") -> str:
    last = range(run.layers - min(run.config.last_layers or 1, run.layers), run.layers)
    return rf"language_model\.layers\.({'|'.join(map(str, last))})\."


def _layers_here(value: object, _: Mapping) -> dict:
    return {"last_layers": len(_LAST_LAYERS.fullmatch(str(value))[1].split("|"))}


def _strict_here(value: object, keys: Mapping) -> dict:
    if not is_true(value) and keys.get("rlhf_type") != "kto":
        raise Differs("a row that cannot be used is left out, and written to rejected.csv")
    return {}


def _loss_there(run: "Run") -> str | list[str] | None:
    if run.method == "grpo":
        return "dapo"
    losses = (value_of(run.config, "loss") or "").split("+") if run.method in ("dpo", "kto") else ()
    return losses if len(losses) > 1 else next(iter(losses), None)


def _loss_here(value: object, keys: Mapping) -> dict:
    kind, losses = keys.get("rlhf_type"), several(value)
    if kind in ("dpo", "kto"):
        return {"loss": "+".join(losses)}
    if kind == "grpo" and losses != ["dapo"]:
        raise Differs(f"{shown(value)}: GRPO has the loss dapo here")
    return {}


def _weights_here(value: object, _: Mapping) -> dict:
    if any(number(weight) != 1 for weight in several(value)):
        raise Differs("losses are added as they are here")
    return {}


def _alpha_here(value: object, keys: Mapping) -> dict:
    return {"nll_coef": number(value)}


def _default_loss(keys: Mapping) -> str | None:
    return {"dpo": "sigmoid", "kto": "kto", "grpo": "grpo"}.get(str(keys.get("rlhf_type")))


def _default_beta(keys: Mapping) -> float:
    return {"simpo": 2.0, "grpo": 0.04}.get(_kind(keys)[0], 0.1)


def _default_accumulation(keys: Mapping) -> int:
    rows = max(1, int(number(keys.get("per_device_train_batch_size", 1))))
    return 1 if keys.get("rlhf_type") == "grpo" else -(-16 // rows)


def _share_here(value: object, _: Mapping) -> dict:
    if number(value):
        raise Differs(f"{number(value):g} of the rows, and validation_rows is a number of them: set it")
    return {}


def _val_dataset_here(value: object, keys: Mapping) -> dict:
    return {} if is_nothing(value) else shared.validation_file_here(value, keys)


def _env_here(value: object, _: Mapping) -> dict:
    names = [str(name) for name in value] if isinstance(value, dict) else []
    if others := [name for name in names if name != "ROOT_IMAGE_DIR"]:
        raise Differs(f"variables of the environment: {', '.join(others)}")
    return {}


def _rewards_there(run: "Run") -> list[str] | None:
    from vlmhelpers.training.rewards import split_rewards

    return split_rewards(run.config.rewards or "")


def _rewards_here(value: object, _: Mapping) -> dict:
    names = value if isinstance(value, list) else [value]
    if names and all(_REWARD.fullmatch(str(name)) for name in names):
        return {"rewards": "; ".join(map(str, names))}
    why = "rewards have names of their own there: exact_match was taken; see parse_rewards"
    raise Differs(why, rewards="exact_match")


def _plugins_here(value: object, _: Mapping) -> dict:
    if any(not str(name).endswith(_PLUGIN) for name in several(value)):
        raise Differs("code of a plugin is not executed here")
    return {}


def _init_here(value: object, _: Mapping) -> dict:
    names = {there: here for here, there in _INITS.items()}
    return shared.choice(str(value).lower(), names, "init_lora_weights")


_KEYS = (
    Key("model", ("model_id",), lambda run: run.model, shared.model_here),
    Key("model_type", (), lambda run: run.family.swift, shared.nothing, note="as the model's configuration says here"),
    Key("template", (), lambda run: run.family.swift, shared.template_here, note="the model's own here"),
    fixed("use_hf", True, "models come from the Hugging Face hub"),
    Key("torch_dtype", (), lambda run: run.dtype, shared.nothing, note="chosen here by what the GPU can do"),
    Key("rlhf_type", ("method",), lambda run: _TYPES.get(run.method), shared.nothing, note="none: sft"),
    Key(
        "tuner_type",
        ("weights",),
        lambda run: "full" if _is_freeze(run) else run.weights,
        shared.nothing,
        note="freeze: full, with the next two",
    ),
    fixed("freeze_parameters_ratio", 1.0, "parameters are frozen by layers").replaced(applies=_is_freeze),
    Key("trainable_parameters_regex", ("last_layers",), _layers_there, _layers_here, applies=_is_freeze),
    same("lora_rank", "lora_r", 8, applies=for_adapters),
    same("lora_alpha", default=32, applies=for_adapters),
    same("lora_dropout", default=0.05, applies=for_adapters),
    Key(
        "target_modules",
        ("attention", "mlp"),
        _targets_there,
        shared.targets_here(("all-linear",)),
        note="all-linear: both",
        applies=for_adapters,
    ),
    Key("target_regex", ("attention", "mlp"), _regex_there, _regex_here, note="one of them", applies=for_adapters),
    switch("use_rslora", "use_rslora", False, applies=for_adapters),
    switch("use_dora", "use_dora", False, applies=for_adapters),
    Key(
        "init_weights",
        ("init_lora_weights",),
        lambda run: _INITS[run.config.init_lora_weights],
        _init_here,
        applies=for_adapters,
    ),
    switch("freeze_llm", "language", False, negated=True),
    switch("freeze_vit", "vision", True, negated=True),
    Key(
        "freeze_aligner",
        ("vision",),
        lambda run: not run.config.vision,
        shared.with_vision("freeze_vit"),
        True,
        "together with the vision encoder",
    ),
    fixed("quant_method", "bnb", "4 bits are those of bitsandbytes").replaced(
        there=lambda run: "bnb" if run.config.bits == 4 else None
    ),
    Key("quant_bits", ("bits",), lambda run: 4 if run.config.bits == 4 else None, shared.bits_here, "none", "none: 16"),
    Key(
        "tuner_backend",
        ("backend",),
        lambda run: "unsloth" if run.config.backend == "unsloth" else None,
        lambda value, _: {"backend": "unsloth"} if value == "unsloth" else {},
    ),
    Key("dataset", ("dataset",), lambda run: [str(run.folder / f"{run.file()}.jsonl")], shared.nothing),
    Key(
        "val_dataset",
        ("validation_rows",),
        lambda run: [str(run.folder / f"{run.file('validation')}.jsonl")] if run.validated else None,
        _val_dataset_here,
        note="a file of its own there",
    ),
    Key("split_dataset_ratio", ("validation_rows",), lambda run: None, _share_here, note="a share, here a number"),
    Key("ENV", ("image_root",), lambda run: {"ROOT_IMAGE_DIR": str(run.folder)}, _env_here, note="ROOT_IMAGE_DIR"),
    fixed("dataset_shuffle", False, "rows are shuffled once, as the trainer does it"),
    # KTO takes equal answers of neighbors for a fault.
    Key(
        "strict", (), lambda run: run.method != "kto", _strict_here, note="a row that cannot be used ends the training"
    ),
    same("max_length", note="a longer row is left out there, and an error here"),
    fixed("truncation_strategy", "delete", "nothing is cut"),
    same("max_pixels", note="of an image after resizing"),
    Key("loss_type", ("loss",), _loss_there, _loss_here, _default_loss, applies=for_methods("dpo", "kto", "grpo")),
    Key(
        "loss_weights",
        ("loss",),
        lambda run: [1.0] * len(losses) if isinstance(losses := _loss_there(run), list) else None,
        _weights_here,
        applies=for_methods("dpo"),
    ),
    same("beta", default=_default_beta, applies=_REFERS),
    same("label_smoothing", default=0, applies=for_methods("dpo")),
    same("simpo_gamma", default=1, applies=for_methods("simpo")),
    Key(
        "cpo_alpha",
        ("nll_coef",),
        lambda run: value_of(run.config, "nll_coef"),
        _alpha_here,
        1.0,
        applies=for_methods("simpo", "cpo"),
    ),
    same("center_rewards_coefficient", applies=for_methods("reward")),
    same("num_generations", default=8, applies=_SAMPLES),
    same("max_completion_length", default=512, applies=_SAMPLES),
    same("temperature", default=0.9, applies=_SAMPLES),
    Key(
        "external_plugins",
        (),
        lambda run: [str(run.folder / f"{run.name}{_PLUGIN}")],
        _plugins_here,
        note="the rewards",
        applies=_SAMPLES,
    ),
    Key("reward_funcs", ("rewards",), _rewards_there, _rewards_here, [], "as parse_rewards reads them", _SAMPLES),
    same("output_dir"),
    fixed("add_version", False, "a run is its folder"),
    same("per_device_train_batch_size", "batch_size", 1).replaced(here=shared.batch_here),
    same("gradient_accumulation_steps", default=_default_accumulation),
    *shared.LENGTH,
    same("learning_rate", default=lambda keys: 1e-5 if keys.get("tuner_type") == "full" else 1e-4),
    *shared.schedule_keys("cosine"),
    same("adam_beta2", default=0.95),
    same("max_grad_norm", default=1.0),
    fixed("weight_decay", 0.0, "weights do not decay").replaced(default=0.1),
    same("seed", default=42),
    shared.ON_CPU,
    Key(
        "gradient_checkpointing",
        ("gradient_checkpointing",),
        shared.checkpoints,
        lambda value, _: {"gradient_checkpointing": is_true(value)},
        True,
    ),
    same("logging_steps", default=5),
    *shared.validation_keys("", "early_stop_interval"),
    Key("report_to", ("report_to",), lambda run: [run.config.report_to], shared.tracker_here, "tensorboard"),
)
_WITHOUT = {
    **dict.fromkeys(
        "dataset_num_proc dataloader_num_workers dataloader_persistent_workers dataloader_prefetch_factor "
        "load_from_cache_file save_strategy save_total_limit save_only_model logging_first_step logging_dir run_name "
        "attn_impl deepspeed fsdp ddp_timeout ddp_backend use_liger_kernel vit_gradient_checkpointing bf16 fp16 "
        "gradient_checkpointing_kwargs lazy_tokenize check_model create_checkpoint_symlink max_shard_size "
        "safe_serialization device_map hub_token push_to_hub use_logits_to_keep log_completions "
        "bnb_4bit_compute_dtype bnb_4bit_quant_storage model_revision acc_strategy torch_compile group_by_length "
        "train_dataloader_shuffle val_dataset_shuffle resume_from_checkpoint resume_only_model model_author model_name "
        "use_vllm vllm_mode vllm_gpu_memory_utilization vllm_tensor_parallel_size vllm_max_model_len sleep_level "
        "offload_model offload_optimizer move_model_batches ds3_gather_for_generation eval_use_evalscope".split(),
        NO_EFFECT + ", or a run here sees to it",
    ),
    **dict.fromkeys("bnb_4bit_quant_type bnb_4bit_use_double_quant".split(), "here 4 bits are NF4, doubly"),
    "adapters": "a run here begins with new adapters: merge that one, and name the merged model",
    "ref_model": "the model before the training is the reference here",
    "ref_adapters": "as ref_model",
    "data_seed": "seed is for all here",
    "packing": "rows are not packed here",
    "padding_free": "rows are padded here",
    "streaming": "the file is read whole: for shards see streaming of RunConfig",
    "system": "write the system turn into the rows: with_system does it",
    "loss_scale": "answers count by their tokens here",
    "columns": "rename the fields in the file",
    "optim": "AdamW, as torch has it",
    "optimizer": "AdamW, as torch has it",
    "adam_beta1": "0.9",
    "adam_epsilon": "1e-8",
    "lr_scheduler_kwargs": "a schedule has no arguments here",
    "vit_lr": "all weights have one learning rate here",
    "aligner_lr": "all weights have one learning rate here",
    "lorap_lr_ratio": "all adapters have one learning rate here",
    "lora_bias": "only adapters are trained here",
    "lora_dtype": "adapters are float32 here",
    "modules_to_save": "only adapters are trained beside frozen weights here",
    "freeze_parameters": "parameters are chosen by tower and by last layers here",
    "trainable_parameters": "parameters are chosen by tower and by last layers here",
    "rope_scaling": "positions stay as the model has them",
    "new_special_tokens": "the vocabulary stays as it is",
    "model_kwargs": "what a model's code reads there: for pixels see max_pixels",
    "enable_thinking": "as the model's own chat template has it",
    "add_non_thinking_prefix": "as the model's own chat template has it",
    "agent_template": "calls of tools are not trained here",
    "custom_register_path": "code of a plugin is not executed here",
    "metric_for_best_model": "the loss of the validation here",
    "greater_is_better": "as metric_for_best_model",
    "neftune_noise_alpha": "no noise is added here",
    "rpo_alpha": "for a likelihood beside DPO's loss choose loss sigmoid+sft",
    "ld_alpha": "no such term here",
    "desirable_weight": "both kinds of rows count alike here",
    "undesirable_weight": "both kinds of rows count alike here",
    "reward_model": "a reward model here is an adapter or a model that method=reward trained",
    "reward_weights": "write weights into rewards: 0.1*length_within:20",
    "num_iterations": "one update for each sample here",
    "epsilon": "0.2",
    "scale_rewards": "by the spread of each group",
    "advantage_estimator": "for rloo choose method=rloo",
    "top_p": "all tokens are sampled from",
    "top_k": "all tokens are sampled from",
    "dynamic_sample": "no group is sampled anew here",
    **dict.fromkeys(
        "use_galore lisa_activated_layers use_flash_ckpt enable_dft_loss router_aux_loss_coef sequence_parallel_size "
        "callbacks swanlab_project".split(),
        "a run here has none of it",
    ),
}


def _kind(keys: Mapping) -> tuple[str, str]:
    kind, tuner = keys.get("rlhf_type"), str(keys.get("tuner_type", keys.get("train_type", "lora")))
    names = {there: here for here, there in _TYPES.items()}
    if kind is not None and kind not in names:
        raise Differs(f"rlhf_type is {shown(kind)}: here are {', '.join(names)}, or none for sft")
    if tuner not in ("lora", "full"):
        raise Differs(f"tuner_type is {shown(tuner)}: here are lora and full")
    method = names[kind] if kind is not None else "sft"
    if method == "cpo" and several(keys.get("loss_type") or "") == ["simpo"]:
        method = "simpo"
    by_layers = _LAST_LAYERS.fullmatch(str(keys.get("trainable_parameters_regex")))
    if by_layers and number(keys.get("freeze_parameters_ratio", 0)) == 1 and tuner == "full":
        return method, "freeze"
    return method, tuner


SWIFT = Program("ms-swift", "4.6.0", _KEYS, _WITHOUT, _kind)


def to_swift(
    rows: "Dataset", folder: str | os.PathLike, config: RunConfig, name: str = "rows", gpu: bool | None = None
) -> Path:
    """Writes a run as ms-swift takes it, NAME.yaml beside NAME.jsonl, and returns the path of the former.

    Start it with `swift sft NAME.yaml`, for other methods with `swift rlhf NAME.yaml`. For the arguments and errors see
    `to_llama_factory`.
    """
    from vlmhelpers.interchange.rewards import write_plugin
    from vlmhelpers.interchange.writing import prepare, write_rows, write_yaml

    run, turns, images = prepare(rows, folder, config, name, gpu, _refusals)
    if run.method == "grpo":
        write_plugin(run.folder / f"{run.name}{_PLUGIN}", run.config.rewards)
    write_rows(run, "ms-swift", lambda row: _row(row, turns, images), ("rejected images", "unlearned answers"))
    return write_yaml(run, SWIFT, _notes(run, turns))


def swift_yaml(config: RunConfig) -> str:
    """The settings alone, as ms-swift has them; no rows are read. Raises ValueError for what it lacks."""
    from vlmhelpers.interchange.writing import outline

    return outline(config, SWIFT, _refusals)


def _refusals(config, family) -> Iterator[str]:
    from vlmhelpers.interchange.rewards import SCORES, unknown_rewards

    name, program = config.method, "ms-swift"
    if name != "sft" and name not in _TYPES:
        yield f"{program} has no method {name!r} as it is here: it has sft, {', '.join(_TYPES)}"
    yield from shared.refusals(program, family.swift, config)
    if name == "grpo" and config.reward_model:
        yield f"reward_model: {program} takes one that was trained there alone; choose rewards"
    if name == "grpo" and (unknown := unknown_rewards(config.rewards or "")):
        yield f"rewards: {unknown[0]} is not written for {program}; there are {', '.join(SCORES)}"


def _notes(run, turns) -> Iterator[str]:
    yield from shared.notes(run, turns, "ms-swift")
    if run.method == "kto" and _has_equal_answers(run):
        yield "Some answers are equal: ms-swift's KTO takes another row where two such follow each other."
    yield f"Start it with: swift {'sft' if run.method == 'sft' else 'rlhf'} {run.name}.yaml"
    if run.method == "reward":
        yield "ms-swift trains a head of its own: the reward model cannot be used as reward_model here."


def _has_equal_answers(run):
    answers = [repr(answer) for answer in run.parts["train"]["completion"]]
    return len(set(answers)) < len(answers)


def _row(row, turns, images):
    shown_images = {"images": images(row["images"] or [])}
    if "messages" in row:
        return {"messages": turns(row["messages"])} | shown_images
    if "chosen" in row:
        others = {"rejected_images": images(row["rejected_images"])} if row.get("rejected_images") else {}
        others["rejected_response"] = turns(row["rejected"])[0]["content"]
        return {"messages": turns([*row["prompt"], *row["chosen"]])} | shown_images | others
    if "label" in row:
        return {"messages": turns([*row["prompt"], *row["completion"]]), "label": row["label"]} | shown_images
    return {"messages": turns(row["prompt"]), "solution": row["answer"] or ""} | shown_images


def from_swift(path: str | os.PathLike) -> Imported:
    """The settings in a YAML or JSON file of ms-swift as a `RunConfig`, and what has no counterpart here.

    Its defaults are taken over where they are not those here. A file for `swift rlhf` has to name its `rlhf_type`.
    Raises ValueError, with the file and a remedy, for what is no such file, and OSError.
    """
    path = Path(path)
    keys = load_settings(path)
    return import_keys(SWIFT, path, keys, _dataset(path, keys))


def _dataset(path, keys):
    names = several(keys.get("dataset") or [])
    if not names:
        return {}
    more = {"dataset": f"{len(names)} data sets, and a run here has one file: {names[0]} was taken; join them"}
    found = {"unmapped": more if len(names) > 1 else {}}
    name, _, count = names[0].partition("#")
    if count:
        found["unmapped"] |= {"dataset": f"{count} of its rows, and all are trained on here: write a shorter file"}
    file = find_file(path, Path(name))
    if file is None:
        away = "it is no file here: where it is on a hub, download it, and name its file"
        return found | {"dataset": name, "unmapped": found["unmapped"] | {"dataset": away}}
    env = keys.get("ENV") if isinstance(keys.get("ENV"), dict) else {}
    root = find_file(path, Path(str(env["ROOT_IMAGE_DIR"]))) if env.get("ROOT_IMAGE_DIR") else Path.cwd()
    return imported_rows(Source(file, {}, []), _kind(keys)[0], root, found)
