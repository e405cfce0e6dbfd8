"""A run from its settings to an adapter, and what surrounds a trainer."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submodules=["methods", "rewards"],
    submod_attrs={
        "background": ["TrainingRun"],
        "callbacks": ["BestValidation", "report_to", "validate_apart", "watch"],
        "checkpoints": ["load_best", "resume_from"],
        "config": ["RunConfig"],
        "measuring": ["TrainingComparison", "measure_cost", "method_costs"],
        "pipeline": ["measured_rows"],
        "progress": ["Stopped"],
        "rewards": [
            "as_reward",
            "combine",
            "exact_match",
            "json_fields",
            "length_within",
            "matches",
            "number_within",
            "parse_reward",
            "parse_rewards",
        ],
        "run": ["RunResult", "load_held_out", "save_held_out", "train"],
        "sampled_answers": ["AnswerSampler"],
    },
)
