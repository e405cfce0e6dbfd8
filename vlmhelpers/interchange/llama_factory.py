"""LLaMA-Factory: its keys, and runs to and from its files (`llamafactory-cli train NAME.yaml`)."""

import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from vlmhelpers.common.files import atomic_file, one_process
from vlmhelpers.common.printable import printable
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

_INFO = "dataset_info.json"
_STAGES = {"sft": "sft", "dpo": "dpo", "kto": "kto", "orpo": "dpo", "simpo": "dpo", "reward": "rm", "ppo": "ppo"}
_LOSSES = ("sigmoid", "hinge", "ipo")
_NO_CAP = 10**9  # pixels
_TAGS = {
    "role_tag": "role",
    "content_tag": "content",
    "user_tag": "user",
    "assistant_tag": "assistant",
    "system_tag": "system",
}
_ANSWERS = {"dpo": ("chosen", "rejected"), "rm": ("chosen", "rejected"), "kto": ("kto_tag",)}  # columns by stage
_PREFERENCE = for_methods("dpo", "orpo", "simpo")
_HEAD = "value_head.safetensors"  # beside a reward model that was trained there


def _loss_there(run: "Run") -> str:
    return value_of(run.config, "loss").split("+")[0] if run.method == "dpo" else run.method


def _loss_here(value: object, keys: Mapping) -> dict:
    if str(value) not in _LOSSES:
        return {}  # orpo and simpo are methods here
    likelihood = number(keys.get("pref_ftx", 0.0))
    if likelihood not in (0, 1):
        raise Differs(f"pref_ftx is {likelihood:g}, and here the likelihood is added once or not", loss=f"{value}+sft")
    return {"loss": f"{value}+sft" if likelihood else str(value)}


def _likelihood_there(run: "Run") -> float:
    if run.method == "simpo":
        return value_of(run.config, "nll_coef")
    return float("sft" in (value_of(run.config, "loss") or "").split("+")) if run.method == "dpo" else 0.0


def _likelihood_here(value: object, keys: Mapping) -> dict:
    return {"nll_coef": number(value)} if keys.get("pref_loss") == "simpo" else {}


def _targets_there(run: "Run") -> str:
    return ",".join(shared.adapted(run)) or "all"


def _layers_here(value: object, _: Mapping) -> dict:
    if number(value) < 1:
        raise Differs("the first layers are no choice here", last_layers=1)
    return {"last_layers": value}


def _held_out_here(value: object, _: Mapping) -> dict:
    rows = number(value)
    if 0 < rows < 1:
        raise Differs(f"{rows:g} of the rows, and validation_rows is a number of them: set it")
    return {"validation_rows": int(rows)}


def _validation_there(run: "Run") -> str | None:
    return run.file("validation") if run.validated else None


