"""The same rows with more in the prompt: what a model can do when it is only asked better."""

import pyarrow as pa

_ROWS_PER_BATCH = 200  # in memory at a time, with their encoded pictures where the dataset embeds those


def prompted(dataset, instruction, examples=()):
    """A Dataset of the same rows whose first user turn begins with `instruction`; the pictures stay as they are.

    `examples` are strings that follow the instruction, such as the expected answers of a few training rows: what an
    answer has to look like. All of it is text in the user's turn, which every family's chat template takes. Give the
    result to `generate`, and the answers to `compare` as those of the prompted model. No picture is decoded.
    """
    lines = [instruction, *(["Examples of answers:", *examples] if examples else [])]
    text = "\n".join(lines) + "\n\n"

    def put_before(table):
        rows = [{**row, "messages": _with_text(row["messages"], text)} for row in table.to_pylist()]
        return pa.Table.from_pylist(rows, schema=table.schema)

    options = {"batched": True, "batch_size": _ROWS_PER_BATCH, "features": dataset.features}
    changed = dataset.with_format("arrow").map(put_before, desc="prompts", **options)
    shown = dataset.format
    changed.set_format(shown["type"], shown["columns"], shown["output_all_columns"], **shown["format_kwargs"])
    return changed


def _with_text(messages, text):
    """The messages with `text` before the text of the first user turn, after the pictures that stand before it."""
    place = [message["role"] for message in messages].index("user")
    parts = messages[place]["content"]
    first = next((k for k, part in enumerate(parts) if part["type"] == "text"), len(parts))
    parts = [*parts[:first], {"type": "text", "text": text}, *parts[first:]]
    return [*messages[:place], {**messages[place], "content": parts}, *messages[place + 1 :]]
