"""Before a run: how long its rows are, a cap on pixels that makes them fit, and the memory and time it will take."""

import base64
import copy
import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean
from typing import TYPE_CHECKING, NamedTuple

import pandas as pd
from datasets import Dataset
from markupsafe import Markup
from tqdm.auto import tqdm
from transformers import ProcessorMixin

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.batches.sized_images import without_pixels
from vlmhelpers.common.images import open_image, repair
from vlmhelpers.estimation.memory import (
    GPUS,
    NOTE,
    Memory,
    Shown,
    as_duration,
    estimate_memory,
    estimate_time,
    number_needed,
)
from vlmhelpers.evaluation.statistics import Score, share
from vlmhelpers.families import family_of, find_config
from vlmhelpers.families.family import SizedImage

if TYPE_CHECKING:
    from vlmhelpers.common.chart import Chart

_SHOWN = 10  # row numbers
_thousands = "{:,.0f}".format


class Count(NamedTuple):
    """The tokens of one row."""

    row: int  # its number
    index: int  # in the dataset
    total: int
    image: int
    labeled: int
    sized: dict  # the row with images of the same sizes, but without pixels


def count_rows(dataset: Dataset, indices: Iterable[int], processor: ProcessorMixin, **options) -> tuple[list, list]:
    """(a `Count` of each row at `indices` of `dataset`, (row number, reason) of those that cannot be used).

    Every image is decoded once, so that a damaged one is found. `options` are the `VisionCollator`'s.
    """
    dataset = dataset.with_format(None)  # in others, images are no images
    numbers = list(dataset["row"]) if "row" in dataset.column_names else range(1, len(dataset) + 1)
    collator, counts, unusable = VisionCollator(without_pixels(processor), **options), [], []
    for index in tqdm(indices, desc="counting tokens", unit=" rows", delay=1):
        try:
            row = dataset[index]
            sized = row | {"images": [SizedImage(repair(_opened(image)).size) for image in row["images"]]}
            counts.append(_count(collator, sized, numbers[index], index))
        except Exception as error:  # decoders raise OSError, SyntaxError and more; the collator ValueError
            unusable.append((numbers[index], f"{type(error).__name__}: {error}"))
    return counts, unusable


def _opened(image):
    return open_image(image) if isinstance(image, dict) else image


def count_again(counts: Iterable[Count], processor: ProcessorMixin, **options) -> list[Count]:
    """The same rows, counted with another processor, such as one with a cap on pixels."""
    collator = VisionCollator(without_pixels(processor), **options)
    return [_count(collator, count.sized, count.row, count.index) for count in counts]


def _count(collator, row, number, index):
    batch = collator([row])
    image = collator.is_image(batch["input_ids"]).sum()
    image *= collator.family.images_in_sequence  # elsewhere a mark in the text, but no token of an image's content
    total, labeled = batch["attention_mask"].sum(), (batch["labels"] != IGNORED).sum()
    return Count(number, index, int(total), int(image), int(labeled), row)


def preflight(
    dataset: Dataset,
    processor: ProcessorMixin,
    model_id: str | Path,
    max_length: int = 2048,
    batch_size: int = 1,
    train_on: str = "assistant",
    logits: str = "labeled",
    sample: int = 500,
    seed: int = 0,
    **options: object,
) -> "Preflight":
    """A `Preflight` of training `model_id` on a Dataset of the schema: no weights are loaded, and no GPU is needed.

    Tokens are those of `VisionCollator`, for at most `sample` rows, drawn with `seed`. Where rows are longer than
    `max_length`, a cap on pixels is proposed, with which they are counted again; memory and time, by three dry runs of
    some seconds, are then those with the cap. `train_on`, `logits`: see `VisionCollator`. `options`: bits, lora_r,
    vision, gradient_checkpointing of `estimate_memory`. Raises ValueError for an unknown model and without usable rows.
    """
    config = find_config(model_id)
    states = family_of(config).states_per_image(config)
    indices = sorted(random.Random(seed).sample(range(len(dataset)), min(sample, len(dataset))))
    counts, unusable = count_rows(dataset, indices, processor, train_on=train_on)
    if not counts:
        raise ValueError(f"no row can be used ({_reasons(unusable) or 'there is none'}): run check_dataset on it")
    cap, capped, after = propose_cap(processor, counts, max_length), processor, counts
    if cap is not None:
        capped = with_cap(processor, cap)
        after = count_again(counts, capped, train_on=train_on)
    memory = {}
    for name, (tokens, image_tokens, labeled) in _shapes(after, states, max_length).items():
        labeled = min(max(labeled, 1), tokens - 1) if logits == "labeled" else None
        rows = 1 if name == "mean row" else batch_size
        options |= {"labeled_tokens": labeled, "processor": capped}
        memory[name] = estimate_memory(model_id, tokens, image_tokens, rows, **options)
    flops = memory.pop("mean row").flops * round(len(dataset) * len(counts) / len(indices))
    return Preflight(dataset, processor, model_id, max_length, counts, unusable, cap, capped, after, memory, flops)


