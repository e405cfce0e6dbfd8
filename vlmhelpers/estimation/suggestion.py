"""What suits a model, its rows and the device: the values of a run that nobody has chosen."""

import math
import os
import random
from dataclasses import dataclass, field, fields, replace
from functools import cache
from pathlib import Path

import pandas as pd
from datasets import Dataset
from transformers import ProcessorMixin

from vlmhelpers.estimation.memory import (
    GIB,
    Gpu,
    Memory,
    NotEstimated,
    Shown,
    estimate_answering,
    estimate_memory,
    find_gpu,
    smallest_gpu,
    this_gpu,
)
from vlmhelpers.estimation.planning import count_again, count_rows, longest_shape, propose_cap, with_cap
from vlmhelpers.families import family_of, find_config
from vlmhelpers.families.values import OF_ADAPTERS
from vlmhelpers.inference.generation import longest_first
from vlmhelpers.models.loading import set_max_pixels

_COUNTED = 100  # of the longest rows, and of others
_TINY = 512  # no published vision-language model has so narrow a language model
_FEWEST_TOKENS = 512  # `max_length` is not lowered further to make rows with images fit
_ROWS_PER_STEP, _FEWEST_PER_STEP, _STEPS_PER_EPOCH = 16, 4, 20
_MANY_ROWS = 10_000
_RESERVE = 1.1  # on CPUs the measured peaks were up to 15% from the estimates
_MOST_ANSWERS = 64  # in a batch
_LATER = "chosen with the rows, by values.fit(rows, processor)"


@dataclass(frozen=True, repr=False)
class Values(Shown):
    """The values of a run, with a reason for each: see `suggest`. None: not known before the rows are."""

    model_id: str | Path
    learning_rate: float
    lora_r: int
    lora_alpha: int
    epochs: float
    max_steps: int  # -1: by epochs
    warmup_steps: int
    adam_beta2: float
    max_grad_norm: float
    replay: float  # rows about images, as a share of the rows of text
    max_length: int  # tokens of a row
    max_pixels: int | None = None  # None: as the processor is set
    bits: int | None = None  # 4 or 16
    batch_size: int | None = None  # rows on the device
    gradient_accumulation_steps: int | None = None
    max_new_tokens: int | None = None
    answer_batch_size: int | None = None  # rows that are answered together
    reasons: dict[str, str] = field(default_factory=dict)
    changed: frozenset[str] = frozenset()  # what was not suggested but chosen
    gpu: Gpu | None = None
    is_tiny: bool = False

    @property
    def settings(self) -> dict[str, object]:
        """All values by name."""
        return {name: getattr(self, name) for name in _NAMES}

    def _parts(self):
        yield f"{'a tiny model' if self.is_tiny else self.model_id} on {self.gpu.name if self.gpu else 'the CPU'}"
        shown = {name: _text(value) for name, value in self.settings.items()}
        table = pd.DataFrame({"value": shown, "why": {name: self.reasons.get(name, "") for name in shown}})
        yield table[(table["value"] != "") | (table["why"] != "")]

    def fit(
        self,
        rows: Dataset,
        processor: ProcessorMixin,
        logits: str = "all",
        train_on: str = "assistant",
        **options: object,
    ) -> "Values":
        """These values with what follows from the rows of training and validation, and from the device's memory.

        `rows`: a Dataset of the schema. `processor`: the model's; it gets the pixel cap, if any. On a GPU, dry runs of
        some seconds find bits, batch and resolution that fit. `logits`, `train_on`: as `VisionCollator`'s; `options`:
        vision, gradient_checkpointing, full, last_layers and reference of `estimate_memory`. Raises ValueError where
        nothing fits, and without a usable row.
        """
        if self.max_pixels is not None:
            set_max_pixels(processor, self.max_pixels)
        counts, unusable = count_rows(rows, _some(rows, processor), processor, train_on=train_on)
        if not counts:
            raise ValueError(f"no row can be used, such as {unusable[:1] or 'there is none'}: run check_dataset first")
        if self.is_tiny:
            longest = max(count.total for count in counts)
            of_length = (
                {"max_length": (longest, "the longest row, which is not cut")} if longest > self.max_length else {}
            )
            return self._with(_by_answers(counts) | of_length)
        per_step, why = _rows_per_step(self, len(rows))
        fitted = self._with(_by_rows(self, counts, len(rows), per_step))
        found = _by_memory(fitted, counts, processor, logits, train_on, per_step, why, options)
        fitted = fitted._with(found)
        if fitted.max_pixels is not None:
            set_max_pixels(processor, fitted.max_pixels)
        return fitted

    def fit_answers(self, rows: Dataset, processor: ProcessorMixin) -> "Values":
        """These values with a batch, and a limit of new tokens, with which `rows` are answered; `bits` have to be set.

        Raises ValueError without a usable row.
        """
        counts, unusable = count_rows(rows, _some(rows, processor), processor)
        if not counts:
            raise ValueError(f"no row can be answered, such as {unusable[:1] or 'there is none'}")
        fitted = self._with(_by_answers(counts))
        if self.is_tiny:
            return fitted
        if self.gpu is None:
            return fitted._with({"answer_batch_size": (1, "the least: memory of a CPU is not estimated")})
        states = family_of(processor).states_per_image(find_config(self.model_id))
        tokens, image_tokens, _ = longest_shape(counts, states)
        row = tokens + fitted.max_new_tokens, image_tokens
        try:
            together, peak = fit_answering(self.model_id, row, self.gpu, self.bits, self.lora_r, processor)
        except NotEstimated as error:
            return fitted._with({"answer_batch_size": (1, f"the least: {error}")})
        return fitted._with({"answer_batch_size": (together or 1, f"{peak / GIB:.1f} GiB, estimated")})

    def _with(self, found):
        """With `found`, name -> (value, reason), where nobody has chosen another one."""
        found = {name: pair for name, pair in found.items() if name not in self.changed}
        reasons = self.reasons | {name: why for name, (_, why) in found.items()}
        return replace(self, reasons=reasons, **{name: value for name, (value, _) in found.items()})


