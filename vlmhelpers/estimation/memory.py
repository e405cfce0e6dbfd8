"""GPU memory and time of a training run, estimated before anything is loaded, and the GPUs that it fits on."""

from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import torch
from markupsafe import Markup, escape
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from vlmhelpers.estimation.dry_run import dry_run, dry_run_of_answering, make_batch, make_meta_model
from vlmhelpers.families import family_of, find_config
from vlmhelpers.models.loading import load_processor

GIB = 2**30
NOTE = "An estimate of the peak of PyTorch's allocator. The CUDA context (about 0.5 GiB) and fragmentation come on top."
_WAYS = {"4-bit LoRA": {"bits": 4}, "16-bit LoRA": {"bits": 16}, "full": {"bits": 16, "full": True}}


@dataclass(frozen=True)
class Gpu:
    """A GPU."""

    name: str
    gib: float  # memory in GiB, as PyTorch reports it
    teraflops: int | None = None  # the published peak on dense 16-bit matrices

    def fits(self, peak: int) -> bool:
        """Whether `peak` bytes of PyTorch's allocator fit, with 0.5 GiB of CUDA's own and 5% to spare."""
        return (peak + GIB / 2) * 1.05 <= self.gib * GIB


# Operations are from NVIDIA's data sheets, half of a figure that is with sparsity only; memory, less than there, is
# what PyTorch's messages in public reports say.
GPUS = (
    Gpu("T4 16 GB", 14.7, 65),
    Gpu("L4 24 GB", 22.2, 121),
    Gpu("A100 40 GB", 39.5, 312),
    Gpu("A100 80 GB", 79.2, 312),
    Gpu("H200 141 GB", 139.8, 989),
)


def find_gpu(name: str) -> Gpu:
    """The first of `GPUS` whose name begins with `name`. Raises ValueError without one."""
    if found := [gpu for gpu in GPUS if gpu.name.startswith(name)]:
        return found[0]
    raise ValueError(f"gpu={name!r}: choose one of {', '.join(gpu.name for gpu in GPUS)}")


def this_gpu() -> Gpu | None:
    """The GPU that PyTorch computes on, if any."""
    if not torch.cuda.is_available():
        return None
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    return Gpu(found.name, found.total_memory / GIB)


def number_needed(memory: "Memory", gpu: Gpu) -> int | None:
    """How many of a GPU a step takes, with FSDP where it is more than one; None for more than 64."""
    return next((number for number in range(1, 65) if gpu.fits(memory.on_each(number))), None)


def smallest_gpu(memory: "Memory") -> str:
    """The first of `GPUS` that a step fits on; where none does, the fewest of one kind: "2 x H200 141 GB with FSDP"."""
    numbers = {gpu.name: number for gpu in GPUS if (number := number_needed(memory, gpu))}
    name = min(numbers, key=numbers.get, default="more than 64 of any GPU")
    return f"{numbers[name]} x {name} with FSDP" if numbers.get(name, 1) > 1 else name


class Shown:
    """Shows its parts, sentences and tables, as text and in a notebook."""

    def __repr__(self):
        return "\n".join(part if isinstance(part, str) else part.to_string() for part in self._parts())

    def _repr_html_(self):
        parts = (escape(part) if isinstance(part, str) else Markup(part.to_html(border=0)) for part in self._parts())
        return Markup().join(map(Markup("<div>{}</div>").format, parts))


