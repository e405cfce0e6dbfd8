"""GPU memory of a training run, estimated before anything is loaded."""

from dataclasses import dataclass

import pandas as pd
from tqdm.auto import tqdm

from vlmhelpers.estimation.dry_run import rehearse
from vlmhelpers.estimation.gpus import CARDS, GIB, smallest_card
from vlmhelpers.estimation.meta_model import make_batch, make_skeleton
from vlmhelpers.families.published import PUBLISHED, find_config

NOTE = "An estimate of the peak of PyTorch's allocator. The CUDA context (about 0.5 GiB) and fragmentation come on top."
# What the guide for Qwen2.5-VL says of GPU memory in GB: (4 bits, "full").
_GUIDE = {"Qwen2.5-VL-3B": (6, 12), "Qwen2.5-VL-7B": (10, 28), "Qwen2.5-VL-72B": (45, 144)}
_WAYS = {
    "4-bit LoRA": {"bits": 4},
    "16-bit LoRA": {"bits": None},
    "full": {"bits": None, "full": True},
}


@dataclass(frozen=True)
class Memory:
    """Bytes that a training step needs at its peak, by what they hold. Shows itself as a table in GiB.

    model: its id, and the batch, in words. weights: as they are stored. constants: scales of 4-bit weights. trained:
    what training adds: adapters, or nothing with full fine-tuning, the gradients and AdamW's two states. kept: the
    batch, and activations kept for the backward pass. logits: logits, loss and their gradients. temporary: what comes
    and goes: a recomputed layer, a matrix out of 4 bits, the vision tower. `flops`: floating-point operations of the
    step's matrix products.

    The last three are those at the moment of the peak, which is in the loss where the vocabulary is large.
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
    def total(self):
        """The peak in bytes."""
        return self.weights + self.constants + self.trained + self.kept + self.logits + self.temporary

    @property
    def table(self):
        """The parts in GiB, as a DataFrame."""
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

    @property
    def fits(self):
        """Names of the cards that the peak fits on."""
        return [card.name for card in CARDS if card.fits(self.total)]

    def __repr__(self):
        return f"{self.model}\n{self.table.to_string()}\n{self._fits_line()}\n{NOTE}"

    def _repr_html_(self):
        return f"<p>{self.model}</p>{self.table.to_html()}<p>{self._fits_line()}<br>{NOTE}</p>"

    def _fits_line(self):
        return f"fits on: {', '.join(self.fits) or 'none of the cards known here'}"


def estimate_memory(
    model_id,
    tokens,
    image_tokens,
    batch_size=1,
    bits=4,
    lora_r=16,
    vision=False,
    gradient_checkpointing=True,
    labelled_tokens=None,
    full=False,
):
    """The `Memory` of a training step as these notebooks take it on a GPU, without weights, network or GPU.

    The model is built without contents and takes the step: `rehearse` says what that means. Weights have 16 bits, with
    `bits=4` the language model's linear layers NF4 with double quantisation, as `load_model` makes them; adapters of
    rank `lora_r` sit where `lora_targets` puts them, with `vision=True` in the vision tower, too, in float32, as are
    their gradients and AdamW's states. `full` trains every parameter instead, all of it in 16 bits.

    model_id: see `find_config`. tokens: of each row of the batch, all told. image_tokens: those of them that stand for
    images; for Llama 3.2 Vision the states that cross-attention looks at, 6,404 for an image of any size.
    labelled_tokens: with logits at that many places of a row only, as `VisionCollator(logits="labelled")` asks for;
    TRL's "chunked_nll" has never more than 256 of the batch at once. None: logits everywhere.

    Gradients count as there from the start, as when they are accumulated; pixels as those of one batch, though a
    trainer that accumulates over several moves their pixels to the GPU together.

    Raises ValueError for an unknown model, for more image tokens than tokens, and for full fine-tuning in 4 bits.
    """
    config = find_config(model_id)
    model = make_skeleton(config, bits, lora_r, vision, gradient_checkpointing, full)
    step = rehearse(model, make_batch(config, tokens, image_tokens, batch_size, labelled_tokens))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    rows = f"{batch_size} row{'s' * (batch_size > 1)} of {tokens:,} tokens, {image_tokens:,} of images"
    return Memory(
        model=f"{model_id}, {rows}",
        weights=_size(model.parameters()) + _size(model.buffers()) - (0 if full else _size(trained)),
        constants=sum(getattr(module, "constants", 0) for module in model.modules()),
        trained=3 * _size(trained) + (0 if full else _size(trained)),
        kept=step.kept,
        logits=step.logits,
        temporary=step.temporary,
        flops=step.flops,
    )


def _size(tensors):
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def memory_table(model_ids=PUBLISHED, tokens=1024, image_tokens=768, batch_size=1):
    """A DataFrame: GPU memory in GB (10^9 bytes) of three ways to train each model, beside what the guide says.

    "4-bit LoRA", "16-bit LoRA" and "full" are the peaks that `estimate_memory` gives for `batch_size` rows of `tokens`
    tokens with logits everywhere; then come the smallest cards that these fit on. `image_tokens` of a row are of one
    image; for Llama 3.2 Vision any number above 0 stands for one. Takes a minute or more for all models.
    """
    rows = {}
    for model_id in tqdm(model_ids, desc="rehearsing", unit=" models", delay=1):
        name = model_id.rpartition("/")[2].removesuffix("-Instruct")
        peaks = {
            way: estimate_memory(model_id, tokens, image_tokens, batch_size, **options).total
            for way, options in _WAYS.items()
        }
        guide = dict(zip(("4-bit in the guide", "full in the guide"), _GUIDE.get(name, ("", "")), strict=True))
        ours = {way: f"{peak / 1e9:.1f}" for way, peak in peaks.items()}
        rows[name] = guide | ours | {f"{way} fits on": smallest_card(peak) for way, peak in peaks.items()}
    return pd.DataFrame.from_dict(rows, orient="index")
