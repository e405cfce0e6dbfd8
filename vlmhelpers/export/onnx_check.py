"""The check that an ONNX export answers as the model that it was made from."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from markupsafe import Markup

from vlmhelpers.common.display import html_table
from vlmhelpers.common.printable import printable
from vlmhelpers.data.schema import assistant, last_question
from vlmhelpers.export.onnx_runtime import OnnxModel
from vlmhelpers.export.probing import fixed_rows
from vlmhelpers.export.verification import Check
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.loading import load_weights


@dataclass(frozen=True)
class OnnxCheck(Check):
    """What `check_onnx` found; true without problems, and a table in a notebook."""

    rows: Sequence[int]  # indices in the dataset
    prompts: Sequence[str]
    answers: dict[str, Sequence[str]]  # per row, of "onnx" and "model"
    distance: float  # the largest difference in a logit of prompts and answers, as a share of the row's largest logit
    problems: Sequence[str]  # what is wrong, as sentences

    def __repr__(self):
        same = f"{_same(self.answers)} of {len(self.rows)} answers are the model's"
        text = (
            f"{'ok' if self.ok else 'NOT ok'}: {same}, logits are at most {self.distance:.1e} of the largest from its"
        )
        return printable("\n- ".join([text, *self.problems]))

    def _repr_html_(self):
        rows = zip(self.rows, self.prompts, *self.answers.values(), strict=True)
        return Markup("<pre>{}</pre>{}").format(repr(self), html_table(["row", "prompt", *self.answers], rows))


def _same(answers):
    return sum(map(str.__eq__, *answers.values()))


def check_onnx(
    exported: str | Path,
    merged: str | Path,
    dataset: Dataset,
    rows: int = 8,
    max_new_tokens: int = 64,
    max_distance: float = 1e-4,
) -> OnnxCheck:
    """Whether the ONNX export in the folder `exported` computes as the model in `merged`, in 32 bits.

    `rows`, spread over the dataset, are answered greedily by both; then all logits of their prompts with the model's
    answers are compared. Problems are other answers, and logits further away than `max_distance` times the largest:
    two ways to compute in 32 bits differ by more for larger numbers. Raises ValueError without rows, and the errors of
    `OnnxModel`.
    """
    indices = [i * len(dataset) // min(rows, len(dataset)) for i in range(min(rows, len(dataset)))]
    if not indices:
        raise ValueError("nothing to compare: pass a dataset with rows, and rows=1 or more")
    onnx, model, chosen = (
        OnnxModel(exported),
        load_weights(merged, dtype=torch.float32).eval(),
        fixed_rows(dataset, indices),
    )
    options = {"batch_size": 1, "max_new_tokens": max_new_tokens, "progress": False}
    answers = {
        "onnx": onnx.generate(chosen, max_new_tokens),
        "model": generate(model, onnx.processor, chosen, **options),
    }
    distance = max(_distance(onnx, model, *pair) for pair in zip(chosen, answers["model"], strict=True))
    problems = []
    if (same := _same(answers)) < len(indices):
        first = next(i for i, pair in enumerate(zip(*answers.values(), strict=True)) if len(set(pair)) > 1)
        instead = f"{answers['onnx'][first]!r} instead of {answers['model'][first]!r}"
        count = f"{len(indices) - same} of {len(indices)} answers are not the model's"
        problems.append(f"{count}, such as row {indices[first]}: {instead}")
    if not distance <= max_distance:  # nor where it is not a number
        problems.append(f"logits are {distance:.1e} of the largest from the model's, more than {max_distance:.0e}")
    return OnnxCheck(indices, [last_question(row["messages"]) for row in chosen], answers, distance, problems)


def _distance(onnx, model, row, answer):
    turns = row["messages"][:-1] if row["messages"][-1]["role"] == "assistant" else row["messages"]
    batch = onnx.collator([row | {"messages": [*turns, assistant(answer)]}])
    del batch["labels"]
    with torch.inference_mode():
        expected = model(**batch).logits.numpy()
    return float(np.abs(onnx.logits(batch) - expected).max() / np.abs(expected).max())
