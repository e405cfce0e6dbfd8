"""Before a run: how long the rows are, which resolution makes them fit, how much memory and time it will take."""

import base64
import copy
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean

import numpy as np
import pandas as pd
from datasets import Dataset
from markupsafe import Markup
from transformers import ProcessorMixin

from vlmhelpers.common.chart import Chart
from vlmhelpers.common.images import repair
from vlmhelpers.estimation.counting import Count, count_again, count_rows
from vlmhelpers.estimation.memory import GPUS, NOTE, Memory, as_html, estimate_memory
from vlmhelpers.evaluation.statistics import Score, share
from vlmhelpers.families import family_of, find_config

_SHOWN = 10  # row numbers
_PARTS = {"total": "all tokens", "image": "of images", "labeled": "labeled"}
_thousands = "{:,.0f}".format


def preflight(
    dataset: Dataset,
    processor: ProcessorMixin,
    model_id: str | Path,
    max_length: int = 2048,
    batch_size: int = 1,
    bits: int | None = 4,
    lora_r: int = 16,
    vision: bool = False,
    gradient_checkpointing: bool = True,
    train_on: str = "assistant",
    logits: str = "labeled",
    sample: int = 500,
    seed: int = 0,
) -> "Preflight":
    """A `Preflight` of training `model_id` on a Dataset of the schema: no weights are loaded, and no GPU is needed.

    Tokens are those that `VisionCollator` makes of each row with this processor; of more than `sample` rows, a random
    sample of that size is counted, drawn with `seed`. Rows that cannot be used are named in the result. Where rows are
    longer than `max_length`, the largest cap on pixels that makes the counted rows fit is proposed, and they are
    counted again with it. Memory and time are those of the rows as they would be trained: with the cap, if there is
    one. They come from dry runs of the step (see `estimate_memory`), three in all, of some seconds each.

    `model_id`: see `find_config`; `batch_size` to `gradient_checkpointing`: see `estimate_memory`; `train_on` and
    `logits`: see `VisionCollator`. Raises ValueError for an unknown model, and when no row can be used.
    """
    config = find_config(model_id)
    states = family_of(config).states_per_image(config)
    indices = range(len(dataset))
    if len(dataset) > sample:
        indices = sorted(random.Random(seed).sample(indices, sample))
    counts, unusable = count_rows(dataset, indices, processor, train_on=train_on)
    if not counts:
        reasons = _reasons(unusable) or "the dataset is empty"
        raise ValueError(f"no row can be used ({reasons}): run check_dataset on it")
    cap, capped, after = propose_cap(processor, counts, max_length), processor, counts
    if cap is not None:
        capped = with_cap(processor, cap)
        after = count_again(counts, capped, train_on=train_on)
    memory = {}
    for name, (tokens, image_tokens, labeled) in _shapes(after, states, max_length).items():
        labeled = min(max(labeled, 1), tokens - 1) if logits == "labeled" else None
        rows = 1 if name == "mean row" else batch_size
        options = (rows, bits, lora_r, vision, gradient_checkpointing, labeled)
        memory[name] = estimate_memory(model_id, tokens, image_tokens, *options)
    flops = memory.pop("mean row").flops * round(len(dataset) * len(counts) / len(indices))
    return Preflight(dataset, processor, model_id, max_length, counts, unusable, cap, capped, after, memory, flops)


def propose_cap(processor: ProcessorMixin, counts: Sequence[Count], max_length: int) -> int | None:
    """The largest `max_pixels` with which all rows that `counts` stand for fit into `max_length`, or None.

    None where they fit as they are, or where fewer pixels do not help. A row whose text alone is too long is left out.
    """
    family, caps = family_of(processor), []
    for count in counts:
        if count.total > max_length and count.image:
            room = max_length - (count.total - count.image)
            caps.append(family.largest_cap(processor.image_processor, count.sized["images"], room))
    return min(filter(None, caps), default=None)


def with_cap(processor: ProcessorMixin, max_pixels: int) -> ProcessorMixin:
    """A copy of `processor` with that cap on the pixels of an image; the original stays as it is."""
    capped = copy.copy(processor)
    capped.image_processor = copy.deepcopy(processor.image_processor)
    family_of(capped).set_max_pixels(capped.image_processor, max_pixels)
    return capped


