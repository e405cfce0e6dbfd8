"""KTO (Ethayarajh et al. 2024, arXiv:2402.01306): TRL's, with the batches of this package."""

from datasets import Dataset
from trl import KTOConfig, KTOTrainer

from vlmhelpers.batches.preference import RatedCollator
from vlmhelpers.training.methods.parts import Parts, without_logits


def make_trainer(parts: Parts) -> KTOTrainer:
    """The trainer, of shuffled rows: TRL reads them in order, and neighbors are often answers to one prompt."""
    config = parts.config
    args = KTOConfig(**parts.options("beta", loss_type=config.loss), max_length=None)
    collator = RatedCollator(parts.processor, config.max_length, mismatched=args.loss_type == "kto")
    reference = None if parts.lora else parts.load_base(config.model_id)[0]
    rows = parts.train.shuffle(seed=config.seed)
    if collator.mismatched and args.world_size == 1:  # several processes fill the last batch up
        rows = _without_one_over(rows, args.per_device_train_batch_size)
    trainer = parts.make(KTOTrainer, args=args, data_collator=collator, train_dataset=rows, ref_model=reference)
    return without_logits(trainer)


def _without_one_over(rows: Dataset, batch_size: int) -> Dataset:
    """Without the row that would be a batch of its own: its KL term would be of its own answer."""
    return rows.select(range(len(rows) - (len(rows) % batch_size == 1)))
