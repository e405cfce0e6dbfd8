"""Answers to the rows of a dataset in batches, and one answer shown while the model writes it."""

import math
import time
from collections.abc import Callable, Container, Iterable, Mapping
from functools import partial
from numbers import Integral
from pathlib import Path

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from datasets import Dataset
from PIL import Image
from transformers import PreTrainedModel, ProcessorMixin
from transformers.generation.streamers import BaseStreamer

from vlmhelpers.batches.collator import VisionCollator
from vlmhelpers.common.display import in_notebook
from vlmhelpers.common.errors import CannotRun
from vlmhelpers.common.images import image_header, open_image
from vlmhelpers.common.printable import printable
from vlmhelpers.data.given import decoded_row, given_rows
from vlmhelpers.data.rows import plain_rows, stream_plain_rows
from vlmhelpers.data.schema import count_images, message_text, user
from vlmhelpers.families import family_of
from vlmhelpers.inference.answer_log import Answer, answer_settings
from vlmhelpers.inference.resumable import answer_rows
from vlmhelpers.inference.served import Served, served_settings
from vlmhelpers.inference.speed import Answers
from vlmhelpers.models.backends import eval_mode
from vlmhelpers.models.loading import check_model, check_processor

# Set whatever generation_config.json says: the repetition_penalty=1.05 of Qwen2.5's instruct models punishes the words
# of the prompt, and the padding, an end token: a row's neighbors in the batch would decide where its answer ends.
_GREEDY = {"do_sample": False, "num_beams": 1, "repetition_penalty": 1.0, "no_repeat_ngram_size": 0}

_ONE_TEXT = {"num_return_sequences": 1, "return_dict_in_generate": False}  # whatever generation_config.json says
_CALL = "call model.generate(**vlm.VisionCollator(processor).prompts(rows), ...) yourself for it"
_OTHER_FORMS = {"return_dict_in_generate": _CALL} | {
    f"output_{name}": _CALL for name in ("scores", "logits", "attentions", "hidden_states")
}
_OF_ROWS = "the rows are what is answered"
_NOT_TAKEN = {
    "generation_config": "give its settings by name, as **generation_config.to_diff_dict() does",
    "streamer": "stream_answer shows an answer while it comes, and progress takes a function",
    "max_length": "max_new_tokens counts those of the answer alone",
} | dict.fromkeys(("inputs", "inputs_embeds"), _OF_ROWS)
_ALONE = ("assistant_model", "prompt_lookup_num_tokens")  # with which transformers answers one row at a time


def generate(
    model: PreTrainedModel | Served,
    processor: ProcessorMixin,
    dataset: Dataset,
    batch_size: int = 16,
    max_new_tokens: int = 64,
    progress: bool | Callable[[int, int], object] = True,
    save_to: str | Path | None = None,
    split: bool = False,
    **options: object,
) -> Answers:
    """Answers to every row's prompt (all but its last assistant turn), in row order, their reasoning included.

    A list of texts, with the `speed` at which they came. Greedy unless `do_sample=True` is in `options`, which are
    further arguments of `model.generate`. Where memory runs out, the batch is halved. `progress`: whether there is a
    bar, or a function of how many rows are answered, and of how many there are. `dataset` may also be a list of rows.
    `save_to`: a JSONL file of the answers so far, from which the same call goes on. `split`: whether processes that
    `accelerate launch` has started share the rows; each has to call it, writes a file of its own, whose name ends in
    its number but for the first, and gets all answers.

    Raises TypeError for what is no model or processor, ValueError for what are no rows of messages, for an image that
    cannot be decoded, for options that would not give one text for each row, and where `save_to` is of another model or
    options, BlockingIOError where another process writes it, RuntimeError where memory does not suffice for one row.
    """
    check_processor(processor)
    if not isinstance(model, Served):
        check_model(model)
    batch_size, max_new_tokens = _whole("batch_size", batch_size), _whole("max_new_tokens", max_new_tokens)
    check_options(processor, options, batch_size)
    dataset = given_rows(dataset)
    settings, is_served = {"max_new_tokens": max_new_tokens} | options, isinstance(model, Served)

    def batches(done, share):
        kinds = [rows[share] for rows in longest_first(dataset, processor, done)]
        if is_served:
            yield from model.batches(processor, dataset, [i for rows in kinds for i in rows], batch_size, settings)
            return
        with eval_mode(model), torch.inference_mode():
            yield from _batches(model, processor, dataset, kinds, batch_size, settings)

    made_by = partial(served_settings if is_served else answer_settings, model, processor, settings)
    return answer_rows(dataset, batches, made_by, max_new_tokens, progress, save_to, split)