_KEYS = (
    Key("model_name_or_path", ("model_id",), lambda run: run.model, shared.model_here),
    fixed("trust_remote_code", False, "code of a model's publisher is never executed"),
    Key("template", (), lambda run: run.family.llama_factory, shared.template_here, note="the model's own here"),
    same("image_max_pixels", "max_pixels", 768 * 768, note="of an image after resizing").replaced(
        there=lambda run: run.config.max_pixels or _NO_CAP, here=shared.cap_here(_NO_CAP)
    ),
    fixed("image_min_pixels", 1, "the model's own processor makes small images larger"),
    Key("stage", ("method",), lambda run: _STAGES[run.method], shared.nothing, note="with pref_loss"),
    fixed("do_train", True, "nothing else is imported"),
    Key("finetuning_type", ("weights",), lambda run: run.weights, shared.nothing),
    same("lora_rank", "lora_r", 8, applies=for_adapters),
    same("lora_alpha", default=lambda keys: 2 * keys.get("lora_rank", 8), applies=for_adapters, note="2 x lora_rank"),
    same("lora_dropout", default=0.0, applies=for_adapters),
    Key(
        "lora_target",
        ("attention", "mlp"),
        _targets_there,
        shared.targets_here(("all",)),
        "all",
        "all: both; else the names of the layers",
        for_adapters,
    ),
    switch("use_rslora", "use_rslora", False, applies=for_adapters),
    switch("use_dora", "use_dora", False, applies=for_adapters),
    Key(
        "pissa_init",
        ("init_lora_weights",),
        lambda run: run.config.init_lora_weights == "pissa" or None,
        lambda value, _: {"init_lora_weights": "pissa"} if is_true(value) else {},
        False,
        "true: pissa",
        for_adapters,
    ),
    Key(
        "freeze_trainable_layers",
        ("last_layers",),
        lambda run: run.config.last_layers or 1,
        _layers_here,
        2,
        applies=lambda run: run.weights == "freeze",
    ),
    switch("freeze_vision_tower", "vision", True, negated=True),
    Key(
        "freeze_multi_modal_projector",
        ("vision",),
        lambda run: not run.config.vision,
        shared.with_vision("freeze_vision_tower"),
        True,
        "together with the vision encoder",
    ),
    switch("freeze_language_model", "language", False, negated=True),
    Key(
        "quantization_bit",
        ("bits",),
        lambda run: 4 if run.config.bits == 4 else None,
        shared.bits_here,
        "none",
        "none: 16",
    ),
    Key(
        "use_unsloth",
        ("backend",),
        lambda run: run.config.backend == "unsloth" or None,
        lambda value, _: {"backend": "unsloth"} if is_true(value) else {},
        note="true: unsloth",
    ),
    Key("dataset_dir", ("dataset",), lambda run: str(run.folder), shared.nothing, note=f"where {_INFO} lies"),
    Key("dataset", ("dataset",), lambda run: run.name, shared.nothing, note=f"a name in {_INFO}"),
    Key("media_dir", ("image_root",), lambda run: str(run.folder), shared.nothing),
    Key(
        "eval_dataset",
        ("validation_rows",),
        _validation_there,
        shared.validation_file_here,
        note="a file of its own there",
    ),
    Key("val_size", ("validation_rows",), lambda run: None, _held_out_here, note="a number of rows, no share"),
    same("cutoff_len", "max_length", 2048, note="it cuts there; a longer row is an error here"),
    fixed("overwrite_cache", True, NO_EFFECT),
    Key("pref_loss", ("method", "loss"), _loss_there, _loss_here, "sigmoid", "orpo and simpo: methods", _PREFERENCE),
    same("pref_beta", "beta", 0.1, applies=for_methods("dpo", "kto", "orpo", "simpo")),
    Key(
        "pref_ftx",
        ("loss", "nll_coef"),
        _likelihood_there,
        _likelihood_here,
        0.0,
        "dpo: 1 is +sft in loss",
        for_methods("dpo", "simpo"),
    ),
    same("dpo_label_smoothing", "label_smoothing", 0.0, applies=for_methods("dpo")),
    same("simpo_gamma", default=0.5, applies=for_methods("simpo")),
    Key(
        "reward_model",
        ("reward_model",),
        lambda run: run.config.reward_model,
        lambda value, _: {"reward_model": str(value)},
        note="trained there: it has a head of its own",
        applies=for_methods("ppo"),
    ),
    same("max_new_tokens", "max_completion_length", 1024, applies=for_methods("ppo")),
    same("temperature", default=0.95, applies=for_methods("ppo")),
    fixed("top_p", 1.0, "all tokens are sampled from").replaced(applies=for_methods("ppo"), default=0.7),
    fixed("top_k", 0, "all tokens are sampled from").replaced(applies=for_methods("ppo"), default=50),
    same("output_dir"),
    fixed("overwrite_output_dir", True, "a run goes on, or says why it cannot"),
    same("per_device_train_batch_size", "batch_size", 8).replaced(here=shared.batch_here),
    same("gradient_accumulation_steps", default=1),
    *shared.LENGTH,
    same("learning_rate", default=5e-5),
    *shared.schedule_keys("linear"),
    same("adam_beta2", default=0.999),
    same("max_grad_norm", default=1.0),
    fixed("weight_decay", 0.0, "weights do not decay"),
    same("seed", default=42),
    Key("bf16", (), lambda run: run.dtype == "bfloat16", shared.nothing, note="chosen here by what the GPU can do"),
    Key("fp16", (), lambda run: run.dtype == "float16" or None, shared.nothing, note="as bf16"),
    shared.ON_CPU,
    Key(
        "disable_gradient_checkpointing",
        ("gradient_checkpointing",),
        lambda run: not shared.checkpoints(run),
        lambda value, _: {"gradient_checkpointing": not is_true(value)},
        False,
        "the opposite of it",
    ),
    same("logging_steps", default=500),
    *shared.validation_keys("val_size", "early_stopping_steps"),
    Key("report_to", ("report_to",), lambda run: run.config.report_to, shared.tracker_here, "none"),
)
# What asks for something that a run here does not have.
_WITHOUT = {
    **dict.fromkeys(
        "plot_loss save_only_model save_total_limit save_strategy logging_strategy logging_first_step ddp_timeout "
        "preprocessing_num_workers preprocessing_batch_size dataloader_num_workers run_name logging_dir "
        "include_num_input_tokens_seen include_effective_tokens_per_second flash_attn low_cpu_mem_usage cache_dir "
        "ddp_find_unused_parameters deepspeed fsdp fsdp_config use_cache project trackio_space_id "
        "tokenized_path data_shared_file_system use_reentrant_gc upcast_layernorm print_param_status hf_hub_token "
        "ms_hub_token om_hub_token dataloader_pin_memory gradient_checkpointing gradient_checkpointing_kwargs "
        "use_fast_tokenizer video_max_pixels video_min_pixels video_fps video_maxlen do_eval predict_with_generate "
        "enable_liger_kernel use_unsloth_gc quantization_device_map torch_compile disable_tqdm push_to_hub "
        "resume_from_checkpoint".split(),
        NO_EFFECT + ", or a run here sees to it",
    ),
    **dict.fromkeys("quantization_type double_quantization quantization_method".split(), "here 4 bits are NF4, doubly"),
    "adapter_name_or_path": "a run here begins with new adapters: merge that one, and name the merged model",
    "create_new_adapter": "as adapter_name_or_path",
    "reward_model_type": "here a reward model is an adapter or a whole model, as its folder says",
    "reward_model_adapters": "name the adapter's folder as reward_model",
    "ref_model": "the model before the training is the reference here",
    "ref_model_adapters": "as ref_model",
    "max_samples": "all rows of the file are trained on here: write a shorter one",
    "packing": "rows are not packed here",
    "neat_packing": "rows are not packed here",
    "train_on_prompt": "only answers are learned here",
    "mask_history": "every answer of a conversation is learned here: see one_answer_per_row",
    "streaming": "the file is read whole: for shards see streaming of RunConfig",
    "default_system": "write the system turn into the rows: with_system does it",
    "enable_thinking": "as the model's own chat template has it",
    "preserve_thinking": "as the model's own chat template has it",
    "tool_format": "calls of tools are not trained here",
    "optim": "AdamW, as torch has it",
    "adam_beta1": "0.9",
    "adam_epsilon": "1e-8",
    "lr_scheduler_kwargs": "a schedule has no arguments here",
    "neftune_noise_alpha": "no noise is added here",
    "additional_target": "only adapters are trained beside frozen weights here",
    "loraplus_lr_ratio": "all adapters have one learning rate here",
    "freeze_trainable_modules": "all of a layer is trained here",
    "freeze_extra_modules": "only whole layers are trained here",
    "rope_scaling": "positions stay as the model has them",
    "resize_vocab": "the vocabulary stays as it is",
    "pure_bf16": "what is trained is float32 here",
    "metric_for_best_model": "the loss of the validation here",
    "greater_is_better": "as metric_for_best_model",
    "eval_on_each_dataset": "there is one validation here",
    "pref_bco_weight": "no such term here",
    "ld_alpha": "no such term here",
    "kto_chosen_weight": "both kinds of rows count alike here",
    "kto_rejected_weight": "both kinds of rows count alike here",
    "ppo_buffer_size": "PPO has its own rollout batches here",
    "ppo_epochs": "PPO goes through a rollout batch twice here",
    "ppo_score_norm": "a reward model has its own scale here",
    "ppo_target": "the weight of the KL penalty is constant here: beta",
    "ppo_whiten_rewards": "advantages are whitened here",
    **dict.fromkeys(
        "use_galore use_apollo use_badam use_adam_mini use_muon use_dft_loss use_asft_loss use_eaft_loss "
        "use_swanlab shift_attn mixture_of_depths use_kt use_mca".split(),
        "a run here has none of it",
    ),
}


