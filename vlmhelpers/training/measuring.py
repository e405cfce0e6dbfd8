"""What a training takes and what comes of it, measured; the memory of each method on published models, estimated."""

import gc
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import torch
from datasets import Dataset
from torch.profiler import ProfilerActivity, profile
from transformers import PreTrainedModel, ProcessorMixin, Trainer

from vlmhelpers.estimation.memory import GIB, estimate_memory, smallest_gpu
from vlmhelpers.evaluation.scoring import Evaluation, evaluate
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.lora import keep_adapters_float32
from vlmhelpers.training.callbacks import watch


class TrainingComparison:
    """Trainings side by side, each judged by its answers to the same rows.

    By name: `answers`, their `evaluations`, the `seconds` of CPU time that training took (all threads), and the `logs`,
    DataFrames with a line for each step that was logged. `options`: those of `generate`.
    """

    def __init__(self, processor: ProcessorMixin, dataset: Dataset, **options: object):
        self.answers, self.evaluations, self.seconds, self.logs = {}, {}, {}, {}
        self._answer = partial(generate, processor=processor, dataset=dataset, **options)
        self._dataset = dataset

    def add(self, name: str, model: PreTrainedModel) -> Evaluation:
        """Lets a model answer the rows, and scores it."""
        self.answers[name] = self._answer(model)
        self.evaluations[name] = evaluate(self.answers[name], self._dataset)
        return self.evaluations[name]

    def train(self, name: str, trainer: Trainer, chart: bool = False) -> Evaluation:
        """Trains, with adapters in float32, and adds the model; `chart`: as `watch`. Frees what nobody uses first."""
        gc.collect()
        torch.cuda.empty_cache()
        keep_adapters_float32(trainer.model)
        watch(trainer, chart)
        print(name, end=": ", flush=True)
        started = time.process_time()
        trainer.train()
        self.seconds[name] = time.process_time() - started
        self.logs[name] = pd.DataFrame(trainer.state.log_history).set_index("step")
        return self.add(name, trainer.model)


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
    peak = held + _allocated(lambda: trainer.training_step(model, inputs))
    model.zero_grad()
    with TemporaryDirectory() as folder:
        trainer.save_model(folder)
        saved = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    return Cost(trained, optimizer, peak, saved)


def _allocated(task):
    """The most bytes that `task` takes on the device, beside what is there before, models of others among it."""
    if not torch.cuda.is_available():
        return allocated_peak(task)
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    task()
    return torch.cuda.max_memory_allocated() - before


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
    "SFT, full": (1, "1", 1),
    "SFT, LoRA in 16 bits": (1, "1", 1),
    "SFT, QLoRA": (1, "1", 1),
    "DPO": (2, "2: policy, reference", 1),
    "KTO": (2, "4: policy, reference, each with answers of other rows, too", 1),
    "ORPO, SimPO, CPO, reward model": (2, "1", 1),
    "GRPO": (8, "1, before training 1 more with KL, and 1 if samples serve several updates", 1),
    "RLOO": (8, "2: before training and in it, 1 more with KL", 1),
    "PPO": (8, "4: policy and critic, before training and in it, 1 more with KL", 1),
    "PPO, learned reward": (8, "as PPO, and the reward's", 2),
    "distillation, teacher of the same size": (8, "2: student, teacher", 2),
}
_WAYS = {"SFT, full": {"bits": 16, "full": True}, "SFT, LoRA in 16 bits": {"bits": 16}}  # all others: QLoRA


def method_costs(*model_ids: str | Path, tokens: int = 1024, image_tokens: int = 768) -> pd.DataFrame:
    """GPU memory of each method on published models: sequences, passes, models; each one's peak in GiB, smallest GPU.

    A step on the fewest sequences that make sense, 8 samples where answers are sampled, of `tokens` each. Estimated by
    dry runs (`estimate_memory`) with logits everywhere; adapters of rank 16 on 4 bits, but for the two rows that say
    otherwise. PPO's critic counts as a second adapter; a reward model or a teacher as the weights of a second base.
    Sampling itself takes less. Passes are those of a sample that is trained on once: those in training come again with
    each further iteration over the samples (`num_iterations`). Ten to thirty seconds for each model.
    """
    rows = {name: {"sequences": s, "forward passes": f, "models": m} for name, (s, f, m) in _OF_METHODS.items()}
    for model_id in model_ids:
        short, estimates = Path(model_id).name.removesuffix("-Instruct"), {}
        for name, (sequences, _, models) in _OF_METHODS.items():
            options = _WAYS.get(name, {})
            key = (sequences, *options)
            if key not in estimates:
                estimates[key] = estimate_memory(model_id, tokens, image_tokens, sequences, **options)
            one, adapters = estimates[key], 2 if name.startswith("PPO") else 1
            all_models = {"weights": models * one.weights, "constants": models * one.constants}
            found = replace(one, trained=adapters * one.trained, **all_models)
            rows[name] |= {f"{short}, GiB": f"{found.total / GIB:.1f}", f"{short} fits on": smallest_gpu(found)}
    return pd.DataFrame.from_dict(rows, orient="index")
