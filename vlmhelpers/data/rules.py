"""What makes a row unusable, for validation, the command line and the collator."""

import re
from collections.abc import Mapping

from PIL import Image

from vlmhelpers.common.printable import shortened
from vlmhelpers.data.schema import (
    ROLES,
    TRAIN,
    conversations,
    count_images,
    images_of,
    is_blank,
    kind_of,
    learned_turns,
    message_text,
)

_ASK = "write what the model is to answer"
_SURROGATE = re.compile("[\ud800-\udfff]")
Problem = tuple[str, str]  # reason, which reads "kind" or "kind: details", and remedy


def row_problems(row: dict) -> list[Problem]:
    """All that makes a row of any kind unusable for training.

    Images (of PIL, or {"path", "bytes"} as in Arrow) stay closed.
    """
    if is_of_reader(row) and row["problem"]:
        return [split_problem(row["problem"])]
    if null := [problem for turns in conversations(row).values() for problem in null_problems(turns)]:
        return null
    kind = kind_of(row)
    if kind == "messages":
        return _conversation_problems(row)
    if kind == "pairs" and (problems := _pairing_problems(row)):
        return problems
    asked = {"messages": row["prompt"] or [], "images": row.get("images")}
    if not asked["messages"] or asked["messages"][-1].get("role") != "user":
        return [("no question: the prompt does not end with the user's turn", _ASK)]
    if kind == "prompts":
        return prompt_problems(asked)
    return _problems_of_sides(row) or (_pair_problems(row) if kind == "pairs" else _label_problems(row))


def is_of_reader(row: dict) -> bool:
    """Whether `row`, `problem` and `note` are those of a reader: a source may have columns of these names itself."""
    texts = [row.get(name) for name in ("problem", "note")]
    return isinstance(row.get("row"), int) and all(isinstance(text, str) for text in texts)


def row_number(row: dict, index: int) -> int:
    """The number from 1 of a row in its source, as its reader has written it; else by its index in the Dataset."""
    number = row.get("row")
    return number if isinstance(number, int) and number else index + 1


def _pairing_problems(row):
    shown, others = row.get("images") or [], images_of(row, "rejected") or []
    if len(shown) != len(others):
        reason = f"another number of images on the two sides: {len(shown)} and {len(others)}"
        return [(reason, "show one image for each image part on both sides")]
    if any(side and side[0].get("role") in ("system", "user") for side in (row["chosen"], row["rejected"])):
        return [("another prompt: chosen and rejected are asked differently", "give both answers the same prompt")]
    return []


def _problems_of_sides(row):
    """The problems of the prompt with each answer; those that only one of two answers has name it."""
    found = {
        side: _conversation_problems({"messages": messages, "images": images_of(row, side)})
        for side, messages in conversations(row).items()
    }
    common = set.intersection(*map(set, found.values()))
    named = ((side, *problem) for side, problems in found.items() for problem in problems)
    return [(what if (what, remedy) in common else f"{what} ({side})", remedy) for side, what, remedy in named]


def _pair_problems(row):
    chosen, rejected = ([message_text(message).strip() for message in row[side]] for side in ("chosen", "rejected"))
    if chosen == rejected and not row.get("rejected_images"):
        return [("the same answer: chosen and rejected are equal", "write a worse one, or leave the row out")]
    return []


def _label_problems(row):
    return [("no label", "write true for a good answer, false for another")] if row["label"] is None else []


def _conversation_problems(row):
    return _turn_problems(row) or _image_problems(row) + _answer_problems(row["messages"] or [])


def prompt_problems(row: dict) -> list[Problem]:
    """All that keeps a model from answering the messages of a row, which need not end with an answer."""
    if problems := null_problems(row["messages"] or []) or _turn_problems(row):
        return problems
    question = [] if row["messages"] else [("no question: the row has no turn to answer", _ASK)]
    return question + _image_problems(row)


def null_problems(messages: list) -> list[Problem]:
    """The turns and parts that are none, as where a list in Arrow holds null: nothing else can be asked of them."""
    return [problem for message in messages if (problem := _null_problem(message))]


def _null_problem(message):
    if not isinstance(message, Mapping):
        return f"a turn is {_named(message)}", "write the turn, or leave the row out"
    content = message.get("content")
    wrong = [part for part in content if not isinstance(part, Mapping)] if isinstance(content, list) else []
    return (f"a part is {_named(wrong[0])}", "write the part, or remove it") if wrong else None


def _named(value):
    return "null" if value is None else f"a {type(value).__name__}"


def merge_problems(problems: list[Problem]) -> Problem:
    """Several problems as one, each of its texts under 300 characters; texts that repeat appear once."""
    return tuple(shortened("; ".join(dict.fromkeys(texts)), 299) for texts in zip(*problems, strict=True))


def join_problems(problems: list[Problem]) -> str:
    """Problems as the text of the column `problem`: the reason on its first line, the remedy on its second."""
    return "\n".join(merge_problems(problems)) if problems else ""


def split_problem(text: str) -> Problem:
    """The text of the column `problem` as one problem."""
    return text.partition("\n")[::2]


def _turn_problems(row):
    return [problem for message in row["messages"] or [] if (problem := _problem_of_turn(message))]


def _problem_of_turn(message):
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        return f"unknown role: {role!r}", f"use one of {', '.join(ROLES)}"
    if not isinstance(content, list):
        return "content is no list of parts", "build messages with user() and assistant()"
    types = [part.get("type") for part in content]
    if any(kind not in ("text", "image") for kind in types):
        return f"unknown part: {types}", "a part is of type text or image"
    if any(part["type"] == "text" and not isinstance(part.get("text"), str) for part in content):
        return "a text part without text", "write its text or remove it"
    if _SURROGATE.search("".join(part["text"] for part in content if part["type"] == "text")):
        return "half a character: a lone surrogate in a text", "write the text anew, in UTF-8"
    if role != "user" and "image" in types:
        turn = "an answer" if role == "assistant" else "a system turn"
        return f"image in {turn}", "move it to the user's turn; images belong there alone"
    return None


def _image_problems(row):
    images, parts = row.get("images") or [], count_images(row["messages"] or [])
    problems = []
    if parts != len(images):
        remedy = "give the row one image part for each image, in their order"
        problems.append((f"images do not match: {parts} image parts, {len(images)} images", remedy))
    for number, image in enumerate(images, 1):
        encoded = isinstance(image, dict) and (image.get("bytes") is not None or image.get("path") is not None)
        if not encoded and not isinstance(image, Image.Image):
            reason = f"no image: image {number} is {type(image).__name__}"
            problems.append((reason, "give the row its image, or remove the image part"))
    return problems


def _answer_problems(messages):
    if not messages or messages[-1]["role"] != "assistant":
        return [("no answer: the last turn is not the assistant's", "add the answer to learn")]
    learned = learned_turns(messages)
    if any(is_blank(message_text(messages[turn])) for turn in learned):
        return [("empty answer", "write the answer that the model should give")]
    if messages[-1].get(TRAIN) is False:
        reason = "its last answer is not learned" if learned else "nothing to learn: no answer is to be learned"
        return [(reason, f"end the row with an answer to learn: leave out what follows it, or its {TRAIN}: false")]
    if not learned:
        return [("nothing to learn: no turn before the answer", "write the question before it")]
    return []
