"""Whether a model looks at the picture: the same questions with the true, a blank one, another row's, and noise."""

import html
import random
import zlib
from collections import Counter, defaultdict
from dataclasses import dataclass

import numpy as np
from datasets import concatenate_datasets
from PIL import Image

from vlmhelpers.common.chart import Chart
from vlmhelpers.evaluation.comparison import EXACT, bounds, compare, draw_intervals, to_table, values_of
from vlmhelpers.evaluation.metrics import METRICS
from vlmhelpers.evaluation.scoring import evaluate, expected_answers
from vlmhelpers.inference.generation import generate

_OTHERS = ("blank", "shuffled", "noise")
_SAME = 0.9  # of the answers: a model that gives so many again with another picture does not go by the picture


def blank_images(dataset):
    """The same rows with every picture replaced by plain grey of its size: what can be answered without looking."""
    return _replaced(dataset, lambda image: Image.new("RGB", image.size, "grey"))


def noise_images(dataset, seed=0):
    """The same rows with every picture replaced by uniform noise of its size, the same at every reading."""

    def noise(image):
        rng = np.random.default_rng([seed, zlib.crc32(image.tobytes())])
        return Image.fromarray(rng.integers(0, 256, (image.height, image.width, 3), dtype=np.uint8))

    return _replaced(dataset, noise)


def _replaced(dataset, make):
    """The dataset with `make(image)` in place of each picture, made when a row is read."""

    def transform(batch):
        if "images" in batch:
            batch["images"] = [[make(image) for image in row] for row in batch["images"]]
        return batch

    return dataset.with_transform(transform)


def shuffled_images(dataset, seed=0):
    """The same rows, each with the pictures of another row, if possible of one whose expected answer differs.

    Pictures move between rows with equally many; a row that is alone with its number of pictures keeps its own. No
    picture is decoded; those that the dataset embeds are copied once.
    """
    plain = dataset.with_format(None)
    images = plain.select_columns("images").select(_donors(dataset, seed))
    return concatenate_datasets([plain.remove_columns("images"), images], axis=1)


def _donors(dataset, seed):
    """For each row the place of the row that it takes its pictures from."""
    answers, donors = expected_answers(dataset), list(range(len(dataset)))
    for rows in _by_count(dataset).values():
        groups = defaultdict(list)
        for i in rows:
            groups[answers[i]].append(i)
        order = list(groups.values())
        random.Random(seed).shuffle(order)
        turned = [i for group in order for i in group]
        # Rows of one answer stand together: a turn by the size of the largest group leads out of every group.
        step = max(map(len, order)) % len(turned) or 1
        for place, i in enumerate(turned):
            donors[i] = turned[(place + step) % len(turned)]
    return donors


def _by_count(dataset):
    """Number of pictures -> places of the rows with so many."""
    groups = defaultdict(list)
    for i, messages in enumerate(dataset.with_format(None)["messages"]):
        groups[sum(part["type"] == "image" for message in messages for part in message["content"])].append(i)
    return groups


@dataclass(frozen=True)
class Looking:
    """What `looks_at_image` found, by kind of picture: `evaluations`, `answers`, and `differences` of true minus each.

    `rows`: the places of the rows with pictures, which all of these are about. `chance`: the score of the most frequent
    expected answer, given to every row. `same`: the share of answers that stay the same with the shuffled picture.
    """

    evaluations: dict
    answers: dict
    differences: dict
    rows: tuple
    chance: float
    same: float
    metric: str = EXACT

    @property
    def verdict(self):
        """One sentence by the rules of `looks_at_image`."""
        other = max(self.differences, key=lambda name: self.evaluations[name].scores[self.metric].value)
        change = self.differences[other]
        rest, true = (score.value for score in change.scores)
        numbers = (
            f"{true:.1%} with the true one, at most {rest:.1%} with another one ({other}); "
            f"difference {100 * change.difference:+.1f} points {bounds(change)}"
        )
        if change.low > 0:
            little = rest > true / 2 or change.scores[1].low <= self.chance
            return f"It looks {'a little ' if little else ''}at the picture: {numbers}."
        if self.same >= _SAME:
            return f"It does not look at the picture: {numbers}; {self.same:.1%} of the answers are the same."
        if change.scores[1].low > self.chance:
            return f"It does not look at the picture: {numbers}."
        always = f"the most frequent answer, given to every row, is right for {self.chance:.1%}"
        return f"Its scores show no sign of looking at the picture: {numbers}; {always}."

    def __repr__(self):
        return "\n".join([self.verdict, *(f"{k:<8}  {e.scores[self.metric]}" for k, e in self.evaluations.items())])

    def _repr_html_(self):
        rows = []
        for name, evaluation in self.evaluations.items():
            score, change = evaluation.scores[self.metric], self.differences.get(name)
            less = (f"{100 * change.difference:+.1f}", bounds(change)) if change else ("", "")
            rows.append((name, f"{100 * score.value:.1f}", bounds(score), *less, score.n))
        heads = ("picture", f"{self.metric}, %", "95% interval", "true minus this, points", "95% interval", "rows")
        return f"<p><b>{html.escape(self.verdict)}</b></p>{to_table(heads, rows)}"

    def plot(self):
        """A `Chart` of the four scores with their 95% intervals, and of chance."""
        scores = {f"{name} picture": e.scores[self.metric] for name, e in self.evaluations.items()}
        figure = Chart(figsize=(7, 2.6), dpi=90, layout="constrained")
        axes = figure.add_subplot()
        draw_intervals(axes, {name: (s.value, s.low, s.high) for name, s in scores.items()}, f"{self.metric}, %")
        axes.axvline(100 * self.chance, color="grey", linewidth=1, linestyle=":", label="always the same answer")
        axes.set_xlim(left=-4)
        axes.legend(fontsize=8, frameon=False)
        return figure


