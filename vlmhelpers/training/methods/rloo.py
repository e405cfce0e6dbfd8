"""RLOO (Ahmadian et al. 2024, arXiv:2402.14740): TRL's, with prompts and end tokens made ready."""

from trl import RLOOConfig, RLOOTrainer

from vlmhelpers.training.methods.parts import Parts
from vlmhelpers.training.methods.sampling import make_sampler


def make_trainer(parts: Parts) -> RLOOTrainer:
    """The trainer; a batch has `num_generations` samples of each prompt."""
    return make_sampler(parts, RLOOTrainer, RLOOConfig, "num_generations")
