"""Batches of pairs and of rated rows, for preference training: made by `VisionCollator`, so that no family is special.

TRL's own collators also train what the chat template writes after the end token, which no answer needs, and break
Mllama's batches (a second token that begins the sequence, no cross-attention over the answer).
"""

from collections.abc import Sequence

import torch
from torch.nn.functional import pad
from transformers import BatchFeature, ProcessorMixin

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.conversation import plain_row
from vlmhelpers.data.schema import images_of

# What TRL's KTOTrainer reads of the mismatched batch; images are those of the main one.
_OF_MISMATCHED = ("input_ids", "attention_mask", "completion_mask", "mm_token_type_ids", "token_type_ids")


class AnswerCollator:
    """What both collators share. Arguments: as `VisionCollator`'s, of which the last answer of a row is trained."""

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None, logits: str = "all"):
        self.processor, self.max_length, self.logits = processor, max_length, logits
        self._collator = VisionCollator(processor, max_length, train_on="last", logits=logits)
        self.is_image = self._collator.is_image


def _answers(collator, answers):
    """The batch of (row, its index, the column of the answer): each prompt with its answer."""
    batch = collator([_conversation(*answer) for answer in answers])
    batch["completion_mask"] = (batch.pop("labels") != IGNORED).long()
    return batch


def _conversation(row, index, name):
    number = row["row"] if row.get("row") is not None else f"{index + 1} of the batch"
    messages = [*(row["prompt"] or []), *(row[name] or [])]
    return {"messages": messages, "images": images_of(row, name), "row": f"{number}, {name}"}


class PreferenceCollator(AnswerCollator):
    """Batches of pairs: the data_collator of TRL's `DPOTrainer`, of `PreferenceTrainer` and of `RewardTrainer`.

    Raises ValueError, with the row, the side and a remedy, for what cannot be trained on; nothing is cut.
    """

    def __call__(self, rows: Sequence[dict], sides: Sequence[str] = ("chosen", "rejected")) -> BatchFeature:
        """The n chosen answers, then the n rejected ones, as `VisionCollator` makes them of 2n rows of t tokens.

        In place of labels: `completion_mask` (2n, t), 1 where the answer and its end token stand. With
        logits="labeled" also `logits_to_keep` and `shift_labels`. `sides`: ("chosen",) for one answer of each row.
        """
        rows = [*map(plain_row, rows)]
        return _answers(self._collator, [(row, index, side) for side in sides for index, row in enumerate(rows)])


class RatedCollator(AnswerCollator):
    """Batches of rated rows: the data_collator of TRL's `KTOTrainer`. Errors as those of `PreferenceCollator`.

    `mismatched`: also each prompt with the answer of the row before, of which KTO estimates its KL term: two rows or
    more make a batch, and no `max_length` holds for what nobody wrote. False for
    `KTOConfig(loss_type="apo_zero_unpaired")`.
    """

    def __init__(self, processor: ProcessorMixin, max_length: int | None = None, mismatched: bool = True):
        super().__init__(processor, max_length)
        self.mismatched = mismatched
        self._of_any_length = VisionCollator(processor, train_on="last")

    def __call__(self, rows: Sequence[dict]) -> BatchFeature:
        """As `PreferenceCollator`, of n rows, with `label` (n,) bool, and `KL_input_ids` and the like (n, t)."""
        rows = [*map(plain_row, rows)]
        batch = _answers(self._collator, [(row, i, "completion") for i, row in enumerate(rows)])
        if self.mismatched:
            moved = [row | {"completion": rows[i - 1]["completion"]} for i, row in enumerate(rows)]
            other = _answers(self._of_any_length, [(row, i, "completion") for i, row in enumerate(moved)])
            width = max(batch["input_ids"].shape[1], other["input_ids"].shape[1])
            batch, other = self._widen(batch, width), self._widen(other, width)
            if (
                "cross_attention_mask" in batch
            ):  # TRL gives this one to both: it has to reach to the longer answer's end
                batch["cross_attention_mask"] |= other["cross_attention_mask"]
            batch |= {f"KL_{name}": other[name] for name in _OF_MISMATCHED if name in other}
        batch["label"] = torch.tensor([row["label"] for row in rows])
        return batch

    def _widen(self, batch, width):
        more = width - batch["input_ids"].shape[1]
        for name in (*_OF_MISMATCHED, "cross_attention_mask"):
            if name in batch:
                after = (0, 0) * (batch[name].dim() - 2) + (0, more)  # on the right of the second dimension
                fill = self.processor.tokenizer.pad_token_id if name == "input_ids" else 0
                batch[name] = pad(batch[name], after, value=fill)
        return batch
