"""The rows that readers return and later steps take: messages, and three kinds for other training methods.

Pairs hold a better and a worse answer, rated rows an answer with a verdict, prompts an answer to compare with.
"""

import re
import unicodedata
from collections.abc import Collection, Iterable

from datasets import Features, Image, List, Value

# The k-th part of type "image" stands for images[k]; the others are of type "text". Content is always a list of parts,
# as Arrow refuses a column that mixes strings and lists; a text-only row has no images.
_CONTENT = List({"type": Value("string"), "text": Value("string")})
_MESSAGES, _IMAGES = List({"role": Value("string"), "content": _CONTENT}), {"images": List(Image())}
FEATURES = Features({"messages": _MESSAGES, **_IMAGES})
PAIR_FEATURES = Features({**dict.fromkeys(["prompt", "chosen", "rejected"], _MESSAGES), **_IMAGES})
RATED_FEATURES = Features({"prompt": _MESSAGES, "completion": _MESSAGES, "label": Value("bool"), **_IMAGES})
PROMPT_FEATURES = Features({"prompt": _MESSAGES, "answer": Value("string"), **_IMAGES})  # and what a reward needs
REJECTED_IMAGES = {"rejected_images": List(Image())}  # pairs may have it: the rejected side's, where they are others
TRAIN = "train"  # a message may have it: False for an answer that is not learned, else None
KINDS = {"messages": FEATURES, "pairs": PAIR_FEATURES, "rated": RATED_FEATURES, "prompts": PROMPT_FEATURES}

CONVERSATIONS = ("messages", "prompt", "chosen", "rejected", "completion")  # the columns of messages of all kinds
ROLES = ("system", "user", "assistant")

# The shapes in which model families write their control tokens: <|eot_id|>, <s>, </s>, <image>, [INST]. Which of them
# a model has, only its tokenizer knows.
_OF_SOME_MODEL = re.compile(r"<\|[^<>|\s]+\|>|</?s>|<image>|<pad>|<unk>|\[/?INST\]")
_UNSEEN = {"Zs", "Zl", "Zp", "Cc", "Cf"}
_LONGEST_TOKEN = 100  # characters of a control token; those of published models have up to thirty


def with_train(features: Features) -> Features:
    """The features of a Dataset of messages, each with TRAIN."""
    message = features["messages"].feature
    return Features({**features, "messages": List({**message, TRAIN: Value("bool")})})


def text_part(text: str | None) -> dict:
    return {"type": "text", "text": text}


def image_part() -> dict:
    return {"type": "image", "text": None}  # Arrow stores the same keys for every part


def user(text: str, images: int = 0) -> dict:
    """A user turn: `images` image parts, then the text."""
    return {"role": "user", "content": [*(image_part() for _ in range(images)), text_part(text)]}


def assistant(text: str) -> dict:
    """An assistant turn: what the model should answer."""
    return {"role": "assistant", "content": [text_part(text)]}


def make_row(instruction: str, answer: str, images: Iterable = ()) -> dict:
    """One question and its answer as a row of the schema; `images` are paths, PIL images or encoded bytes."""
    images = list(images)
    return {"messages": [user(instruction, len(images)), assistant(answer)], "images": images}


def make_pair(question: str, chosen: str, rejected: str, images: Iterable = ()) -> dict:
    """A question with the better and the worse answer to it, as a row of PAIR_FEATURES."""
    images = list(images)
    answers = {"chosen": [assistant(chosen)], "rejected": [assistant(rejected)]}
    return {"prompt": [user(question, len(images))], **answers, "images": images}


def make_rated(question: str, completion: str, label: bool, images: Iterable = ()) -> dict:
    """A question with an answer that is good (`label` True) or not, as a row of RATED_FEATURES."""
    images = list(images)
    answer = {"completion": [assistant(completion)], "label": label}
    return {"prompt": [user(question, len(images))], **answer, "images": images}


def make_prompt(question: str, answer: str, images: Iterable = ()) -> dict:
    """A question whose answers a reward compares with `answer`, as a row of PROMPT_FEATURES."""
    images = list(images)
    return {"prompt": [user(question, len(images))], "answer": answer, "images": images}


