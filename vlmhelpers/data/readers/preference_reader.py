"""Pairs of answers, rated answers and prompts, in JSON, JSONL and CSV, as TRL, LLaMA-Factory and ms-swift write them.

Every form becomes whole conversations, which read_turns brings into the schema's form, and which are then cut where the
answer begins. A field that is not named is the first of its usual names that the row fills.
"""

import os
from collections.abc import Callable

from datasets import Dataset

from vlmhelpers.data.readers.conversations import read_conversation, read_history, texts_below
from vlmhelpers.data.readers.field_names import ALTERNATIVES, BELOW, refuse_several
from vlmhelpers.data.readers.image_sources import sources_in
from vlmhelpers.data.readers.learned import refuse_verdict, refuse_weight, rejected_in, truth_of, verdict_in
from vlmhelpers.data.readers.message_rows import Roots
from vlmhelpers.data.readers.messages_in import role_of
from vlmhelpers.data.readers.opening import Source, open_source
from vlmhelpers.data.readers.placement import IMAGE, NEXT
from vlmhelpers.data.readers.source import DataError, SourceRow, explain_missing, from_json
from vlmhelpers.data.readers.unread_fields import refuse_unread
from vlmhelpers.data.schema import TRAIN, message_text, text_part

_NAMES = {  # argument -> what its field is called in one form or another
    "text_field": ("prompt", "messages", "conversations", "question", "instruction", "query", "text", "problem"),
    "image_field": tuple(dict.fromkeys(["images", *ALTERNATIVES["image_field"]])),
    "chosen_field": ("chosen", "chosen_messages", "preferred_output", "response"),
    "rejected_field": ("rejected", "rejected_messages", "rejected_response", "non_preferred_output"),
    "completion_field": ("completion", "response", "output", "answer"),
    "label_field": ("label", "kto_tag"),
    "answer_field": ("answer", "solution", "ground_truth", "response"),
}
_READERS = {  # kind -> its reader, and the argument whose field a CSV has to have
    "pairs": ("read_preferences", "rejected_field"),
    "rated": ("read_rated", "label_field"),
    "prompts": ("read_prompts", "text_field"),
}
_LEARNED = {"response", "output", "description"}  # answers to learn, in other readers' fields
_LEFT_OUT = "the messages' last answer is left out, as another field has one"
_MESSAGES = 'write a text, or messages: [{"role": "assistant", "content": ...}]'


def read_preferences(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    chosen_field: str | None = None,
    rejected_field: str | None = None,
) -> Dataset:
    """Reads pairs, a chosen and a rejected answer to one prompt, into a `datasets.Dataset` of PAIR_FEATURES.

    path: JSON, JSONL or, by its ending, CSV, in which lists are JSON. The prompt is a text (as `instruction` with
    `input` and `history`) or a list of messages, images as in read_jsonl. Each answer is a text, messages, or a whole
    conversation: the prompt is then what the two share. In ms-swift's form, `messages` end with the chosen answer.
    RLHF-V's pairs may be JSON in a text. What the rejected side shows instead of `images` is in `rejected_images`, a
    column where the source has it. For image_root, columns and errors, see vlmhelpers.data.readers.
    """

    def build(fields, root):
        shown = fields.name("image_field")
        other = "rejected_images" if fields.row.take("rejected_images") else shown
        chosen, sources = fields.read_answer("chosen_field", shown)
        rejected, other_sources = fields.read_answer("rejected_field", other)
        start = _shared(chosen, rejected)
        pair = {"prompt": chosen[:start], "chosen": chosen[start:], "rejected": rejected[start:]}
        pair["images"] = fields.row.get_images(sources, root)
        others = {} if other_sources == sources else {"rejected_images": fields.row.get_images(other_sources, root)}
        return pair | others

    names = {"chosen_field": chosen_field, "rejected_field": rejected_field}
    return _read(path, image_root, "pairs", {"text_field": text_field, "image_field": image_field} | names, build)


def read_rated(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    completion_field: str | None = None,
    label_field: str | None = None,
) -> Dataset:
    """Reads answers that are rated good or not, as KTO takes them, into a `datasets.Dataset` of RATED_FEATURES.

    The label is true or false, 1 or 0, yes or no. The answer is in its field, or the last turn of the messages. For
    the rest see read_preferences.
    """

    def build(fields, root):
        messages, sources = fields.read_answer("completion_field", fields.name("image_field"))
        start = 1 + max((turn for turn, message in enumerate(messages) if message["role"] == "user"), default=-1)
        rated = {"prompt": messages[:start], "completion": messages[start:], "label": fields.read_label()}
        return rated | {"images": fields.row.get_images(sources, root)}

    names = {"completion_field": completion_field, "label_field": label_field}
    return _read(path, image_root, "rated", {"text_field": text_field, "image_field": image_field} | names, build)


