"""What a model answers to some rows, and what its processor makes of them: in this process or in a fresh one."""

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from transformers import PreTrainedModel, ProcessorMixin

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.digests import tensors_digest
from vlmhelpers.common.environment import quiet
from vlmhelpers.common.files import temporary_folder
from vlmhelpers.common.processes import run_python
from vlmhelpers.data.schema import FEATURES, assistant
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.backends import eval_mode
from vlmhelpers.models.loading import load_model


@dataclass(frozen=True)
class Probe:
    """What is compared of two models, per row."""

    answers: list[str]
    probabilities: list[list[float]]  # of the tokens of the reference answers
    inputs: list[str]  # digests of the processor's tensors, without and with the reference answers
    settings: dict[str, str]  # of the image processor

    def distance(self, other: "Probe") -> float:
        """The mean difference between the probabilities (0..1); 1 where they are of other tokens."""
        ours, theirs = np.concatenate(self.probabilities), np.concatenate(other.probabilities)
        return float(np.abs(ours - theirs).mean()) if ours.shape == theirs.shape else 1.0


def fixed_rows(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """These rows with their images as they are now, whatever transform makes them."""
    rows = (dataset[i] for i in indices)
    return Dataset.from_list([{name: row[name] for name in FEATURES} for row in rows], features=FEATURES)


def probe(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Dataset,
    max_new_tokens: int,
    references: list | None = None,
) -> Probe:
    """The `Probe` of a model. `references`: the answers whose tokens get probabilities, by default the model's."""
    answers = generate(model, processor, rows, batch_size=1, max_new_tokens=max_new_tokens, progress=False)
    collator, probabilities, inputs = VisionCollator(processor, train_on="last"), [], []
    with eval_mode(model), torch.inference_mode():
        for row, reference in zip(rows, references or answers, strict=True):
            *turns, last = row["messages"]
            turns += [last] * (last["role"] != "assistant")
            prompt, batch = collator.prompts([row]), collator([row | {"messages": [*turns, assistant(reference)]}])
            inputs.append(tensors_digest([*prompt.items(), *batch.items()]))
            batch = batch.to(model.device)
            labels = batch.pop("labels")[0, 1:]
            trained = labels != IGNORED
            of_tokens = model(**batch).logits[0, :-1][trained].float().softmax(-1)
            probabilities.append(of_tokens.gather(1, labels[trained][:, None])[:, 0].tolist())
    settings = {name: str(value) for name, value in processor.image_processor.to_dict().items()}
    return Probe(answers, probabilities, inputs, settings)


def probe_in_fresh_process(folder: Path, rows: Dataset, max_new_tokens: int, references: list[str]) -> Probe:
    """`probe` of the model in `folder`, by a Python of its own without the hub. Raises RuntimeError when that fails."""
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(sys.path)}
    with temporary_folder() as scratch:
        rows.save_to_disk(scratch)
        exchange = Path(scratch) / "probe.json"
        exchange.write_text(json.dumps(references), encoding="utf-8")
        command = ["-m", __name__, folder, scratch, exchange, max_new_tokens]
        done = run_python(command, sys.executable, environment)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise RuntimeError(f"{folder} does not load and answer in a fresh process: {last}")
        return Probe(**json.loads(exchange.read_text(encoding="utf-8")))


def _main(folder, rows, exchange, max_new_tokens):
    quiet()
    loaded = load_model(folder, bits=16, backend="transformers")
    references = json.loads(Path(exchange).read_text(encoding="utf-8"))
    found = probe(*loaded, load_from_disk(rows), int(max_new_tokens), references)
    Path(exchange).write_text(json.dumps(asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
