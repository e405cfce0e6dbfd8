"""Conversations of several turns cut into one row per answer, and answers cut into reasoning and answer."""

import pyarrow as pa

_ROWS_PER_BATCH = 200  # in memory at a time, with their encoded pictures where the dataset embeds those
THINK_TAGS = "<think>", "</think>"  # around the reasoning at the start of an answer


def one_answer_per_row(dataset):
    """A Dataset in which every assistant turn ends a row of its own, after all the turns before it.

    A row with several answers becomes that many rows, in order, each with the images of its turns; what comes
    after the last answer is left out. The other columns are repeated, `row` among them. Rows with one answer
    or none, and rows whose images do not match their image parts, stay as they are. No picture is decoded.

    Train on the result with `train_on="last"`: every answer is then learned once, after the very prompt that
    the model gets for it, also where the chat template rewrites earlier answers.
    """
    undecoded = dataset.with_format("arrow")
    options = {"batched": True, "batch_size": _ROWS_PER_BATCH, "features": dataset.features}
    cut = undecoded.map(_cut_table, desc="one answer per row", **options)
    shown = dataset.format
    cut.set_format(shown["type"], shown["columns"], shown["output_all_columns"], **shown["format_kwargs"])
    return cut


def _cut_table(table):
    rows = [one for row in table.to_pylist() for one in _cut(row)]
    return pa.Table.from_pylist(rows, schema=table.schema)


def _cut(row):
    """The rows that one row becomes, in plain Python values."""
    messages, images = row["messages"] or [], row.get("images") or []
    ends = [place for place, message in enumerate(messages, 1) if message["role"] == "assistant"]
    if len(ends) < 2 or _image_parts(messages) != len(images):
        return [row]
    return [_up_to(row, end) for end in ends]


def _up_to(row, end):
    messages = row["messages"][:end]
    images = {"images": row["images"][: _image_parts(messages)]} if row.get("images") else {}
    return {**row, "messages": messages, **images}


def _image_parts(messages):
    return sum(part["type"] == "image" for message in messages for part in message["content"])


def split_thinking(text):
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
