"""The names of a row's fields: those that the caller gives, else the usual ones."""

from dataclasses import dataclass
from functools import cached_property

from vlmhelpers.data.readers.source import SourceRow, from_json, is_empty

CONVERSATIONS = {  # fields of a whole conversation, the first of which a row is read by -> how one is written
    "messages": 'write [{"role": "user", "content": [{"type": "text", "text": ...}]}, ...]',
    "conversations": 'write [{"from": "human", "value": ...}, {"from": "gpt", "value": ...}]',
    "conversation": 'write [{"human": ..., "assistant": ...}]',
    "texts": 'write [{"user": ..., "assistant": ...}]',
    "contents": 'write [{"role": "user", "parts": [{"text": ...}]}, {"role": "model", "parts": [{"text": ...}]}]',
}
ALTERNATIVES = {  # argument -> the usual names of its field
    "text_field": ("text", "instruction", "question", "query", "prompt", "problem"),
    "image_field": ("image", "images", "image_path", "image_paths", "image_file", "file_name", "file_names", "img"),
    "response_field": (
        *("response", "description", "output", "answer", "caption", "completion"),
        *("multiple_choice_answer", "answers"),
    ),
}
BELOW = ("context", "input")  # what comes below a question that nobody named
_KNOWN = {name for names in ALTERNATIVES.values() for name in names} | {"system", "history", "messages"}
CSV_NAMES = ("instruction", "image_path", "description")
_OF_CAPTIONS = ("text", "txt", "label", "cls")  # answers, too, where one question is asked of all rows
_OF_MANY = {"multiple_choice_answer", "answers"}  # what most of those asked said, and what each of them did
OF_FOLDERS = ("file_name", "file_names")  # an imagefolder's fields of images
OF_TRIALS = ("_file_name", "_file_names")  # and endings of further ones


def is_conversation(fields: dict, name: str) -> bool:
    """Whether a row's field `name` is one of CONVERSATIONS, and holds one."""
    if name not in CONVERSATIONS or (value := fields.get(name)) is None:
        return False
    if name in ("messages", "conversations"):
        return True
    value = from_json(value)
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def refuse_several(row: SourceRow, argument: str, filled: list[str]) -> None:
    """Makes a problem of fields of which each may be the one of `argument`, where they say different things."""
    filled = [name for name in filled if name != "problem" or len(filled) == 1]  # beside others, what is wrong with it
    if len({str(row.fields[name]) for name in filled}) > 1:
        remedy = f"name the right one: {argument}={filled[0]!r}"
        row.reject(f"several fields may be meant: {', '.join(filled)}", remedy)


def _is_rendered(name, fields):
    """Whether a field is Alpaca's `text`: its instruction and output, written out once more as a prompt."""
    parts = [fields.get("instruction"), fields.get("output")]
    return name == "text" and all(isinstance(part, str) and part and part in str(fields["text"]) for part in parts)


@dataclass(frozen=True)
class FieldNames:
    """What the caller names the fields of a question, its image and its answer; None: their usual names.

    instruction: the question of every row, in place of a field. input_field: what comes below the question; None:
    `context` and `input`, below one in a usual field. first: the usual names that are meant where no row has any.
    """

    text_field: str | None = None
    image_field: str | None = None
    response_field: str | None = None
    instruction: str | None = None
    input_field: str | None = None
    first: tuple[str, str, str] = ("text", "image", "response")

    def __post_init__(self):
        if self.instruction is not None and self.text_field is not None:
            raise ValueError("text_field and instruction: pass one, the field of the questions or the one question")
        if self.instruction is not None and not (isinstance(self.instruction, str) and self.instruction.strip()):
            raise ValueError(f"instruction={self.instruction!r}: write the question that every row asks")

    @cached_property
    def given(self) -> dict[str, str]:
        """argument -> the name that the caller gave."""
        return {argument: name for argument in ALTERNATIVES if (name := getattr(self, argument)) is not None}

    @cached_property
    def named(self) -> set[str]:
        """The names that the caller gave, without those that Alpaca's reader gives by itself."""
        return {*self.given.values()} - {"instruction", "output"}

    @cached_property
    def below(self) -> tuple[str, ...]:
        """The fields whose texts come below the question."""
        if self.input_field is not None:
            return (self.input_field,)
        is_usual = self.text_field in (None, "instruction")
        return tuple(name for name in BELOW if is_usual and name not in self.given.values())

    @cached_property
    def usual(self) -> dict[str, tuple[str, ...]]:
        """argument -> the names that its field may have, without those that the caller gave to others."""
        return {argument: self._usual(argument) for argument in ALTERNATIVES}

    def _usual(self, argument):
        if argument in self.given:
            return (self.given[argument],)
        names = [self.first[[*ALTERNATIVES].index(argument)], *ALTERNATIVES[argument]]
        names += _OF_CAPTIONS if argument == "response_field" and self.instruction is not None else ()
        return tuple(name for name in dict.fromkeys(names) if name not in self.given.values())

    def find(self, row: SourceRow, argument: str) -> str:
        """The name of the row's field: the one that is filled; of several one would be lost, which is a problem."""
        names = self.usual[argument]
        there = [name for name in names if name in row.fields]
        filled = [name for name in there if not is_empty(row.fields[name]) and not _is_rendered(name, row.fields)]
        if len(filled) > 1 and not _OF_MANY.issuperset(filled):
            refuse_several(row, argument, filled)
        return (filled or there or names)[0]

    def of_images(self, row: SourceRow) -> list[str]:
        """The row's fields in which its images may be."""
        if self.image_field is not None:
            names = dict.fromkeys([self.image_field, "images", "image"])
        else:
            names = self.usual["image_field"]
        return [name for name in names if name in row.fields]

    def of_further_images(self, row: SourceRow) -> list[str]:
        """Fields of one image each, such as `before_file_name`."""
        return [name for name in row.fields if name.endswith(OF_TRIALS) and name not in ALTERNATIVES["image_field"]]

    def in_usual_case(self, fields: dict) -> dict[str, str]:
        """What a field such as `Image` is meant for, by its name: a usual one in lower case that no other field has."""
        other = {name: lower for name in fields if (lower := name.strip().lower()) != name}
        if not other:
            return {}
        given = self.given.values()
        is_free = {name: lower in _KNOWN and lower not in fields and name not in given for name, lower in other.items()}
        return {name: lower for name, lower in other.items() if is_free[name]}
