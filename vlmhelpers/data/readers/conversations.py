"""A row's conversation, in whatever form it was written, as messages of the schema and the sources of its images.

Each form becomes the same turns here; docs/data-forms.md has the table of them. A row keeps what it says, or has a
problem that names the field.
"""

from collections.abc import Iterable

from vlmhelpers.data.readers.field_names import CONVERSATIONS, OF_FOLDERS, FieldNames, is_conversation
from vlmhelpers.data.readers.image_sources import Source, distinct, source_of, sources_in
from vlmhelpers.data.readers.label_studio import is_task, read_task
from vlmhelpers.data.readers.learned import refuse_preference, refuse_weight
from vlmhelpers.data.readers.messages_in import ROLES, read_content, read_message
from vlmhelpers.data.readers.placement import NEXT, place_images, place_tagged, schema_messages
from vlmhelpers.data.readers.source import SourceRow, from_json, is_empty, says_nothing
from vlmhelpers.data.readers.unread_fields import refuse_unread
from vlmhelpers.data.readers.value_kinds import plain, seems_image
from vlmhelpers.data.schema import TRAIN, assistant, text_part, user

_SYSTEMS = ("system", "systemprompt", "sysprompt", "systemmessage", "systeminstruction")  # names, see plain
_HISTORIES = ("history", *(f"{name}history" for name in ("chat", "conversation", "dialog", "dialogue", "message")))


def read_turns(row: SourceRow, names: FieldNames) -> tuple[list[dict], list[Source]]:
    """A row's messages in the schema's form, and the sources of its images in the order of their parts.

    Adds to the row what is wrong with it. Sources without an image part come last, so that check_dataset sees that
    there are too many. An answer that is not to be learned has the key TRAIN; turns after the last one to learn are
    left out.
    """
    meant = names.in_usual_case(row.fields)
    seen = row.with_fields({meant.get(name, name): value for name, value in row.fields.items()}) if meant else row
    task = is_task(seen.fields)
    seen = read_task(seen) if task else seen
    found = _read_row(seen, names)
    row.unused.update(seen.leave() if task else ())  # of its data and controls
    row.used.update(name for name, usual in meant.items() if usual in row.used)
    return found


def _read_row(row, names):
    form = next((name for name in CONVERSATIONS if is_conversation(row.fields, name)), None)
    turns = _read_fields(row, names) if form is None else _read_form(row, form)
    if turns is None:
        return [], []
    turns = _up_to_what_is_learned(row, turns)
    messages, sources = _with_images(row, turns, names, noted=form is not None)
    refuse_unread(row, messages)
    return messages, sources


def read_conversation(row: SourceRow, messages: list[dict], shown: str) -> tuple[list[dict], list[Source]]:
    """The same of messages that another reader has put together, whole, with images in the field `shown`."""
    turns = _with_system(row, [turn for message in messages for turn in read_message(row, message)])
    own = row.with_fields({name: value for name, value in row.fields.items() if name == shown})
    return _with_images(own, turns, FieldNames(image_field=shown))


def _read_form(row, form):
    """The turns of a whole conversation, or None where the field `form` is no list of messages."""
    messages = from_json(row.take(form))
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        row.reject(f"{form} is no list of messages", CONVERSATIONS[form])
        return None
    turns = [turn for message in messages for turn in read_message(row, message, CONVERSATIONS[form])]
    refuse_preference(row, turns and turns[-1]["role"] == "assistant")
    return _with_system(row, turns, read_history(row))


def _read_fields(row, names):
    """The turns of a question and an answer in fields, of which each may be messages, as in TRL's prompt-completion."""
    answer_name = names.find(row, "response_field")
    if refuse_preference(row, row.fields.get(answer_name), answer_name):
        return None
    asked = [user(names.instruction)] if names.instruction else _read_question(row, names)
    for turn in asked:  # the prompt's own answers are read, and not learned
        turn |= {TRAIN: False} if turn["role"] == "assistant" else {}
    answer = _read_field(row, names, answer_name, "assistant", "write the answer that the model should give")
    return _with_system(row, [*asked, *answer], read_history(row))


def _read_question(row, names):
    name = names.find(row, "text_field")
    turns = _read_field(row, names, name, "user", "write the question")
    asked = [turn for turn in turns if turn["role"] == "user"]
    if asked and (texts := texts_below(row, names.below)):
        asked[-1]["content"] = _joined([*asked[-1]["content"], *map(text_part, texts)])
    return turns


def texts_below(row: SourceRow, below: Iterable[str]) -> list[str]:
    """The texts of the fields `below` a question, each once; an image there is none."""
    names = [name for name in below if name in row.fields and not seems_image(row.fields[name])]
    return list(filter(None, dict.fromkeys(map(row.get_text, names))))


def _joined(parts):
    """Texts as one, a blank line between them; parts with images stay apart."""
    if any(part["type"] != "text" for part in parts):
        return parts
    return [text_part("\n\n".join(filter(None, (part["text"] for part in parts))))]


def _read_field(row, names, name, role, remedy):
    """The turns in a field: those of a list of messages, or one of `role`."""
    value = row.fields.get(name)
    if isinstance(value, list) and value and all(isinstance(m, dict) and {"role", "from"} & m.keys() for m in value):
        row.take(name)
        return [turn for message in value for turn in read_message(row, message)]
    is_one = isinstance(value, list) and len(value) == 1 and name in names.named
    if is_one or (name == "answers" and isinstance(value, list) and value):  # of which any is right
        row.take(name)
        row.notes += [f"the first of {len(value)} answers taken"] * (not is_one)
        return [{"role": role, "content": [text_part(row.as_text(value[0], name))]}]
    return [{"role": role, "content": [text_part(row.get_text(name, remedy))]}]