def _whole(name, value):
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r}: choose a whole number from 1 on")
    return int(value)


def check_options(processor: ProcessorMixin, options: Mapping[str, object], batch_size: int = 1) -> None:
    """Raises ValueError, with a remedy, for options of `model.generate` that would not give one text for each row."""
    for name, value in options.items():
        if name in processor.model_input_names:
            raise ValueError(f"{name} is not for answers as texts: {_OF_ROWS}")
        if name in _ALONE and value is not None and batch_size > 1:
            raise ValueError(f"{name} goes with one row at a time: pass batch_size=1, too")
        if name in _NOT_TAKEN and value is not None:
            raise ValueError(f"{name} is not for answers as texts: {_NOT_TAKEN[name]}")
        if name in _OTHER_FORMS and value:
            raise ValueError(f"{name}={value!r} gives more than the text of an answer: {_OTHER_FORMS[name]}")
    if (number := options.get("num_return_sequences", 1)) not in (None, 1):
        remedy = "ask for one, and call generate again with do_sample=True for each further one"
        raise ValueError(f"num_return_sequences={number!r}, and generate gives one answer to each row: {remedy}")


def decoding(processor: ProcessorMixin, settings: dict) -> dict[str, object]:
    """Arguments of `model.generate` for `settings`, whatever the model's own are: greedy unless they sample.

    What is None there, and fixed here, is as if it were not given.
    """
    fixed = _ONE_TEXT | _GREEDY | {"use_cache": True, "pad_token_id": processor.tokenizer.pad_token_id}
    given = {name: value for name, value in settings.items() if value is not None or name not in fixed}
    if given.get("do_sample"):
        fixed = {name: value for name, value in fixed.items() if name not in _GREEDY}
    if given.get("stop_strings"):
        fixed["tokenizer"] = processor.tokenizer
    return fixed | given


def _batches(model, processor, dataset, kinds, batch_size, settings):
    collator = VisionCollator(processor)
    for rows in kinds:
        while batch := rows[:batch_size]:
            found = _try(model, collator, dataset, batch, settings)
            if found is None:  # what the failed batch held is free only now
                clear_device_cache(garbage_collection=True)
                batch_size = len(batch) // 2
                print(f"out of memory with {len(batch)} rows: going on with {batch_size} in a batch")
                continue
            yield dict(zip(batch, found, strict=True))
            rows = rows[len(batch) :]


def _try(model, collator, dataset, batch, settings):
    """The answers to the rows at the indices of `batch`, or None where memory does not suffice for several rows."""
    try:
        start = time.perf_counter()
        inputs = collator.prompts([decoded_row(dataset, i) for i in batch]).to(model.device)
        found = _answer(model, collator, inputs, settings)
        how = round(time.perf_counter() - start, 4), len(batch), _device_name(model.device)
        return [Answer(*answer, *how) for answer in found]
    except (RuntimeError, MemoryError) as error:
        if not (isinstance(error, (torch.OutOfMemoryError, MemoryError)) or should_reduce_batch_size(error)):
            raise
        if len(batch) == 1:
            row = plain_rows(dataset, batch)[0].get("row") or batch[0] + 1
            limit = f"max_new_tokens={settings['max_new_tokens']}"
            remedy = f"Load the model with a smaller max_pixels or with bits=4, lower {limit}, or leave the row out"
            raise CannotRun(f"row {row}: memory does not suffice to answer it, even alone. {remedy}") from error
        return None


def _answer(model, collator, inputs, settings):
    """(text, whether it was cut off, new tokens) of each row."""
    processor, settings = collator.processor, ends_of(model, collator) | settings
    tokens = model.generate(**inputs, **decoding(processor, settings))[:, inputs["input_ids"].shape[1] :]
    ends = settings["eos_token_id"]
    ends = [processor.tokenizer.pad_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])]
    goes_on = ~torch.isin(tokens, torch.tensor([end for end in ends if end is not None], device=tokens.device))
    counts = (goes_on.cumprod(dim=1).sum(dim=1) + 1).clamp(max=tokens.shape[1])
    cut = goes_on[:, -1] & (tokens.shape[1] >= settings["max_new_tokens"])
    texts = map(collator.template.answer, tokens.tolist())
    return list(zip(texts, cut.tolist(), counts.tolist(), strict=True))


