"""The proof that a merged model answers as its adapter does, and not as its base."""

import html
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from vlmhelpers.data.schema import message_text
from vlmhelpers.evaluation.scoring import share
from vlmhelpers.export.adapters import attach, find_base, load_processor
from vlmhelpers.export.merging import missing_files
from vlmhelpers.export.probing import fixed_rows, probe, probe_in_fresh_process, with_answers
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_model


@dataclass(frozen=True)
class ExportCheck:
    """What `check_export` found. True where a condition is asked for (`if check:`), and a table in a notebook.

    rows: places in the dataset. prompts, export, adapter, base: strings per row. distance: how far apart
    the probabilities are that export and adapter give to the tokens of the adapter's answers, on average (0..1).
    base_distance: the same, adapter against base. problems: what is wrong, as sentences. four_bit: answers of the
    adapter on its 4-bit base, or None.
    """

    rows: tuple
    prompts: tuple
    export: tuple
    adapter: tuple
    base: tuple
    distance: float
    base_distance: float
    problems: tuple
    four_bit: tuple | None = None

    @property
    def ok(self):
        return not self.problems

    def __bool__(self):
        return self.ok

    def raise_if_wrong(self):
        """Raises ValueError with all problems, where there are any; else returns the check itself."""
        if self.problems:
            raise ValueError("the export is not what it should be: " + "; ".join(self.problems))
        return self

    @property
    def agreement(self):
        """The `Score` of rows that export and adapter answer alike."""
        return share(_same(self.export, self.adapter))

    def __repr__(self):
        lines = [
            f"{'ok' if self.ok else 'NOT ok'}: the export answers as the adapter on "
            f"{sum(_same(self.export, self.adapter))} of {len(self.rows)} rows, as the base on "
            f"{sum(_same(self.export, self.base))}",
            f"answers alike: {self.agreement}",
            f"probabilities of the adapter's tokens: {self.distance:.4f} from the adapter's on average; the base's are "
            f"{self.base_distance:.4f} from them",
        ]
        if self.four_bit is not None:
            lines.append(f"as the adapter on the 4-bit base: {sum(_same(self.export, self.four_bit))} rows")
        return "\n".join([*lines, *(f"- {problem}" for problem in self.problems)])

    def _repr_html_(self):
        heads = ["row", "prompt", "export", "adapter", "base"]
        columns = [self.rows, self.prompts, self.export, self.adapter, self.base]
        if self.four_bit is not None:
            heads, columns = [*heads, "adapter, 4 bits"], [*columns, self.four_bit]
        cells = "".join(
            "<tr>" + "".join(f"<td style='text-align:left'>{html.escape(str(cell))}</td>" for cell in row) + "</tr>"
            for row in zip(*columns, strict=True)
        )
        titles = "".join(f"<th>{head}</th>" for head in heads)
        return f"<pre>{html.escape(repr(self))}</pre><table><tr>{titles}</tr>{cells}</table>"


def check_export(
    exported,
    adapter,
    dataset,
    rows=8,
    base=None,
    max_new_tokens=64,
    min_agreement=1.0,
    max_distance=0.05,
    four_bit=False,
):
    """Whether the model in the folder `exported` answers as the adapter on its 16-bit base: an `ExportCheck`.

    A fresh Python process loads the export from its own folder alone. Then base and adapter answer here, greedily like
    the export; free memory before, since this process loads the base once. `rows`: how many, spread evenly
    over the dataset, or a list of places. `base`: where the adapter's own name of it is not to be found.

    The check fails when a file is missing, when the export does not load, when its processor makes other tensors of a
    row, when fewer answers than `min_agreement` (0..1) are the adapter's, when the probabilities of the tokens of the
    adapter's answers are on average further from the adapter's own than `max_distance`, when every answer is the
    base's, and when adapter and base answer all these rows alike, which proves nothing. Rounding merged weights to 16
    bits can turn an answer whose tokens are nearly tied: where answers are long, ask for less than all of them.
    `four_bit=True` also asks the adapter on the base in 4 bits, for adapters trained there; these answers are counted,
    not judged.

    Raises the errors of `merge` for the adapter and its base, and ValueError for a dataset without rows.
    """
    places = _spread(rows, len(dataset))
    chosen = fixed_rows(dataset, places)
    base = find_base(adapter, base)
    problems = [f"{exported} lacks {name}" for name in missing_files(exported)]
    export = None
    before, tuned, answered = _references(adapter, base, chosen, max_new_tokens)
    if not problems:
        try:
            export = probe_in_fresh_process(Path(exported).resolve(), answered, max_new_tokens)
        except RuntimeError as error:
            problems.append(str(error))
    quantised = tuple(_four_bit(adapter, base, chosen, max_new_tokens)) if four_bit else None
    distance = _distance(export, tuned) if export else 1.0
    if export:
        problems += _problems(export, tuned, before, places, min_agreement)
        if distance > max_distance:
            problems.append(
                f"the probabilities of the tokens of the adapter's answers are {distance:.4f} from the adapter's on "
                f"average, more than {max_distance}"
            )
    return ExportCheck(
        tuple(places),
        tuple(message_text([m for m in row["messages"] if m["role"] == "user"][-1]) for row in chosen),
        tuple(export["answers"] if export else ["-"] * len(places)),
        tuple(tuned["answers"]),
        tuple(before["answers"]),
        distance,
        _distance(before, tuned),
        tuple(problems),
        quantised,
    )