def propose_cap(processor: ProcessorMixin, counts: Sequence[Count], max_length: int) -> int | None:
    """The largest `max_pixels` with which all rows fit whose text does; None where none is needed, or none helps."""
    family, caps = family_of(processor), []
    for count in counts:
        if count.total > max_length and count.image:
            room = max_length - count.total + count.image
            caps.append(family.largest_cap(processor, count.sized["images"], room))
    return min(filter(None, caps), default=None)


def with_cap(processor: ProcessorMixin, max_pixels: int) -> ProcessorMixin:
    """A copy of `processor` with that cap on the pixels of an image."""
    capped = copy.copy(processor)
    capped.image_processor = copy.deepcopy(processor.image_processor)
    family_of(capped).set_max_pixels(capped.image_processor, max_pixels)
    return capped


def _shapes(counts, states, max_length):
    """(tokens, image tokens, labeled tokens) of the longest row, of one of `max_length` like it, and of the mean row.

    `states` per image, if not 0, count in place of image tokens, and in whole images.
    """
    rows = _row_shapes(counts, states)
    tokens, of_images, labeled = longest = longest_shape(counts, states)
    if of_images and not states:  # more or fewer tokens of its images, or of text where it has none
        of_images = max(0, max_length - (tokens - of_images))
    average = [mean(part) for part in zip(*rows, strict=True)]
    if states and average[1]:
        average[1] = max(1, round(average[1] / states)) * states
    limit = (max_length, of_images, labeled)
    return {"longest row": longest, "row of max_length": limit, "mean row": tuple(map(round, average))}


def longest_shape(counts: Sequence[Count], states: int) -> tuple[int, int, int]:
    """(tokens, image tokens, labeled tokens) of the longest row; see `_shapes`."""
    return max(_row_shapes(counts, states), key=lambda row: row[0] + (row[1] if states else 0))


def _row_shapes(counts, states):
    return [(count.total, count.image + states * len(count.sized["images"]), count.labeled) for count in counts]


