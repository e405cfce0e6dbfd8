"""Validation: every row and image is checked before training; problems come with their remedies."""

import os
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor

import pyarrow.compute as pc
from datasets import Dataset, Image, List, Value
from tqdm.auto import tqdm

from vlmhelpers.common.image_workers import inspect_all
from vlmhelpers.common.images import MAX_PIXELS, ImageFacts, image_identity
from vlmhelpers.common.printable import printable
from vlmhelpers.data.checked_images import CheckedImages, temporary_database
from vlmhelpers.data.duplicates import DuplicateFinder
from vlmhelpers.data.quality import Quality
from vlmhelpers.data.readers.learned import is_about_learning, is_weight, refuse_preference, refuse_weight
from vlmhelpers.data.readers.source import SourceRow
from vlmhelpers.data.readers.unread_fields import problem_in_row, problem_of
from vlmhelpers.data.report import Finding, Report
from vlmhelpers.data.rows import ENCODED_ROWS_PER_BATCH, further_columns, stream_plain_rows
from vlmhelpers.data.rules import Problem, is_of_reader, merge_problems, row_number, row_problems
from vlmhelpers.data.schema import (
    CONVERSATIONS,
    KINDS,
    TRAIN,
    all_images,
    conversations,
    find_control_tokens,
    kind_of,
    message_text,
)

_NO_FORMAT = "use dataset.with_format(None), or write what it does into the rows with map"
_READERS = {"messages": "vlm.read_dataset"} | {
    kind: f"vlm.data.read_{name}"
    for kind, name in (("pairs", "preferences"), ("rated", "rated"), ("prompts", "prompts"))
}
_GREETING = "the assistant begins: its first turn is not learned, as nothing asks for it"
Rules = Callable[[dict, list[tuple[int, int]]], list[Problem]]  # of a row, by it and the sizes of its images


def validate(
    dataset: Dataset | dict[str, Dataset],
    *,
    max_pixels: int = MAX_PIXELS,
    near_duplicates: bool = True,
    reject_leaks: bool = True,
    more_rules: Rules | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """What `check_dataset` does; `more_rules` finds the problems of a row that has no others."""
    if max_pixels > MAX_PIXELS:
        raise ValueError(f"max_pixels={max_pixels}: no step reads images of more than {MAX_PIXELS:,} pixels")
    splits = _as_splits(dataset)
    bar = tqdm(total=sum(map(len, splits.values())), unit=" rows", delay=1, disable=not progress)
    pool = ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1))
    with temporary_database() as database, pool, bar:
        validation = _Validation(splits, max_pixels, database, more_rules)
        for split, rows in splits.items():
            bar.set_description(f"checking {split}".strip(), refresh=False)
            index = 0
            for chunk in rows.with_format("arrow").iter(ENCODED_ROWS_PER_BATCH):
                validation.check_rows(split, index, chunk.to_pylist(), pool)
                index += len(chunk)
                bar.update(len(chunk))
        bar.set_description("comparing images", refresh=False)
        validation.compare_rows(near_duplicates, reject_leaks)
        quality = validation.quality.lines()
    return Report(splits, validation.rejected, validation.repaired, validation.warnings, quality)


def _as_splits(dataset):
    if not isinstance(dataset, Dataset | dict):
        raise TypeError(f"a {type(dataset).__name__} is no Dataset; make one with Dataset.from_list(rows)")
    splits = {"": dataset} if isinstance(dataset, Dataset) else dict(dataset)
    if wrong := [rows for rows in splits.values() if not isinstance(rows, Dataset)]:
        remedy = "give a Dataset, or a dict of one for each split; Dataset.from_list(rows) makes one"
        raise TypeError(f"a {type(wrong[0]).__name__} in a dict is no Dataset: {remedy}")
    for split, rows in splits.items():
        if rows.format["type"] == "custom":
            raise ValueError(f"dataset {split!r} has a transform, which would be passed over: {_NO_FORMAT}")
        _check_columns(split, rows)
        if not isinstance(getattr(rows.features["images"], "feature", None), Image):
            remedy = "use dataset.cast_column('images', List(Image()))"
            raise ValueError(f"dataset {split!r}: the column images is no list of images; {remedy}")
    plain = {split: rows.with_format(None) for split, rows in splits.items()}  # other formats change what rows hold
    return dict(sorted(plain.items(), key=lambda item: item[0] != "train"))


def _check_columns(split, rows):
    remedy = "Make its rows with a reader, or with make_row, make_pair, make_rated or make_prompt."
    try:
        features = KINDS[kind_of(rows.column_names)]
    except ValueError as error:
        raise ValueError(printable(f"dataset {split!r} has {error} {remedy}")) from None
    if "images" not in rows.column_names:
        raise ValueError(
            printable(f"dataset {split!r} has no column images, only {', '.join(rows.column_names)}. {remedy}")
        )
    for name, feature in features.items():
        if isinstance(feature, List) and not hasattr(rows.features[name], "feature"):
            raise ValueError(f"dataset {split!r}: the column {name} holds no lists. {remedy}")
    _refuse_unread(split, rows)