def read_prompts(
    path: str | os.PathLike,
    image_root: str | os.PathLike | None = None,
    text_field: str | None = None,
    image_field: str | None = None,
    answer_field: str | None = None,
) -> Dataset:
    """Reads prompts for reinforcement, with what a reward compares with, into a `datasets.Dataset` of PROMPT_FEATURES.

    The answer is in its field, or the last turn of the messages, which then is no part of the prompt; without either
    it is empty. For the rest see read_preferences.
    """

    def build(fields, root):
        messages, sources = fields.read_prompt(fields.name("image_field"))
        answer = fields.row.get_text(fields.name("answer_field"))
        if messages and messages[-1]["role"] == "assistant":
            *messages, last = messages
            fields.row.notes += [_LEFT_OUT] * bool(answer)
            answer = answer or message_text(last)
        return {"prompt": messages, "answer": answer, "images": fields.row.get_images(sources, root)}

    names = {"text_field": text_field, "image_field": image_field, "answer_field": answer_field}
    return _read(path, image_root, "prompts", names, build)


def find_reader(fields: dict, text_field: str | None = None) -> str | None:
    """The name of the reader here that takes rows of such fields; None where they rather are answers to learn.

    text_field: the caller's name of the prompt. Without a prompt in the row, an answer is one to learn.
    """
    fields = {name: value for name, value in _parsed(fields, (), False).items() if value is not None}
    conversation = fields.get("messages") or fields.get("conversations")
    answered = isinstance(conversation, list) and conversation and role_of(conversation[-1]) == "assistant"
    if {"chosen", "rejected"} <= fields.keys() or {*_NAMES["rejected_field"]} & {*rejected_in(fields)}:
        return "read_preferences"
    if verdict_in(fields) in _NAMES["label_field"]:
        return "read_rated"
    compared = {"solution", "ground_truth", *(["answer"] if "prompt" in fields else [])} & fields.keys()
    asked = {text_field} if text_field else {*_NAMES["text_field"]}
    is_prompt = compared and asked & fields.keys() and not answered and not _LEARNED & fields.keys()
    return "read_prompts" if is_prompt else None


def _read(path, image_root, kind, given: dict[str, str | None], build: Callable) -> Dataset:
    reader, key = _READERS[kind]
    source = path if isinstance(path, Source) else open_source(path)
    names = {argument: (name,) if name else _NAMES[argument] for argument, name in given.items()}
    roots = Roots(source, image_root)

    def build_row(row):
        fields = row.with_fields(_parsed(row.fields, names["image_field"], source.is_table))
        _refuse_several(fields, names)
        refuse_weight(fields)
        if kind != "rated":
            refuse_verdict(fields)
        built = build(_Fields(fields, names), roots.of(row))
        same = [fields.fields.get(name) for name in fields.used]
        fields.used.update(name for name, value in fields.leave().items() if value in same)  # a copy says nothing new
        refuse_unread(fields, built["prompt"])
        _name_held(row, fields)
        return _without_weights(row, built)

    also = {name for argument, of_argument in names.items() if argument != "image_field" for name in of_argument}
    wanted = {key: names[key]}
    if source.is_table:
        wanted = {argument: names[argument][0] for argument in given if given[argument] or argument == key}
        missing = {argument: name for argument, name in wanted.items() if not {*names[argument]} & {*source.columns}}
        wanted = {key: names[key]}
        in_text = kind == "pairs" and "text" in source.columns and not any(given.values())  # RLHF-V's pairs
        if missing and not in_text:
            raise DataError(explain_missing(source.name, "column", missing, source.columns, reader))
    also |= {"text", "input"}
    return source.read(build_row, roots.of, wanted, also, reader, kind, [*filter(None, given.values())])


def _refuse_several(row, names):
    """Makes a problem of several fields for one thing that say something else, as two rejected answers."""
    for argument in names.keys() - {"image_field", "label_field", "answer_field"}:
        last = _last_said if argument != "text_field" else lambda prompt: prompt
        said = {name: last(row.fields.get(name)) for name in names[argument]}
        said = {name: text for name, text in said.items() if isinstance(text, str) and text}
        refuse_several(row.with_fields(said), argument, [*said])


def _last_said(value):
    """A text, or that of the last of the messages of an answer."""
    last = value[-1] if isinstance(value, list) and value else value
    return last.get("content", last.get("value")) if isinstance(last, dict) else last


def _again(part):
    """A part that was read, to be read once more."""
    return {"type": "image"} if part.get("source") is NEXT else part


def _without_weights(row, built):
    """What is built without the weights of its turns; one by which an answer is not to be learned is a problem."""
    for name, turns in built.items():
        for turn in turns if name in ("prompt", "chosen", "rejected", "completion") else ():
            if turn.pop(TRAIN, None) is False and name != "prompt":
                row.reject(f"an answer that is not to be learned ({name})", "leave the row out, or remove its weight")
    return built


