"""Supervised fine-tuning: TRL's, with the batches of this package."""

import inspect
from pathlib import Path

from accelerate import PartialState
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.pixel_cache import precompute
from vlmhelpers.models.backends import add_lora, choose_backend
from vlmhelpers.models.vision import cache_vision_features
from vlmhelpers.training.methods.parts import Parts


def logits_for(backend: str, model: PreTrainedModel | None = None) -> str:
    """What `VisionCollator` takes as `logits`: all for Unsloth, which has a loss of its own, and some architectures."""
    able = model is None or "logits_to_keep" in inspect.signature(model.forward).parameters
    return "labeled" if able and choose_backend(backend) != "unsloth" else "all"


def make_trainer(parts: Parts) -> SFTTrainer:
    """The trainer; pixels and features are kept on disk where the settings say so."""
    config, folder = parts.config, Path(parts.config.output_dir)
    logits, rows = logits_for(config.runs_on, parts.model), parts.train
    if config.cache != "none":
        with PartialState().main_process_first():  # the other processes find all pixels on disk
            rows = precompute(rows, parts.processor, folder / "pixels")
    trainer = parts.make(
        SFTTrainer,
        model=add_lora(parts.model, parts.lora, config.seed) if parts.lora else parts.model,
        # The loss is that of the positions which the collator keeps, and the collator names the row that is too long.
        args=SFTConfig(**parts.options(), loss_type="nll", max_length=None),
        train_dataset=rows,
        data_collator=VisionCollator(parts.processor, config.max_length, logits=logits),
        peft_config=None,
    )
    if logits == "labeled":
        # Each trained token of a step counts the same. Qwen models deny that they can, though transformers' loss does.
        trainer.model_accepts_loss_kwargs = True
    if config.cache == "features":
        cache_vision_features(trainer.model, folder / "features")
    return trainer
