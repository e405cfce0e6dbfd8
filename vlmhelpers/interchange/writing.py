"""A run as the files of another program: what it trains on, in order, and its settings, none of them left open."""

import json
import os
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from datasets import Dataset, IterableDataset
from PIL import Image

from vlmhelpers.common.environment import compute_dtype
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.printable import one_line, printable
from vlmhelpers.data.rows import plain_rows
from vlmhelpers.data.schema import kind_of
from vlmhelpers.estimation.planning import count_rows, with_cap
from vlmhelpers.families import TINY_BASES, family_of, find_config, tiny_model
from vlmhelpers.families.family import Family
from vlmhelpers.interchange.imported import Program
from vlmhelpers.interchange.rows import Images, Turns, columns_of, have_images, refuse_rows
from vlmhelpers.models.loading import load_processor
from vlmhelpers.training import pipeline
from vlmhelpers.training.config import RunConfig
from vlmhelpers.training.methods.catalog import METHODS

_AT_ONCE = 100  # rows
_UNWRITTEN = "interchange"  # the folder that `convert` writes to by default


@dataclass(frozen=True)
class Run:
    """What a table of keys writes: a run whose settings are all filled in, and where its files are."""

    config: RunConfig
    model: str  # a hub id or an absolute folder
    family: Family
    layers: int  # of the language model
    dtype: str  # "bfloat16", "float16" or "float32"
    folder: Path
    name: str
    parts: dict[str, Dataset]

    @property
    def method(self) -> str:
        return self.config.method

    @property
    def weights(self) -> str:
        return self.config.weights

    @property
    def on_gpu(self) -> bool:
        return self.dtype != "float32"

    @property
    def validated(self) -> bool:
        return "validation" in self.parts

    def file(self, part: str = "train") -> str:
        """The name of the file of some rows, without its ending."""
        return self.name if part == "train" else f"{self.name}_{part}"


def prepare(
    rows: Dataset, folder: str | os.PathLike, config: RunConfig, name: str, gpu: bool | None, refusals: Callable
) -> tuple[Run, Turns, Images]:
    """The run, and what makes texts and image files of its rows.

    refusals: gives a sentence for all that the program lacks of a run of that configuration and family. Raises
    ValueError for those, for rows of another kind than the method's, and for a row longer than `max_length`.
    """
    model = _model_of(config, refusals)
    _refuse_kind(rows, config)
    processor = load_processor(model)
    parts = pipeline.load_rows(config, rows, processor)
    if left_out := parts.counts["rejected"]:
        print(f"{left_out} of {parts.counts['read']} rows cannot be used and are not written: see check_dataset")
    config = pipeline.fill_in(config, model, parts.parts)
    capped = processor if config.max_pixels is None else with_cap(processor, config.max_pixels)
    _refuse_long(config, parts.parts, capped)
    run = _make_run(config, model, gpu, folder, name, parts.parts)
    return run, Turns(processor), Images(run.folder, _as_seen(capped, processor))


def outline(config: RunConfig, program: Program, refusals: Callable) -> str:
    """The YAML of a run whose rows are not read: what depends on them is as it suits the model alone.

    Raises ValueError for what the program lacks.
    """
    model = _model_of(config, refusals)
    values = pipeline.suggest_for(config, model)
    parts = dict.fromkeys(["train", *["validation"] * bool(config.validation_rows)])
    run = _make_run(pipeline.fill_from(config, values), model, None, _UNWRITTEN, "rows", parts)
    return yaml.safe_dump(_keys_of(run, program), sort_keys=False, allow_unicode=True)


def _model_of(config, refusals):
    model = str(tiny_model(config.model_id)) if config.model_id in TINY_BASES else _absolute(config.model_id)
    if problem := next(refusals(config, family_of(model)), None):
        raise ValueError(printable(problem))
    return model


def _absolute(model_id):
    return os.path.abspath(model_id) if os.path.isdir(model_id) else model_id


def _make_run(config, model, gpu, folder, name, parts):
    layers = find_config(model).get_text_config().num_hidden_layers
    config, folder = config.with_absolute_paths(), Path(folder).absolute()
    return Run(config, model, family_of(model), layers, _dtype(gpu), folder, _checked_name(name), parts)