def read_history(row: SourceRow) -> list[dict]:
    """The turns in a row's `history`: [question, answer] pairs, as Alpaca files have them, or messages."""
    name = _filled(row, _HISTORIES)
    history = from_json(row.take(name)) if name else []
    if not isinstance(history, list) or not all(_is_pair(one) or isinstance(one, dict) for one in history):
        row.reject(f"{name} is no list of pairs", "write it as [[question, answer], ...], or remove it")
        return []
    turns = (_turns_of_pair(row, *one) if _is_pair(one) else read_message(row, one) for one in history)
    return [turn for several in turns for turn in several]


def _is_pair(value):
    return isinstance(value, list) and len(value) == 2


def _turns_of_pair(row, *texts):
    question, answer = (row.as_text(text, "a text in history").strip() for text in texts)
    if not (question and answer):
        row.reject("empty text in history", "write both the question and its answer, or remove the pair")
    return user(question), assistant(answer)


def _filled(row, names):
    """The field that is filled, of those of one meaning; a second one that says something else is a problem."""
    filled = [name for name, value in row.fields.items() if plain(name) in names and not says_nothing(value)]
    if any(row.fields[name] != row.fields[filled[0]] for name in filled):
        row.reject(f"two fields of one meaning: {' and '.join(filled)}", "keep one of them")
    row.used.update(filled)
    return next(iter(filled), None)


def _with_system(row, turns, earlier=()):
    """The turns after `earlier` ones, the text of a field such as `system` first."""
    name = _filled(row, _SYSTEMS)
    text = _system_text(row, name) if name else ""
    first = [{"role": "system", "content": [text_part(text)]}] if text else []
    if first and turns and turns[0]["role"] == "system":
        row.reject("two system texts: a field and the first turn", "keep one of them")
    start = bool(earlier and turns and turns[0]["role"] == "system")  # it stays before them
    return [*first, *turns[:start], *earlier, *turns[start:]]


def _system_text(row, name):
    """The text of a field: a text, parts, or an object that holds them, as Gemini, Anthropic and Bedrock write it."""
    value = from_json(row.fields.get(name))
    if isinstance(value, dict) and "parts" in value:
        value = value["parts"]
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, dict) for part in parts):
        return row.get_text(name)
    row.take(name)
    read = read_content(row, parts)
    if any(part["type"] != "text" or part["text"] is None for part in read):
        row.reject(f"{name} is no text", "write a text there")
    return "\n".join(part["text"] or "" for part in read if part["type"] == "text").strip()


# Images, and what is left


def _with_images(row, turns, names, noted=True):
    """The messages and sources of turns, with the images of the row's own fields."""
    place_tagged(row, turns)
    listed, tags = _listed_images(row, names)
    listed = _by_index(row, turns, listed)
    own = [part["source"] for turn in turns for part in turn["content"] if part.get("source", NEXT) is not NEXT]
    if own and own == listed:  # a list of what stands in the parts
        listed = []
    if not row.problems and all(turn["role"] in ROLES.values() for turn in turns):
        empty = (name for name in names.of_images(row) if _is_blank(row.fields[name]))
        listed = place_images(row, turns, listed, tags, noted, next(empty, None))
    messages, sources = schema_messages(turns)
    return messages, [*sources, *listed]


def _is_blank(value):
    """Whether a field of an image is empty, and does not say, as an empty list does, that there is none."""
    return is_empty(value) and not isinstance(value, list | dict)


def _listed_images(row, names):
    """The sources in the row's fields of images, and by their placeholders where one is an object of those."""
    found, tags = {}, {}
    for name in names.of_images(row):
        value = from_json(row.fields[name])
        if isinstance(value, dict) and value and all("<" in key for key in value):  # MiniCPM-V's
            row.take(name)
            tags = {key: source_of(row, one, name) for key, one in value.items()}
            found[name] = [*tags.values()]
        elif sources := sources_in(row, name):
            found[name] = sources
    found = distinct(found)
    if len(found) > 1:
        row.reject(f"images in both {' and '.join(found)}", "keep one of the two fields")
    further = [] if found.keys() - {*OF_FOLDERS} else names.of_further_images(row)
    listed = [source for name in further for source in sources_in(row, name)]
    return [*next(iter(found.values()), []), *listed], tags


def _by_index(row, turns, listed):
    """Gives parts that name images by number those of the list; returns the others of the list."""
    parts = [part for turn in turns for part in turn["content"] if isinstance(part.get("source"), int)]
    numbers = {part["source"] for part in parts}
    if wrong := [number for number in numbers if not 0 <= number < len(listed)]:
        row.reject(f"an image part of index {wrong[0]}, and the row has {len(listed)} images", "count from 0")
    for part in parts:
        part["source"] = None if part["source"] in wrong else listed[part["source"]]
    return [source for number, source in enumerate(listed) if number not in numbers]


def _up_to_what_is_learned(row, turns):
    """The turns to the last answer that is to be learned; a row without one has a problem."""
    answers = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    learned = [number for number in answers if turns[number].get(TRAIN) is not False]
    if refuse_weight(row):
        return turns
    if answers and not learned:
        row.reject("nothing to learn: no answer of the row is to be learned", "leave the row out")
    elif answers and learned[-1] != answers[-1]:
        row.notes.append("turns after the last answer to learn left out")
        return turns[: learned[-1] + 1]
    return turns
