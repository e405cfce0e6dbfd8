"""What a model says to some rows, and what its processor makes of them: in this process or in a fresh one."""

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from datasets import Dataset, load_from_disk

from vlmhelpers.batches.chat_template import IGNORED
from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.environment import quiet
from vlmhelpers.data.schema import FEATURES, assistant
from vlmhelpers.inference.generation import generate
from vlmhelpers.models.backends import answering
from vlmhelpers.models.loading import load_model


def fixed_rows(dataset, rows):
    """The rows at these places with their pictures as they are now, whatever transform makes them."""
    chosen = [dataset[i] for i in rows]
    return Dataset.from_list([{name: row[name] for name in FEATURES} for row in chosen], features=FEATURES)


def with_answers(dataset, answers):
    """The rows with these answers, a list of strings, in place of their last assistant turns."""
    messages = []
    for turns, answer in zip(dataset["messages"], answers, strict=True):
        asked = turns[:-1] if turns[-1]["role"] == "assistant" else turns
        messages.append([*asked, assistant(answer)])
    rows = [{"messages": m, "images": row["images"]} for m, row in zip(messages, dataset, strict=True)]
    return Dataset.from_list(rows, features=FEATURES)


def probe(model, processor, dataset, max_new_tokens, answers=None):
    """What is compared of two models, as a dict that JSON can hold.

    `answers`: the model's own, a string per row, or those given, where they are known. `chances`: the probabilities
    that it gives to the tokens of the dataset's answers, one after the other, a list per row. `inputs`: a digest of the
    processor's tensors per row. `settings`: those of the image processor, as strings.
    """
    collator = VisionCollator(processor, train_on="last")
    with answering(model), torch.inference_mode():
        chances = [_chances(model, collator([row]).to(model.device)) for row in dataset]
    if answers is None:
        answers = generate(model, processor, dataset, batch_size=1, max_new_tokens=max_new_tokens, progress=False)
    return {
        "answers": answers,
        "chances": chances,
        "inputs": [_digest(collator.prompts([row])) for row in dataset],
        "settings": {name: str(value) for name, value in processor.image_processor.to_dict().items()},
    }


def _chances(model, batch):
    labels = batch.pop("labels")[0, 1:]
    logits = model(**batch).logits[0, :-1][labels != IGNORED].float()
    return logits.softmax(-1).gather(1, labels[labels != IGNORED][:, None])[:, 0].tolist()


def _digest(batch):
    digest = hashlib.sha256()
    for name in sorted(batch):
        digest.update(name.encode() + batch[name].cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def probe_in_fresh_process(folder, dataset, max_new_tokens):
    """`probe` of the model in `folder`, loaded from there alone by a Python of its own, without the hub.

    Raises RuntimeError with the last lines that it printed when it fails.
    """
    package = Path(__file__).parents[2]
    paths = [str(package), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONPATH": os.pathsep.join(paths)}
    with tempfile.TemporaryDirectory() as scratch:
        rows, out = Path(scratch) / "rows", Path(scratch) / "probe.json"
        dataset.save_to_disk(rows)
        command = [sys.executable, "-m", "vlmhelpers.export.probing", *map(str, (folder, rows, out, max_new_tokens))]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        if done.returncode:
            last = "\n".join(done.stderr.strip().splitlines()[-3:])
            raise RuntimeError(f"{folder} does not load and answer in a fresh process: {last}")
        return json.loads(out.read_text(encoding="utf-8"))


def _main(folder, rows, out, max_new_tokens):
    quiet()
    model, processor = load_model(folder, bits=None, backend="transformers")
    found = probe(model, processor, load_from_disk(rows), int(max_new_tokens))
    Path(out).write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    _main(*sys.argv[1:])
