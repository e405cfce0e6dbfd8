"""The training methods by name: what rows each reads, which settings are its own, and where its trainer is made.

Imports nothing heavy: the settings of a run and the command line read it.
"""

from dataclasses import dataclass

_SAMPLING = ("num_generations", "max_completion_length", "temperature", "rewards", "reward_model")


@dataclass(frozen=True)
class Method:
    """A training method.

    rows: the kind of its rows, as `data.kind_of` names it. module: of this package, with its `make_trainer`. settings:
    those of `RunConfig` that only some methods have. samples: whether the model writes answers while it is trained.
    """

    rows: str
    module: str
    settings: tuple[str, ...] = ()
    samples: bool = False


METHODS = {
    "sft": Method("messages", "sft"),
    "dpo": Method("pairs", "dpo", ("beta", "loss", "label_smoothing")),
    "kto": Method("rated", "kto", ("beta", "loss")),
    "orpo": Method("pairs", "preference", ("beta",)),
    "simpo": Method("pairs", "preference", ("beta", "simpo_gamma", "nll_coef")),
    "cpo": Method("pairs", "preference", ("beta", "nll_coef")),
    "reward": Method("pairs", "reward", ("center_rewards_coefficient",)),
    "grpo": Method("prompts", "grpo", ("beta", *_SAMPLING), samples=True),
    "rloo": Method("prompts", "rloo", ("beta", *_SAMPLING), samples=True),
    "ppo": Method("prompts", "ppo", ("beta", "critic_learning_rate", *_SAMPLING[1:]), samples=True),
    "distillation": Method(
        "messages", "distillation", ("beta", "teacher", "max_completion_length", "temperature"), samples=True
    ),
}