def _shapes(counts, states, max_length):
    """(tokens, image tokens, labeled tokens) of the longest row, of one of `max_length` like it, and of the mean row.

    `states`: where images take no tokens of the sequence, how many states the text attends to for each; else 0. They
    count instead of image tokens, and come in whole images.
    """
    rows = [(count.total, count.image + states * len(count.sized["images"]), count.labeled) for count in counts]
    tokens, of_images, labeled = longest = max(rows, key=lambda row: row[0] + (row[1] if states else 0))
    if of_images and not states:  # more or fewer tokens of its images, or of text where it has none
        of_images = max(0, max_length - (tokens - of_images))
    average = [mean(part) for part in zip(*rows, strict=True)]
    if states and average[1]:
        average[1] = max(1, round(average[1] / states)) * states
    limit = (max_length, of_images, labeled)
    return {"longest row": longest, "row of max_length": limit, "mean row": tuple(map(round, average))}


def estimate_time(flops: float, utilization: tuple[float, float] = (0.20, 0.45)) -> dict[str, tuple[float, float]]:
    """Seconds for `flops` floating-point operations on each of `GPUS`: name -> (least, most).

    Not measured: operations by the published peak, of which training reaches only a part, the `utilization`. Reading
    images, dequantizing 4-bit weights and the optimizer are not counted.
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


@dataclass(frozen=True, repr=False, eq=False)
class Preflight:
    """Lengths, resolution, memory and time of a run that has not begun. Shows itself in a notebook.

    counts: a `Count` for each counted row; after: the same with the proposed cap, or the same list without one.
    unusable: (row number, reason) of the counted rows that cannot be trained on. cap: the proposed `max_pixels`, or
    None; capped: the processor with it. memory: a `Memory` by name. flops: floating-point operations of an epoch.
    """

    dataset: Dataset
    processor: ProcessorMixin
    model_id: str | Path
    max_length: int
    counts: list[Count]
    unusable: list[tuple[int, str]]
    cap: int | None
    capped: ProcessorMixin
    after: list[Count]
    memory: dict[str, Memory]
    flops: int

    @property
    def too_long(self) -> list[int]:
        """Numbers of the rows that are longer than `max_length`, as the processor is."""
        return [count.row for count in self.counts if count.total > self.max_length]

    @property
    def share_too_long(self) -> Score:
        """The share of the rows longer than `max_length`, with Wilson's 95% interval."""
        return share([count.total > self.max_length for count in self.counts])

    @property
    def is_sample(self) -> bool:
        """Whether there are more rows than were counted."""
        return len(self.counts) + len(self.unusable) < len(self.dataset)

    @property
    def lengths(self) -> pd.DataFrame:
        """Tokens per row, also those with the cap: median, mean, 95th percentile and longest.

        The mean of a sample has its 95% interval, by the normal approximation.
        """
        tokens = pd.DataFrame(self.counts)[list(_PARTS)].rename(columns=_PARTS)
        if self.cap is not None:
            after = pd.DataFrame(self.after)
            tokens["all tokens, capped"], tokens["of images, capped"] = after["total"], after["image"]
        table = tokens.describe(percentiles=[0.5, 0.95]).T[["50%", "mean", "95%", "max"]].map(_thousands)
        table.columns = ["median", "mean", "95%", "longest"]
        if self.is_sample and len(tokens) > 1:
            low, high = (tokens.mean() + z * tokens.sem() for z in (-1.96, 1.96))
            table["mean"] += " [" + low.map(_thousands) + ", " + high.map(_thousands) + "]"
        return table

    @property
    def gpus(self) -> pd.DataFrame:
        """For each of `GPUS`, whether the step fits and the time of an epoch by `estimate_time`, not measured."""
        times = estimate_time(self.flops)
        table = pd.DataFrame(index=list(times))
        for name, memory in self.memory.items():
            table[name] = ["fits" if gpu.fits(memory.total) else "no" for gpu in GPUS]
        table["epoch (not measured)"] = [" to ".join(map(as_duration, bounds)) for bounds in times.values()]
        return table

    def _tables(self):
        sizes = pd.DataFrame({name: memory.table["GiB"] for name, memory in self.memory.items()})
        return {"Tokens per row": self.lengths, "GPU memory of a step, GiB (estimated)": sizes, "GPUs": self.gpus}

    def __repr__(self):
        texts = (f"\n{title}\n{table.to_string()}" for title, table in self._tables().items())
        return "\n".join([*self._findings(), *texts, NOTE])

    def _repr_html_(self):
        chart = base64.b64encode(self.histogram()._repr_png_()).decode()
        findings = Markup("<br>").join(self._findings())
        page = Markup('<p>{}</p><img src="data:image/png;base64,{}">').format(findings, chart)
        for title, table in self._tables().items():
            page += Markup("<p><b>{}</b></p>{}").format(title, as_html(table))
        return page + Markup("<p>{}</p>").format(NOTE)

    def _findings(self):
        """Sentences."""
        counted = f"{len(self.counts) + len(self.unusable):,} of {len(self.dataset):,}" if self.is_sample else "all"
        yield f"{self.model_id}: {len(self.dataset):,} rows, {counted} counted"
        if self.unusable:
            more = " ..." * (len(self.unusable) > 3)
            yield f"{len(self.unusable):,} cannot be used: {_reasons(self.unusable)}{more}"
        found, limit = self.share_too_long, f"longer than max_length={self.max_length:,}"
        if not self.too_long:
            yield f"No counted row is {limit}."
        else:
            limit += f", in the dataset {found.low:.1%} to {found.high:.1%}" if self.is_sample else ""
            yield f"{found.value:.1%} of the counted rows are {limit}: {_numbers(self.too_long)}"
        if not family_of(self.processor).images_in_sequence:
            yield (
                "Images of this family take no tokens of the sequence, at any size: the text attends to them through "
                "cross-attention, and each counts in memory and time with all its tiles. There is no cap to propose."
            )
        if self.cap is not None:
            yield f"Proposed: load_model(..., max_pixels={self.cap}); the counted rows were counted with it."
        if still := [count.row for count in self.after if count.total > self.max_length]:
            remedy = "shorten their text, leave them out, or raise max_length"
            yield f"Longer at any resolution: {_numbers(still)}; {remedy}"

    def histogram(self) -> Chart:
        """A figure of the rows' lengths, with the cap, too, and a line at `max_length`."""
        figure = Chart(figsize=(7, 2.8), dpi=90, layout="constrained")
        axes = figure.add_subplot()
        before, after = ([count.total for count in counts] for counts in (self.counts, self.after))
        bins = np.linspace(0, max(*before, self.max_length) * 1.02, 50)
        axes.hist(before, bins, label="as it is", alpha=0.7)
        if self.cap is not None:
            axes.hist(after, bins, label=f"max_pixels={self.cap}", histtype="step", linewidth=1.5)
        axes.axvline(self.max_length, color="tab:red", label=f"max_length={self.max_length}")
        axes.set(xlabel="tokens of a row", ylabel="rows")
        axes.set_title(f"{self.share_too_long.value:.1%} longer than max_length", fontsize=9, loc="left")
        axes.legend(fontsize=8)
        return figure

    def show_cap(self, row: int | None = None) -> Chart:
        """A figure of one image as the model gets it now and with the proposed cap, both at the same printed size.

        Below each is its middle (an eighth of the width, a twelfth of the height), enlarged. `row`: the number of a
        counted row, by default of the longest; of several images it is the largest.
        Raises ValueError where no cap is proposed, for a row that was not counted, and for one without images.
        """
        if self.cap is None:
            raise ValueError("no cap is proposed, so there is nothing to compare")
        found = [count for count in self.counts if count.image and row in (None, count.row)]
        if not found:
            raise ValueError(f"row {row} was not counted, or has no images; the longest are {self.too_long[:_SHOWN]}")
        images = self.dataset[max(found, key=lambda count: count.total).index]["images"]
        image = repair(max(images, key=lambda image: image.width * image.height))
        figure = Chart(figsize=(9, 5.6), dpi=80, layout="constrained")
        panels = figure.subplots(2, 2, height_ratios=(2, 1))
        ways = {"now": self.processor, "with the cap": self.capped}
        for (whole, detail), (title, processor) in zip(panels.T, ways.items(), strict=True):
            seen, tokens = family_of(processor).as_seen(processor.image_processor, image)
            whole.imshow(seen)
            whole.set_title(f"{title}: {seen.width:,} x {seen.height:,} pixels, {tokens:,} tokens", fontsize=9)
            detail.imshow(seen, interpolation="nearest")
            width, height = seen.size
            detail.set(xlim=(width * 7 / 16, width * 9 / 16), ylim=(height * 13 / 24, height * 11 / 24))
            detail.set_title("the middle of it, pixel by pixel", fontsize=9)
        for axes in panels.flat:
            axes.axis("off")
        return figure


def _reasons(unusable):
    return "; ".join(f"row {row}: {reason}" for row, reason in unusable[:3])


def _numbers(rows):
    return "row " + ", ".join(map(str, rows[:_SHOWN])) + ", ..." * (len(rows) > _SHOWN)
