"""GRPO (Shao et al. 2024, arXiv:2402.03300): TRL's, with prompts and end tokens made ready."""

from trl import GRPOConfig, GRPOTrainer

from vlmhelpers.training.methods.parts import Parts
from vlmhelpers.training.methods.sampling import make_sampler


def make_trainer(parts: Parts) -> GRPOTrainer:
    """The trainer; a batch has `num_generations` samples of each prompt."""
    return make_sampler(parts, GRPOTrainer, GRPOConfig, "num_generations")
