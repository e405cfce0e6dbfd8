"""Image ablation: the same questions with other images."""

import random
import zlib
from collections import Counter
from dataclasses import dataclass

import numpy as np
import pandas as pd
from datasets import Dataset, concatenate_datasets
from markupsafe import Markup
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.common.display import html_table
from vlmhelpers.data.given import given_rows, given_texts
from vlmhelpers.data.schema import count_images
from vlmhelpers.evaluation.comparison import Comparison, compare
from vlmhelpers.evaluation.metrics import METRICS
from vlmhelpers.evaluation.scoring import EXACT, Evaluation, evaluate, references_of, without_reasoning
from vlmhelpers.evaluation.statistics import Score
from vlmhelpers.inference.generation import generate

_SAME = 0.9  # of the answers: a model that gives so many again with another image does not go by the image


def blank_images(dataset: Dataset) -> Dataset:
    """The same rows with every image replaced by plain gray of its size."""
    return _replaced(dataset, lambda image: Image.new("RGB", image.size, "gray"))


def noise_images(dataset: Dataset, seed: int = 0) -> Dataset:
    """The same rows with every image replaced by uniform noise of its size, the same at every reading."""

    def noise(image):
        rng = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
        return Image.fromarray(rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8))

    return _replaced(dataset, noise)


def _replaced(dataset, make):
    def transform(batch):
        return batch | {k: [list(map(make, row)) for row in rows] for k, rows in batch.items() if k == "images"}

    return given_rows(dataset, None).with_transform(transform)


def shuffled_images(dataset: Dataset, seed: int = 0) -> Dataset:
    """The same rows, each with the images of another that has equally many, if possible of another expected answer."""
    plain = dataset = given_rows(dataset).with_format(None)
    table = pd.DataFrame({"count": _image_counts(dataset), "answer": references_of(dataset)})
    donors = np.arange(len(table))  # for each row the one that it takes its images from
    for _, rows in table.groupby("count"):
        groups = [list(group.index) for _, group in rows.groupby("answer", sort=False)]
        random.Random(seed).shuffle(groups)
        order = [i for group in groups for i in group]
        # Rows of one answer stand together: a step as long as the largest group leads out of every group.
        step = max(map(len, groups)) % len(order) or 1
        donors[order] = order[step:] + order[:step]
    return concatenate_datasets([plain.remove_columns("images"), plain.select_columns("images").select(donors)], axis=1)


def _image_counts(dataset):
    return pd.Series(map(count_images, dataset.with_format(None)["messages"]), dtype=int)


@dataclass(frozen=True)
class ImageAblation:
    """What `image_ablation` found, by kind of image: `differences` (true minus each), `chance` (the score of the most
    frequent expected answer for every row) and `same` (the share of answers that the shuffled image does not change).
    """

    evaluations: dict[str, Evaluation]
    answers: dict[str, list[str]]
    differences: dict[str, Comparison]
    chance: float
    same: float
    metric: str = EXACT

    @property
    def scores(self) -> dict[str, Score]:
        return {name: evaluation.scores[self.metric] for name, evaluation in self.evaluations.items()}

    @property
    def verdict(self) -> str:
        """One sentence by the rules of `image_ablation`."""
        name = max(self.differences, key=lambda name: self.scores[name].value)
        true, other, change = self.scores["true"], self.scores[name], self.differences[name]
        numbers = f"{true.value:.1%} with the true one, at most {other.value:.1%} with another one ({name}); "
        numbers += f"difference {100 * change.difference:+.1f} points {change.bounds()}"
        if change.low > 0:
            little = other.value > true.value / 2 or true.low <= self.chance
            return f"It uses the image{' a little' if little else ''}: {numbers}."
        if self.same >= _SAME:
            return f"It does not use the image: {numbers}; {self.same:.1%} of the answers are the same."
        if true.low > self.chance:
            return f"It does not use the image: {numbers}."
        always = f"the most frequent answer, given to every row, is right for {self.chance:.1%}"
        return f"Its scores show no sign that it uses the image: {numbers}; {always}."

    def __repr__(self):
        return "\n".join([self.verdict, *(f"{name:<8}  {score}" for name, score in self.scores.items())])

    def _repr_html_(self):
        heads = ("image", f"{self.metric}, %", "95% interval", "true minus this, points", "95% interval", "rows")
        less = {name: (f"{100 * change.difference:+.1f}", change.bounds()) for name, change in self.differences.items()}
        scores = {name: (f"{100 * score.value:.1f}", score.bounds()) for name, score in self.scores.items()}
        rows = [(k, *scores[k], *less.get(k, ("", "")), score.n) for k, score in self.scores.items()]
        return Markup("<p><b>{}</b></p>{}").format(self.verdict, html_table(heads, rows))


def image_ablation(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    dataset: Dataset,
    metric: str = EXACT,
    answers: list[str] | None = None,
    seed: int = 0,
    **options: object,
) -> ImageAblation:
    """The scores of the rows with images, with the true image, a blank one, that of another row, and noise.

    `metric`: a row-wise score. `answers`: those to the true images, one per row, if known. `options`: `generate`'s.

    The model uses the image where the 95% interval of the paired difference from the best other image is above 0: "a
    little" if that image gets over half of the score, or the score's interval holds chance. Else it does not where 90%
    of the answers stay with the image of another row, or the score's interval is above chance. Else nothing shows it.
    Raises ValueError where no two rows have equally many images, or there is not one answer per row.
    """
    dataset = given_rows(dataset)
    if answers is not None:
        answers = given_texts(answers, dataset)
    counts = _image_counts(dataset)
    indices = np.flatnonzero(counts.duplicated(keep=False) & (counts > 0))
    if not len(indices):
        raise ValueError("no two rows have images to exchange: give rows with images, equally many in each")
    rows = dataset.select(indices)
    _chance(rows, metric)  # refuses an unknown metric before anything is generated
    changed = {"blank": blank_images(rows), "shuffled": shuffled_images(rows, seed), "noise": noise_images(rows, seed)}
    true = [answers[i] for i in indices] if answers is not None else generate(model, processor, rows, **options)
    others = {name: generate(model, processor, images, **options) for name, images in changed.items()}
    return ablation_of_answers({"true": true} | others, rows, metric)


def ablation_of_answers(answers: dict[str, list[str]], dataset: Dataset, metric: str = EXACT) -> ImageAblation:
    """The `ImageAblation` of known answers: a list for each of "true", "blank", "shuffled" and "noise"."""
    evaluations = {name: _evaluate(texts, dataset, metric) for name, texts in answers.items()}
    others = {name: found for name, found in evaluations.items() if name != "true"}
    pairs = {k: compare(found, evaluations["true"], metric=metric, names=(k, "true")) for k, found in others.items()}
    true, shuffled = (without_reasoning(answers[name]) for name in ("true", "shuffled"))
    same = float(np.mean([answer == other for answer, other in zip(true, shuffled, strict=True)]))
    return ImageAblation(evaluations, answers, pairs, _chance(dataset, metric), same, metric)


def _evaluate(answers, dataset, metric):
    return evaluate(answers, dataset, metric if metric in METRICS else ())  # a field is always scored


def _chance(dataset, metric):
    """The score of the most frequent expected answer; raises ValueError for a metric without values per row."""
    usual = Counter(references_of(dataset)).most_common(1)[0][0]
    return float(np.nanmean(_evaluate([usual] * len(dataset), dataset, metric).values_of(metric)))