def _text(value):
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:g}"


_ALL = [entry.name for entry in fields(Values)]
_NAMES = _ALL[1 : _ALL.index("reasons")]


def suggest(
    model_id: str | Path,
    text_only: bool = False,
    gpu: str | None = None,
    method: str = "sft",
    weights: str = "lora",
    **chosen: object,
) -> Values:
    """The `Values` that suit a model here, or on `gpu`, one of `estimation.GPUS` by its name or how that begins.

    `model_id`: what `choose_model` gave. `text_only`: the rows to train on have no images. `method`, `weights`: as in
    `RunConfig`. `chosen`: values by name, which are taken as they are, unless they are None. Where the others come
    from: `families/values.py`. Raises ValueError for a name that is no value, and for a model whose configuration is
    not known.
    """
    is_tiny = find_config(model_id).get_text_config().hidden_size < _TINY
    chosen = {name: value for name, value in chosen.items() if value is not None}
    if unknown := sorted(set(chosen) - set(_NAMES)):
        raise ValueError(f"{unknown[0]!r} is no value of a run; there are {', '.join(_NAMES)}")
    found = family_of(model_id).suitable_values(is_tiny, text_only, method)
    if weights != "lora":
        if not is_tiny:  # a tiny base learns as well at the rate of its adapters: notebook 6
            rate = found["learning_rate"][0] / OF_ADAPTERS
            found["learning_rate"] = (rate, "full fine-tuning takes a tenth of the rate of adapters")
        chosen = {"bits": 16} | chosen
    if "epochs" in chosen and "max_steps" not in chosen:
        found["max_steps"] = (-1, "by epochs")
    if "lora_r" in chosen:
        found["lora_alpha"] = (chosen["lora_r"], "as lora_r: a scale of 1")
    found |= {name: (value, "your choice") for name, value in chosen.items()}
    if weights != "lora":
        found["bits"] = (chosen["bits"], "weights of 4 bits cannot be trained")
    reasons = dict.fromkeys(_NAMES[_NAMES.index("bits") :], _LATER) | {name: why for name, (_, why) in found.items()}
    card = find_gpu(gpu) if gpu else this_gpu()
    values = {name: value for name, (value, _) in found.items()}
    return Values(model_id, **values, reasons=reasons, changed=frozenset(chosen), gpu=card, is_tiny=is_tiny)