def _kind(keys: Mapping) -> tuple[str, str]:
    stage, weights = str(keys.get("stage", "sft")), str(keys.get("finetuning_type", "lora"))
    loss = str(keys.get("pref_loss", "sigmoid"))
    if stage == "dpo" and loss == "kto_pair":
        raise Differs("pref_loss is kto_pair, which has no counterpart here: choose stage kto, or another loss")
    method = {"rm": "reward"}.get(stage, loss if stage == "dpo" and loss in _STAGES else stage)
    if method not in _STAGES:
        raise Differs(f"stage is {shown(stage)}: here are {', '.join(dict.fromkeys(_STAGES.values()))}")
    if weights not in ("lora", "full", "freeze"):
        raise Differs(f"finetuning_type is {shown(weights)}: here are lora, full, freeze")
    return method, weights


LLAMA_FACTORY = Program("LLaMA-Factory", "0.9.5", _KEYS, _WITHOUT, _kind)


def to_llama_factory(
    rows: "Dataset", folder: str | os.PathLike, config: RunConfig, name: str = "rows", gpu: bool | None = None
) -> Path:
    """Writes a run as LLaMA-Factory takes it, NAME.yaml beside NAME.jsonl, and returns the path of the former.

    rows: a Dataset of the kind that the method takes, in any of the schema's forms. What is None in `config` is filled
    in as `train` does it. Rows are checked and held out as there, those of the validation written to a file of their
    own; `dataset_info.json` keeps what others have put into it; images go to the folder `images`. gpu: whether it is to
    run on one; None: as here. What will be otherwise there is printed, and stands above the settings in NAME.yaml.

    Raises ValueError, with a remedy, for what LLaMA-Factory does not have, and for a row longer than `max_length`,
    which it would cut.
    """
    from vlmhelpers.interchange.writing import prepare, write_rows, write_yaml

    run, turns, images = prepare(rows, folder, config, name, gpu, _refusals)
    write_rows(run, "LLaMA-Factory", lambda row: _row(row, turns) | {"images": images(row["images"] or [])})
    _write_info(run)
    return write_yaml(run, LLAMA_FACTORY, _notes(run, turns))