@dataclass(frozen=True, repr=False)
class Memory(Shown):
    """Bytes that a training step needs at its peak, by what they hold; a table in GiB. See also `dry_run`."""

    model: str  # its id, and the batch, in words
    weights: int  # as they are stored
    constants: int  # scales of 4-bit weights
    trained: int  # adapters, if any, the gradients and AdamW's two states
    kept: int
    logits: int
    temporary: int
    flops: int
    copies: int = 0  # in 16 bits, of float32 weights: a part of what is kept
    gathered: int = 0  # weights that a GPU holds whole while it computes, if they are spread over several

    def on_each(self, gpus: int) -> int:
        """The peak in bytes on each of several GPUs, each with a batch of its own: arithmetic, not measured.

        FSDP spreads weights, gradients and states evenly (Zhao et al. 2023, arXiv:2304.11277) and computes in 16 bits,
        without autocast's copies. It gathers what is needed at the time, at most `gathered`.
        """
        if gpus == 1:
            return self.total
        whole = self.constants + self.kept - self.copies + self.logits + self.temporary + self.gathered
        return whole + (self.weights + self.trained) // gpus

    @property
    def total(self) -> int:
        """The peak in bytes."""
        return self.weights + self.constants + self.trained + self.kept + self.logits + self.temporary

    @property
    def table(self) -> pd.DataFrame:
        """The parts and the peak in GiB."""
        parts = {
            "weights": self.weights,
            "scales of 4-bit weights": self.constants,
            "adapters, gradients, AdamW": self.trained,
            "activations kept for backward": self.kept,
            "logits and loss": self.logits,
            "largest temporary": self.temporary,
            "peak": self.total,
        }
        digits = 2 if self.total >= GIB else 4
        return pd.DataFrame({"GiB": [f"{size / GIB:.{digits}f}" for size in parts.values()]}, index=list(parts))

    def _parts(self):
        fitting = ", ".join(gpu.name for gpu in GPUS if gpu.fits(self.total)) or "none of the GPUs known here"
        return [self.model, self.table, f"fits on: {fitting}", NOTE]


def estimate_memory(
    model_id: str | Path,
    tokens: int,
    image_tokens: int,
    batch_size: int = 1,
    bits: int = 4,
    lora_r: int = 16,
    vision: bool = False,
    gradient_checkpointing: bool = True,
    labeled_tokens: int | None = None,
    full: bool = False,
    last_layers: int | None = None,
    reference: bool = False,
    experts: bool = False,
    processor: ProcessorMixin | None = None,
) -> Memory:
    """The `Memory` of a training step on a GPU, by a `dry_run`: without weights or GPU.

    Weights have 16 bits, with `bits=4` those of `load_model`. Adapters where `lora_targets` puts them, gradients and
    AdamW's states are float32. `full` trains every parameter instead, `last_layers` so many of the language model, as
    `train_only` does it: weights, gradients and states are float32, 16 bytes for each parameter, and autocast's copies
    in 16 bits come on top in the forward pass ("kept"). `reference`: a second model in 16 bits is held beside it.
    `experts`: adapters on these, too. Gradients are accumulated; pixels are those of one batch. `model_id`: see
    `find_config`. `image_tokens`, of the `tokens` of each row: where images take none of the sequence, the states that
    the text attends to (Llama 3.2 Vision: 6,404 per image). `labeled_tokens`: logits at these alone, as with
    `VisionCollator(logits="labeled")`; None: everywhere. `processor`: makes the images of a family that nobody has
    described; by default the one of `model_id`. Raises ValueError for an unknown model, for more image tokens than
    tokens, and for the training of 4-bit weights themselves.
    """
    config = find_config(model_id)
    model = make_meta_model(config, bits, lora_r, vision, gradient_checkpointing, full, last_layers, experts)
    processor = processor or _processor_for(config, model_id, image_tokens)
    batch = make_batch(config, tokens, image_tokens, batch_size, labeled_tokens, processor)
    with _naming_what_fails(config):
        step = dry_run(model, batch)
    trained = _size(parameter for parameter in model.parameters() if parameter.requires_grad)
    adapters = 0 if full or last_layers else trained  # in float32 beside the weights
    second = 2 * sum(parameter.numel() for parameter in model.parameters()) if reference else 0
    return Memory(
        f"{model_id}, {batch_size} row{'s' * (batch_size > 1)} of {tokens:,} tokens, {image_tokens:,} of images",
        weights=_size(model.parameters()) + _size(model.buffers()) - adapters + second,
        constants=sum(getattr(module, "constants", 0) for module in model.modules()),
        trained=3 * trained + adapters,
        gathered=_gathered(model),
        **step,
    )


