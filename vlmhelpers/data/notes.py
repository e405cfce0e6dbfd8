"""What is wrong with pairs, rated rows and prompts as a whole, although each row is sound."""

from collections import Counter
from collections.abc import Iterable, Iterator

import numpy as np
from datasets import Dataset

from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.schema import KINDS, kind_of, message_text

_FEWEST_PAIRS, _FEWEST_PER_LABEL = 20, 10  # from which on lengths are judged
_TELLING = 0.9  # share of comparisons that length alone decides rightly
_REMEDY = "Training may learn the length alone: add answers for which it is the other way round."


def notes_on(datasets: Iterable[Dataset]) -> list[str]:
    """Sentences about the rows of datasets taken together. The length of an answer is its number of characters."""
    facts = {kind: Counter() for kind in _NOTES}
    for dataset in datasets:
        if (kind := kind_of(dataset.column_names)) in facts:
            names = [name for name in KINDS[kind] if name not in ("prompt", "images")]
            facts[kind].update(map(_FACTS[kind], stream_plain_rows(dataset, names, "comparing answers")))
    return [note for kind, of_rows in facts.items() for note in _NOTES[kind](of_rows)]


def _length(messages):
    return sum(len(message_text(message)) for message in messages)


_FACTS = {
    "pairs": lambda row: np.sign(_length(row["chosen"]) - _length(row["rejected"])).item(),
    "rated": lambda row: (row["label"], _length(row["completion"])),
    "prompts": lambda row: bool(row["answer"]),
}


def _on_pairs(signs) -> Iterator[str]:
    for sign, which in {1: "longer", -1: "shorter"}.items():
        if signs.total() >= _FEWEST_PAIRS and signs[sign] >= _TELLING * signs.total():
            share = f"{signs[sign] / signs.total():.0%} of {signs.total()} pairs"
            yield f"The {which} answer is the chosen one in {share}. {_REMEDY}"


def _on_rated(rated) -> Iterator[str]:
    good, bad = (np.sort([length for label, length in rated.elements() if label is wanted]) for wanted in (True, False))
    for label, here, there in (("true", good, bad), ("false", bad, good)):
        if len(here) and not len(there):
            yield f"All {len(here)} labels are {label}: nothing tells good answers from others. Add some of the other."
    if min(len(good), len(bad)) >= _FEWEST_PER_LABEL:
        longer = np.mean([np.searchsorted(bad, good, side) for side in ("left", "right")]) / len(bad)  # area under ROC
        for share, which in ((longer, "longer"), (1 - longer, "shorter")):
            if share >= _TELLING:
                compared = f"{len(good)} answers labeled true and {len(bad)} labeled false"
                yield f"Of {compared}, the good one is {which} in {share:.0%} of the comparisons. {_REMEDY}"


def _on_prompts(answered) -> Iterator[str]:
    if answered[False]:
        yield f"{answered[False]} of {answered.total()} prompts have no answer that a reward could compare with."


_NOTES = {"pairs": _on_pairs, "rated": _on_rated, "prompts": _on_prompts}
