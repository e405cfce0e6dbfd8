"""Validation: every row and image is checked before training; problems come with their remedies."""

import os
from concurrent.futures import Executor, ThreadPoolExecutor

from datasets import Dataset, Image
from tqdm.auto import tqdm

from vlmhelpers.common.images import MAX_PIXELS, ImageFacts, UnusableImage, image_identity, inspect_image, strict_pillow
from vlmhelpers.data.duplicates import DuplicateFinder
from vlmhelpers.data.report import Finding, Report
from vlmhelpers.data.rows import ENCODED_ROWS_PER_BATCH
from vlmhelpers.data.rules import merge_problems, row_problems
from vlmhelpers.data.schema import FEATURES, find_control_tokens, message_text


def check_dataset(
    dataset: Dataset | dict[str, Dataset],
    *,
    max_pixels: int = MAX_PIXELS,
    near_duplicates: bool = True,
    reject_leaks: bool = True,
    workers: int | None = None,
    progress: bool = True,
) -> Report:
    """Checks every row of a dataset, decodes every image once, and returns a `Report`.

    Rejected are rows with `rules.row_problems`, with an image that cannot be decoded, and those that repeat an earlier
    one. Of several splits, "train" first, the earlier one's row is also rejected for a leak, an image (or a text
    without images) in two of them: the last one, the test, stays honest. `reject_leaks=False` makes leaks warnings.

    max_pixels: larger images are rejected by their header. near_duplicates: nearly equal images are a warning within a
        split, a leak between splits. workers: threads that decode; by default one per processor, 8 at most.
    Raises ValueError for a dataset without the columns of the schema, and TypeError for what is no dataset.
    """
    splits = _as_splits(dataset)
    validation = _Validation(splits, max_pixels)
    bar = tqdm(total=sum(map(len, splits.values())), unit=" rows", delay=1, disable=not progress)
    with strict_pillow(), ThreadPoolExecutor(workers or min(8, os.cpu_count() or 1)) as pool, bar:
        for split, rows in splits.items():
            bar.set_description(f"checking {split}".strip(), refresh=False)
            index = 0
            for chunk in rows.with_format("arrow").iter(ENCODED_ROWS_PER_BATCH):
                validation.check_rows(split, index, chunk.to_pylist(), pool)
                index += len(chunk)
                bar.update(len(chunk))
        bar.set_description("comparing images", refresh=False)
        validation.compare_rows(near_duplicates, reject_leaks)
    return Report(splits, validation.rejected, validation.repaired, validation.duplicates.warnings)


def _as_splits(dataset):
    if not isinstance(dataset, Dataset | dict):
        raise TypeError(f"a {type(dataset).__name__} is no Dataset; make one with Dataset.from_list(rows)")
    splits = {"": dataset} if isinstance(dataset, Dataset) else dict(dataset)
    for split, rows in splits.items():
        missing = [name for name in FEATURES if name not in rows.column_names]
        if missing:
            there = f"its columns are {', '.join(rows.column_names)}. Make its rows with a reader or with make_row."
            raise ValueError(f"dataset {split!r} has no column {' and no column '.join(missing)}; {there}")
        if not isinstance(getattr(rows.features["images"], "feature", None), Image):
            remedy = "use dataset.cast_column('images', List(Image()))"
            raise ValueError(f"dataset {split!r}: the column images is no list of images; {remedy}")
    return dict(sorted(splits.items(), key=lambda item: item[0] != "train"))


class _Validation:
    def __init__(self, splits, max_pixels):
        self.max_pixels, self.duplicates = max_pixels, DuplicateFinder(splits)
        self.rejected, self.repaired = {}, []  # (split, index) -> Finding; Findings
        self._found = {}  # identity of an image -> its ImageFacts, or the problem that it is unusable for

    def check_rows(self, split: str, start: int, rows: list[dict], pool: Executor) -> None:
        """Checks rows of a split, of which the first has the index `start`; `pool` decodes images not met before."""
        identified = [[(image_identity(image), image) for image in row["images"] or []] for row in rows]
        new = {key: image for images in identified for key, image in images if key and key not in self._found}
        self._found.update(zip(new, pool.map(self._inspect, new.values()), strict=True))
        for index, (row, images) in enumerate(zip(rows, identified, strict=True), start):
            facts = [self._found[key] for key, _ in images if key]
            if problems := row_problems(row) + _image_problems(facts):
                finding = Finding(split, index, *merge_problems(problems))
            else:
                finding = self.duplicates.add(split, index, row.get("row") or index + 1, row["messages"], facts)
                self.repaired += [Finding(split, index, repair, "") for repair in _repairs(row, facts)]
            if finding:
                self.rejected[split, index] = finding

    def _inspect(self, image):
        """ImageFacts, or the problem that the image is unusable for: an exception would hold on to pixels."""
        try:
            return inspect_image(image, self.max_pixels)
        except UnusableImage as error:
            return " ".join(error.reason.split()), error.remedy

    def compare_rows(self, near_duplicates: bool, reject_leaks: bool) -> None:
        if near_duplicates:
            self.duplicates.find_near_duplicates()
        leaks = self.duplicates.leaks()
        if reject_leaks:
            self.rejected |= {(leak.split, leak.index): leak for leak in leaks}
        else:
            self.duplicates.warnings += [leak._replace(remedy="leave one of them out") for leak in leaks]


def _image_problems(facts):
    of_image = [f" (image {number})" if len(facts) > 1 else "" for number in range(1, len(facts) + 1)]
    pairs = zip(facts, of_image, strict=True)
    return [(found[0] + which, found[1]) for found, which in pairs if not isinstance(found, ImageFacts)]


def _repairs(row, facts):
    """What is guessed or changed so that the row can be trained on, each once."""
    tokens = [token for message in row["messages"] for token in find_control_tokens(message_text(message))]
    repairs = [f"control tokens taken as plain text: {' '.join(dict.fromkeys(tokens))}"] if tokens else []
    repairs += [repair for found in facts for repair in found.repairs]
    return dict.fromkeys(filter(None, [row.get("note"), *repairs]))
