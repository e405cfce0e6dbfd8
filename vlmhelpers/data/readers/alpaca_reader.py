"""The Alpaca form, `instruction`, `input` and `output` in JSON or JSONL, as rows without images."""

from vlmhelpers.data.readers.json_rows import read_rows
from vlmhelpers.data.rows import finish_row
from vlmhelpers.data.schema import assistant, text_part, user


def read_alpaca(path, instruction_field="instruction", input_field="input", output_field="output"):
    """Reads an Alpaca file, a JSON list or one object per line, into a `datasets.Dataset` of text-only rows.

    The user's turn is the instruction and, below a blank line, the input where there is one; the output is the
    answer. A field `system` (a text) and a field `history` (a list of [question, answer] pairs) become turns
    before that. Texts lose the blanks around them; a number counts as its text, which `note` says.

    The Dataset has the schema's `messages` and `images` (empty), `row`, `problem` and `note` (see
    rows.READER_FEATURES), and the file's own fields as strings. A row with a problem keeps its place. The file
    may be larger than the memory.

    Raises ValueError for what is wrong with the whole file: neither an instruction nor an output in its first
    object, no rows, and what jsonfile.read_objects names; FileNotFoundError where there is no file.
    """
    wanted = {"instruction_field": instruction_field, "output_field": output_field}

    def build(number, fields):
        question = fields.text(instruction_field, "write what the model is to do")
        context = fields.text(input_field)
        answer = fields.text(output_field, "write the answer that the model should give")
        turns = [*_earlier_turns(fields), user("\n\n".join(filter(None, [question, context]))), assistant(answer)]
        return finish_row(number, turns, [], fields.problems, fields.notes)

    return read_rows(path, wanted, "read_alpaca", build)


def _earlier_turns(fields):
    """The turns that come from the fields `system` and `history`."""
    system = fields.text("system")
    turns = [{"role": "system", "content": [text_part(system)]}] if system else []
    for pair in _history(fields):
        question, answer = (fields.as_text(text, "a text in history").strip() for text in pair)
        if not (question and answer):
            fields.reject("empty text in history", "write both the question and its answer, or remove the pair")
        turns += [user(question), assistant(answer)]
    return turns


def _history(fields):
    history = fields.values.get("history") or []
    if isinstance(history, list) and all(isinstance(pair, list) and len(pair) == 2 for pair in history):
        return history
    fields.reject("history is no list of pairs", "write it as [[question, answer], ...], or remove it")
    return []
