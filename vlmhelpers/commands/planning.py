"""Before a run: its settings filled in, its tokens, its memory on a GPU, its time, and what would make it fit."""

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

from transformers import ProcessorMixin

from vlmhelpers.data.report import Report
from vlmhelpers.estimation.memory import (
    GIB,
    GPUS,
    NOTE,
    Gpu,
    NotEstimated,
    Shown,
    as_duration,
    estimate_memory,
    estimate_time,
    find_gpu,
    smallest_gpu,
    this_gpu,
)
from vlmhelpers.estimation.planning import Preflight, count_again, longest_shape, with_cap
from vlmhelpers.estimation.planning import preflight as count_and_estimate
from vlmhelpers.estimation.suggestion import Values
from vlmhelpers.families import TINY_BASES, family_of, find_config, tiny_model
from vlmhelpers.families.received import is_within_reach
from vlmhelpers.models.loading import resolve_model
from vlmhelpers.training import pipeline
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS
from vlmhelpers.training.methods.sft import logits_for
from vlmhelpers.training.run import read_rows

_NOT_ESTIMATED = "The estimate leaves out what the method samples, and a teacher's or a reward model's weights."


@dataclass(frozen=True, repr=False, eq=False)
class Plan(Shown):
    """What is known of a run before it begins. Shows itself in a notebook."""

    config: RunConfig  # filled in
    report: Report  # of the validation
    rows: dict[str, int]  # how many are read, rejected, trained on and held out
    values: Values  # what suits the run, with reasons
    flight: Preflight | None  # None where the memory of the model cannot be estimated
    gpu: Gpu | None
    notes: list[str] = field(default_factory=list)  # which model it is of, and what could not be read
    remedies: list[str] = field(default_factory=list)

    @property
    def peak(self) -> int | None:
        """The estimated peak of a step with the longest row, in bytes."""
        return self.flight and self.flight.memory["longest row"].total

    @property
    def fits(self) -> bool | None:
        """Whether that fits on the GPU; None without a GPU, or without an estimate."""
        return None if self.gpu is None or self.flight is None else self.gpu.fits(self.peak)

    @property
    def seconds(self) -> tuple[float, float] | None:
        """The least and the most that the steps take on the GPU, by its published speed; None where it has none."""
        known = self.gpu and _published(self.gpu)
        if not known or self.flight is None:
            return None
        return estimate_time(self.flight.flops * _passes(self.config, self.rows["trained"]))[known.name]

    @property
    def problems(self) -> list[str]:
        """Why the run cannot be trained as it is, a sentence each."""
        found = []
        if self.fits is False:
            peak, room = f"{_gib(self.peak)}", f"{self.gpu.name} has {self.gpu.gib:.1f}"
            others = smallest_gpu(self.flight.memory["longest row"])
            found.append(f"a step takes {peak}, estimated, and {room}; it would fit on {others}")
        if self.flight and self.flight.too_long:
            rows, longest = self.flight.too_long, max(count.total for count in self.flight.counts)
            cap = f"max_pixels={self.flight.cap} or " if self.flight.cap else ""
            counted = f"{len(rows)} of {len(self.flight.counts)} counted rows, such as row {rows[0]},"
            limit = f"are longer than max_length={self.config.max_length}"
            found.append(f"{counted} {limit}: {cap}max_length={longest} takes them all")
        return found

    def raise_if_too_large(self) -> "Plan":
        """The plan itself. Raises ValueError where the run cannot be trained as it is, with what to change."""
        if self.problems:
            remedies = f" Choose {'; or '.join(self.remedies)}." if self.remedies else ""
            raise ValueError(f"{'; '.join(self.problems)}.{remedies}")
        return self

    def _parts(self):
        yield f"{self.config.model_id}: {self.rows['trained']} rows to train on, {self.rows['rejected']} rejected"
        yield from self.notes
        yield from self._of_tokens()
        yield from self._of_gpu()
        yield from (f"It cannot be trained so: {problem}." for problem in self.problems)
        yield from (f"What would help: {remedy}." for remedy in self.remedies)
        if METHODS[self.config.method].samples:
            yield _NOT_ESTIMATED

    def _of_tokens(self):
        if self.flight is None:
            return
        yield from ("\nTokens per row", self.flight.lengths)
        yield from (f"\n{self.flight.memory['longest row'].model}", self.flight.memory["longest row"].table, NOTE)

    def _of_gpu(self):
        if self.flight is None:
            return
        if self.gpu is None:
            yield from ("\nThere is no GPU here. Others:", self.flight.gpus)
            return
        verdict = "fits" if self.fits else "does not fit"
        yield f"\nA step takes {_gib(self.peak)}, estimated: it {verdict} on {self.gpu.name}."
        if self.seconds:
            yield f"Time there: {' to '.join(map(as_duration, self.seconds))}, by its published speed, not measured."


def _gib(size):
    return f"{size / GIB:.{1 if size >= GIB / 10 else 4}f} GiB"


