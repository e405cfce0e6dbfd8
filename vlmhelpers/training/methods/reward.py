"""A reward model for images and answers: trained on pairs, and used as a reward function.

TRL's RewardTrainer is for text. Here the reward is the logit of the end token where that token stands: no new layer,
so the reward model is an ordinary adapter, saved, loaded and merged like any.
"""

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel, ProcessorMixin
from trl import SFTConfig

from vlmhelpers.batches.preference import PreferenceCollator
from vlmhelpers.common.files import atomic_file
from vlmhelpers.data.rows import rows_of
from vlmhelpers.data.schema import assistant
from vlmhelpers.families.received import read_object
from vlmhelpers.models.backends import eval_mode
from vlmhelpers.training.methods.pairs import PairTrainer
from vlmhelpers.training.methods.parts import Parts

SCALE = "reward_scale.json"  # beside a reward model's weights: mean and standard deviation of its rewards
_SCALED_ON = 100  # pairs


@dataclass
class RewardConfig(SFTConfig):
    """Configuration of `RewardTrainer`: all arguments of `SFTConfig`.

    center_rewards_coefficient: weight of the squared sum of both rewards, which keeps them near zero (Eisenstein et
    al. 2023, arXiv:2312.09244); None: rewards are known up to a constant only.
    """

    center_rewards_coefficient: float | None = field(default=None, metadata={"help": "Keeps rewards near zero."})

    def __post_init__(self):
        self.loss_type = "nll"  # see PreferenceConfig
        super().__post_init__()


class RewardTrainer(PairTrainer):
    """Trains a reward model on pairs: -log sigmoid(reward of chosen - reward of rejected), the Bradley-Terry loss.

    Takes what `SFTTrainer` takes, a `RewardConfig`, and `PreferenceCollator` as data_collator.
    """

    _tag_names = ["trl", "reward-trainer"]
    _name = "Reward"

    def pair_loss(self, model, inputs):
        """See `PairTrainer`."""
        chosen, rejected = answer_rewards(model, inputs).chunk(2)
        loss = -logsigmoid(chosen - rejected).mean()
        if self.args.center_rewards_coefficient:
            loss = loss + self.args.center_rewards_coefficient * ((chosen + rejected) ** 2).mean()
        return loss, chosen, rejected

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the model and, but into checkpoints, the scale of its rewards on up to 100 of the pairs trained on.

        See `RewardModel.load_scale`. Raises ValueError where all rewards are alike, or not finite.
        """
        super().save_model(output_dir, _internal_call)
        if _internal_call or not isinstance(self.train_dataset, Dataset):
            return
        number = len(self.train_dataset)
        pairs = self.train_dataset.select(range(0, number, math.ceil(number / _SCALED_ON)))
        reward = RewardModel(self.model, self.processing_class, self.args.per_device_train_batch_size)
        reward.standardize(pairs)  # on all processes, which may hold a part of the model each
        if self.args.should_save:
            reward.save_scale(output_dir or self.args.output_dir)


def answer_rewards(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """The reward of each answer of a `PreferenceCollator`'s batch: float, (n,)."""
    last = batch["completion_mask"].cumsum(dim=1).argmax(dim=1)  # where the end tokens stand
    places, index = last.unique(return_inverse=True)
    inputs = {name: tensor for name, tensor in batch.items() if name not in ("completion_mask", "shift_labels")}
    logits = model(**inputs | {"logits_to_keep": places}, use_cache=False).logits  # (n, places, vocabulary)
    rows = torch.arange(len(last), device=last.device)
    return logits[rows, index, batch["input_ids"][rows, last]].float()


class RewardModel:
    """A trained reward model as a reward function of TRL's trainers: `reward_funcs=RewardModel(model, processor)`."""

    def __init__(self, model: PreTrainedModel, processor: ProcessorMixin, batch_size: int = 16):
        self.model, self.batch_size = model, batch_size
        self.mean, self.std = 0.0, 1.0
        self.__name__ = "reward_model"
        self._collate = PreferenceCollator(processor)

    def rank(self, pairs: Dataset) -> torch.Tensor:
        """The rewards of the chosen and of the rejected answers of n pairs: (2, n)."""
        batches = (pairs[start : start + self.batch_size] for start in range(0, len(pairs), self.batch_size))
        return torch.cat([self._rewards(rows_of(batch)).view(2, -1) for batch in batches], dim=1)

    def standardize(self, pairs: Dataset) -> "RewardModel":
        """From now on the answers of these pairs have rewards of mean 0 and standard deviation 1 together.

        A critic follows such rewards; raw logits may be far outside of what it can learn in a short run. Raises
        ValueError where all rewards are alike, or not finite.
        """
        std, mean = torch.std_mean(self.rank(pairs) * self.std + self.mean)
        self.mean, self.std = _sound(mean.item(), std.item(), "the rewards of these pairs")
        return self

    def save_scale(self, folder: str | os.PathLike) -> None:
        """Writes what `standardize` has found to the model's folder. `save_adapter` and `merge` do not copy it."""
        with atomic_file(Path(folder) / SCALE, encoding="utf-8") as file:
            json.dump({"mean": self.mean, "std": self.std}, file)

    def load_scale(self, folder: str | os.PathLike) -> "RewardModel":
        """Takes what `save_scale` or `RewardTrainer` wrote to that folder; without it, rewards stay as they are.

        Raises ValueError for a file that holds no such scale.
        """
        if (file := Path(folder) / SCALE).is_file():
            found = read_object(file)
            self.mean, self.std = _sound(found.get("mean"), found.get("std"), file)
        return self

    def __call__(
        self, prompts: Sequence, completions: Sequence, images: Sequence | None = None, **_: object
    ) -> list[float]:
        """The reward of each completion. An empty one, which no row may have, gets the lowest of all."""
        images = images or [None] * len(prompts)
        texts = [completion[0]["content"].strip() for completion in completions]
        rows = [
            {"prompt": prompt, "chosen": [assistant(text)], "images": of_row}
            for prompt, text, of_row in zip(prompts, texts, images, strict=True)
            if text
        ]
        found = []
        for start in range(0, len(rows), self.batch_size):
            found += self._rewards(rows[start : start + self.batch_size], ("chosen",)).tolist()
        lowest, found = min(found, default=0.0), iter(found)
        return [next(found) if text else lowest for text in texts]

    def _rewards(self, rows, names=("chosen", "rejected")):
        batch = self._collate(rows, names).to(self.model.device)
        with eval_mode(self.model), torch.no_grad():
            return (answer_rewards(self.model, batch) - self.mean) / self.std


def _sound(mean, std, what):
    numbers = all(isinstance(number, int | float) and math.isfinite(number) for number in (mean, std))
    if not numbers or std <= 0:
        remedy = "a reward model tells answers apart: train it on more pairs, or at another learning_rate"
        raise ValueError(f"{what} have mean {mean!r} and standard deviation {std!r}, and {remedy}")
    return mean, std


def make_trainer(parts: Parts) -> RewardTrainer:
    """The trainer of a reward model."""
    args = RewardConfig(**parts.options("center_rewards_coefficient"), max_length=None)
    collator = PreferenceCollator(parts.processor, parts.config.max_length)
    return parts.make(RewardTrainer, args=args, data_collator=collator)
