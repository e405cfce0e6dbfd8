"""Rows made from rows: one for each answer of a conversation, or with more in the prompt. No image is decoded."""

from collections.abc import Iterable

from datasets import Dataset, Features

from vlmhelpers.data.rows import READER_FEATURES, map_plain_rows, store_rows, stream_plain_rows
from vlmhelpers.data.schema import (
    FEATURES,
    KINDS,
    PAIR_FEATURES,
    RATED_FEATURES,
    REJECTED_IMAGES,
    conversations,
    count_images,
    images_of,
    kind_of,
    learned_turns,
    text_part,
)

THINK_TAGS = "<think>", "</think>"  # around the reasoning at the start of an answer


def one_answer_per_row(dataset: Dataset) -> Dataset:
    """A Dataset in which every answer to learn ends a row of its own, after all the turns before it and their images.

    Turns after the last one are left out, other columns repeated. Rows of one answer or none, without one to learn, or
    whose images do not match their image parts, stay as they are. With `train_on="last"` every answer is then learned
    once, after its own prompt, also where the chat template rewrites earlier answers.
    """
    return map_plain_rows(dataset, _cut, "one answer per row")


def _cut(row):
    messages, images = row["messages"] or [], row.get("images") or []
    answers = [message for message in messages if message["role"] == "assistant"]
    learned = learned_turns(messages)
    if len(answers) < 2 or not learned or count_images(messages) != len(images):
        return [row]
    rows = [{**row, "messages": messages[: turn + 1]} for turn in learned]
    return [{**row, "images": images[: count_images(row["messages"])]} for row in rows] if images else rows


def to_rows(dataset: Dataset) -> Dataset:
    """The good answers of rows of any kind as rows of messages, to learn or to compare with.

    Of pairs the chosen ones, of rated rows those with a true label, of prompts their answers. Columns: FEATURES, and a
    reader's `row`, `problem` and `note` where they are there. Raises ValueError for rows of no kind.
    """
    kind = kind_of(dataset.column_names)
    kept = {name: feature for name, feature in READER_FEATURES.items() if dataset.features.get(name) == feature}
    if kind == "messages":
        return dataset.select_columns([name for name in dataset.column_names if name in FEATURES or name in kept])
    rows = stream_plain_rows(dataset, [*KINDS[kind], *kept], "taking the good answers")
    good = (row | {"messages": next(iter(conversations(row).values()))} for row in rows if row.get("label", True))
    return store_rows(good, Features({**FEATURES, **kept}))


def to_rated(pairs: Dataset) -> Dataset:
    """Pairs cut into rated rows, the chosen answer good and the rejected one not, two for each pair, in its order.

    A rejected side with images of its own keeps those. Columns: RATED_FEATURES, and a reader's as in `to_rows`. Raises
    ValueError for other rows.
    """
    if (kind := kind_of(pairs.column_names)) != "pairs":
        raise ValueError(f"to_rated cuts pairs, and these rows are {kind}")
    kept = {name: feature for name, feature in READER_FEATURES.items() if pairs.features.get(name) == feature}
    rows = stream_plain_rows(pairs, [*PAIR_FEATURES, *REJECTED_IMAGES, *kept], "cutting pairs")
    sides = (_rated(row, side) for row in rows for side in ("chosen", "rejected"))
    return store_rows(sides, Features({**RATED_FEATURES, **kept}))


def _rated(row, side):
    return row | {"completion": row[side], "label": side == "chosen", "images": images_of(row, side)}


def prompted(dataset: Dataset, instruction: str, examples: Iterable[str] = ()) -> Dataset:
    """The same rows with `instruction` and `examples` of answers before the first user turn's text: a better prompt.

    Give the result to `generate`, and the answers to `compare` as those of the prompted model.
    """
    examples = list(examples)
    text = "\n".join([instruction, *(["Examples of answers:", *examples] if examples else [])]) + "\n\n"
    return map_plain_rows(dataset, lambda row: [{**row, "messages": _with_text(row["messages"], text)}], "prompts")


def _with_text(messages, text):
    turn = [message["role"] for message in messages].index("user")
    parts = messages[turn]["content"]
    first = next((k for k, part in enumerate(parts) if part["type"] == "text"), len(parts))
    question = {**messages[turn], "content": [*parts[:first], text_part(text), *parts[first:]]}
    return [*messages[:turn], question, *messages[turn + 1 :]]


def with_system(dataset: Dataset, system: str) -> Dataset:
    """The same rows with a system prompt, in place of their own."""
    turn = {"role": "system", "content": [text_part(system)]}

    def change(row):
        return [{**row, "messages": [turn, *(m for m in row["messages"] if m["role"] != "system")]}]

    return map_plain_rows(dataset, change, "system prompts")


def split_thinking(text: str) -> tuple[str, str]:
    """An answer as (reasoning, answer), both stripped; either can be empty.

    The reasoning is `<think>...</think>` at the start, also where the prompt holds the `<think>` or nothing closes it.
    """
    opening, closing = THINK_TAGS
    before, closed, after = text.partition(closing)
    before = before.strip()
    if closed or before.startswith(opening):
        return before.removeprefix(opening).strip(), after.strip()
    return "", before