def _refuse_unread(split, rows):
    """What says something that no step reads: its reader would have rejected the rows, or read it."""
    for name in further_columns(rows):
        if (problem := problem_in_row(name)) and _says_something(rows.data.column(name)):
            ways = f"dataset.remove_columns({name!r}), or a reader of vlm.data, which rejects the rows that have it"
            remedy = f"{problem[1]}: {ways}"
            raise ValueError(printable(f"dataset {split!r}: the column {name}: {problem[0]}; {remedy}"))
    _refuse_unlearned(split, rows)
    for name in CONVERSATIONS:
        for key in _unread_keys(rows.features.get(name)):
            if _says_something(pc.struct_field(pc.list_flatten(rows.data.column(name)), key)):
                remedy = f"{_READERS[kind_of(rows.column_names)]}(dataset) reads it, or rejects the rows that have it"
                raise ValueError(printable(f"dataset {split!r}: {key} of {name} is not read as it is; {remedy}"))


def _refuse_unlearned(split, rows):
    """A row of which a column says that its answer is not to be learned, which its reader would have rejected."""
    names = [name for name in further_columns(rows) if is_about_learning(name)]
    for index, fields in enumerate(stream_plain_rows(rows, names, "checking") if names else ()):
        row = SourceRow(fields)
        if refuse_weight(row) or refuse_preference(row, answer=True):
            remedy = "leave such rows out, or remove the column where it says something else"
            raise ValueError(printable(f"dataset {split!r}, row {index + 1}: {row.problems[0][0]}; {remedy}"))


def _unread_keys(column):
    message = getattr(column, "feature", None)
    message = message if isinstance(message, dict) else {}
    matter = [key for key in message if is_weight(key) or problem_of(key)]
    return [key for key in matter if (key, message[key]) != (TRAIN, Value("bool"))]


def _says_something(column):
    return column.null_count < len(column)


class _Validation:
    def __init__(self, splits, max_pixels, database, more_rules):
        self.max_pixels, self.more_rules = max_pixels, more_rules or (lambda row, sizes: [])
        self.images, self.quality = CheckedImages(database), Quality(database)
        self.duplicates = DuplicateFinder(splits, database)
        self.rejected, self.repaired, self.warnings = {}, [], []  # (split, index) -> Finding; Findings

    def check_rows(self, split: str, start: int, rows: list[dict], pool: Executor) -> None:
        """Checks rows of a split, of which the first has the index `start`; `pool` waits for images not met before."""
        identified = [[(image_identity(image), image) for image in all_images(row)] for row in rows]
        images = {key: image for pairs in identified for key, image in pairs if key}
        checked = self.images.find(images)
        new = {key: image for key, image in images.items() if key not in checked}
        for (key, image), facts in zip(new.items(), inspect_all(new.values(), self.max_pixels, pool), strict=True):
            if isinstance(facts, ImageFacts):
                self.quality.add_image(facts, image)
            else:
                facts = " ".join(facts.reason.split()), facts.remedy
            checked[key] = self.images.add(key, facts)
        for index, (row, pairs) in enumerate(zip(rows, identified, strict=True), start):
            of_row = [checked[key] for key, _ in pairs if key]
            problems = row_problems(row) + _image_problems(of_row)
            if problems := problems or self.more_rules(row, [image.size for image in of_row]):
                drawn = not of_row[:1] or not of_row[0].problem
                self.rejected[split, index] = Finding(split, index, *merge_problems(problems), drawn)
            else:
                numbers = [image.number for image in of_row]
                self.duplicates.add(split, index, row_number(row, index), *_question_and_answer(row), numbers)
                asked = row["messages"][:-1] if kind_of(row) == "messages" else row["prompt"]
                self.quality.add_question(_said(asked))
                self.repaired += [Finding(split, index, repair, "") for repair in _repairs(row, of_row)]

    def compare_rows(self, near_duplicates: bool, reject_leaks: bool) -> None:
        self._reject(self.duplicates.repeats())
        self.warnings += self.duplicates.other_answers()
        if near_duplicates:
            self.warnings += self.duplicates.near_duplicates(self.images.thumbnails())
        leaks = self.duplicates.leaks()
        if reject_leaks:
            self._reject(leaks)
        else:
            self.warnings += [leak._replace(remedy="leave one of them out") for leak in leaks]

    def _reject(self, findings):
        self.rejected |= {(finding.split, finding.index): finding for finding in findings}


def _image_problems(images):
    of_image = [f" (image {number})" if len(images) > 1 else "" for number in range(1, len(images) + 1)]
    pairs = zip(images, of_image, strict=True)
    return [(image.problem[0] + which, image.problem[1]) for image, which in pairs if image.problem]


def _question_and_answer(row):
    """What a row asks and what it answers; several answers to one question are normal for pairs and rated rows."""
    kind = kind_of(row)
    if kind == "messages":
        *question, answer = _said(row["messages"])
        return question, answer
    if kind == "prompts":
        return _said(row["prompt"]), row["answer"]
    whole = [_said(messages) for messages in conversations(row).values()], row.get("label")
    return whole, whole


def _said(messages):
    """Roles and contents alone: a dataset without a further key, such as that of what is learned, can say the same."""
    return [
        (message["role"], [(part["type"], part["text"] or "") for part in message["content"]]) for message in messages
    ]


def _repairs(row, images):
    """What is guessed or changed so that the row can be trained on, each once."""
    messages = [message for turns in conversations(row).values() for message in turns]
    tokens = [token for message in messages for token in find_control_tokens(message_text(message))]
    found = f"control tokens of some models, taken as plain text: {' '.join(dict.fromkeys(tokens))}"
    repairs = [found] if tokens else []
    repairs += [_GREETING] * (kind_of(row) == "messages" and row["messages"][0]["role"] == "assistant")
    repairs += [repair for image in images for repair in image.repairs]
    return dict.fromkeys(filter(None, [row["note"] if is_of_reader(row) else "", *repairs]))