def _refuse_kind(rows, config):
    if isinstance(rows, IterableDataset) or config.streaming:
        raise ValueError("a stream cannot be written: read the rows as a Dataset, with streaming=False")
    kind, wanted = kind_of(rows.column_names), METHODS[config.method].rows
    if kind != wanted:
        raise ValueError(f"the rows are {kind}, and method {config.method!r} takes {wanted}")


def _checked_name(name):
    if not name or Path(name).name != name or "," in name or name.startswith("."):
        raise ValueError(
            printable(f"name is {name!r}: choose the name of a file, without comma, folder or leading dot")
        )
    return name


def _dtype(gpu):
    if torch.cuda.is_available() and gpu is not False:
        return str(compute_dtype()).removeprefix("torch.")
    return "bfloat16" if gpu else "float32"


def _refuse_long(config, parts, processor):
    """Other programs cut a longer row, or leave it out."""
    measured = pipeline.measured_rows(parts)
    counts, unusable = count_rows(measured, range(len(measured)), processor)
    if unusable:
        raise ValueError(printable(f"row {unusable[0][0]} cannot be used: {unusable[0][1]}"))
    numbers = [number for name in ("train", "validation") if name in parts for number in _numbers(parts[name])]
    longest = max(counts, key=lambda count: count.total)
    if longest.total > config.max_length:
        remedy = "raise max_length, lower max_pixels, or leave the row out"
        raise ValueError(
            f"row {numbers[longest.index]}: {longest.total} tokens, and max_length is {config.max_length}: {remedy}"
        )


def _numbers(dataset):
    return dataset["row"] if "row" in dataset.column_names else range(1, len(dataset) + 1)


def _as_seen(capped, processor):
    """What gives an image in the size that the model gets it in, where that has fewer pixels; else the image itself."""
    family = family_of(processor)

    def seen(image: Image.Image) -> Image.Image:
        if not family.has_pixel_cap:
            return image
        shown, tokens = family.as_seen(capped, image)
        if shown.width * shown.height >= image.width * image.height:
            return image
        if family.as_seen(processor, shown)[1] == tokens:
            return shown
        if family.as_seen(processor, image)[1] != tokens:
            raise ValueError(
                "max_pixels is more than the model's own processor allows, which other programs take as it is: choose "
                "a smaller max_pixels, or change the size in the model's processor_config.json"
            )
        return image

    return seen


def write_rows(run: Run, program: str, to_row: Callable[[dict], dict], takes: Collection[str] = ()) -> None:
    """Writes the rows of each part as JSONL. `to_row` makes a row of the program of one as `plain_rows` gives it."""
    for part, dataset in run.parts.items():
        shown, chosen = have_images(dataset), dataset.select_columns(columns_of(dataset))
        with atomic_file(run.folder / f"{run.file(part)}.jsonl", encoding="utf-8", newline="\n") as file:
            for row in refuse_rows(dataset, _rows(chosen), program, takes):
                written = to_row(row)
                if not shown:
                    written.pop("images")
                file.write(json.dumps(written, ensure_ascii=False) + "\n")


def _rows(dataset) -> Iterator[dict]:
    for start in range(0, len(dataset), _AT_ONCE):
        yield from plain_rows(dataset, range(start, min(start + _AT_ONCE, len(dataset))))


def write_yaml(run: Run, program: Program, notes: Iterable[str], ending: str = ".yaml") -> Path:
    """Writes the keys of a program's table, and above them, as comments, what it will do in another way."""
    notes = [one_line(note) for note in notes]
    head = [f"A run of vlmhelpers as {program.name} {program.version} takes it.", *notes]
    path = run.folder / f"{run.name}{ending}"
    with atomic_file(path, encoding="utf-8", newline="\n") as file:
        file.writelines(f"# {line}\n" for line in head)
        yaml.safe_dump(_keys_of(run, program), file, sort_keys=False, allow_unicode=True)
    print(*notes, sep="\n", end="\n" * bool(notes))
    return path


def _keys_of(run, program):
    keys = {key.name: key.there(run) for key in program.keys if key.applies(run)}
    return {name: value for name, value in keys.items() if value is not None}
