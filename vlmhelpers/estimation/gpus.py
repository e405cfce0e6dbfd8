"""GPUs that guides name: what fits into their memory, and between which bounds they would be done."""

from dataclasses import dataclass

GIB = 2**30
CUDA_CONTEXT = GIB // 2  # about what CUDA itself takes of a GPU, outside PyTorch's allocator
_SPARE = 1.05  # for fragmentation, and since a card shows a little less than its name says


@dataclass(frozen=True)
class Card:
    """A GPU: its memory in units of 10^9 bytes, and its peak on dense 16-bit matrices in TFLOPS, both as published."""

    name: str
    gigabytes: int
    teraflops: int

    def fits(self, peak):
        """Whether `peak` bytes of PyTorch's allocator fit, with CUDA's own memory and 5% to spare."""
        return (peak + CUDA_CONTEXT) * _SPARE <= self.gigabytes * 1e9


# From NVIDIA's data sheets; where these name a figure with sparsity only, half of it.
CARDS = (
    Card("T4 16 GB", 16, 65),
    Card("L4 24 GB", 24, 121),
    Card("A100 40 GB", 40, 312),
    Card("A100 80 GB", 80, 312),
    Card("H200 141 GB", 141, 989),
)


def smallest_card(peak):
    """The name of the first of `CARDS` that `peak` bytes fit on, or "none of these"."""
    return next((card.name for card in CARDS if card.fits(peak)), "none of these")


def estimate_time(flops, utilisation=(0.20, 0.45)):
    """Seconds for `flops` floating-point operations on each of `CARDS`: a dict of name -> (least, most).

    Not measured: operations by the card's published peak, of which training reaches only a part, the `utilisation`.
    Reading pictures, unpacking 4-bit weights and the optimizer are not counted.
    """
    low, high = utilisation
    if not 0 < low <= high <= 1:
        raise ValueError(f"utilisation={utilisation!r}: the lower and the upper share of the peak, between 0 and 1")
    return {card.name: tuple(flops / (card.teraflops * 1e12 * share) for share in (high, low)) for card in CARDS}


def as_duration(seconds):
    """`"0.3 s"`, `"40 s"`, `"12 min"`, `"3.4 h"`."""
    if seconds < 90:
        return f"{seconds:.2g} s" if seconds >= 0.01 else "under 0.01 s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