class _Fields:
    """A row and the names that its fields may have, by the reader's arguments."""

    def __init__(self, row: SourceRow, names: dict[str, tuple[str, ...]]):
        self.row, self._names = row, names

    def name(self, argument: str) -> str:
        """The first of the names that the row fills, else has, else the usual one; an answer may be an empty text."""
        names, fields = self._names[argument], self.row.fields
        empty = (None, "", []) if argument in ("text_field", "image_field") else (None,)
        filled = (name for name in names if fields.get(name) not in empty)
        return next(filled, next((name for name in names if name in fields), names[0]))

    def read_prompt(self, shown: str) -> tuple[list[dict], list[str | None]]:
        """The prompt's messages and the sources of their images, which the field `shown` lists."""
        return self._read_turns(self._prompt(shown), shown)

    def read_answer(self, argument: str, shown: str) -> tuple[list[dict], list[str | None]]:
        """The same with the answer; without a field for it, it is the last turn of the messages."""
        name = self.name(argument)
        turns = self._turns(name, "assistant") if self.row.fields.get(name) is not None else []
        if turns and role_of(turns[0]) in ("system", "user"):
            return self._read_turns(turns, shown)
        prompt, last = self._prompt(shown), []
        if prompt and role_of(prompt[-1]) == "assistant":
            prompt, last = prompt[:-1], prompt[-1:]
        if argument == "rejected_field":
            last = []  # it is the chosen one
        if turns and last:
            self.row.notes.append(_LEFT_OUT)
        elif not last and self.row.fields.get(name) in (None, []):
            self.row.get_text(name, _MESSAGES)  # says what is wrong
        return self._read_turns([*prompt, *(turns or last)], shown)

    def _prompt(self, shown):
        name = self.name("text_field")
        if isinstance(self.row.fields.get(name), list):
            return self._turns(name, "user")
        below = BELOW if len(self._names["text_field"]) > 1 or name == "instruction" else ()
        texts = [self.row.get_text(name, "write the question"), *texts_below(self.row, below)]
        content, images = "\n\n".join(filter(None, texts)), sources_in(self.row, shown)
        earlier = [turn | {"content": [*map(_again, turn["content"])]} for turn in read_history(self.row)]
        if not any(IMAGE in text for text in (content, *map(message_text, earlier))):
            content = [*({"type": "image"} for _ in images), text_part(content)]
        return [*earlier, {"role": "user", "content": content}]

    def _turns(self, name, role):
        """The messages in a field as they are written; a text is a message of `role`."""
        value = self.row.take(name)
        turns = value if isinstance(value, list) else [value]
        if all(isinstance(turn, dict) for turn in turns):
            return turns
        if isinstance(value, list):
            self.row.reject(f"{name} is no text and no list of messages", _MESSAGES)
            return []
        return [{"role": role, "content": self.row.get_text(name, _MESSAGES)}]

    def _read_turns(self, turns, shown):
        return read_conversation(self.row, turns, shown)

    def read_label(self) -> bool | None:
        """The label; None, which is a problem, where it is neither true nor false."""
        name = self.name("label_field")
        label = truth_of(self.row.take(name))
        if label is None:
            self.row.reject(f"no label: {name} is {str(self.row.fields.get(name))[:40]!r}", "write true or false")
        return label


def _shared(chosen, rejected):
    """How many turns two conversations share from their start on, without the last of either."""
    most = max(0, min(len(chosen), len(rejected)) - 1)
    return next((turn for turn in range(most) if chosen[turn] != rejected[turn]), most)


def _parsed(fields, image_names, is_csv):
    """The fields, with those of a pair that is JSON in `text`; of a CSV, also lists and messages that are JSON."""
    holder, held = _held(fields)
    fields = {name: value for name, value in fields.items() if name != holder} | held
    values = {name: from_json(value) for name, value in fields.items()} if is_csv else {}
    lists = ("history", "rejected_images", *image_names)
    return fields | {name: value for name, value in values.items() if _is_messages(value) or name in lists}


def _held(fields):
    """The field that holds others, and these: OpenAI's `input`, or RLHF-V's pair that is JSON in `text`."""
    asked, pair = fields.get("input"), from_json(fields.get("text"))
    if isinstance(asked, dict) and "preferred_output" in fields:
        return "input", asked
    return ("text", pair) if isinstance(pair, dict) and {"chosen", "rejected"} <= pair.keys() else (None, {})


def _name_held(row, fields):
    """Names what was not read of the fields that another one holds, which itself was."""
    holder, held = _held(row.fields)
    if held:
        row.used.add(holder)
    row.unused.update(f"{name} (in {holder})" for name in fields.leave() if name in held)


def _is_messages(value):
    messages = value if isinstance(value, list) else [value]
    return bool(messages) and all(isinstance(m, dict) and {"role", "from"} & m.keys() for m in messages)
