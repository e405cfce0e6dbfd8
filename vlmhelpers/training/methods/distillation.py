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
    """The trainer, with the `teacher` that the settings name. Raises ValueError for one with another vocabulary."""
    config = parts.config
    teacher, its_processor = parts.load_base(config.teacher)
    _refuse_other_tokens(parts.processor, its_processor)
    beta = FORWARD_KL if config.beta is None else config.beta
    options = parts.options("max_completion_length", "temperature", beta=beta)
    args = DistillationConfig(**options, generation_kwargs=generation_kwargs(parts.processor))
    trainer = parts.make(
        DistillationTrainer,
        args=args,
        teacher_model=teacher,
        train_dataset=sampled_prompts(as_prompts(parts.train), parts.processor),
        eval_dataset=parts.validation and sampled_prompts(as_prompts(parts.validation), parts.processor),
        processing_class=sampling_processor(parts.processor),
    )
    return takes_rows_without_images(trainer)


def _refuse_other_tokens(student, teacher):
    """TRL compares the sizes of the vocabularies alone."""
    theirs = {number: token for token, number in teacher.tokenizer.get_vocab().items()}
    for token, number in student.tokenizer.get_vocab().items():
        if theirs.get(number, token) != token:
            differs = f"token {number} is {token!r} to the model and {theirs[number]!r} to the teacher"
            raise ValueError(f"{differs}: choose one with the same vocabulary, such as a larger model of the series")


def as_prompts(dataset: Dataset) -> Dataset:
    """Rows of messages as prompts: without their last answer, and without other columns."""
    kept = [name for name in ("images", "row") if name in dataset.column_names]
    prompts = [messages[:-1] for messages in dataset["messages"]]
    return dataset.select_columns(kept).add_column("prompt", prompts, feature=dataset.features["messages"])
