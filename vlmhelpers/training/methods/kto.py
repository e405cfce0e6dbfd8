"""KTO (Ethayarajh et al. 2024, arXiv:2402.01306): TRL's, with the batches of this package."""

from trl import KTOConfig, KTOTrainer

from vlmhelpers.batches.preference import RatedCollator
from vlmhelpers.training.methods.parts import Parts, without_logits


def make_trainer(parts: Parts) -> KTOTrainer:
    """The trainer, of shuffled rows: TRL reads them in order, and neighbors are often answers to one prompt."""
    config = parts.config
    args = KTOConfig(**parts.options("beta", loss_type=config.loss), max_length=None)
    collator = RatedCollator(parts.processor, config.max_length, mismatched=args.loss_type == "kto")
    reference = None if parts.lora else parts.load_base(config.model_id)
    rows = parts.train.shuffle(seed=config.seed)
    trainer = parts.make(KTOTrainer, args=args, data_collator=collator, train_dataset=rows, ref_model=reference)
    return without_logits(trainer)
