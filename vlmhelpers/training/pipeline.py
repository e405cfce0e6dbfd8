"""The parts of a run: its arguments, its rows, and its trainer with model, adapters and collator."""

import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset, concatenate_datasets
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.pixel_cache import precompute
from vlmhelpers.common.distributed import is_sharded, on_main
from vlmhelpers.common.environment import compute_dtype
from vlmhelpers.data.report import Report
from vlmhelpers.data.splitting import split
from vlmhelpers.data.validation import check_dataset
from vlmhelpers.estimation.suggestion import suggest
from vlmhelpers.models.backends import add_lora, choose_backend
from vlmhelpers.models.loading import load_model, load_processor
from vlmhelpers.models.lora import keep_adapters_float32, lora_targets
from vlmhelpers.models.vision import cache_vision_features
from vlmhelpers.training.callbacks import report_to, watch
from vlmhelpers.training.config import REJECTED, RunConfig


def training_arguments(config: RunConfig) -> SFTConfig:
    """The `SFTConfig` of a run, which joins the processes; its own defaults stand for None.

    Raises ValueError for what FSDP cannot do.
    """
    if is_sharded() and config.cache == "features":
        raise ValueError('cache="features" is for models that are whole on each GPU: with FSDP choose cache="pixels"')
    # peft 0.21 finds no adapter inside the layers that accelerate wraps for this.
    if is_sharded() and os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false") == "true":
        remedy = "turn it off there, and gradient_checkpointing on in the run's settings"
        raise ValueError(f"with fsdp_activation_checkpointing the adapter would be saved empty: {remedy}")
    dtype, gpu = compute_dtype(), torch.cuda.is_available()
    if not gpu:
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # else "cpu:0", where torch loads no checkpoint to
    own = {"num_train_epochs": config.epochs, "per_device_train_batch_size": config.batch_size}
    settings = {name: value for name, value in asdict(config).items() if name in SFTConfig.__dataclass_fields__} | own
    settings = {name: value for name, value in settings.items() if value is not None}
    if config.validation_rows:
        settings |= {"eval_strategy": "steps", "eval_steps": config.logging_steps, "prediction_loss_only": True}
        settings["per_device_eval_batch_size"] = settings.get("per_device_train_batch_size", 1)
    settings |= {
        "loss_type": "nll",  # of the positions that the collator keeps
        "max_length": None,  # would cut through image tokens; the collator names the row that is too long
        "remove_unused_columns": False,  # keeps `row`, so that errors can name it
        "gradient_checkpointing": gpu if config.gradient_checkpointing is None else config.gradient_checkpointing,
        "gradient_checkpointing_kwargs": {"use_reentrant": False},
        "bf16": dtype == torch.bfloat16,
        "fp16": dtype == torch.float16,
        "use_cpu": not gpu,
        "ddp_timeout": 7200,  # seconds: the other processes wait while the main one checks every image
        "save_total_limit": 2,  # the last but one stays until the last is complete
        "report_to": report_to(config.report_to),
        "run_name": Path(config.output_dir).name,
    }
    return SFTConfig(**settings)


@dataclass(frozen=True)
class Rows:
    """The rows of a run: `parts` are "train" and, where they are asked for, "test" and "validation".

    The report is that of the main process.
    """

    parts: dict[str, Dataset]
    counts: dict[str, int]
    report: Report | None


def load_rows(config: RunConfig, dataset: Dataset) -> Rows:
    """The sound ones of all rows, split. Writes nothing but, where there is none, why: that raises ValueError."""
    reports = []
    rejected = on_main(lambda: _rejected(dataset, config, reports))
    kept = dataset.select([index for index in range(len(dataset)) if index not in rejected])
    parts = dict(split(kept, config.test_rows, seed=config.seed)) if config.test_rows else {"train": kept}
    if config.validation_rows:
        more = split(parts["train"], config.validation_rows, seed=config.seed)
        parts |= {"train": more["train"], "validation": more["test"]}
    counts = {"read": len(dataset), "rejected": len(rejected), "trained": len(parts["train"])}
    return Rows(parts, counts | {"test": len(parts.get("test", ()))}, *reports or [None])


def _rejected(dataset, config, reports):
    report = check_dataset(dataset)
    reports.append(report)
    if not report.counts["kept"]:
        file = Path(config.output_dir) / REJECTED
        report.save_rejected(file)
        raise ValueError(f"{config.dataset} has no row that can be used: the reasons are in {file}")
    return {record["index"] for record in report.rejected}


def fill_in(config: RunConfig, model_id: str, parts: dict[str, Dataset]) -> RunConfig:
    """The settings with what suits the model, the rows and the device, for all that is None."""
    rows = concatenate_datasets([parts[name] for name in ("train", "validation") if name in parts])
    values = suggest(model_id, text_only=not any(rows.with_format("arrow")["images"].to_pylist()), **config.chosen)
    if is_sharded():  # a part of the model on each GPU: the estimate is of all of it
        values = replace(values, gpu=None)
    checkpointing = config.gradient_checkpointing is not False
    options = {"vision": config.vision, "gradient_checkpointing": checkpointing}
    return config.filled(values.fit(rows, load_processor(model_id), _logits(config), **options))


def _logits(config):
    return "all" if choose_backend(config.backend) == "unsloth" else "labeled"  # Unsloth has a loss of its own


def make_trainer(config: RunConfig, model_id: str, parts: dict[str, Dataset]) -> SFTTrainer:
    """The trainer of a run whose settings are all filled in, with the model, its adapters and the processor."""
    args, rows = training_arguments(config), parts["train"]
    model, processor = load_model(model_id, config.bits, config.max_pixels, config.backend)
    unsloth = choose_backend(config.backend) == "unsloth"
    set_seed(config.seed)  # the adapters start at random, before the trainer sets its own seed
    targets = lora_targets(model, config.language, config.vision, attention=config.attention, mlp=config.mlp)
    lora = LoraConfig(r=config.lora_r, lora_alpha=config.lora_alpha, target_modules=targets, task_type="CAUSAL_LM")
    # DDP has to search for adapters outside a step: those that only images reach, and a vision encoder's unused layers.
    args.ddp_find_unused_parameters = config.vision or not all(rows.with_format("arrow")["images"].to_pylist())
    if config.cache != "none":
        with PartialState().main_process_first():  # the other processes find all pixels on disk
            rows = precompute(rows, processor, Path(config.output_dir) / "pixels")
    trainer = SFTTrainer(
        model=add_lora(model, lora, config.seed),
        args=args,
        train_dataset=rows,
        eval_dataset=parts.get("validation"),
        data_collator=VisionCollator(processor, config.max_length, logits=_logits(config)),
        processing_class=processor,
    )
    if not unsloth:
        # Each trained token of a step counts the same. Qwen models deny that they can, though transformers' loss does.
        trainer.model_accepts_loss_kwargs = True
    keep_adapters_float32(trainer.model)
    if config.cache == "features":
        cache_vision_features(trainer.model, Path(config.output_dir) / "features")
    watch(trainer)
    return trainer
