"""What the trainers of TRL that sample answers (GRPO, RLOO, distillation; PPO here) need for images, and lack."""

from copy import deepcopy

from datasets import Dataset
from transformers import ProcessorMixin, Trainer, TrainingArguments

from vlmhelpers.batches.chat_template import ChatTemplate
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.conversation import to_answer
from vlmhelpers.data.rows import rows_of
from vlmhelpers.data.schema import make_row
from vlmhelpers.training.methods.parts import Parts
from vlmhelpers.training.rewards import parse_rewards


def sampling_processor(processor: ProcessorMixin) -> ProcessorMixin:
    """The `processing_class` of a trainer that samples: a copy that pads on the left, and ends where answers end.

    TRL pads prompts on the left, but takes what tells Qwen's image tokens from others as the processor pads it. It ends
    a sample at `tokenizer.eos_token` alone. Phi-3's answers end with `<|end|>`, which is another token: every sample
    would run on to the limit, and earn nothing.
    """
    labels = VisionCollator(processor, train_on="last")([make_row("?", "!")])["labels"][0]
    processor = deepcopy(processor)
    processor.tokenizer.padding_side = "left"
    processor.tokenizer.eos_token = processor.tokenizer.convert_ids_to_tokens(labels[labels >= 0][-1].item())
    return processor


def generation_kwargs(processor: ProcessorMixin) -> dict[str, list[int]]:
    """For the argument of that name: an answer has no control tokens besides its end.

    A policy that is driven far from its base samples even image tokens, for which a batch has no features: it stops.
    """
    end = sampling_processor(processor).tokenizer.eos_token_id
    return {"suppress_tokens": sorted(ChatTemplate(processor).control_ids - {end})}


def sampled_prompts(dataset: Dataset, processor: ProcessorMixin) -> Dataset:
    """`dataset` of prompts, made ready when it is read: TRL gives them to the processor as they are.

    Images are repaired and control tokens in texts escaped, as `VisionCollator` does it, so that a prompt is the same
    in training and in answering.
    """
    control = ChatTemplate(processor).control

    def prepare(columns):
        rows = rows_of(columns)
        for index, row in enumerate(rows):
            ready = to_answer(row | {"messages": row["prompt"]}, index, control)
            row |= {"prompt": _with_text(ready.messages), "images": ready.images}
        return {name: [row[name] for row in rows] for name in columns}

    return dataset.with_transform(prepare)


def _with_text(messages):
    """Contents as lists of parts, a system turn's, too: TRL adds the images to such."""
    return [
        m | {"content": [{"type": "text", "text": m["content"]}]} if isinstance(m["content"], str) else m
        for m in messages
    ]


def make_sampler(parts: Parts, trainer: type[Trainer], config: type[TrainingArguments], *names: str) -> Trainer:
    """A trainer of TRL's kind that samples and asks rewards; `names`: settings besides those of all such methods."""
    options = parts.options("beta", "max_completion_length", "temperature", *names)
    args = config(**options, generation_kwargs=generation_kwargs(parts.processor))
    made = parts.make(
        trainer,
        args=args,
        reward_funcs=_rewards(parts),
        train_dataset=sampled_prompts(parts.train, parts.processor),
        eval_dataset=parts.validation and sampled_prompts(parts.validation, parts.processor),
        processing_class=sampling_processor(parts.processor),
    )
    return takes_rows_without_images(made)


def takes_rows_without_images(trainer: Trainer) -> Trainer:
    """Lets a trainer that samples have prompts without images among others: TRL gives None for theirs, which fails."""
    tokenize = trainer._tokenize_prompts

    def tokenized(prompts):
        ids, images, fields = tokenize(prompts)
        return ids, images and [of_prompt or [] for of_prompt in images], fields

    trainer._tokenize_prompts = tokenized
    return trainer


def _rewards(parts):
    """The reward functions of a run: those that its settings name, and a trained reward model."""
    from vlmhelpers.training.methods.reward import RewardModel

    config = parts.config
    found = parse_rewards(config.rewards or "")
    if config.reward_model:
        reward = RewardModel(*parts.load_base(config.reward_model), config.batch_size)
        found.append(reward.load_scale(config.reward_model))
    return found
