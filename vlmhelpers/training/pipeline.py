"""The parts of a run: its rows, its model with adapters, its trainer, and what it leaves behind."""

import os
import shutil
import time
from dataclasses import asdict
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset
from peft import LoraConfig
from transformers import set_seed
from trl import SFTConfig, SFTTrainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.pixel_cache import precompute
from vlmhelpers.common.distributed import is_sharded, on_main
from vlmhelpers.common.environment import compute_dtype
from vlmhelpers.data.readers.jsonl_reader import read_jsonl
from vlmhelpers.data.splitting import split
from vlmhelpers.data.validation import check_dataset
from vlmhelpers.models.backends import add_lora, choose_backend
from vlmhelpers.models.loading import choose_model, load_model
from vlmhelpers.models.lora import keep_adapters_float32, lora_targets
from vlmhelpers.models.vision import cache_vision_features
from vlmhelpers.training.callbacks import watch
from vlmhelpers.training.checkpoints import resume_from
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.results import ADAPTER, HELD_OUT, REJECTED, SETTINGS, RunResult, save_held_out
from vlmhelpers.training.trackers import report_to


def run(config: RunConfig) -> RunResult:
    """All of a run, on this process: what `vlmhelpers.training.run.train` describes."""
    args = training_arguments(config)
    rows, counts = load_rows(config)
    trainer = make_trainer(config, args, rows["train"])
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume_from(trainer))
    seconds = round(time.perf_counter() - started, 1)
    return _save(config, trainer, seconds, rows, counts)


def training_arguments(config: RunConfig) -> SFTConfig:
    """The `SFTConfig` of a run. Making it joins the processes, where there are several.

    A setting goes to the field of the same name, unless it is named below. Raises ValueError for what FSDP cannot do.
    """
    if is_sharded() and config.cache == "features":
        raise ValueError('cache="features" is for models that are whole on each GPU: with FSDP choose cache="pixels"')
    # peft 0.21 finds no adapter inside the layers that accelerate wraps for this.
    if is_sharded() and os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false") == "true":
        raise ValueError(
            "fsdp_activation_checkpointing is on in accelerate's settings, and the adapter would be saved empty: turn "
            "it off there, and gradient_checkpointing on in the run's settings"
        )
    dtype, gpu = compute_dtype(), torch.cuda.is_available()
    if not gpu:
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # else "cpu:0", where torch loads no checkpoint to
    settings = {name: value for name, value in asdict(config).items() if name in SFTConfig.__dataclass_fields__}
    settings |= {
        "num_train_epochs": config.epochs,
        "per_device_train_batch_size": config.batch_size,
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


def load_rows(config: RunConfig) -> tuple[dict[str, Dataset], dict[str, int]]:
    """The rows of a run as "train" and, with `test_rows`, "test"; and how many were read, rejected, trained, test.

    Every process reads the file; the main one checks the images, for all of them, and writes what it rejects to
    rejected.csv. Raises ValueError where no row can be used.
    """
    dataset = read_jsonl(
        config.dataset, config.image_root, config.text_field, config.image_field, config.response_field
    )
    rejected = on_main(lambda: _reject(dataset, config))
    kept = dataset.select([index for index in range(len(dataset)) if index not in rejected])
    rows = split(kept, config.test_rows, seed=config.seed) if config.test_rows else {"train": kept}
    counts = {"read": len(dataset), "rejected": len(rejected), "trained": len(rows["train"])}
    return rows, counts | {"test": len(rows.get("test", ()))}


def _reject(dataset, config):
    """The indices of the rows that cannot be used, which are listed in a file and counted in a line."""
    report = check_dataset(dataset)
    folder = Path(config.output_dir)
    (folder / REJECTED).unlink(missing_ok=True)  # of an earlier run
    shutil.rmtree(folder / HELD_OUT, ignore_errors=True)
    if report.rejected:
        report.save_rejected(folder / REJECTED)
        print(f"{len(report.rejected)} of {len(dataset)} rows are left out: see {folder / REJECTED}")
    if not report.counts["kept"]:
        raise ValueError(f"{config.dataset} has no row that can be used: the reasons are in {folder / REJECTED}")
    return {record["index"] for record in report.rejected}


def make_trainer(config: RunConfig, args: SFTConfig, rows: Dataset) -> SFTTrainer:
    """The trainer of a run, with the model, its adapters and the processor."""
    model, processor = load_model(choose_model(config.model_id), config.bits, config.max_pixels, config.backend)
    unsloth = choose_backend(config.backend) == "unsloth"  # it has a loss of its own
    set_seed(config.seed)  # the adapters start at random, before the trainer sets its own seed
    towers = {name: getattr(config, name) for name in ("language", "vision", "attention", "mlp")}
    lora = LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=lora_targets(model, **towers),
        task_type="CAUSAL_LM",
    )
    # DDP has to search for adapters outside a step: those that only images reach, in a row without any, and the last
    # layers of a vision encoder that gives its features from an earlier one (Phi-3-Vision).
    args.ddp_find_unused_parameters = config.vision or not all(rows.with_format("arrow")["images"].to_pylist())
    if config.cache != "none":
        with PartialState().main_process_first():  # the other processes find all pixels on disk
            rows = precompute(rows, processor, Path(config.output_dir) / "pixels")
    trainer = SFTTrainer(
        model=add_lora(model, lora, config.seed),
        args=args,
        train_dataset=rows,
        data_collator=VisionCollator(processor, config.max_length, logits="all" if unsloth else "labeled"),
        processing_class=processor,
    )
    if not unsloth:
        # Every trained token of a step counts the same, in whichever batch of whichever process. The Qwen families say
        # that they cannot (accepts_loss_kwargs), though they hand the count on to transformers' own loss, which can.
        trainer.model_accepts_loss_kwargs = True
    keep_adapters_float32(trainer.model)
    if config.cache == "features":
        cache_vision_features(trainer.model, Path(config.output_dir) / "features")
    watch(trainer)
    return trainer


def _save(config, trainer, seconds, rows, counts):
    """Writes what a run leaves: the main process does, all have to call it."""
    folder = Path(config.output_dir)
    if trainer.is_fsdp_enabled:  # the checkpoints are in pieces, the adapter is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(folder / ADAPTER)
    state = trainer.state
    result = RunResult(str(folder / ADAPTER), state.global_step, seconds, counts, state.log_history)
    if state.is_world_process_zero:
        trainer.processing_class.save_pretrained(folder / ADAPTER)
        if "test" in rows:
            save_held_out(rows["test"], rows["train"], folder)
        config.save(folder / SETTINGS)
        result.save(folder)
        print(f"{state.global_step} steps on {counts['trained']} rows -> {folder / ADAPTER}")
    trainer.accelerator.wait_for_everyone()
    return result
