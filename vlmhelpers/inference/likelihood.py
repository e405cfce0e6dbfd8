"""How likely a model finds given answers: what preference training compares, and what pairs are ranked by."""

import torch
from datasets import Dataset
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.batches.preference import PreferenceCollator
from vlmhelpers.data.given import given_rows
from vlmhelpers.data.rows import rows_of
from vlmhelpers.models.backends import eval_mode
from vlmhelpers.models.loading import check_model

_NOT_OF_MODEL = ("completion_mask", "shift_labels", "logits_to_keep")


def sequence_logps(model: PreTrainedModel, batch: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """The log-probability of each answer in nats, the sum over its tokens, and their number: float and int, (n,).

    `batch`: as `PreferenceCollator` makes it. With its logits="labeled" no logits are computed but where an answer's
    token is predicted.
    """
    inputs = {name: tensor for name, tensor in batch.items() if name not in _NOT_OF_MODEL}
    if "logits_to_keep" in batch:
        logits = model(**inputs, logits_to_keep=batch["logits_to_keep"], use_cache=False).logits
        tokens, mask = batch["shift_labels"], batch["shift_labels"] >= 0
    else:
        logits = model(**inputs, use_cache=False).logits[:, :-1]
        tokens, mask = batch["input_ids"][:, 1:], batch["completion_mask"][:, 1:].bool()
    tokens = tokens.masked_fill(~mask, 0)  # also image tokens, for which a head may have no row
    logps = -cross_entropy(logits.float().flatten(0, 1), tokens.flatten(), reduction="none").view_as(tokens)
    return (logps * mask).sum(dim=1), mask.sum(dim=1)


def rank_pairs(model: PreTrainedModel, processor: ProcessorMixin, pairs: Dataset, batch_size: int = 16) -> torch.Tensor:
    """The log-probabilities in nats of the chosen and of the rejected answers of n pairs: (2, n)."""
    check_model(model)
    pairs = given_rows(pairs, "pairs")
    collate, found = PreferenceCollator(processor, logits="labeled"), []
    with eval_mode(model), torch.no_grad():
        for start in range(0, len(pairs), batch_size):
            batch = collate(rows_of(pairs[start : start + batch_size])).to(model.device)
            found.append(sequence_logps(model, batch)[0].view(2, -1).cpu())
    return torch.cat(found, dim=1) if found else torch.empty(2, 0)
