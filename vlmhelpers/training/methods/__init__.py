"""The methods of training, one file each: TRL's trainers where they take images, else extensions of them."""

import lazy_loader as lazy

__getattr__, __dir__, __all__ = lazy.attach(
    __name__,
    submod_attrs={
        "catalog": ["METHODS", "Method"],
        "distillation": ["as_prompts"],
        "parts": ["without_logits"],
        "ppo": ["PPOConfig", "PPOTrainer", "gae"],
        "preference": ["PreferenceConfig", "PreferenceTrainer"],
        "reward": ["RewardConfig", "RewardModel", "RewardTrainer"],
        "sampling": ["generation_kwargs", "sampled_prompts", "sampling_processor", "takes_rows_without_images"],
    },
)
