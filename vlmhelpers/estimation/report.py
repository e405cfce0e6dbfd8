"""What a preflight found: a table and a picture in a notebook, text elsewhere."""

import base64
import html
from dataclasses import dataclass

import numpy as np
import pandas as pd
from PIL import Image

from vlmhelpers.batches.collator import crosses_attention
from vlmhelpers.common.chart import Chart
from vlmhelpers.common.images import repair
from vlmhelpers.estimation.gpus import CARDS, as_duration, estimate_time
from vlmhelpers.estimation.memory import NOTE
from vlmhelpers.evaluation.scoring import share
from vlmhelpers.families.phi3_vision import Phi3VImageProcessor

_SHOWN = 10  # row numbers and reasons
_PARTS = {"all tokens": "total", "of images": "image", "labelled": "labelled"}


@dataclass(frozen=True, repr=False, eq=False)
class Preflight:
    """Lengths, resolution, memory and time of a run that has not begun. Shows itself in a notebook.

    counts: a `Count` for each counted row; after: the same with the proposed cap, or the same list without one.
    unusable: (row number, reason) of the counted rows that cannot be trained on. cap: the proposed `max_pixels`, or
    None; capped: the processor with it. memory: a `Memory` by name. flops: floating-point operations of an epoch.
    """

    dataset: object
    processor: object
    model_id: str
    max_length: int
    counts: list
    unusable: list
    cap: int | None
    capped: object
    after: list
    memory: dict
    flops: int

    @property
    def too_long(self):
        """Numbers of the rows that are longer than `max_length`, as the processor is."""
        return [count.row for count in self.counts if count.total > self.max_length]

    @property
    def share_too_long(self):
        """The `Score` of the rows longer than `max_length`, with Wilson's 95% interval."""
        return share([count.total > self.max_length for count in self.counts])

    @property
    def is_sample(self):
        """Whether there are more rows than were counted."""
        return len(self.counts) + len(self.unusable) < len(self.dataset)

    @property
    def lengths(self):
        """Tokens per row as a DataFrame, also those with the cap: median, mean, 95th percentile and longest.

        The mean of a sample has its 95% interval, by the normal approximation.
        """
        lines = {name: self._line(self.counts, part) for name, part in _PARTS.items()}
        if self.cap is not None:
            lines |= {f"{name}, capped": self._line(self.after, _PARTS[name]) for name in ("all tokens", "of images")}
        return pd.DataFrame.from_dict(lines, orient="index")

    def _line(self, counts, part):
        values = np.array([getattr(count, part) for count in counts])
        average = f"{values.mean():,.0f}"
        if self.is_sample and len(values) > 1:
            half = 1.96 * values.std(ddof=1) / len(values) ** 0.5
            average += f" [{values.mean() - half:,.0f}, {values.mean() + half:,.0f}]"
        median, high, top = (f"{value:,.0f}" for value in np.quantile(values, [0.5, 0.95, 1.0]))
        return {"median": median, "mean": average, "95%": high, "longest": top}

    @property
    def time(self):
        """Seconds of an epoch on each of `CARDS`, not measured: name -> (least, most); see `estimate_time`."""
        return estimate_time(self.flops)

    @property
    def cards(self):
        """A DataFrame: for each card, whether the step fits and the time of an epoch, which was not measured."""
        lines = {}
        for card in CARDS:
            fits = {name: "fits" if card.fits(memory.total) else "no" for name, memory in self.memory.items()}
            least, most = (as_duration(seconds) for seconds in self.time[card.name])
            lines[card.name] = fits | {"epoch (not measured)": f"{least} to {most}"}
        return pd.DataFrame.from_dict(lines, orient="index")

    @property
    def memory_table(self):
        """The parts of each `Memory` in GiB, side by side."""
        return pd.concat([memory.table.rename(columns={"GiB": name}) for name, memory in self.memory.items()], axis=1)

    def _tables(self):
        return {
            "Tokens per row": self.lengths,
            "GPU memory of a step, GiB (estimated)": self.memory_table,
            "Cards": self.cards,
        }

    def __repr__(self):
        texts = (f"\n{title}\n{table.to_string()}" for title, table in self._tables().items())
        return "\n".join([*self._lines(), *texts, NOTE])

    def _repr_html_(self):
        lines = "<br>".join(map(html.escape, self._lines()))
        picture = base64.b64encode(self.histogram()._repr_png_()).decode()
        tables = "".join(f"<p><b>{title}</b></p>{table.to_html()}" for title, table in self._tables().items())
        return f'<p>{lines}</p><img src="data:image/png;base64,{picture}">{tables}<p>{NOTE}</p>'

    def _lines(self):
        """The findings as sentences."""
        counted = f"{len(self.counts) + len(self.unusable):,} of {len(self.dataset):,}" if self.is_sample else "all"
        lines = [f"{self.model_id}: {len(self.dataset):,} rows, {counted} counted"]
        if self.unusable:
            reasons = "; ".join(f"row {row}: {reason}" for row, reason in self.unusable[:3])
            lines.append(f"{len(self.unusable):,} cannot be used: {reasons}" + " ..." * (len(self.unusable) > 3))
        return lines + self._on_length() + self._on_resolution()

    def _on_length(self):
        long = self.too_long
        if not long:
            return [f"No counted row is longer than max_length={self.max_length:,}."]
        found = self.share_too_long
        interval = f", in the dataset {found.low:.1%} to {found.high:.1%}" if self.is_sample else ""
        limit = f"max_length={self.max_length:,}{interval}"
        return [f"{found.value:.1%} of the counted rows are longer than {limit}: {_numbers(long)}"]

    def _on_resolution(self):
        lines = []
        if crosses_attention(self.processor):
            lines.append(
                "Images of this family take no tokens of the sequence, at any size: the text looks at them through "
                "cross-attention, and each counts in memory and time with all its tiles. There is no cap to propose."
            )
        if self.cap is not None:
            lines.append(f"Proposed: load_model(..., max_pixels={self.cap}); the counted rows were counted with it.")
        still = [count.row for count in self.after if count.total > self.max_length]
        if still:
            remedy = "shorten their text, leave them out, or raise max_length"
            lines.append(f"Longer at any resolution: {_numbers(still)}; {remedy}")
        return lines

    def histogram(self):
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

    def show_cap(self, row=None):
        """A figure of one picture as the model gets it now and with the proposed cap, both at the same printed size.

        Below each is its middle (an eighth of the width, a twelfth of the height), enlarged.

        `row` is a row's number, of the counted ones; by default the longest row. Of several pictures it is the largest.
        Raises ValueError where no cap is proposed, for a row that was not counted, and for one without pictures.
        """
        if self.cap is None:
            raise ValueError("no cap is proposed, so there is nothing to compare")
        count = self._count_of(row)
        image = max(self.dataset[count.index]["images"], key=lambda image: image.width * image.height)
        figure = Chart(figsize=(9, 5.6), dpi=80, layout="constrained")
        panels = figure.subplots(2, 2, height_ratios=(2, 1))
        for (whole, detail), title, processor in zip(
            panels.T, ("now", "with the cap"), (self.processor, self.capped), strict=True
        ):
            seen, tokens = as_seen(processor.image_processor, repair(image))
            whole.imshow(seen)
            whole.set_title(f"{title}: {seen.width:,} x {seen.height:,} pixels, {tokens:,} tokens", fontsize=9)
            detail.imshow(_middle(seen), interpolation="nearest")
            detail.set_title("the middle of it, pixel by pixel", fontsize=9)
        for axes in panels.flat:
            axes.axis("off")
        return figure

    def _count_of(self, row):
        if row is None:
            return max((count for count in self.counts if count.image), key=lambda count: count.total)
        found = [count for count in self.counts if count.row == row]
        if not found or not found[0].image:
            raise ValueError(f"row {row} was not counted, or has no pictures; the longest are {self.too_long[:_SHOWN]}")
        return found[0]


def _numbers(rows):
    return "row " + ", ".join(map(str, rows[:_SHOWN])) + ", ..." * (len(rows) > _SHOWN)


def _middle(image):
    """The middle of an image: an eighth of its width, a twelfth of its height, at least a pixel."""
    width, height = max(1, image.width // 8), max(1, image.height // 12)
    left, top = (image.width - width) // 2, (image.height - height) // 2
    return image.crop((left, top, left + width, top + height))


def as_seen(image_processor, image):
    """(the picture as the model gets it, its tokens): resized by the image processor's own rule. PIL to PIL."""
    if isinstance(image_processor, Phi3VImageProcessor):
        return image_processor.arrange(image), image_processor.count_tokens(*image.size)
    _, rows, columns = image_processor([image], return_tensors="pt")["image_grid_thw"][0].tolist()
    size = (columns * image_processor.patch_size, rows * image_processor.patch_size)
    return image.resize(size, Image.Resampling.BICUBIC), rows * columns // image_processor.merge_size**2
