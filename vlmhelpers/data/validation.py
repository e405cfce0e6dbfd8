"""The doctor: looks at every row and picture before training does, says what is wrong and what helps."""

import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from datasets import Dataset, Image
from tqdm.auto import tqdm

from vlmhelpers.common.image_errors import UnusableImage
from vlmhelpers.common.images import MAX_PIXELS, ImageFacts, image_identity, inspect_image, strict_pillow
from vlmhelpers.data.duplicates import Comparison
from vlmhelpers.data.report import Finding, make_report
from vlmhelpers.data.rows import plain_rows
from vlmhelpers.data.rules import merge_problems, row_problems
from vlmhelpers.data.schema import FEATURES, find_control_tokens, message_text

_ROWS_PER_CHUNK = 200  # in memory at a time, with their encoded pictures where the dataset embeds those


def check_dataset(
    dataset, *, max_pixels=MAX_PIXELS, near_duplicates=True, reject_leaks=True, workers=None, progress=True
):
    """Checks every row of a dataset, decodes every picture once, and returns a `Report`.

    dataset: rows of the schema as a Dataset, or as a DatasetDict or dict of splits. With several splits it
        also finds leaks: a picture (or, without pictures, a text) in two of them. The row of the earlier split
        is then rejected, so that the last one, the test, stays honest; "train" counts as the first.
    max_pixels: larger pictures are rejected by their header, before they are decoded.
    near_duplicates: also look for nearly the same picture: a warning within a split, a leak between splits.
    reject_leaks: False makes leaks warnings.
    workers: threads that decode pictures; by default one per processor, 8 at most.
    progress: show a bar when it takes longer than a second.

    Rejected are rows with a reader's `problem`, with messages that cannot be trained on or an unusable
    picture, and rows that repeat an earlier one. Reported and kept is what training repairs, and what is
    worth a look. No file is changed. Raises ValueError for a dataset without the columns of the schema, and
    TypeError for what is no dataset.
    """
    splits = _as_splits(dataset)
    checkup = _Checkup(splits, max_pixels)
    workers = workers or min(8, os.cpu_count() or 1)
    bar = tqdm(total=sum(map(len, splits.values())), unit=" rows", delay=1, disable=not progress)
    with strict_pillow(), ThreadPoolExecutor(workers) as pool, bar:
        for split, rows in splits.items():
            bar.set_description(f"checking {split}".strip(), refresh=False)
            for start in range(0, len(rows), _ROWS_PER_CHUNK):
                chunk = plain_rows(rows, range(start, min(start + _ROWS_PER_CHUNK, len(rows))))
                checkup.inspect_images(chunk, pool)
                for index, row in enumerate(chunk, start):
                    checkup.check_row(split, index, row)
                bar.update(len(chunk))
        bar.set_description("comparing pictures", refresh=False)
        checkup.compare(near_duplicates, reject_leaks)
    return make_report(splits, checkup.rejected, checkup.repaired, checkup.comparison.warnings)


def _as_splits(dataset):
    """The dataset as a dict of splits, "train" first; a single Dataset gets the name ""."""
    if not isinstance(dataset, Dataset | dict):
        raise TypeError(f"a {type(dataset).__name__} is no Dataset; make one with Dataset.from_list(rows)")
    splits = {"": dataset} if isinstance(dataset, Dataset) else dict(dataset)
    for split, rows in splits.items():
        missing = [name for name in FEATURES if name not in rows.column_names]
        if missing:
            raise ValueError(
                f"dataset {split!r} has no column {' and no column '.join(missing)}; its columns are "
                f"{', '.join(rows.column_names)}. Make its rows with a reader or with make_row."
            )
        if not isinstance(getattr(rows.features["images"], "feature", None), Image):
            remedy = "use dataset.cast_column('images', List(Image()))"
            raise ValueError(f"dataset {split!r}: the column images is no list of images; {remedy}")
    return dict(sorted(splits.items(), key=lambda item: item[0] != "train"))


class _Checkup:
    """What is known so far of the rows of all splits."""

    def __init__(self, splits, max_pixels):
        self.comparison = Comparison(splits)
        self.rejected, self.repaired = {}, []  # (split, index) -> Finding; Findings
        self._inspect = partial(_inspect, max_pixels=max_pixels)
        self._pictures = {}  # key of an image -> ImageFacts, or the (reason, remedy) that it is unusable for

    def inspect_images(self, rows, pool):
        """Verifies, in parallel, those pictures of `rows` that were not met before."""
        images = {image_identity(image): image for row in rows for image in _images(row)}
        new = {key: image for key, image in images.items() if key not in self._pictures}
        self._pictures.update(zip(new, pool.map(self._inspect, new.values()), strict=True))

    def check_row(self, split, index, row):
        """Judges one row by itself and, if it is sound, against the rows before it."""
        facts = [self._pictures[image_identity(image)] for image in _images(row)]
        if problems := row_problems(row) + _unusable(facts):
            finding = Finding(split, index, *merge_problems(problems))
        else:
            finding = self.comparison.add(split, index, row.get("row") or index + 1, row["messages"], facts)
            self._note_repairs(split, index, row, facts)
        if finding:
            self.rejected[split, index] = finding

    def _note_repairs(self, split, index, row, facts):
        texts = map(message_text, row["messages"])
        tokens = [token for text in texts for token in find_control_tokens(text)]
        repairs = [row["note"]] if row.get("note") else []
        if tokens:
            repairs.append(f"control tokens taken as plain text: {' '.join(dict.fromkeys(tokens))}")
        repairs += [repair for found in facts for repair in found.repairs]
        self.repaired += [Finding(split, index, repair, "") for repair in dict.fromkeys(repairs)]

    def compare(self, near_duplicates, reject_leaks):
        """Looks for near-duplicates and leaks among the sound rows."""
        if near_duplicates:
            self.comparison.find_near_duplicates()
        leaks = self.comparison.leaks()
        if reject_leaks:
            self.rejected |= {(leak.split, leak.index): leak for leak in leaks}
        else:
            self.comparison.warnings += [leak._replace(remedy="leave one of them out") for leak in leaks]


def _images(row):
    """The row's pictures as {"path", "bytes"}, without those that are None."""
    return [image for image in row["images"] or [] if image_identity(image)]


def _unusable(facts):
    """The problems among what was found of a row's pictures; of several pictures, the reason says which."""
    of_image = [f" (image {number})" if len(facts) > 1 else "" for number in range(1, len(facts) + 1)]
    pairs = zip(facts, of_image, strict=True)
    return [(found[0] + which, found[1]) for found, which in pairs if not isinstance(found, ImageFacts)]


def _inspect(image, max_pixels):
    """ImageFacts, or the (reason, remedy) that it is unusable for: an exception would hold on to pixels."""
    try:
        return inspect_image(image, max_pixels)
    except UnusableImage as error:
        return " ".join(error.reason.split()), error.remedy