def _some(rows, processor):
    """Indices of rows to count: the longest as far as their text and headers tell, and others at random."""
    longest = [i for kind in longest_first(rows, processor, ()) for i in kind[:_COUNTED]]
    others = random.Random(0).sample(range(len(rows)), min(_COUNTED, len(rows)))
    return sorted({*longest, *others})


def _by_answers(counts):
    longest = max(count.labeled for count in counts)
    tokens = 32 * math.ceil(max(1.5 * longest, 32) / 32)
    return {"max_new_tokens": (tokens, f"half as much again as the longest answer, {longest} tokens")}


def _by_rows(values, counts, number, per_step):
    """What follows from the rows alone."""
    found = {}
    if number > _MANY_ROWS:
        found["epochs"] = (1, f"{number:,} rows are steps enough")
    steps = values.epochs * math.ceil(number / per_step) if values.max_steps < 0 else values.max_steps
    if steps < 10 * values.warmup_steps:
        found["warmup_steps"] = (max(1, round(steps / 10)), f"a tenth of {steps:.0f} steps")
    return found | _by_answers(counts)


def _rows_per_step(values, number):
    """(rows of an optimizer step on one device, why): 16 are usual, fewer where an epoch had under 20 steps."""
    if values.changed >= {"batch_size", "gradient_accumulation_steps"}:
        return values.batch_size * values.gradient_accumulation_steps, "your choice"
    fitting = 2 ** max(0, math.floor(math.log2(max(1, number / _STEPS_PER_EPOCH))))
    processes = int(os.environ.get("WORLD_SIZE", 1))
    per_step = max(1, min(_ROWS_PER_STEP, max(_FEWEST_PER_STEP, fitting), number) // processes)
    return per_step, f"{per_step} rows per step; {_ROWS_PER_STEP} are usual, fewer for epochs of few steps"


def _batch(values, per_step, why, rows, reason):
    """A batch of `rows`, with the accumulation that makes a step of it."""
    rows = values.batch_size or rows
    return {"batch_size": (rows, reason), "gradient_accumulation_steps": (math.ceil(per_step / rows), why)}


def _by_memory(values, counts, processor, logits, train_on, per_step, why, options):
    """Bits, resolution and batches with which the longest row fits; the least where no memory can be estimated."""
    reason = "the least: memory of a CPU is not estimated"
    if values.gpu is not None:
        try:
            return _by_estimate(values, counts, processor, logits, train_on, per_step, why, options)
        except NotEstimated as error:
            reason = f"the least: {error}"
    return {"bits": (4, "QLoRA"), "answer_batch_size": (1, reason)} | _batch(values, per_step, why, 1, reason)


def _by_estimate(values, counts, processor, logits, train_on, per_step, why, options):
    """ValueError where nothing makes the longest row fit."""
    states = family_of(processor).states_per_image(find_config(values.model_id))
    for max_length in _budgets(values, processor):
        cap = None if values.max_pixels else propose_cap(processor, counts, max_length)
        after = counts if cap is None else count_again(counts, with_cap(processor, cap), train_on=train_on)
        tokens, image_tokens, labeled = longest_shape(after, states)
        row = tokens, image_tokens
        options["labeled_tokens"] = min(max(labeled, 1), tokens - 1) if logits == "labeled" else None
        most = max(1, per_step // (values.gradient_accumulation_steps or 1))
        bits, batch, memory = fit_training(
            *(values.model_id, row, values.gpu, most, values.bits, values.batch_size),
            **{"lora_r": values.lora_r, "processor": processor} | options,
        )
        if batch or values.batch_size:
            size = f"{values.batch_size or batch} of the longest row, {tokens:,} tokens: {memory.total / GIB:.1f} GiB"
            reason = f"{size} of {values.gpu.gib:.1f}, estimated"
            if not batch:
                print(f"batch_size={values.batch_size} is your choice, and may not fit: {reason}")
            found = _found(values, after, max_length, cap, bits, row, processor)
            return found | _batch(values, per_step, why, batch, reason)
    room = f"{memory.total / GIB:.1f} GiB of {values.gpu.gib:.1f}; for {smallest_gpu(memory)}"
    size = f"a row of {tokens:,} tokens takes {room}"
    remedy = "Choose a smaller model, bits=4 or a smaller max_pixels, or shorten the text of the longest rows"
    raise ValueError(f"{values.model_id} does not fit on {values.gpu.name}: {size}. {remedy}")


def _budgets(values, processor):
    """Values of `max_length` to try; a lower one takes fewer pixels."""
    yield values.max_length
    shorter = values.max_length // 2
    free = "max_length" not in values.changed and values.max_pixels is None
    while free and family_of(processor).has_pixel_cap and shorter >= _FEWEST_TOKENS:
        yield shorter
        shorter //= 2


def fit_training(
    model_id: str | Path,
    row: tuple[int, int],
    gpu: Gpu,
    most: int,
    bits: int | None = None,
    batch_size: int | None = None,
    **options: object,
) -> tuple[int, int, Memory]:
    """(bits, rows in a batch, their memory) with which rows like `row` (tokens, image tokens) train on `gpu`.

    `bits`: None takes 16 where they leave room for a batch, as they are faster and nearer to what is served. A batch
    has at most `most` rows, or just `batch_size`; none where it does not fit: the memory is then that of `batch_size`,
    or of one row. `options`: those of `estimate_memory`.
    """
    for chosen in (bits,) if bits else (16, 4):
        memory = cache(lambda rows, b=chosen: estimate_memory(model_id, *row, rows, bits=b, **options))
        needs = cache(lambda rows, of=memory: of(rows).total)
        if batch_size:
            rows, enough = batch_size * gpu.fits(_RESERVE * needs(batch_size)), 1
        else:
            rows, enough = _largest(needs, most, gpu), min(4, most) if chosen == 16 and not bits else 1
        if rows >= enough:
            return chosen, rows, memory(rows)
    return chosen, 0, memory(batch_size or 1)


def fit_answering(
    model_id: str | Path,
    row: tuple[int, int],
    gpu: Gpu,
    bits: int,
    lora_r: int = 16,
    processor: ProcessorMixin | None = None,
) -> tuple[int, int]:
    """(rows in a batch, peak in bytes) with which rows like `row` are answered on `gpu`; as `fit_training`."""
    options = {"lora_r": lora_r, "processor": processor}
    needs = cache(lambda rows: estimate_answering(model_id, *row, rows, bits, **options))
    rows = _largest(needs, _MOST_ANSWERS, gpu)
    return rows, needs(rows or 1)


def _largest(needs, most, gpu):
    """The largest power of two of rows, up to `most`, of which `needs` says that they fit; 0 where not even one does.

    Memory grows with the rows, so two estimates lead to the third.
    """
    if not gpu.fits(_RESERVE * needs(1)):
        return 0
    rows = 2 ** int(math.log2(most))
    while rows > 1 and not gpu.fits(_RESERVE * (needs(1) + (rows - 1) * (needs(2) - needs(1)))):
        rows //= 2
    while rows > 1 and not gpu.fits(_RESERVE * needs(rows)):
        rows //= 2
    return rows


def _found(values, after, max_length, cap, bits, row, processor):
    tokens, image_tokens = row
    longest_answer = (tokens + values.max_new_tokens, image_tokens)
    together, answering = fit_answering(values.model_id, longest_answer, values.gpu, bits, values.lora_r, processor)
    fits = "they fit, and are faster" if bits == 16 else "QLoRA: 16 bits leave no room for a batch"
    found = {"bits": (bits, fits), "answer_batch_size": (together or 1, f"{answering / GIB:.1f} GiB, estimated")}
    if cap is not None:
        found["max_pixels"] = (cap, f"the longest rows fit into {max_length:,} tokens")
    longest = max(count.total for count in after)
    if longest > max_length:
        found["max_length"] = (longest, "the longest row, which is not cut")
    elif max_length < values.max_length:
        found["max_length"] = (max_length, f"{values.max_length:,} do not fit on {values.gpu.name}")
    return found
