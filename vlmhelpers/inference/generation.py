"""Answers to the rows of a dataset, in batches."""

import io
from typing import NamedTuple

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from PIL import Image
from tqdm.auto import tqdm

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.data.rows import plain_rows, stream_plain_rows
from vlmhelpers.inference.answer_log import AnswersFile, row_keys, settings_of
from vlmhelpers.models.backends import answering

# Holds whatever a model's generation_config.json says. Those of Qwen2.5's instruct models set repetition_penalty=1.05,
# which also punishes the words of the prompt, the right answer among them, and the padding: an end token there, so that
# a row's neighbors in the batch would decide where its answer ends.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}


class Answer(NamedTuple):
    """One answer without the blanks around it, and whether it was cut off at `max_new_tokens`."""

    text: str
    cut: bool


def generate(model, processor, dataset, batch_size=16, max_new_tokens=64, progress=True, save_to=None, **options):
    """Answers to every row's prompt (all but its last assistant turn), in row order: a list of n strings.

    Prompts are built by the collator that training uses, padded on the left. The longest rows come first, rows with
    and without pictures in separate batches, as Llama 3.2 Vision needs it; where memory runs out, the batch is halved,
    and a printed line says so. Another one says how many answers were cut off at `max_new_tokens`. A thinking model's
    answers include their reasoning, which has to fit in there, too; `split_thinking` tells the two apart. The model's
    training mode is restored at the end.

    Answers are greedy: always the most likely token, also where the model's `generation_config` sets sampling, beams
    or a repetition penalty. `options` are further arguments of `model.generate`, such as `repetition_penalty=1.05`.
    With `do_sample=True` the model's own settings hold where `options` give no others (`temperature=0.7`).

    `save_to`: a JSONL file that takes the answers while they come. The same call after an interruption goes on where
    it stopped, and a finished one generates nothing. Raises ValueError where the file holds answers of another model
    or other options, and RuntimeError where memory does not suffice for one row.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size={batch_size}: at least one row has to be in a batch")
    settings = {"max_new_tokens": max_new_tokens} | options
    answers, file = {}, None
    if save_to is not None:
        file = AnswersFile(save_to, settings_of(model, processor, settings), row_keys(dataset))
        answers = {place: Answer(*values) for place, values in file.answers.items()}
    with (
        answering(model),
        torch.inference_mode(),
        tqdm(total=len(dataset), initial=len(answers), desc="answers", disable=not progress) as bar,
    ):
        for found in _batches(model, processor, dataset, answers, batch_size, settings):
            if file:
                file.append(found)
            answers |= found
            bar.update(len(found))
    _say_what_was_cut(answers, max_new_tokens)
    return [answers[place].text for place in range(len(dataset))]


def decoding(processor, settings):
    """The arguments of `model.generate` for `settings`: greedy unless they say otherwise."""
    plain = {} if settings.get("do_sample") else _GREEDY
    return {"use_cache": True, "pad_token_id": processor.tokenizer.pad_token_id} | plain | settings


def _batches(model, processor, dataset, done, batch_size, settings):
    """Yields the answers to the rows that are not in `done`, a batch at a time, as a dict from a row's place."""
    collator = VisionCollator(processor)
    for places in _longest_first(dataset, processor, done):
        while places:
            batch = places[:batch_size]
            found = _try(model, collator, dataset, batch, settings)
            if found is None:  # what the failed batch held is free only now
                clear_device_cache(garbage_collection=True)
                batch_size = len(batch) // 2
                print(f"out of memory with {len(batch)} rows: going on with {batch_size} in a batch")
                continue
            yield dict(zip(batch, found, strict=True))
            places = places[len(batch) :]


def _try(model, collator, dataset, batch, settings):
    """The answers to the rows at the places of `batch`, or None where memory does not suffice for several rows."""
    try:
        inputs = collator.prompts([dataset[place] for place in batch]).to(model.device)
        return _answer(model, collator.processor, inputs, settings)
    except (RuntimeError, MemoryError) as error:
        if isinstance(error, RuntimeError) and not _out_of_memory(error):
            raise
        if len(batch) == 1:
            row = plain_rows(dataset, batch)[0].get("row") or batch[0] + 1
            raise RuntimeError(
                f"row {row}: memory does not suffice to answer it, even alone. Load the model with a smaller "
                f"max_pixels or with bits=4, lower max_new_tokens={settings['max_new_tokens']}, or leave the row out"
            ) from error
        return None


def _out_of_memory(error):
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def _answer(model, processor, inputs, settings):
    tokens = model.generate(**inputs, **decoding(processor, settings))[:, inputs["input_ids"].shape[1] :]
    texts = processor.batch_decode(tokens, skip_special_tokens=True)
    cut = _cut(tokens, model, processor, settings)
    return [Answer(text.strip(), at_limit) for text, at_limit in zip(texts, cut, strict=True)]


def _cut(tokens, model, processor, settings):
    """Whether each row of `tokens` goes up to the limit without an end token."""
    if tokens.shape[1] < settings["max_new_tokens"]:
        return [False] * len(tokens)
    ends = settings.get("eos_token_id", model.generation_config.eos_token_id)
    ends = {processor.tokenizer.pad_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])}
    return [last not in ends for last in tokens[:, -1].tolist()]


def _say_what_was_cut(answers, max_new_tokens):
    cut = sum(answer.cut for answer in answers.values())
    if cut:
        print(
            f"{cut} of {len(answers)} answers were cut off at max_new_tokens={max_new_tokens}: raise it, or "
            "look whether the model repeats itself"
        )


def _longest_first(dataset, processor, done):
    """Places of the rows that are not in `done`: a list of those with pictures and one of those without."""
    most = dict(processor.image_processor.size).get("longest_edge", float("inf"))
    lengths = {True: {}, False: {}}
    for place, row in enumerate(stream_plain_rows(dataset, ["messages", "images"], "measuring rows")):
        if place not in done:
            parts = [part for message in row["messages"] for part in message["content"]]
            text = sum(len(part["text"] or "") for part in parts)
            pixels = sum(min(_pixels(image), most) for image in row.get("images") or [])
            lengths[any(part["type"] == "image" for part in parts)][place] = text / 4 + pixels / 1024
    return [sorted(of_kind, key=of_kind.get, reverse=True) for of_kind in lengths.values()]


def _pixels(image):
    """Of a picture in Arrow, by its header; 0 where it has none: the reason comes when the row is answered."""
    if not image or "pixels" in image:
        return image["width"] * image["height"] if image else 0
    try:
        with Image.open(io.BytesIO(image["bytes"]) if image["bytes"] else image["path"]) as picture:
            return picture.width * picture.height
    except (OSError, Image.DecompressionBombError):
        return 0