def llama_factory_yaml(config: RunConfig) -> str:
    """The settings alone, as LLaMA-Factory has them; no rows are read. Raises ValueError for what it lacks."""
    from vlmhelpers.interchange.writing import outline

    return outline(config, LLAMA_FACTORY, _refusals)


def _refusals(config, family) -> Iterator[str]:
    name, program = config.method, "LLaMA-Factory"
    if name not in _STAGES:
        yield f"{program} has no method {name!r}: it has {', '.join(_STAGES)}"
    yield from shared.refusals(program, family.llama_factory, config)
    losses = (config.loss or "").split("+") if name == "dpo" else []
    if len([loss for loss in losses if loss not in ("", "sft")]) > 1 or set(losses) - {"", "sft", *_LOSSES}:
        yield f"loss is {config.loss!r}, and {program} has one of {', '.join(_LOSSES)}, alone or with +sft"
    if losses == ["sft"]:
        yield f"loss is 'sft', which {program} has beside another loss only: choose method='sft', or sigmoid+sft"
    if name == "kto" and config.loss not in (None, "kto"):
        yield f"loss is {config.loss!r}, and {program}'s KTO has none but 'kto'"
    if config.label_smoothing and not set(losses) <= {"", "sft", "sigmoid"}:
        yield f"label_smoothing goes with the loss sigmoid alone in {program}"
    if config.center_rewards_coefficient:
        yield f"center_rewards_coefficient: {program} has no such term; leave it out"
    if config.init_lora_weights not in ("default", "pissa"):
        yield f"init_lora_weights is {config.init_lora_weights!r}, and {program} has default and pissa"
    if name in ("reward", "ppo") and config.load_best_model_at_end:
        yield f"load_best_model_at_end: {program} does not do that with method {name!r}"
    if name == "ppo":
        yield from _of_ppo(config)


def _of_ppo(config):
    if config.rewards or not config.reward_model:
        yield "LLaMA-Factory's PPO takes a reward model alone: leave rewards out, and name a reward_model trained there"
    elif not (Path(config.reward_model) / _HEAD).is_file():
        trained = "to_llama_factory with method='reward' writes the files to train one there"
        yield f"reward_model {config.reward_model} was not trained by LLaMA-Factory: there is no {_HEAD}; {trained}"
    for setting in ("beta", "critic_learning_rate"):
        if getattr(config, setting) is not None:
            yield f"{setting}: LLaMA-Factory's PPO has no such setting; leave it out"
    if config.validation_rows:
        yield "validation_rows: LLaMA-Factory's PPO takes none; choose 0"


def _notes(run, turns) -> Iterator[str]:
    yield from shared.notes(run, turns, "LLaMA-Factory")
    if run.config.bits == 4:
        yield "4 bits: LLaMA-Factory rounds the vision encoder, too; here it keeps its 16."
    if run.method == "reward":
        yield "LLaMA-Factory trains a head of its own: the reward model cannot be used as reward_model here."
    if run.method == "ppo":
        yield "LLaMA-Factory's PPO has a KL penalty that adapts, and other rollout batches."


