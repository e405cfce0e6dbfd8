"""What a training takes, measured on its trainer; and the memory of each method on published models, estimated."""

import gc
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile
from transformers import Trainer

from vlmhelpers.estimation.memory import GIB, estimate_memory, smallest_gpu


@dataclass(frozen=True)
class Cost:
    """What a training takes; all but the first in bytes."""

    trained: int  # parameters
    optimizer: int  # its states
    peak: int  # tensors held at once in a step, the weights included
    saved: int  # weights that `save_model` writes


def measure_cost(trainer: Trainer) -> Cost:
    """The `Cost` of a trainer that has trained: makes one more step, which changes no weight, and saves the model."""
    model, states = trainer.model, trainer.optimizer.state.values()
    optimizer = _size(tensor for state in states for tensor in state.values() if torch.is_tensor(tensor))
    inputs = next(iter(trainer.get_train_dataloader()))
    held = _size([*model.parameters(), *model.buffers()]) + optimizer
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        trainer.training_step(model, inputs)
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = held + allocated_peak(lambda: trainer.training_step(model, inputs))
    model.zero_grad()
    with TemporaryDirectory() as folder:
        trainer.save_model(folder)
        saved = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Cost(trained, optimizer, peak, saved)


def allocated_peak(task: Callable[[], object]) -> int:
    """The most bytes that PyTorch's CPU allocator has given out at once while `task` ran, counted from its start."""
    gc.collect()  # or what was there before is freed meanwhile, and taken off
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        task()
    events = [event for event in trace.profiler.kineto_results.events() if event.name() == "[memory]"]
    live = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        live += event.nbytes()
        peak = max(peak, live)
    return peak


def _size(tensors: Iterable[torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


# Sequences in a step; forward passes over them, besides sampling; models of the base's size that stay in memory.
_OF_METHODS = {
    "SFT": (1, "1", 1),
    "DPO, KTO": (2, "2: policy, reference", 1),
    "ORPO, SimPO, CPO, reward model": (2, "1", 1),
    "GRPO, RLOO": (8, "2 with KL, 1 without", 1),
    "PPO": (8, "4: policy and critic twice, 1 more with KL", 1),
    "PPO, learned reward": (8, "as PPO, and the reward's", 2),
    "distillation, teacher of the same size": (8, "2: student, teacher", 2),
}


def method_costs(model_id: str | Path, tokens: int = 1024, image_tokens: int = 768) -> pd.DataFrame:
    """GPU memory of each method on a published model in 4 bits: sequences, passes, models, peak in GiB, smallest GPU.

    A step on the fewest sequences that make sense, 8 samples where answers are sampled, of `tokens` each. Estimated by
    dry runs (`estimate_memory`) with logits everywhere; adapters of rank 16. PPO's critic counts as a second adapter;
    a reward model or a teacher as the weights of a second base. Sampling itself takes less. Some ten seconds.
    """
    rows, estimates = {}, {}
    for name, (sequences, passes, models) in _OF_METHODS.items():
        if sequences not in estimates:
            estimates[sequences] = estimate_memory(model_id, tokens, image_tokens, sequences)
        found = estimates[sequences]
        peak = found.total + (models - 1) * (found.weights + found.constants)
        peak += found.trained if name.startswith("PPO") else 0
        rows[name] = {"sequences": sequences, "forward passes": passes, "models": models}
        rows[name] |= {"peak, GiB": f"{peak / GIB:.1f}", "fits on": smallest_gpu(peak)}
    return pd.DataFrame.from_dict(rows, orient="index")
