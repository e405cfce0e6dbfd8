"""Which families of models take which rows, by what they declare: no tokenizer is asked."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator

from datasets import Dataset

from vlmhelpers.data.rows import stream_plain_rows
from vlmhelpers.data.rules import Problem
from vlmhelpers.data.schema import KINDS, conversations, count_images, kind_of, learned_turns
from vlmhelpers.families import FAMILIES
from vlmhelpers.families.family import Family

_REMEDY = "write its turns so, or pass the processor of the model, whose own chat template then decides"


def problems_with(family: Family, row: dict) -> list[Problem]:
    """What keeps a sound row of any kind from the published models of a family."""
    if all(map(family.takes_turns, _letters(row))):
        return []
    return [(f"turns that {family.name} does not take: {family.turns[1]}", _REMEDY)]


def notes_on_families(datasets: Iterable[Dataset]) -> Iterator[str]:
    """Sentences on the families that do not take all rows, or not as they are. Images stay closed."""
    rows = Counter(outline for dataset in datasets for outline in _outlines(dataset))
    found = defaultdict(list)
    for name, family in FAMILIES.items():
        turns = sum(rows[outline] for outline in rows if not all(map(family.takes_turns, outline[0])))
        several = sum(rows[outline] for outline in rows if outline[1] > 1) if family.several_images else 0
        for number, why in ((turns, family.turns[1]), (several, family.several_images)):
            found[number, why] += [name] * bool(number)
    told = [f"{number} for {' and '.join(names)} ({why})" for (number, why), names in found.items() if names]
    if told:
        yield f"Rows that not every family of models takes: {', '.join(told)}."
    if len({bool(images) for _, images in rows}) > 1:
        apart = [name for name, family in FAMILIES.items() if not family.mixable]
        yield f"Rows with images and rows without do not share a batch of {' or '.join(apart)}."


def _outlines(dataset):
    """(the letters of each conversation, the number of images) of the rows of a dataset."""
    names = [name for name in KINDS[kind_of(dataset.column_names)] if name != "images"]
    for row in stream_plain_rows(dataset, names, "asking for families"):
        said = conversations(row)
        yield tuple(_letters(row)), max(map(count_images, said.values()))


def _letters(row):
    """The turns of each conversation of a row, by the letters of `Family.turns`."""
    for messages in conversations(row).values():
        learned = learned_turns(messages) if kind_of(row) == "messages" else [len(messages) - 1]
        yield "".join(_letter(message, turn in learned) for turn, message in enumerate(messages))


def _letter(message, is_learned):
    if message["role"] == "assistant":
        return "a" if is_learned else "c"
    return "s" if message["role"] == "system" else "i" if count_images([message]) else "u"
