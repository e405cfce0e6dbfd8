"""How likely a model finds given answers: what preference training compares, and what pairs are ranked by."""

import torch
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

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
