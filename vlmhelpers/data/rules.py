"""What makes a row unusable, for validation, the command line and the collator."""

from PIL import Image

from vlmhelpers.data.schema import ROLES, count_images, message_text

Problem = tuple[str, str]  # reason, which reads "kind" or "kind: details", and remedy


def row_problems(row: dict) -> list[Problem]:
    """All that makes a row unusable for training; images (of PIL, or {"path", "bytes"} as in Arrow) stay closed."""
    if row.get("problem"):
        return [split_problem(row["problem"])]
    return _turn_problems(row) or _image_problems(row) + _answer_problems(row["messages"] or [])


def prompt_problems(row: dict) -> list[Problem]:
    """All that keeps a model from answering the messages of a row, which need not end with an answer."""
    return _turn_problems(row) or _image_problems(row)


def merge_problems(problems: list[Problem]) -> Problem:
    """Several problems as one; texts that repeat appear once."""
    return tuple("; ".join(dict.fromkeys(texts)) for texts in zip(*problems, strict=True))


def join_problems(problems: list[Problem]) -> str:
    """Problems as the text of the column `problem`: the reason on its first line, the remedy on its second."""
    return "\n".join(merge_problems(problems)) if problems else ""


def split_problem(text: str) -> Problem:
    """The text of the column `problem` as one problem."""
    return text.partition("\n")[::2]


def _turn_problems(row):
    return [problem for message in row["messages"] or [] if (problem := _problem_of_turn(message))]


def _problem_of_turn(message):
    role, content = message["role"], message["content"]
    if role not in ROLES:
        return f"unknown role: {role!r}", f"use one of {', '.join(ROLES)}"
    if not isinstance(content, list):
        return "content is no list of parts", "build messages with user() and assistant()"
    types = [part["type"] for part in content]
    if any(kind not in ("text", "image") for kind in types):
        return f"unknown part: {types}", "a part is of type text or image"
    if any(part["type"] == "text" and part.get("text") is None for part in content):
        return "a text part without text", "write its text or remove it"
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
    if not all(message_text(message).strip() for message in messages if message["role"] == "assistant"):
        return [("empty answer", "write the answer that the model should give")]
    return []