def estimate_answering(
    model_id: str | Path,
    tokens: int,
    image_tokens: int,
    batch_size: int = 1,
    bits: int = 4,
    lora_r: int = 16,
    processor: ProcessorMixin | None = None,
) -> int:
    """The peak in bytes while a model with adapters answers rows of `tokens`, prompt and answer: as `estimate_memory`.

    A row's keys and values are kept for all its tokens; logits are computed for the last one.
    """
    config = find_config(model_id)
    model = make_meta_model(config, bits, lora_r, gradient_checkpointing=False).eval()
    constants = sum(getattr(module, "constants", 0) for module in model.modules())
    processor = processor or _processor_for(config, model_id, image_tokens)
    batch = make_batch(config, tokens, image_tokens, batch_size, processor=processor)
    with _naming_what_fails(config):
        reading = dry_run_of_answering(model, batch)
    return _size(model.parameters()) + _size(model.buffers()) + constants + reading


class NotEstimated(ValueError):
    """The memory of a model that nobody has described cannot be estimated."""


@contextmanager
def _naming_what_fails(config):
    """What a model does that nobody has described may need values, which the meta device does not have."""
    try:
        yield
    except Exception as error:
        if family_of(config).is_estimated:
            raise
        raise NotEstimated(f"the memory of a {config.model_type} cannot be estimated here: {error}") from error


def _processor_for(config, model_id, image_tokens):
    """The processor of a model that nobody has described, where there are images."""
    return load_processor(model_id) if image_tokens and not family_of(config).is_estimated else None


def _gathered(model):
    """Bytes of all weights outside the layers that FSDP wraps, and of two layers: one at work, the next on its way."""
    wrapped = [module for module in model.modules() if type(module).__name__ in (model._no_split_modules or ())]
    sizes = [_size(layer.parameters()) for layer in wrapped]
    return _size(model.parameters()) - sum(sizes) + 2 * max(sizes, default=0)


def _size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def estimate_time(flops: float, utilization: tuple[float, float] = (0.20, 0.45)) -> dict[str, tuple[float, float]]:
    """Seconds for `flops` operations on each of `GPUS`: name -> (least, most), by the published peak, not measured.

    `utilization` is the part of the peak that training reaches. Reading images, dequantizing and AdamW do not count.
    """
    low, high = utilization
    if not 0 < low <= high <= 1:
        raise ValueError(f"utilization={utilization!r}: the lower and the upper share of the peak, between 0 and 1")
    return {gpu.name: tuple(flops / (gpu.teraflops * 1e12 * share) for share in (high, low)) for gpu in GPUS}


def as_duration(seconds: float) -> str:
    """`"0.3 s"`, `"40 s"`, `"12 min"`, `"3.4 h"`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "under 0.01 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def memory_table(
    model_ids: Iterable[str], tokens: int = 1024, image_tokens: int = 768, batch_size: int = 1
) -> pd.DataFrame:
    """GPU memory in GB (10^9 bytes) of three ways to train each model, the GPU or GPUs, and what the guide says.

    The peaks are those of `estimate_memory` with logits everywhere. The guide's numbers for full fine-tuning are 2 to 4
    bytes per parameter, as much as weights, or weights and gradients, take in 16 bits; AdamW's states are not in them,
    nor float32, without which small steps are lost: 16 bytes and more. Takes some seconds for each model.
    """
    rows, row = {}, (tokens, image_tokens, batch_size)
    for model_id in tqdm(model_ids, desc="dry runs", unit=" models", delay=1):
        name = model_id.rpartition("/")[2].removesuffix("-Instruct")
        guide = family_of(model_id).guide_gigabytes.get(name, ("", ""))
        needs = {way: estimate_memory(model_id, *row, **options) for way, options in _WAYS.items()}
        rows[name] = dict(zip(("4-bit in the guide", "full in the guide"), guide, strict=True))
        rows[name] |= {way: f"{found.total / 1e9:.1f}" for way, found in needs.items()}
        rows[name] |= {f"{way} fits on": smallest_gpu(found) for way, found in needs.items()}
    return pd.DataFrame.from_dict(rows, orient="index")