def _spread(rows, total):
    """`rows` places spread over a dataset of `total` rows; a list of places is taken as it is."""
    if not isinstance(rows, int):
        return list(rows)
    if total == 0 or rows < 1:
        raise ValueError("nothing to compare: pass a dataset with rows, and rows=1 or more")
    count = min(rows, total)
    return [i * total // count for i in range(count)]


def _references(adapter, base, dataset, max_new_tokens):
    """What base and adapter say, with one model in memory, and the rows with the adapter's answers."""
    model, _ = load_model(base, bits=None, backend="transformers")
    processor, tuned = load_processor(adapter, base), attach(model, adapter)
    answers = generate(tuned, processor, dataset, batch_size=1, max_new_tokens=max_new_tokens, progress=False)
    answered = with_answers(dataset, answers)
    found = probe(tuned, processor, answered, max_new_tokens, answers)
    with tuned.disable_adapter():
        return probe(tuned, processor, answered, max_new_tokens), found, answered


def _four_bit(adapter, base, dataset, max_new_tokens):
    model, _ = load_model(base, bits=4, backend="transformers")
    tuned, processor = attach(model, adapter), load_processor(adapter, base)
    return generate(tuned, processor, dataset, batch_size=1, max_new_tokens=max_new_tokens, progress=False)


def _problems(export, tuned, before, places, min_agreement):
    """What is wrong with an export that loads and answers, as sentences."""
    problems = []
    others = [i for i, a, b in zip(places, export["inputs"], tuned["inputs"], strict=True) if a != b]
    if others:
        names = {**export["settings"], **tuned["settings"]}
        changed = [n for n in names if export["settings"].get(n) != tuned["settings"].get(n)]
        where = f"; the image processors differ in {', '.join(changed)}" if changed else ""
        problems.append(f"its processor makes other tensors than the adapter's of row {others[0]}{where}")
    same = _same(export["answers"], tuned["answers"])
    if sum(same) < min_agreement * len(same):
        first = same.index(False)
        problems.append(
            f"{len(same) - sum(same)} of {len(same)} answers are not the adapter's, such as row {places[first]}: "
            f"{export['answers'][first]!r} instead of {tuned['answers'][first]!r}"
        )
    if all(_same(tuned["answers"], before["answers"])):
        problems.append("adapter and base answer all these rows alike, which proves nothing: choose other rows")
    elif all(_same(export["answers"], before["answers"])):
        problems.append("every answer is the base's, so the export has lost the adapter: merge it again")
    return problems


def _same(answers, others):
    return [answer == other for answer, other in zip(answers, others, strict=True)]


def _distance(one, other):
    """The mean difference between two lists of probabilities; 1 where they are of other tokens."""
    if list(map(len, one["chances"])) != list(map(len, other["chances"])):
        return 1.0
    pairs = list(zip(chain.from_iterable(one["chances"]), chain.from_iterable(other["chances"]), strict=True))
    return sum(abs(p - q) for p, q in pairs) / len(pairs)