def ends_of(model: PreTrainedModel, collator: VisionCollator) -> dict[str, object]:
    """The argument of `model.generate` with the tokens that end an answer: the model's own, and what is trained."""
    own, end = model.generation_config.eos_token_id, collator.template.end_id
    known = [*own] if isinstance(own, (list, tuple)) else [own]
    return {"eos_token_id": own if end in (None, *known) else [*filter(lambda e: e is not None, known), end]}


def _device_name(device):
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def longest_first(dataset: Dataset, processor: ProcessorMixin, done: Container[int]) -> list[list[int]]:
    """The indices of rows not in `done`: those with images, and those without, as not all families mix them."""
    lengths = {True: {}, False: {}}
    cap = family_of(processor).max_pixels(processor.image_processor) or math.inf
    for i, row in enumerate(stream_plain_rows(dataset, ["messages", "images"], "measuring rows")):
        if i not in done:
            messages = row["messages"] or []
            characters = sum(len(message_text(message)) for message in messages)
            pixels = sum(min(_pixels(image), cap) for image in row.get("images") or [])
            lengths[count_images(messages) > 0][i] = characters / 4 + pixels / 1024
    return [sorted(of_kind, key=of_kind.get, reverse=True) for of_kind in lengths.values()]


def _pixels(image):
    """Of an image in Arrow, by its header; 0 where it has none: answering the row will say why."""
    if not image or "pixels" in image:
        return image["width"] * image["height"] if image else 0
    header = image_header(image)
    return header[1] if header else 0


def stream_answer(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    prompt: str,
    images: Image.Image | str | Path | Iterable[Image.Image | str | Path] = (),
    max_new_tokens: int = 256,
    write: Callable[[str], object] | None = None,
    **options: object,
) -> str:
    """Shows the answer to one prompt after `images` (of PIL, or paths) while it comes, and returns it, as `generate`.

    `write` takes each piece of text, by default to print it or add it to a cell's output. Raises UnusableImage.
    """
    images = [images] if isinstance(images, (str, Path, Image.Image)) else list(images)
    messages = [user(prompt, len(images))]
    return stream_conversation(model, processor, messages, images, max_new_tokens, write, **options)


def stream_conversation(
    model: PreTrainedModel,
    processor: ProcessorMixin,
    messages: list[dict],
    images: Iterable[Image.Image | str | Path] = (),
    max_new_tokens: int = 256,
    write: Callable[[str], object] | None = None,
    **options: object,
) -> str:
    """Shows the next answer in a conversation as `stream_answer` does, and returns it.

    `messages`: those of a row, the last one the user's; a system prompt may come first. `images`: one for each image
    part in them. Raises UnusableImage, and ValueError for turns that the model cannot answer.
    """
    check_model(model)
    images = [image if isinstance(image, Image.Image) else open_image(image) for image in images]
    row = {"messages": messages, "images": images}
    collator = VisionCollator(processor)
    inputs = collator.prompts([row]).to(model.device)
    printed = write is None and not in_notebook()
    write = write or (_print_piece if printed else _grow_output())
    streamer = _Pieces(collator.template.decode, write)
    check_options(processor, options)
    options = ends_of(model, collator) | {"max_new_tokens": max_new_tokens, "streamer": streamer} | options
    settings = decoding(processor, options)
    with eval_mode(model), torch.inference_mode():
        model.generate(**inputs, **settings)
    if printed:
        print()
    return collator.template.answer(streamer.tokens)


def _print_piece(piece):
    print(printable(piece), end="", flush=True)


def _grow_output():
    """A function that adds to one output of the cell: printed pieces would be saved as one each."""
    from IPython.display import display

    pieces, output = [], display({"text/plain": ""}, raw=True, display_id=True)

    def write(piece):
        pieces.append(piece)
        output.update({"text/plain": printable("".join(pieces))}, raw=True)

    return write


class _Pieces(BaseStreamer):
    """Hands on the text of all tokens decoded together: TextStreamer, anew after a line break, can lose an indent."""

    def __init__(self, decode, write):
        self.decode, self.write, self.tokens, self.written = decode, write, None, ""

    def put(self, tokens):
        self.tokens = [] if self.tokens is None else self.tokens + tokens.tolist()  # the prompt comes first
        if not self.decode(self.tokens).endswith("\ufffd"):  # a character of which only some bytes are there
            self.end()

    def end(self):
        if piece := self.decode(self.tokens)[len(self.written) :]:
            self.write(piece)
            self.written += piece
