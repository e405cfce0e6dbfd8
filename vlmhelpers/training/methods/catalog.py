"""The training methods by name: what rows each reads, which settings are its own, and where its trainer is made.

Imports nothing heavy: the settings of a run and the command line read it.
"""

from dataclasses import dataclass

_SAMPLING = ("num_generations", "max_completion_length", "temperature", "rewards", "reward_model")
_OF_DPO = (
    "sigmoid hinge ipo exo_pair nca_pair robust bco_pair sppo_hard aot aot_unpaired apo_zero apo_down discopop sft "
    "sigmoid_norm"
)


@dataclass(frozen=True)
class Method:
    """A training method.

    rows: the kind of its rows, as `data.kind_of` names it. module: of this package, with its `make_trainer`. settings:
    those of `RunConfig` that only some methods have. losses: what `loss` may name. samples: whether the model writes
    answers while it is trained. refers: whether it is compared with the model before training, which with adapters is
    the base without them. group: how many samples of a prompt are compared, where num_generations does not say it.
    """

    rows: str
    module: str
    settings: tuple[str, ...] = ()
    losses: tuple[str, ...] = ()
    samples: bool = False
    refers: bool = False
    group: int | None = None


METHODS = {
    "sft": Method("messages", "sft"),
    "dpo": Method("pairs", "dpo", ("beta", "loss", "label_smoothing"), tuple(_OF_DPO.split()), refers=True),
    "kto": Method("rated", "kto", ("beta", "loss"), ("kto", "apo_zero_unpaired"), refers=True),
    "orpo": Method("pairs", "preference", ("beta",)),
    "simpo": Method("pairs", "preference", ("beta", "simpo_gamma", "nll_coef")),
    "cpo": Method("pairs", "preference", ("beta", "nll_coef")),
    "reward": Method("pairs", "reward", ("center_rewards_coefficient",)),
    "grpo": Method("prompts", "grpo", ("beta", *_SAMPLING), samples=True, refers=True, group=8),
    "rloo": Method("prompts", "rloo", ("beta", *_SAMPLING), samples=True, refers=True, group=2),
    "ppo": Method("prompts", "ppo", ("beta", "critic_learning_rate", *_SAMPLING[1:]), samples=True, refers=True),
    "distillation": Method(
        "messages", "distillation", ("beta", "teacher", "max_completion_length", "temperature"), samples=True
    ),
}
OWN_SETTINGS = tuple(dict.fromkeys(setting for method in METHODS.values() for setting in method.settings))


def methods_with(setting: str) -> list[str]:
    """The names of the methods that have one of `OWN_SETTINGS`."""
    return [name for name, method in METHODS.items() if setting in method.settings]
