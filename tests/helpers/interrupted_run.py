"""A small QLoRA run for test_processes.py, which can die at a step.

Dying means SIGKILL: no handler, no clean-up, as when a machine is switched off.
"""

import os
import signal
from pathlib import Path

from datasets import Dataset
from peft import LoraConfig
from transformers import TrainerCallback, set_seed
from trl import SFTConfig, SFTTrainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.families import tiny_model
from vlmhelpers.models.loading import load_model
from vlmhelpers.models.lora import keep_adapters_float32, lora_targets
from vlmhelpers.samples.drawing import caption, sample_products
from vlmhelpers.training.callbacks import watch
from vlmhelpers.training.checkpoints import resume_from


def make_trainer(output_dir, **changes):
    model, processor = load_model(tiny_model("llama-3.2-vision"), bits=4)
    rows = [make_row("What is it?", caption(p), [image]) for p, image in sample_products(16, "interrupted", 48)]
    arguments = {
        "max_steps": 12,
        "per_device_train_batch_size": 4,
        "learning_rate": 5e-3,
        "lr_scheduler_type": "cosine",
        "save_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "bf16": False,
        "max_length": None,
        "report_to": "none",
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
    }
    set_seed(0)  # the adapters' random start is drawn before the trainer sets its own seed
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(output_dir, **arguments | changes),
        train_dataset=Dataset.from_list(rows, features=FEATURES),
        data_collator=VisionCollator(processor),
        processing_class=processor,
        peft_config=LoraConfig(
            r=4, lora_dropout=0.1, target_modules=lora_targets(model)
        ),  # dropout: random numbers too
    )
    keep_adapters_float32(trainer.model)
    watch(trainer)
    return trainer


class DieAfter(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def die_while_saving(trainer, step):
    """Kills the process between the weights and the optimizer state of the checkpoint of `step`."""

    def save_and_die(output_dir):
        if trainer.state.global_step == step:
            (Path(output_dir) / "optimizer.pt").write_bytes(b"half")
            os.kill(os.getpid(), signal.SIGKILL)

    original = trainer._save_optimizer_and_scheduler
    trainer._save_optimizer_and_scheduler = lambda folder: save_and_die(folder) or original(folder)


def run(output_dir, step=None, where=None):
    """Trains, or goes on with it, and saves the adapter; dies at `step`: after it, or while `where="save"` saves it."""
    trainer = make_trainer(output_dir)
    if where == "save":
        die_while_saving(trainer, step)
    elif step is not None:
        trainer.add_callback(DieAfter(step))
    trainer.train(resume_from_checkpoint=resume_from(trainer))
    trainer.save_model(f"{output_dir}/adapter")
