"""DPO (Rafailov et al. 2023, arXiv:2305.18290): TRL's, with the batches of this package."""

from trl import DPOConfig, DPOTrainer

from vlmhelpers.batches.preference import PreferenceCollator
from vlmhelpers.training.methods.parts import Parts, without_logits

LOSS = "sigmoid+sft"  # at a high rate the sigmoid alone can push all answers down, the chosen ones, too


def make_trainer(parts: Parts) -> DPOTrainer:
    """The trainer; where the model's own weights are trained, a second one is loaded as the reference."""
    config, losses = parts.config, (parts.config.loss or LOSS).split("+")
    args = DPOConfig(
        **parts.options("beta", "label_smoothing", loss_type=losses),
        max_length=None,  # the collator refuses what is too long
    )
    collator = PreferenceCollator(parts.processor, config.max_length)
    reference = None if parts.lora else parts.load_base(config.model_id)[0]
    return without_logits(parts.make(DPOTrainer, args=args, data_collator=collator, ref_model=reference))
