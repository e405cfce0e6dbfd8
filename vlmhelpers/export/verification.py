"""The check that a merged model answers as its adapter does, and not as its base."""

from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Integral
from pathlib import Path
from typing import Self

from accelerate.utils.memory import clear_device_cache
from datasets import Dataset
from markupsafe import Markup

from vlmhelpers.common.digests import changed_settings
from vlmhelpers.common.display import html_table
from vlmhelpers.common.printable import printable
from vlmhelpers.data.given import given_rows, row_indices
from vlmhelpers.data.schema import last_question
from vlmhelpers.evaluation.statistics import Score, share
from vlmhelpers.export.adapters import attach, find_base, load_processor, missing_files
from vlmhelpers.export.probing import fixed_rows, probe, probe_in_fresh_process
from vlmhelpers.models.loading import load_model


class Check:
    """True without `problems`, which are what is wrong, as sentences."""

    problems: Sequence[str]

    @property
    def ok(self) -> bool:
        return not self.problems

    def __bool__(self):
        return self.ok

    def raise_if_wrong(self) -> Self:
        """The check itself. Raises ValueError with all problems, if any."""
        if self.problems:
            raise ValueError("the export is not what it should be: " + "; ".join(self.problems))
        return self


@dataclass(frozen=True)
class ExportCheck(Check):
    """What `check_export` found; true without problems, and a table in a notebook."""

    rows: Sequence[int]  # indices in the dataset
    prompts: Sequence[str]
    answers: dict[str, Sequence[str]]  # per row, of "export", "adapter", "base" and, if asked for, "adapter in 4 bits"
    tokens: dict[str, Sequence]  # of the same answers, by which they are compared
    distance: float  # mean difference of export and adapter in the probabilities of the adapter's tokens (0..1)
    base_distance: float  # the same of base and adapter
    rounded: Sequence[int]  # of `rows`, those where export and adapter part at nearly tied tokens
    problems: Sequence[str]  # what is wrong, as sentences

    @property
    def agreement(self) -> Score:
        """Of rows that export and adapter answer alike."""
        return share(_same(self.tokens["export"], self.tokens["adapter"]))

    def __repr__(self):
        counts = {name: sum(_same(self.tokens["export"], other)) for name, other in self.tokens.items()}
        alike = [f"as the {name} on {n} of {len(self.rows)} rows" for name, n in counts.items() if name != "export"]
        text = f"{'ok' if self.ok else 'NOT ok'}: the export answers {', '.join(alike)}\n"
        text += f"answers alike: {self.agreement}\n"
        if self.rounded:
            text += f"parted from the adapter's at nearly tied tokens, by rounding: {len(self.rounded)}\n"
        text += f"probabilities of the adapter's tokens: {self.distance:.4f} from the adapter's on average; "
        return printable("\n- ".join([f"{text}the base's are {self.base_distance:.4f} from them", *self.problems]))

    def _repr_html_(self):
        rows = zip(self.rows, self.prompts, *self.answers.values(), strict=True)
        return Markup("<pre>{}</pre>{}").format(repr(self), html_table(["row", "prompt", *self.answers], rows))


