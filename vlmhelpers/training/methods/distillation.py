"""On-policy distillation (Agarwal et al. 2023, arXiv:2306.13649): TRL's; the answers of the rows are not read."""

from datasets import Dataset
from trl import DistillationConfig, DistillationTrainer

from vlmhelpers.training.methods.parts import Parts
from vlmhelpers.training.methods.sampling import (
    generation_kwargs,
    sampled_prompts,
    sampling_processor,
    takes_rows_without_images,
)

FORWARD_KL = 0.0  # teaches what the student does not say yet; the reverse KL, TRL's default, sharpens what it says


def make_trainer(parts: Parts) -> DistillationTrainer:
    """The trainer, with the `teacher` that the settings name."""
    config = parts.config
    if not config.teacher:
        raise ValueError("method='distillation' needs a teacher: a model's id, its folder or that of an adapter")
    beta = FORWARD_KL if config.beta is None else config.beta
    options = parts.options("max_completion_length", "temperature", beta=beta)
    args = DistillationConfig(**options, generation_kwargs=generation_kwargs(parts.processor))
    trainer = parts.make(
        DistillationTrainer,
        args=args,
        teacher_model=parts.load_base(config.teacher),
        train_dataset=sampled_prompts(as_prompts(parts.train), parts.processor),
        eval_dataset=parts.validation and sampled_prompts(as_prompts(parts.validation), parts.processor),
        processing_class=sampling_processor(parts.processor),
    )
    return takes_rows_without_images(trainer)


def as_prompts(dataset: Dataset) -> Dataset:
    """Rows of messages as prompts: without their last answer, and without other columns."""
    kept = [name for name in ("images", "row") if name in dataset.column_names]
    prompts = [messages[:-1] for messages in dataset["messages"]]
    return dataset.select_columns(kept).add_column("prompt", prompts, feature=dataset.features["messages"])
