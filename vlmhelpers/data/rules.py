"""What makes a row unusable: asked by validation, by the command line and by the collator.

A problem is a pair of a reason, which reads "kind" or "kind: details", and a remedy.
"""

from PIL import Image

from vlmhelpers.data.schema import ROLES, count_images, message_text

Problem = tuple[str, str]


def row_problems(row: dict) -> list[Problem]:
    """All that makes a row impossible to train on: what its reader found, else what its messages and images show.

    Images are PIL images, or {"path", "bytes"} as in Arrow; none is opened.
    """
    if row.get("problem"):
        return [split_problem(row["problem"])]
    return _turn_problems(row) or _image_problems(row) + _answer_problems(row["messages"] or [])


def prompt_problems(row: dict) -> list[Problem]:
    """All that keeps a model from answering the messages of a row, which need not end with an answer."""
    return _turn_problems(row) or _image_problems(row)


def merge_problems(problems: list[Problem]) -> Problem:
    """Several problems as one; texts that repeat appear once."""
    reason, remedy = ("; ".join(dict.fromkeys(texts)) for texts in zip(*problems, strict=True))
    return reason, remedy


def join_problems(problems: list[Problem]) -> str:
    """Problems as the text of the column `problem`: the reason on its first line, the remedy on its second."""
    return "\n".join(merge_problems(problems)) if problems else ""


def split_problem(text: str) -> Problem:
    """The text of the column `problem` as one problem."""
    reason, _, remedy = text.partition("\n")
    return reason, remedy


def _turn_problems(row):
    return [problem for message in row["messages"] or [] for problem in _problems_of_turn(message)]


def _problems_of_turn(message):
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return [(f"unknown role: {role!r}", f"use one of {', '.join(ROLES)}")]
    if not isinstance(content, list):
        return [("content is no list of parts", "build messages with user() and assistant()")]
    types = [part["type"] for part in content]
    if any(kind not in ("text", "image") for kind in types):
        return [(f"unknown part: {types}", "a part is of type text or image")]
    if any(part["type"] == "text" and part.get("text") is None for part in content):
        return [("a text part without text", "write its text or remove it")]
    if role != "user" and "image" in types:
        turn = "an answer" if role == "assistant" else "a system turn"
        return [(f"image in {turn}", "move it to the user's turn; images belong there alone")]
    return []


def _image_problems(row):
    images, parts = row.get("images") or [], count_images(row["messages"] or [])
    problems = []
    if parts != len(images):
        remedy = "give the row one image part for each image, in their order"
        problems.append((f"images do not match: {parts} image parts, {len(images)} images", remedy))
    for number, image in enumerate(images, 1):
        if not _is_image(image):
            reason = f"no image: image {number} is {type(image).__name__}"
            problems.append((reason, "give the row its image, or remove the image part"))
    return problems


def _is_image(image):
    if isinstance(image, dict):
        return image.get("bytes") is not None or image.get("path") is not None
    return isinstance(image, Image.Image)


def _answer_problems(messages):
    if not messages or messages[-1]["role"] != "assistant":
        return [("no answer: the last turn is not the assistant's", "add the answer to learn")]
    if not all(message_text(message).strip() for message in messages if message["role"] == "assistant"):
        return [("empty answer", "write the answer that the model should give")]
    return []
