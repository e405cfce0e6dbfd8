"""The Alpaca form, `instruction`, `input` and `output` in JSON or JSONL, as rows without images."""

import os

from datasets import Dataset

from vlmhelpers.data.readers.json_file import read_json
from vlmhelpers.data.schema import assistant, text_part, user


def read_alpaca(
    path: str | os.PathLike,
    instruction_field: str = "instruction",
    input_field: str = "input",
    output_field: str = "output",
) -> Dataset:
    """Reads an Alpaca file, a JSON list or one object per line, into a `datasets.Dataset` of text-only rows.

    The user's turn is the instruction and, below a blank line, the input where there is one; the output is the
    answer. A field `system` (a text) and a field `history` (a list of [question, answer] pairs) become turns
    before that. Texts lose the blanks around them; a number counts as its text, which `note` says.

    The Dataset has the schema's `messages` and `images` (empty), `row`, `problem` and `note` (see
    rows.READER_FEATURES), and the file's own fields as strings. A row with a problem keeps its number. The file
    may be larger than the memory.

    Raises ValueError for what is wrong with the whole file: neither an instruction nor an output in its first
    object, no rows, and what json_file.read_objects names; FileNotFoundError where there is no file.
    """

    def build(row):
        question = row.get_text(instruction_field, "write what the model is to do")
        context = row.get_text(input_field)
        answer = row.get_text(output_field, "write the answer that the model should give")
        last = user("\n\n".join(filter(None, [question, context]))), assistant(answer)
        return {"messages": [*_earlier_turns(row), *last], "images": []}

    wanted = {"instruction_field": instruction_field, "output_field": output_field}
    return read_json(path, wanted, "read_alpaca", build)


def _earlier_turns(row):
    """The turns that come from the fields `system` and `history`."""
    system = row.get_text("system")
    turns = [{"role": "system", "content": [text_part(system)]}] if system else []
    history = row.fields.get("history") or []
    if not isinstance(history, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        row.reject("history is no list of pairs", "write it as [[question, answer], ...], or remove it")
        return turns
    for pair in history:
        question, answer = (row.as_text(text, "a text in history").strip() for text in pair)
        if not (question and answer):
            row.reject("empty text in history", "write both the question and its answer, or remove the pair")
        turns += [user(question), assistant(answer)]
    return turns
