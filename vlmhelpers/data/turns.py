"""Rows made from rows: one for each answer of a conversation, or with more in the prompt. No image is decoded."""

from collections.abc import Iterable

from datasets import Dataset

from vlmhelpers.data.rows import map_plain_rows
from vlmhelpers.data.schema import count_images, text_part

THINK_TAGS = "<think>", "</think>"  # around the reasoning at the start of an answer


def one_answer_per_row(dataset: Dataset) -> Dataset:
    """A Dataset in which every assistant turn ends a row of its own, after all the turns before it.

    A row with several answers becomes that many rows, in order, each with the images of its turns; what comes
    after the last answer is left out. The other columns are repeated, `row` among them. Rows with one answer
    or none, and rows whose images do not match their image parts, stay as they are.

    Train on the result with `train_on="last"`: every answer is then learned once, after the very prompt that
    the model gets for it, also where the chat template rewrites earlier answers.
    """
    return map_plain_rows(dataset, _cut, "one answer per row")


def _cut(row):
    messages, images = row["messages"] or [], row.get("images") or []
    ends = [end for end, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if len(ends) < 2 or count_images(messages) != len(images):
        return [row]
    rows = [{**row, "messages": messages[:end]} for end in ends]
    return [{**row, "images": images[: count_images(row["messages"])]} for row in rows] if images else rows


def prompted(dataset: Dataset, instruction: str, examples: Iterable[str] = ()) -> Dataset:
    """A Dataset of the same rows whose first user turn begins with `instruction`: what a better prompt can do.

    `examples` follow the instruction, such as the expected answers of a few training rows: what an answer has to
    look like. All of it is text in the user's turn, which every family's chat template takes. Give the result to
    `generate`, and the answers to `compare` as those of the prompted model.
    """
    examples = list(examples)
    text = "\n".join([instruction, *(["Examples of answers:", *examples] if examples else [])]) + "\n\n"
    return map_plain_rows(dataset, lambda row: [{**row, "messages": _with_text(row["messages"], text)}], "prompts")


def _with_text(messages, text):
    """The messages with `text` before the text of the first user turn, after the images that stand before it."""
    turn = [message["role"] for message in messages].index("user")
    parts = messages[turn]["content"]
    first = next((k for k, part in enumerate(parts) if part["type"] == "text"), len(parts))
    question = {**messages[turn], "content": [*parts[:first], text_part(text), *parts[first:]]}
    return [*messages[:turn], question, *messages[turn + 1 :]]


def split_thinking(text: str) -> tuple[str, str]:
    """An answer as (reasoning, answer), both stripped.

    The reasoning stands at the start, as `<think>...</think>`, or without `<think>` where the prompt ends with
    it. Without a block the reasoning is empty; after a `<think>` that is never closed, the answer is.
    """
    opening, closing = THINK_TAGS
    before, closed, after = text.partition(closing)
    before = before.strip()
    if closed or before.startswith(opening):
        return before.removeprefix(opening).strip(), after.strip()
    return "", before
