"""GPU memory of a training run, estimated before anything is loaded, and the GPUs that it fits on."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from markupsafe import Markup
from tqdm.auto import tqdm

from vlmhelpers.common.display import html_table
from vlmhelpers.estimation.dry_run import dry_run
from vlmhelpers.estimation.meta_model import make_batch, make_meta_model
from vlmhelpers.families import PUBLISHED, family_of, find_config

GIB = 2**30
CUDA_CONTEXT = GIB // 2  # about what CUDA itself takes of a GPU, outside PyTorch's allocator
_SPARE = 1.05  # for fragmentation, and since a GPU shows a little less than its name says
NOTE = "An estimate of the peak of PyTorch's allocator. The CUDA context (about 0.5 GiB) and fragmentation come on top."
_PARTS = {
    "weights": "weights",
    "constants": "scales of 4-bit weights",
    "trained": "adapters, gradients, AdamW",
    "kept": "activations kept for backward",
    "logits": "logits and loss",
    "temporary": "largest temporary",
    "total": "peak",
}
_WAYS = {"4-bit LoRA": {"bits": 4}, "16-bit LoRA": {"bits": None}, "full": {"bits": None, "full": True}}


@dataclass(frozen=True)
class Gpu:
    """Memory in units of 10^9 bytes, and the peak on dense 16-bit matrices in TFLOPS, both as published."""

    name: str
    gigabytes: int
    teraflops: int

    def fits(self, peak: int) -> bool:
        """Whether `peak` bytes of PyTorch's allocator fit, with CUDA's own memory and 5% to spare."""
        return (peak + CUDA_CONTEXT) * _SPARE <= self.gigabytes * 1e9


# From NVIDIA's data sheets; where these name a figure with sparsity only, half of it.
GPUS = (
    Gpu("T4 16 GB", 16, 65),
    Gpu("L4 24 GB", 24, 121),
    Gpu("A100 40 GB", 40, 312),
    Gpu("A100 80 GB", 80, 312),
    Gpu("H200 141 GB", 141, 989),
)


def smallest_gpu(peak: int) -> str:
    """The name of the first of `GPUS` that `peak` bytes fit on, or "none of these"."""
    return next((gpu.name for gpu in GPUS if gpu.fits(peak)), "none of these")


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs at its peak, by what they hold. Shows itself as a table in GiB.

    model: its id, and the batch, in words. weights: as they are stored. constants: scales of 4-bit weights. trained:
    what training adds: adapters, or nothing with full fine-tuning, the gradients and AdamW's two states. kept, logits,
    temporary, flops: see `dry_run`; they are those of the moment of the peak, which is in the loss where the vocabulary
    is large.
    """

    model: str
    weights: int
    constants: int
    trained: int
    kept: int
    logits: int
    temporary: int
    flops: int

    @property
    def total(self) -> int:
        """The peak in bytes."""
        return self.weights + self.constants + self.trained + self.kept + self.logits + self.temporary

    @property
    def table(self) -> pd.DataFrame:
        """The parts and the peak in GiB."""
        digits = 2 if self.total >= GIB else 4
        sizes = [f"{getattr(self, part) / GIB:.{digits}f}" for part in _PARTS]
        return pd.DataFrame({"GiB": sizes}, index=list(_PARTS.values()))

    def __repr__(self):
        return f"{self.model}\n{self.table.to_string()}\n{self._fits_on()}\n{NOTE}"

    def _repr_html_(self):
        parts = self.model, as_html(self.table), self._fits_on(), NOTE
        return Markup("<p>{}</p>{}<p>{}<br>{}</p>").format(*parts)

    def _fits_on(self):
        names = [gpu.name for gpu in GPUS if gpu.fits(self.total)]
        return f"fits on: {', '.join(names) or 'none of the GPUs known here'}"


def as_html(table: pd.DataFrame) -> Markup:
    """A table with its index, for a notebook."""
    return html_table(["", *table.columns], table.itertuples(), style="text-align:right")


def estimate_memory(
    model_id: str | Path,
    tokens: int,
    image_tokens: int,
    batch_size: int = 1,
    bits: int | None = 4,
    lora_r: int = 16,
    vision: bool = False,
    gradient_checkpointing: bool = True,
    labeled_tokens: int | None = None,
    full: bool = False,
) -> Memory:
    """The `Memory` of a training step as these notebooks take it on a GPU, without weights, network or GPU.

    The model is built on the meta device and takes the step: see `dry_run`. Weights have 16 bits, with `bits=4` the
    language model's linear layers NF4 with double quantization, as `load_model` makes them; adapters of rank `lora_r`
    sit where `lora_targets` puts them, with `vision=True` in the vision tower, too, in float32, as are their gradients
    and AdamW's states. `full` trains every parameter instead, all of it in 16 bits. Gradients are there from the start,
    as when they are accumulated; pixels are those of one batch, though a trainer that accumulates over several moves
    their pixels to the GPU together.

    model_id: see `find_config`. tokens: of each row of the batch. image_tokens: those of them that stand for images; in
    a family whose images take no tokens of the sequence, the states that the text attends to (Llama 3.2 Vision: 6,404
    for an image of any size). labeled_tokens: with logits at that many tokens of a row only, as
    `VisionCollator(logits="labeled")` asks for; TRL's "chunked_nll" has never more than 256 of the batch at once. None:
    logits everywhere.

    Raises ValueError for an unknown model, for more image tokens than tokens, and for full fine-tuning in 4 bits.
    """
    config = find_config(model_id)
    model = make_meta_model(config, bits, lora_r, vision, gradient_checkpointing, full)
    step = dry_run(model, make_batch(config, tokens, image_tokens, batch_size, labeled_tokens))
    trained = _size(parameter for parameter in model.parameters() if parameter.requires_grad)
    adapters = 0 if full else trained
    return Memory(
        f"{model_id}, {batch_size} row{'s' * (batch_size > 1)} of {tokens:,} tokens, {image_tokens:,} of images",
        weights=_size(model.parameters()) + _size(model.buffers()) - adapters,
        constants=sum(getattr(module, "constants", 0) for module in model.modules()),
        trained=3 * trained + adapters,
        **step,
    )


def _size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_table(
    model_ids: Iterable[str] = PUBLISHED, tokens: int = 1024, image_tokens: int = 768, batch_size: int = 1
) -> pd.DataFrame:
    """GPU memory in GB (10^9 bytes) of three ways to train each model, beside what the guide says.

    The peaks that `estimate_memory` gives for `batch_size` rows of `tokens` tokens with logits everywhere, and the
    smallest GPUs that these fit on. `image_tokens` of a row are of one image. Takes a minute or more for all models.
    """
    rows, row = {}, (tokens, image_tokens, batch_size)
    for model_id in tqdm(model_ids, desc="dry runs", unit=" models", delay=1):
        name = model_id.rpartition("/")[2].removesuffix("-Instruct")
        guide = family_of(model_id).guide_gigabytes.get(name, ("", ""))
        peaks = {way: estimate_memory(model_id, *row, **options).total for way, options in _WAYS.items()}
        rows[name] = dict(zip(("4-bit in the guide", "full in the guide"), guide, strict=True))
        rows[name] |= {way: f"{peak / 1e9:.1f}" for way, peak in peaks.items()}
        rows[name] |= {f"{way} fits on": smallest_gpu(peak) for way, peak in peaks.items()}
    return pd.DataFrame.from_dict(rows, orient="index")