def kind_of(column_names: Collection[str]) -> str:
    """The kind of a dataset's rows by their columns, a key of KINDS. Raises ValueError for columns of no kind."""
    kind = next((kind for kind, features in KINDS.items() if not features.keys() - {"images", *column_names}), None)
    if kind is None:
        forms = "; ".join(f"{kind}: {', '.join(features)}" for kind, features in KINDS.items())
        raise ValueError(f"no rows of a known kind: columns {', '.join(column_names)}. Expected are {forms}.")
    return kind


def conversations(row: dict) -> dict[str, list[dict]]:
    """Every conversation that a row of any kind holds, by name, the one with the good answer first."""
    kind = kind_of(row)
    if kind == "messages":
        return {"messages": row["messages"] or []}
    prompt = row["prompt"] or []
    if kind == "prompts":
        return {"prompt": [*prompt, assistant(row["answer"] or "")]}
    sides = ("chosen", "rejected") if kind == "pairs" else ("completion",)
    return {side: [*prompt, *(row[side] or [])] for side in sides}


def all_images(row: dict) -> list:
    """The row's images, then those that the rejected side of a pair has of its own."""
    own = row.get("rejected_images") if kind_of(row) == "pairs" else None
    return [*(row.get("images") or []), *(own or [])]


def images_of(row: dict, side: str) -> list | None:
    """The images that one answer of a row is about: the rejected one of a pair may have its own."""
    return (row.get("rejected_images") if side == "rejected" else None) or row.get("images")


def message_text(message: dict) -> str:
    """The text of one message, its text parts joined."""
    return "".join(part["text"] or "" for part in message["content"] or () if part["type"] == "text")


def answer_of(row: dict) -> str:
    """The text of the assistant turn that ends a row: the reference that an answer is compared with.

    Raises ValueError for a row that does not end with one, and for one of another kind than messages.
    """
    if "messages" not in row:
        raise ValueError(f"a row of {kind_of(row)} has no messages: vlm.data.to_rows makes rows of messages")
    messages = row["messages"]
    if not messages or messages[-1]["role"] != "assistant":  # an earlier one answers another question
        raise ValueError(
            "the row does not end with an assistant turn, the expected answer: add it, or leave the row out"
        )
    return message_text(messages[-1])


def learned_turns(messages: list[dict]) -> list[int]:
    """The indices of the assistant turns to learn: none with TRAIN false, and none that nothing precedes."""
    said = [turn for turn, message in enumerate(messages) if message["role"] == "assistant"]
    return [turn for turn in said if turn and messages[turn].get(TRAIN) is not False]


def is_blank(text: str) -> bool:
    """Whether nobody sees anything of `text`: blanks, and characters that only steer how others are shown."""
    return all(unicodedata.category(character) in _UNSEEN for character in text)


def last_question(messages: list[dict]) -> str:
    """The text of the last user turn, "" without one."""
    return next((message_text(message) for message in reversed(messages) if message["role"] == "user"), "")


def count_images(messages: list[dict]) -> int:
    """The number of image parts in some messages."""
    return sum(part["type"] == "image" for message in messages for part in message["content"] or ())


def find_control_tokens(text: str) -> list[str]:
    """What the tokenizer of some model takes for a control token, in order of appearance."""
    return list(dict.fromkeys(_OF_SOME_MODEL.findall(text)))


def escape_control_tokens(text: str, control: re.Pattern) -> str:
    """`text` with a space inside each control token, so that it is none: `<|image|>` becomes `< |image|>`.

    control: what the model's own tokenizer and processor take for one (`ChatTemplate.control`); all else stays.
    """
    return control.sub(lambda token: f"{token[0][0]} {token[0][1:]}", text)


def unescape_control_tokens(text: str, control: re.Pattern) -> str:
    """`text` without the spaces that `escape_control_tokens` puts into it."""

    def found(space):
        return control.match(text[space.start() - 1] + text[space.end() :][:_LONGEST_TOKEN])

    return re.sub("(?<=.) (?=.)", lambda space: "" if found(space) else " ", text, flags=re.DOTALL)
