"""Preferences without a reference model: ORPO, SimPO and CPO for models that see images.

TRL has ORPO and CPO as experiments for text; the losses here are theirs, but for the likelihood term, which counts the
answer alone and not the prompt.
"""

from dataclasses import dataclass, field

import torch
from torch.nn.functional import logsigmoid
from trl import SFTConfig

from vlmhelpers.batches.preference import PreferenceCollator
from vlmhelpers.inference.likelihood import sequence_logps
from vlmhelpers.training.methods.pairs import PairTrainer
from vlmhelpers.training.methods.parts import Parts

_BETAS = {"orpo": 0.1, "simpo": 2.0, "cpo": 0.1}
LOSSES = tuple(_BETAS)
_NEAREST_TO_ONE = -1e-6  # a log-probability; float32 rounds those nearer to 0, for which log(1 - p) would be -inf


@dataclass
class PreferenceConfig(SFTConfig):
    """Configuration of `PreferenceTrainer`: all arguments of `SFTConfig`, and those of the loss.

    preference_loss: "orpo", "simpo" or "cpo". beta: the weight of the odds ratio in ORPO, the scale of the margin in
    the others; None: 0.1, for SimPO 2.0. simpo_gamma: the margin that SimPO asks for, of the scaled difference; its
    paper takes 0.3 to 0.5 of beta. nll_coef: the weight of the chosen answers' likelihood; None: 1 for ORPO and CPO, 0
    for SimPO, as in the papers.
    """

    preference_loss: str = field(default="orpo", metadata={"help": "orpo, simpo or cpo."})
    beta: float | None = field(default=None, metadata={"help": "Weight of the odds ratio (ORPO), scale of the margin."})
    simpo_gamma: float = field(default=1.0, metadata={"help": "Margin that SimPO asks for."})
    nll_coef: float | None = field(default=None, metadata={"help": "Weight of the chosen answers' likelihood."})

    def __post_init__(self):
        if self.preference_loss not in LOSSES:
            raise ValueError(f"preference_loss={self.preference_loss!r}: choose one of {', '.join(LOSSES)}")
        if self.beta is None:
            self.beta = _BETAS[self.preference_loss]
        if self.nll_coef is None:
            self.nll_coef = 0.0 if self.preference_loss == "simpo" else 1.0
        self.loss_type = "nll"  # SFTTrainer's own loss is not used, and another one would change the model's forward
        super().__post_init__()


def orpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """-beta log sigmoid of the log odds ratio, of mean log-probabilities per token, (n,) (arXiv:2403.07691, eq. 6).

    Finite, with a gradient, also for probabilities of 1.
    """
    log_odds = (chosen - rejected) - (_log_of_not(chosen) - _log_of_not(rejected))
    return -beta * logsigmoid(log_odds)


def _log_of_not(logp):
    """log(1 - p); of a p that float32 can hardly tell from 1 as of the nearest one that it can."""
    return torch.log(-torch.expm1(logp.clamp(max=_NEAREST_TO_ONE)))


def simpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float, gamma: float) -> torch.Tensor:
    """-log sigmoid of the scaled margin above `gamma`, of mean log-probabilities, (n,) (arXiv:2405.14734, eq. 6)."""
    return -logsigmoid(beta * (chosen - rejected) - gamma)


def cpo_loss(chosen: torch.Tensor, rejected: torch.Tensor, beta: float) -> torch.Tensor:
    """-log sigmoid of the scaled margin, of summed log-probabilities, (n,) (arXiv:2401.08417, eq. 5)."""
    return -logsigmoid(beta * (chosen - rejected))


class PreferenceTrainer(PairTrainer):
    """`SFTTrainer` for pairs of `prompt`, `chosen`, `rejected` and `images`, with a loss that needs no reference model.

    Takes what `SFTTrainer` takes, a `PreferenceConfig`, and `PreferenceCollator` as data_collator. One forward pass of
    both answers, one model in memory. Logs what `DPOTrainer` logs: rewards are scaled log-probabilities here.
    """

    _tag_names = ["trl", "preference"]
    _name = "Preference"

    def pair_loss(self, model, inputs):
        """See `PairTrainer`."""
        args, (sums, counts) = self.args, sequence_logps(model, inputs)
        chosen, rejected = sums.chunk(2)
        nll = -chosen.sum() / counts.chunk(2)[0].sum()  # nats per token of the chosen answers
        if args.preference_loss == "cpo":
            loss = cpo_loss(chosen, rejected, args.beta)
        else:
            chosen, rejected = (sums / counts).chunk(2)
            loss = (
                orpo_loss(chosen, rejected, args.beta)
                if args.preference_loss == "orpo"
                else simpo_loss(chosen, rejected, args.beta, args.simpo_gamma)
            )
        self.log_mean("nll_loss", nll)
        return loss.mean() + args.nll_coef * nll, args.beta * chosen, args.beta * rejected


def make_trainer(parts: Parts) -> PreferenceTrainer:
    """The trainer of the loss that the method is named after."""
    config = parts.config
    settings = parts.options("beta", "simpo_gamma", "nll_coef", preference_loss=config.method)
    args = PreferenceConfig(**settings, max_length=None)
    collator = PreferenceCollator(parts.processor, config.max_length, logits="labeled")
    return parts.make(PreferenceTrainer, args=args, data_collator=collator)
