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

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.digests import tensors_digest
from vlmhelpers.common.environment import quiet
from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.files import temporary_folder
from vlmhelpers.common.processes import run_python
from vlmhelpers.data.given import decoded_row
from vlmhelpers.data.schema import FEATURES
from vlmhelpers.inference.generation import decoding
from vlmhelpers.models.backends import eval_mode
from vlmhelpers.models.loading import load_model

_TIED = 0.9  # bfloat16 keeps 8 bits: a logit of 20 is known to 0.06, which is 6 % of a probability


@dataclass(frozen=True)
class Probe:
    """What is compared of two models, per row."""

    answers: list[str]
    tokens: list[list[int]]  # of the answers, with the end token: one text can be written with other tokens
    own: list[list[float]]  # the probabilities of these tokens
    probabilities: list[list[float]]  # of the tokens of the reference answers
    inputs: list[str]  # digests of what the processor makes of the prompts
    settings: dict[str, str]  # of the image processor

    def distance(self, other: "Probe") -> float:
        """The mean difference between the probabilities (0..1); 1 where they are of other tokens."""
        ours, theirs = np.concatenate(self.probabilities), np.concatenate(other.probabilities)
        return float(np.abs(ours - theirs).mean()) if ours.shape == theirs.shape else 1.0

    def parts_by_rounding(self, reference: "Probe", row: int) -> bool:
        """Whether the answer leaves the reference's at a token that is nearly as likely here as the one it prefers."""
        pairs = zip(self.tokens[row], reference.tokens[row], self.own[row], self.probabilities[row], strict=False)
        likely = next(((own, other) for ours, theirs, own, other in pairs if ours != theirs), None)
        return likely is not None and likely[1] >= _TIED * likely[0]


def fixed_rows(dataset: Dataset, indices: Sequence[int]) -> Dataset:
    """These rows with their images as they are now, whatever transform makes them."""
    rows = (decoded_row(dataset, i) for i in indices)
    return Dataset.from_list([{name: row[name] for name in FEATURES} for row in rows], features=FEATURES)


def probe(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    rows: Dataset,
    max_new_tokens: int,
    references: list[list[int]] | None = None,
) -> Probe:
    """The `Probe` of a model. `references`: the tokens that get probabilities, by default those of its answers."""
    collator, tokens, own, probabilities, inputs = VisionCollator(processor), [], [], [], []
    with eval_mode(model), torch.inference_mode():
        for i, row in enumerate(rows):
            prompt = collator.prompts([row])
            inputs.append(tensors_digest(prompt.items()))
            prompt = prompt.to(model.device)
            answer, likely = _answer(model, processor, prompt, max_new_tokens)
            tokens.append(answer)
            own.append(likely)
            if references:
                likely = _answer(model, processor, prompt, len(references[i]), references[i])[1]
            probabilities.append(likely)
    answers = list(map(collator.template.answer, tokens))
    settings = {name: str(value) for name, value in processor.image_processor.to_dict().items()}
    return Probe(answers, tokens, own, probabilities, inputs, settings)


def _answer(model, processor, prompt, max_new_tokens, forced=None):
    """(the tokens of the greedy answer, or those of `forced`; the probability of each)."""
    start = prompt["input_ids"].shape[1]
    settings = decoding(processor, {"max_new_tokens": max_new_tokens}) | {"return_dict_in_generate": True}
    if forced is not None:
        settings["prefix_allowed_tokens_fn"] = lambda _, ids: [forced[len(ids) - start]]
    found = model.generate(**prompt, **settings, output_logits=True)
    tokens = found.sequences[0, start:].tolist()
    pairs = zip(tokens, found.logits, strict=True)
    return tokens, [logits[0].float().softmax(-1)[token].item() for token, logits in pairs]


def probe_in_fresh_process(folder: Path, rows: Dataset, max_new_tokens: int, references: list[list[int]]) -> Probe:
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
            raise CannotRun(f"{folder} does not load and answer in a fresh process: {last}")
        return Probe(**json.loads(exchange.read_text(encoding="utf-8")))


def _main(folder, rows, exchange, max_new_tokens):
    quiet()
    loaded = load_model(folder, bits=16, backend="transformers")
    references = json.loads(Path(exchange).read_text(encoding="utf-8"))
    found = probe(*loaded, load_from_disk(rows), int(max_new_tokens), references)
    Path(exchange).write_text(json.dumps(asdict(found)), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
