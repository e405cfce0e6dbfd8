"""Answers to the rows of a dataset, in batches."""

import torch
from tqdm.auto import tqdm

from vlmhelpers.backend import answering
from vlmhelpers.collate import VisionCollator


def generate(model, processor, dataset, batch_size=16, max_new_tokens=64, progress=True):
    """Greedy answers to every row's prompt (all but its last assistant turn), in row order: a list of n strings.

    Prompts are built by the collator that training uses, padded on the left. Rows with and without pictures go into
    separate batches, as Llama 3.2 Vision needs it. A thinking model's answers include their reasoning, which has to fit
    into `max_new_tokens`; `split_thinking` tells the two apart. The model's training mode is restored at the end.
    """
    collator = VisionCollator(processor)
    answers = [None] * len(dataset)
    with (
        answering(model),
        torch.inference_mode(),
        tqdm(total=len(dataset), desc="answers", disable=not progress) as bar,
    ):
        for batch in _batches(dataset, batch_size):
            inputs = collator.prompts([dataset[i] for i in batch]).to(model.device)
            for i, answer in zip(batch, _answer(model, processor, inputs, max_new_tokens), strict=True):
                answers[i] = answer
            bar.update(len(batch))
    return answers


def _answer(model, processor, inputs, max_new_tokens):
    tokens = model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, use_cache=True)
    answers = processor.batch_decode(tokens[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return [answer.strip() for answer in answers]


def _batches(dataset, batch_size):
    """Row numbers in batches that hold either only rows with pictures or only rows without."""
    parts = dataset.with_format(None)["messages"] if len(dataset) else []
    has_image = [any(part["type"] == "image" for m in messages for part in m["content"]) for messages in parts]
    for kind in (True, False):
        rows = [i for i, image in enumerate(has_image) if image == kind]
        yield from (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