def check_export(
    exported: str | Path,
    adapter: str | Path,
    dataset: Dataset,
    rows: int | Sequence[int] = 8,
    base: str | Path | None = None,
    max_new_tokens: int = 64,
    min_agreement: float = 1.0,
    max_distance: float = 0.05,
    four_bit: bool = False,
) -> ExportCheck:
    """Whether the model in the folder `exported` answers, greedily, as the adapter on its 16-bit `base`.

    A fresh process loads the export; base and adapter answer in this one: free memory before. `rows`: how many, spread
    over the dataset, or indices. Problems are missing files, an export that does not load, other tensors from its
    processor, fewer equal answers than `min_agreement` (0..1; one that goes another way from a nearly tied token on
    counts as equal: rounding decides there), probabilities further away than `max_distance` on average, and rows where
    base and adapter, or base and export, all answer alike. `four_bit` also counts the adapter's answers on 4 bits.
    Raises the errors of `merge`, and ValueError without rows.
    """
    dataset = given_rows(dataset)
    indices = _spread(rows, len(dataset))
    chosen, base = fixed_rows(dataset, indices), find_base(adapter, base)
    model, processor = _load(adapter, base, 16)
    of_adapter = probe(model, processor, chosen, max_new_tokens)
    with model.disable_adapter():
        of_base = probe(model, processor, chosen, max_new_tokens, of_adapter.tokens)
    del model
    clear_device_cache(garbage_collection=True)
    probes = {"adapter": of_adapter, "base": of_base}
    if four_bit:
        probes["adapter in 4 bits"] = probe(*_load(adapter, base, 4), chosen, max_new_tokens)
    clear_device_cache(garbage_collection=True)  # what a cache keeps, another process cannot have
    problems, distance, rounded = [f"{exported} lacks {name}" for name in missing_files(exported)], 1.0, []
    if not problems:
        try:
            export = probe_in_fresh_process(Path(exported).resolve(), chosen, max_new_tokens, of_adapter.tokens)
        except RuntimeError as error:
            problems = [str(error)]
        else:
            problems = _problems(export, of_adapter, of_base, indices, min_agreement, max_distance)
            probes["export"], distance = export, export.distance(of_adapter)
            rounded = [row for i, row in enumerate(indices) if export.parts_by_rounding(of_adapter, i)]
    prompts = list(map(last_question, chosen["messages"]))
    answers = {"export": ["-"] * len(indices)} | {name: found.answers for name, found in probes.items()}
    tokens = {"export": [None] * len(indices)} | {name: found.tokens for name, found in probes.items()}
    return ExportCheck(indices, prompts, answers, tokens, distance, of_base.distance(of_adapter), rounded, problems)


def _spread(rows, total):
    if isinstance(rows, Integral):
        rows = [i * total // min(rows, total) for i in range(min(rows, total))]
    if not rows:
        raise ValueError("nothing to compare: pass a dataset with rows, and rows=1 or more")
    return row_indices(rows, total)


def _load(adapter, base, bits):
    model, _ = load_model(base, bits=bits, backend="transformers")
    return attach(model, adapter), load_processor(adapter, base)


def _problems(export, adapter, base, indices, min_agreement, max_distance):
    problems, same = [], _same(export.tokens, adapter.tokens)
    same = [alike or export.parts_by_rounding(adapter, i) for i, alike in enumerate(same)]
    if export.inputs != adapter.inputs:
        row = indices[_same(export.inputs, adapter.inputs).index(False)]
        changed = ", ".join(changed_settings(export.settings, adapter.settings))
        where = f"; the image processors differ in {changed}" if changed else ""
        problems.append(f"its processor makes other tensors than the adapter's of row {row}{where}")
    if sum(same) < min_agreement * len(same):
        first = same.index(False)
        instead = f"{export.answers[first]!r} instead of {adapter.answers[first]!r}"
        if export.answers[first] == adapter.answers[first]:
            instead += ", written with other tokens"
        count = f"{same.count(False)} of {len(same)} answers are not the adapter's"
        problems.append(f"{count}, such as row {indices[first]}: {instead}")
    if adapter.tokens == base.tokens:
        problems.append("adapter and base answer all these rows alike, which proves nothing: choose other rows")
    elif export.tokens == base.tokens:
        problems.append("every answer is the base's, so the export has lost the adapter: merge it again")
    if (distance := export.distance(adapter)) > max_distance:
        away = f"{distance:.4f} from the adapter's on average, more than {max_distance}"
        problems.append(f"the probabilities of the tokens of the adapter's answers are {away}")
    return problems


def _same(answers, others):
    return [answer == other for answer, other in zip(answers, others, strict=True)]