def preflight(config: RunConfig, gpu: str | None = None) -> Plan:
    """The `Plan` of a run: every row and image is checked, no weights are loaded.

    `gpu`: one of `estimation.GPUS` by its name or how that begins; None: the one that is here, if any. For a named one
    a hub id stands for itself, also where there is no GPU. Raises what `train` would raise before it loads the model,
    but for memory: that is in the plan.
    """
    pipeline.refuse_early(config)
    dataset = read_rows(config)
    card = find_gpu(gpu) if gpu else this_gpu()
    named = gpu and _is_published(config.model_id)
    model_id, which = (config.model_id, config.model_id) if named else resolve_model(config.model_id)
    processor, note = _processor(config, model_id)
    loaded = pipeline.load_rows(config, dataset, processor)
    rows = pipeline.measured_rows(loaded.parts)
    try:
        values = pipeline.fit_values(config, model_id, rows, card, processor)
    except ValueError:  # nothing fits, which the estimate below says in numbers; or what fails again
        values = pipeline.fit_values(config, model_id, rows, None, processor)
    filled = pipeline.fill_from(config, values)
    notes = [f"The model: {which}", *filter(None, [note])]
    try:
        flight = _estimate(filled, model_id, rows, processor)
    except NotEstimated as error:
        flight = None
        notes.append(f"Not estimated: {error}.")
    plan = Plan(filled, loaded.report, loaded.counts, values, flight, card, notes)
    return replace(plan, remedies=_remedies(plan)) if plan.fits is False else plan


def _is_published(model_id):
    """Whether a hub id's shape is known without its weights."""
    if model_id in TINY_BASES or Path(model_id).is_dir():
        return False
    try:
        find_config(model_id)
    except ValueError:
        return False
    return True


def _processor(config, model_id) -> tuple[ProcessorMixin, str]:
    """(the run's processor, ""); that of the family's tiny base, and a sentence, for one that is out of reach."""
    family = family_of(model_id).name
    if family in TINY_BASES and not (Path(model_id).is_dir() or is_within_reach(model_id, "tokenizer_config.json")):
        note = f"The hub is out of reach: tokens are counted by the processor of the tiny {family}."
        return pipeline.fresh_processor(config, str(tiny_model(family))), note
    return pipeline.fresh_processor(config, model_id), ""


def _estimate(config, model_id, rows, processor):
    options = {"logits": logits_for(config.runs_on), "bits": config.bits, "lora_r": config.lora_r}
    of_rows = config.max_length, _rows_at_once(config)
    return count_and_estimate(rows, processor, model_id, *of_rows, **options, **config.memory_options)


def _rows_at_once(config):
    """Conversations that a step computes together: of pairs and rated rows two for each row."""
    return config.batch_size * (2 if METHODS[config.method].rows in ("pairs", "rated") else 1)


def _passes(config, rows):
    """How often the run goes through its rows."""
    if config.max_steps < 0:
        return config.epochs
    processes = int(os.environ.get("WORLD_SIZE", 1))
    return config.max_steps * config.batch_size * config.gradient_accumulation_steps * processes / rows


def _published(gpu):
    """The one of `GPUS` that a GPU is by its name and its memory, or None."""
    found = [known for known in GPUS if known.name.split()[0] in gpu.name]
    return min(found, key=lambda known: abs(known.gib - gpu.gib), default=None)


# What makes a run fit


def _remedies(plan: Plan) -> list[str]:
    """Changes of settings with which the run fits, each by an estimate; where none is enough, all of them together."""
    found, together = [], plan.config
    for changes in _changes(plan.config):
        tried = ((change, _peak(plan, replace(plan.config, **change))) for change in changes)
        change, peak = next((pair for pair in tried if plan.gpu.fits(pair[1])), (changes[-1], None))
        found += [f"{_as_text(change)}: {_gib(peak)}"] if peak else []
        together = replace(together, **change)
    smaller = ((f"max_pixels={number}", peak) for number, peak in _smaller_images(plan))
    found += [f"{text}: {_gib(peak)}" for text, peak in smaller if plan.gpu.fits(peak)][:1]
    if not found and plan.gpu.fits(peak := _peak(plan, together)):
        changed = {name: value for name, value in vars(together).items() if value != getattr(plan.config, name)}
        found.append(f"{_as_text(changed)}: {_gib(peak)}")
    return found


def _changes(config):
    """Lists of changes of some settings, of each list the mildest first."""
    if config.gradient_checkpointing is False:
        yield [{"gradient_checkpointing": True}]
    if config.batch_size > 1:
        step, rows = config.batch_size * config.gradient_accumulation_steps, config.batch_size
        halves = [rows // 2**k for k in range(1, rows.bit_length())]
        yield [{"batch_size": rows, "gradient_accumulation_steps": -(-step // rows)} for rows in halves]
    if config.trains_adapters and config.bits == 16 and not config.changes_base:
        yield [{"bits": 4}]
    if config.trains_adapters and config.vision and config.language:
        yield [{"vision": False}]
    if not config.trains_adapters:
        yield [{"weights": "lora", "last_layers": None, "bits": bits} for bits in (16, 4)]


def _as_text(change):
    return ", ".join(f"{name}={value}" for name, value in change.items() if value is not None)


def _peak(plan, config, counts=None):
    flight = plan.flight
    states = family_of(flight.processor).states_per_image(find_config(flight.model_id))
    tokens, image_tokens, labeled = longest_shape(counts or flight.after, states)
    labeled = min(max(labeled, 1), tokens - 1) if logits_for(config.runs_on) == "labeled" else None
    options = config.memory_options | {"bits": config.bits, "lora_r": config.lora_r, "processor": flight.capped}
    rows = _rows_at_once(config)
    return estimate_memory(flight.model_id, tokens, image_tokens, rows, labeled_tokens=labeled, **options).total


def _smaller_images(plan):
    """(max_pixels, peak in bytes) of a half, a quarter and an eighth of the pixels of the largest image."""
    flight = plan.flight
    sizes = [image.size for count in flight.after for image in count.sized["images"]]
    if not sizes or not family_of(flight.processor).has_pixel_cap:
        return
    largest = min(max(width * height for width, height in sizes), plan.config.max_pixels or 2**63)
    for share in (2, 4, 8):
        counts = count_again(flight.after, with_cap(flight.capped, largest // share))
        yield largest // share, _peak(plan, plan.config, counts)