def looks_at_image(
    model, processor, dataset, batch_size=16, max_new_tokens=64, metric=EXACT, answers=None, seed=0, progress=True
):
    """A `Looking`: the scores of the rows with pictures, with the true picture and with three that tell nothing.

    The three are a blank one, the picture of another row and noise, each of them seeded. `answers` are those to the
    true pictures, one string per row of the dataset, where they are there already. `metric` names a row-wise score.

    The verdict goes by the paired difference between the true picture and the best of the others:

    - its 95% interval is above 0: it looks; only "a little" where the other picture gets more than half of the score,
      or where the score is not surely (by its 95% interval) above chance, the score of the most frequent expected
      answer for every row;
    - else, at least 90% of the answers stay the same with the picture of another row: it does not look;
    - else, the score is surely above chance: it does not look, as it knows something, but not from the picture;
    - else its scores show no sign of it: a model that is always wrong may look or not.

    Raises ValueError where fewer than two rows have equally many pictures, or a number of answers is not that of rows.
    """
    if answers is not None and len(answers) != len(dataset):
        raise ValueError(f"{len(answers)} answers for {len(dataset)} rows: give one answer per row, in row order")
    places = sorted(i for count, group in _by_count(dataset).items() if count and len(group) > 1 for i in group)
    if not places:
        raise ValueError("no two rows have pictures to exchange: give rows with pictures, equally many in each")
    rows = dataset.select(places)
    _chance(rows, metric)  # refuses an unknown metric before anything is generated
    changed = blank_images(rows), shuffled_images(rows, seed), noise_images(rows, seed)
    kinds = {"true": rows} | dict(zip(_OTHERS, changed, strict=True))
    options = {"batch_size": batch_size, "max_new_tokens": max_new_tokens, "progress": progress}
    given = {} if answers is None else {"true": [answers[i] for i in places]}
    for name in [name for name in kinds if name not in given]:
        given[name] = generate(model, processor, kinds[name], **options)
    return judge_looking({name: given[name] for name in kinds}, rows, metric, places)


def judge_looking(answers, dataset, metric=EXACT, places=None):
    """The `Looking` of answers that are there: a list for each of "true", "blank", "shuffled" and "noise"."""
    evaluations = {name: evaluate(texts, dataset, _named(metric)) for name, texts in answers.items()}
    differences = {
        name: compare(evaluations[name], evaluations["true"], metric=metric, names=(name, "true")) for name in _OTHERS
    }
    same = float(np.mean(np.array(answers["true"]) == np.array(answers["shuffled"])))
    places = tuple(range(len(dataset)) if places is None else places)
    return Looking(evaluations, answers, differences, places, _chance(dataset, metric), same, metric)


def _chance(dataset, metric):
    """The score of the most frequent expected answer; raises ValueError for a metric without values per row."""
    ((usual, _),) = Counter(expected_answers(dataset)).most_common(1)
    evaluation = evaluate([usual] * len(dataset), dataset, _named(metric))
    values_of(evaluation, metric)
    return evaluation.scores[metric].value


def _named(metric):
    return metric if metric in METRICS else None  # a field is always scored
