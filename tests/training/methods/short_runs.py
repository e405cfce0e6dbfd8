"""What the tests of all methods share: rows on drawn products, the arguments of a short run, and one of PPO."""

import os

import torch
from datasets import Dataset
from peft import LoraConfig

from vlmhelpers.data.schema import PAIR_FEATURES, PROMPT_FEATURES, RATED_FEATURES, make_pair, make_prompt, make_rated
from vlmhelpers.families import tiny_model
from vlmhelpers.models import load_model, lora_targets
from vlmhelpers.samples.drawing import caption, sample_products
from vlmhelpers.training.methods import PPOConfig, PPOTrainer, sampled_prompts, sampling_processor

ASKED = "Describe this product."


def short(product):
    """The caption without the price, which is the better answer here; the tiny bases give the whole caption."""
    return caption(product).rsplit(" for ", 1)[0] + "."


def make_pairs(number, seed="pairs"):
    rows = [make_pair(ASKED, short(p), caption(p), [image]) for p, image in sample_products(number, seed)]
    return Dataset.from_list(rows, features=PAIR_FEATURES)


def make_rated_rows(number, seed="rated"):
    """Good and bad answers by turns, of another product each."""
    products = enumerate(sample_products(number, seed))
    rows = [make_rated(ASKED, (short, caption)[i % 2](p), i % 2 == 0, [image]) for i, (p, image) in products]
    return Dataset.from_list(rows, features=RATED_FEATURES)


def make_prompts(number, seed="prompts"):
    rows = [make_prompt(ASKED, short(p), [image]) for p, image in sample_products(number, seed)]
    return Dataset.from_list(rows, features=PROMPT_FEATURES)


def arguments(output_dir, **changes):
    """For the configuration of a trainer."""
    return {
        "output_dir": str(output_dir),
        "max_steps": 2,
        "per_device_train_batch_size": 4,
        "learning_rate": 1e-3,
        "lr_scheduler_type": "constant",
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "remove_unused_columns": False,
        "seed": 0,
    } | changes


def adapters(model, **changes):
    return LoraConfig(**{"r": 4, "lora_alpha": 8, "target_modules": lora_targets(model)} | changes)


def weights(model):
    """A copy of all weights, by name."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def changed(model, before):
    """The names of the weights that are not as they were."""
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def letters(completions, **_):
    """A reward that differs from sample to sample, and can be learned from the image: the letters of the answer."""
    return [len(completion[0]["content"]) / 10 for completion in completions]


def make_ppo(output_dir, base=None, **changes):
    """A PPOTrainer of `base`, a model and its processor; its adapters start the same every time."""
    model, processor = base or load_model(tiny_model("qwen3-vl"), bits=16)
    torch.manual_seed(0)
    return PPOTrainer(
        model=model,
        args=PPOConfig(**arguments(output_dir, **{"max_completion_length": 12} | changes)),
        reward_funcs=letters,
        train_dataset=sampled_prompts(make_prompts(16), processor),
        eval_dataset=sampled_prompts(make_prompts(4, "evaluation"), processor),
        processing_class=sampling_processor(processor),
        peft_config=None if hasattr(model, "peft_config") else adapters(model),
    )


def run_ppo(folder, **changes):
    """Trains, and leaves in a file of its rank what policy and critic have learned: weights by name."""
    trainer = make_ppo(folder / "out", **changes)
    before = weights(trainer.model)
    trainer.train()
    learned = {name: weights(trainer.model)[name] for name in changed(trainer.model, before)}
    torch.save(learned, folder / f"{os.environ.get('RANK', 0)}.pt")
