"""The parts of a run: its rows, its model with adapters, its trainer, and what it leaves behind."""

import os
import time
from pathlib import Path

import torch
from accelerate import PartialState
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
from vlmhelpers.models.vision_features import remember_features
from vlmhelpers.training.callbacks import watch
from vlmhelpers.training.checkpoints import resume_from
from vlmhelpers.training.results import ADAPTER, CONFIG, REJECTED, RunResult
from vlmhelpers.training.trackers import report_to


def run(config):
    """All of a run, on this process: what `vlmhelpers.training.run.train` describes."""
    args = training_arguments(config)
    rows, test, counts = load_rows(config)
    trainer = make_trainer(config, args, rows)
    started = time.perf_counter()
    trainer.train(resume_from_checkpoint=resume_from(trainer))
    return _save(config, trainer, round(time.perf_counter() - started, 1), counts)


def training_arguments(config):
    """The `SFTConfig` of a run. Making it joins the processes, where there are several."""
    _refuse_empty_adapters()
    if config.cache == "features" and is_sharded():
        raise ValueError('cache="features" is for models that are whole on each GPU: with FSDP choose cache="pixels"')
    dtype, gpu = compute_dtype(), torch.cuda.is_available()
    if not gpu:
        os.environ.setdefault("ACCELERATE_TORCH_DEVICE", "cpu")  # else "cpu:0", where torch loads no checkpoint to
    return SFTConfig(
        output_dir=config.output_dir,
        num_train_epochs=config.epochs,
        max_steps=config.max_steps,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_scheduler_type,
        warmup_steps=config.warmup_steps,
        adam_beta2=config.adam_beta2,
        max_grad_norm=config.max_grad_norm,
        loss_type="nll",  # of the places that the collator keeps
        max_length=None,  # would cut through picture tokens; the collator names the row that is too long
        remove_unused_columns=False,  # keeps `row`, so that errors can name it
        gradient_checkpointing=gpu if config.gradient_checkpointing is None else config.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},
        bf16=dtype == torch.bfloat16,
        fp16=dtype == torch.float16,
        use_cpu=not gpu,
        ddp_timeout=7200,  # seconds: the other processes wait while the main one looks at every picture
        logging_steps=config.logging_steps,
        save_steps=config.save_steps,
        save_total_limit=2,  # the last but one stays until the last is whole
        report_to=report_to(config.report_to),
        run_name=Path(config.output_dir).name,
        seed=config.seed,
    )


def load_rows(config):
    """The rows that a run trains on, those held out (None without `test_rows`), and how many there are, as a dict.

    Every process reads the file; the main one looks at the pictures, for all of them, and writes what it rejects to
    rejected.csv. Raises ValueError where no row can be used.
    """
    dataset = read_jsonl(
        config.dataset, config.image_root, config.text_field, config.image_field, config.response_field
    )
    rejected = on_main(lambda: _reject(dataset, config))
    kept = dataset.select([index for index in range(len(dataset)) if index not in rejected])
    counts = {"read": len(dataset), "rejected": len(rejected), "trained": len(kept), "test": 0}
    if not config.test_rows:
        return kept, None, counts
    splits = split(kept, config.test_rows, seed=config.seed)
    counts |= {"trained": len(splits["train"]), "test": len(splits["test"])}
    return splits["train"], splits["test"], counts


def _reject(dataset, config):
    """The places of the rows that cannot be used, which are listed in a file and counted in a line."""
    report = check_dataset(dataset)
    file = Path(config.output_dir) / REJECTED
    file.unlink(missing_ok=True)  # of an earlier run
    if report.rejected:
        report.save_rejected(file)
        print(f"{len(report.rejected)} of {len(dataset)} rows are left out: see {file}")
    if not report.counts["kept"]:
        raise ValueError(f"{config.dataset} has no row that can be used: the reasons are in {file}")
    return {record["index"] for record in report.rejected}


def make_trainer(config, args, rows):
    """The `SFTTrainer` of a run, with the model, its adapters and the processor."""
    model, processor = load_model(choose_model(config.model_id), config.bits, config.max_pixels, config.backend)
    unsloth = choose_backend(config.backend) == "unsloth"  # it has a loss of its own
    set_seed(config.seed)  # the adapters start at random, before the trainer sets its own seed
    args.ddp_find_unused_parameters = _some_get_no_gradient(config, rows)
    trainer = SFTTrainer(
        model=add_lora(model, adapters(config, model), config.seed),
        args=args,
        train_dataset=_with_pixels(config, rows, processor),
        data_collator=VisionCollator(processor, config.max_length, logits="all" if unsloth else "labelled"),
        processing_class=processor,
    )
    if not unsloth:
        # Every trained token of a step counts the same, in whichever batch of whichever process. The Qwen families say
        # that they cannot (accepts_loss_kwargs), though they hand the count on to transformers' own loss, which can.
        trainer.model_accepts_loss_kwargs = True
    keep_adapters_float32(trainer.model)
    if config.cache == "features":
        remember_features(trainer.model, Path(config.output_dir) / "features")
    watch(trainer)
    return trainer


def _with_pixels(config, rows, processor):
    """The rows to train on: with the pixels of their pictures on disk, where the run asks for that."""
    if config.cache == "none":
        return rows
    folder = Path(config.output_dir) / "pixels"
    with PartialState().main_process_first():  # the other processes find all of them there
        return precompute(rows, processor, folder)


def adapters(config, model):
    """The `LoraConfig` of a run."""
    return LoraConfig(
        r=config.lora_r,
        lora_alpha=config.lora_alpha,
        target_modules=lora_targets(
            model, language=config.language, vision=config.vision, attention=config.attention, mlp=config.mlp
        ),
        task_type="CAUSAL_LM",
    )


def _some_get_no_gradient(config, rows):
    """Whether DDP has to look for adapters outside a step: those that only pictures reach, in a row without any, and
    the last layers of a vision tower that gives its features from an earlier one (Phi-3-Vision).
    """
    images = rows.with_format("arrow")["images"].to_pylist()
    return config.vision or not all(images)


def _refuse_empty_adapters():
    """peft 0.21 finds no adapter inside the layers that accelerate wraps for this: it saves empty files in silence."""
    if is_sharded() and os.environ.get("FSDP_ACTIVATION_CHECKPOINTING", "false") == "true":
        raise ValueError(
            "fsdp_activation_checkpointing is on in accelerate's settings, and the adapter would be saved empty: turn "
            "it off there, and gradient_checkpointing on in the run's settings"
        )


def _save(config, trainer, seconds, counts):
    """Writes the adapter, the processor, the settings and the results: the main process does, all have to call it."""
    folder = Path(config.output_dir)
    if trainer.is_fsdp_enabled:  # the checkpoints are in pieces, the adapter is whole
        trainer.accelerator.state.fsdp_plugin.set_state_dict_type("FULL_STATE_DICT")
    trainer.save_model(folder / ADAPTER)
    state = trainer.state
    result = RunResult(str(folder / ADAPTER), state.global_step, seconds, counts, state.log_history)
    if state.is_world_process_zero:
        trainer.processing_class.save_pretrained(folder / ADAPTER)
        config.save(folder / CONFIG)
        result.save(folder)
        print(f"{state.global_step} steps on {counts['trained']} rows -> {folder / ADAPTER}")
    trainer.accelerator.wait_for_everyone()
    return result