@dataclass(frozen=True, repr=False, eq=False)
class Preflight(Shown):
    """Lengths, resolution, memory and time of a run that has not begun. Shows itself in a notebook."""

    dataset: Dataset
    processor: ProcessorMixin
    model_id: str | Path
    max_length: int
    counts: list[Count]
    unusable: list[tuple[int, str]]  # (row number, reason) of counted rows
    cap: int | None  # the proposed `max_pixels`
    capped: ProcessorMixin  # with the cap, if any
    after: list[Count]  # with the cap, if any
    memory: dict[str, Memory]
    flops: int  # of an epoch

    @property
    def too_long(self) -> list[int]:
        """Numbers of the rows that are longer than `max_length` without a cap."""
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
        """Tokens per row; the mean of a sample has its 95% interval, by the normal approximation."""
        names = {"total": "all tokens", "image": "of images", "labeled": "labeled"}
        tokens = pd.DataFrame(self.counts)[list(names)].rename(columns=names)
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
        """For each of `GPUS`, whether the step fits or how many it takes, and an epoch by `estimate_time` on one."""
        times = estimate_time(self.flops)
        table = pd.DataFrame(index=list(times))
        for name, memory in self.memory.items():
            numbers = (number_needed(memory, gpu) for gpu in GPUS)
            table[name] = [{1: "fits", None: "no"}.get(number, f"{number} with FSDP") for number in numbers]
        table["epoch (not measured)"] = [" to ".join(map(as_duration, bounds)) for bounds in times.values()]
        return table

    def _parts(self):
        sizes = pd.DataFrame({name: memory.table["GiB"] for name, memory in self.memory.items()})
        tables = "\nTokens per row", self.lengths, "\nGPU memory of a step, GiB (estimated)", sizes
        return [*self._findings(), *tables, "\nGPUs", self.gpus, NOTE]

    def _repr_html_(self):
        chart = base64.b64encode(self.histogram()._repr_png_()).decode()
        return super()._repr_html_() + Markup('<img src="data:image/png;base64,{}">').format(chart)

    def _findings(self):
        counted = f"{len(self.counts) + len(self.unusable):,} of {len(self.dataset):,}" if self.is_sample else "all"
        yield f"{self.model_id}: {len(self.dataset):,} rows, {counted} counted"
        if self.unusable:
            more = " ..." * (len(self.unusable) > 3)
            yield f"{len(self.unusable):,} cannot be used: {_reasons(self.unusable)}{more}"
        found, limit = self.share_too_long, f"longer than max_length={self.max_length:,}"
        if self.too_long:
            limit += f", in the dataset {found.low:.1%} to {found.high:.1%}" if self.is_sample else ""
            yield f"{found.value:.1%} of the counted rows are {limit}: {_numbers(self.too_long)}"
        else:
            yield f"No counted row is {limit}."
        if not family_of(self.processor).images_in_sequence:
            yield "Images of this family take no tokens of the sequence: no cap is proposed; memory counts all tiles."
        most = max(len(count.sized["images"]) for count in self.counts)
        if most > 1 and (single := family_of(self.processor).several_images):
            yield f"{single}, and here are rows with up to {most}."
        if self.cap is not None:
            yield f"Proposed: load_model(..., max_pixels={self.cap}); the counted rows were counted with it."
        if still := [count.row for count in self.after if count.total > self.max_length]:
            remedy = "shorten the text, show fewer images, leave them out, or raise max_length"
            yield f"Longer at any resolution: {_numbers(still)}; {remedy}"

    def histogram(self) -> "Chart":
        """A figure of the rows' lengths, with the cap, too."""
        from vlmhelpers.common.chart import Chart

        figure = Chart(figsize=(7, 2.8), dpi=90, layout="constrained")
        axes, shown = figure.add_subplot(), {"as it is": self.counts}
        if self.cap is not None:
            shown[f"max_pixels={self.cap}"] = self.after
        end = 1.02 * max(self.max_length, *(count.total for count in self.counts))
        for label, counts in shown.items():
            axes.hist([count.total for count in counts], 50, (0, end), label=label, alpha=0.6)
        axes.axvline(self.max_length, color="tab:red", label=f"max_length={self.max_length}")
        axes.set(xlabel="tokens of a row", ylabel="rows")
        axes.set_title(f"{self.share_too_long.value:.1%} longer than max_length", fontsize=9, loc="left")
        axes.legend(fontsize=8)
        return figure

    def show_cap(self, row: int | None = None) -> "Chart":
        """A figure of a row's largest image as the model gets it now and with the cap, with its middle enlarged.

        `row`: the number of a counted row, by default of the longest. Raises ValueError without a cap or an image.
        """
        from vlmhelpers.common.chart import Chart

        if self.cap is None:
            raise ValueError("no cap is proposed, so there is nothing to compare")
        found = [count for count in self.counts if count.image and row in (None, count.row)]
        if not found:
            raise ValueError(f"row {row} was not counted, or has no images; the longest are {self.too_long[:_SHOWN]}")
        images = self.dataset[max(found, key=lambda count: count.total).index]["images"]
        image = repair(max(images, key=lambda image: image.width * image.height))
        figure = Chart(figsize=(9, 5.6), dpi=80, layout="constrained")
        panels = figure.subplots(2, 2, height_ratios=(2, 1), subplot_kw={"frame_on": False, "xticks": [], "yticks": []})
        ways = {"now": self.processor, "with the cap": self.capped}
        for (whole, detail), (title, processor) in zip(panels.T, ways.items(), strict=True):
            seen, tokens = family_of(processor).as_seen(processor, image)
            width, height = seen.size
            whole.imshow(seen)
            whole.set_title(f"{title}: {width:,} x {height:,} pixels, {tokens:,} tokens", fontsize=9)
            detail.imshow(seen, interpolation="nearest")
            detail.set(xlim=(width * 7 / 16, width * 9 / 16), ylim=(height * 13 / 24, height * 11 / 24))
            detail.set_title("the middle of it, pixel by pixel", fontsize=9)
        return figure


def _reasons(unusable):
    return "; ".join(f"row {row}: {reason}" for row, reason in unusable[:3])


def _numbers(rows):
    return "row " + ", ".join(map(str, rows[:_SHOWN])) + ", ..." * (len(rows) > _SHOWN)