def _row(row, turns):
    if "messages" in row:
        return {"messages": turns(row["messages"])}
    if "chosen" in row:
        sides = {side: turns(row[side])[0] for side in ("chosen", "rejected")}
        return {"messages": turns(row["prompt"])} | sides
    if "label" in row:
        return {"messages": turns([*row["prompt"], *row["completion"]]), "kto_tag": row["label"]}
    answer = {"role": "assistant", "content": [{"type": "text", "text": row["answer"] or ""}]}
    return {"messages": turns([*row["prompt"], answer])}


def _write_info(run):
    """Adds the rows to `dataset_info.json`, in which those of other runs stay."""
    from vlmhelpers.interchange.rows import have_images

    path = run.folder / _INFO
    with one_process(run.folder, f"writing {_INFO}"):
        known = _read_info(path) if path.exists() else {}
        for part, dataset in run.parts.items():
            columns = ["messages", *["images"] * have_images(dataset), *_ANSWERS.get(_STAGES[run.method], ())]
            entry = {"file_name": f"{run.file(part)}.jsonl", "formatting": "sharegpt"}
            entry |= {"ranking": True} if "chosen" in columns else {}
            known[run.file(part)] = entry | {"columns": dict(zip(columns, columns, strict=True)), "tags": _TAGS}
        with atomic_file(path, encoding="utf-8") as file:
            json.dump(known, file, indent=2, ensure_ascii=False)


def _read_info(path):
    try:
        known = json.loads(path.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ValueError(printable(f"{path} is no JSON: {error}. Mend it, or choose another folder.")) from None
    if not isinstance(known, dict) or not all(isinstance(entry, dict) for entry in known.values()):
        raise ValueError(printable(f"{path} does not name data sets: expected is an object with one object for each"))
    return known


def from_llama_factory(path: str | os.PathLike) -> Imported:
    """The settings in a YAML or JSON file of LLaMA-Factory as a `RunConfig`, and what has no counterpart here.

    The data set is looked up in `dataset_info.json` of its `dataset_dir`, from the working directory or from the file's
    folder and those above it. Its defaults are taken over where they are not those here. Raises ValueError, with the
    file and a remedy, for what is no such file, and OSError.
    """
    path = Path(path)
    keys = load_settings(path)
    return import_keys(LLAMA_FACTORY, path, keys, _dataset(path, keys))


def _dataset(path, keys):
    """What of the settings follows from the data set, and what of it has to be done."""
    names = several(keys.get("dataset") or [])
    if not names:
        return {}
    more = {"dataset": f"{len(names)} data sets, and a run here has one file: {names[0]} was taken; join them"}
    found = {"unmapped": more if len(names) > 1 else {}}
    info = find_file(path, Path(str(keys.get("dataset_dir") or "data")) / _INFO)
    if info is None:
        missing = f"there is no {_INFO} in {keys.get('dataset_dir') or 'data'}: name the file itself as dataset"
        return found | {"dataset": names[0], "unmapped": found["unmapped"] | {"dataset_dir": missing}}
    entry = _read_info(info).get(names[0])
    if entry is None:
        raise ValueError(printable(f"{path}: {info} has no data set {names[0]!r}: add it, or name another"))
    if "file_name" not in entry:
        away = "it is on a hub: download it, and name its file as dataset"
        return found | {"dataset": names[0], "unmapped": found["unmapped"] | {"dataset": away}}
    media = keys.get("media_dir")
    root = find_file(path, Path(str(media))) if media else info.parent
    return imported_rows(_source(info, entry), _kind(keys)[0], root, found)


def _source(info, entry):
    columns, tags = entry.get("columns") or {}, entry.get("tags") or {}
    form = str(entry.get("formatting", "alpaca"))
    names = {"alpaca": {"text_field": "prompt", "response_field": "response"}}.get(form, {"text_field": "messages"})
    names |= {"image_field": "images"}
    fields = {setting: columns[column] for setting, column in names.items() if column in columns}
    odd = [f"{tag} {tags[tag]!r}" for tag in tags if tags[tag] not in _READ_TAGS.get(tag, ())]
    odd += [f"the column {column}" for column in ("videos", "audios", "tools") if columns.get(column)]
    return Source(info.parent / str(entry["file_name"]), fields, odd)


_READ_TAGS = {
    "role_tag": ("from", "role"),
    "content_tag": ("value", "content"),
    "user_tag": ("human", "user"),
    "assistant_tag": ("gpt", "assistant", "model", "bard"),
    "system_tag": ("system",),
    "observation_tag": ("observation", "tool"),
    "function_tag": ("function_call", "function", "tool_call"),
}
