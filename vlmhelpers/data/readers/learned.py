"""What says that an answer is not to be learned: weights, verdicts, and rejected answers beside it.

All are known by their names, however these are written (`kto_tag`, `KTO_tag`, `ktoTag`), in a row, a message or a part.
"""

import functools
import re
from contextlib import suppress

from vlmhelpers.data.readers.source import SourceRow, from_json, is_empty, says_nothing, shorten
from vlmhelpers.data.readers.value_kinds import plain
from vlmhelpers.data.schema import TRAIN

_WEIGHTS = (  # names, see plain; 0 or false: an answer that is not learned
    *("weight", "weights", "sampleweight", "loss", "lossweight", "lossmask"),
    *("train", "training", "trainable", "learn"),
)
_TRUTHS = dict.fromkeys(["true", "1", "1.0", "yes", "on"], True)
_TRUTHS |= dict.fromkeys(["false", "0", "0.0", "no", "off"], False)
_OF_VERDICTS = ("label", "ktotag", "completion")
_ANSWERS = "(response|message|conversation|answer|output|completion|text)?s?"
_REJECTED = re.compile(rf"{_ANSWERS}(rejected|nonpreferred|dispreferred){_ANSWERS}\d*")
_READ = "and with to_rows where the {} answers are to learn"


def truth_of(value: object) -> bool | None:
    """Whether a value is true (true, 1, yes) or false (false, 0, no), also as a text; None for anything else."""
    return _TRUTHS.get(str(value).strip().lower())


@functools.lru_cache(4096)
def is_weight(name: str) -> bool:
    """Whether a field of this name says how much an answer counts in the loss."""
    return plain(name) in _WEIGHTS


def is_about_learning(name: str) -> bool:
    """Whether a field of this name may say that an answer is not to be learned."""
    short = plain(name)
    return is_weight(name) or short in ("label", "ktotag", "chosen") or _is_rejected(name)


def weigh_turn(row: SourceRow, message: dict, content: object, role: str | None) -> dict:
    """{TRAIN: False} for an answer that is not to be learned by the weights of its message, or of all its parts."""
    parts = [part for part in (content if isinstance(content, list) else [content]) if isinstance(part, dict)]
    of_parts = [_weigh(row, part, role) for part in parts]
    if any(of_parts) and not all(of_parts):
        remedy = "write the weight of the whole turn: an answer is learned or not"
        row.reject("an answer of which a part is not to be learned", remedy)
    return _weigh(row, message, role) or next(iter(of_parts), {})


def _weigh(row, holder, role):
    found = {}
    for name in filter(is_weight, holder):
        if is_empty(weight := holder[name]):
            continue
        if not isinstance(weight, bool | int | float) or weight not in (0, 1):
            reason = f"{name} of a message is {shorten(str(weight), 60)}"
            row.reject(reason, "write 1 or 0: an answer is learned or not")
        elif weight and role == "user":
            row.reject(f"{name} of a user's turn is {weight}: only answers are learned", "write 0 there, or remove it")
        elif not weight and role == "assistant":
            found = {TRAIN: False}
    return found


def refuse_weight(row: SourceRow) -> bool:
    """Whether the row has a weight by which not all of it is learned, which is a problem.

    That is 0, a number between 0 and 1, a list that has one of these, and a `loss_weight` of more.
    """
    for name in filter(is_weight, row.fields):
        if says_nothing(value := from_json(row.fields[name])):
            continue
        weights = [_number(one) for one in (value if isinstance(value, list) else [value])]
        if None in weights or {*weights} == {1} or not _is_of_loss(name, weights):
            continue
        row.used.add(name)
        shown = shorten(str(value).lower(), 60)
        if weights == [0]:
            row.reject(f"nothing to learn: {name} of the row is {shown}", "leave the row out")
        else:
            remedy = "write 1 or 0: a row is learned or not; rename the field where it is no weight of the loss"
            row.reject(f"{name} of the row is {shown}", remedy)
        return True
    return False


def _number(value):
    """The number that a weight is; None for what is none."""
    if (truth := truth_of(value)) is not None:
        return int(truth)
    with suppress(ValueError):
        return float(str(value))
    return None


def _is_of_loss(name, weights):
    return plain(name) == "lossweight" or all(0 <= weight <= 1 for weight in weights)


def verdict_in(fields: dict) -> str | None:
    """The field that says whether an answer is good: `kto_tag`, a `label` of true or false, of 0 or 1 by a completion.

    Another `label` is one of a class.
    """
    names = {plain(name): name for name in fields if plain(name) in _OF_VERDICTS and not says_nothing(fields[name])}
    label = str(fields.get(names.get("label"))).strip().lower()
    if label in ("true", "false") or ("completion" in names and label in _TRUTHS):
        return names["label"]
    return names.get("ktotag")


def rejected_in(fields: dict) -> list[str]:
    """The fields of answers that are not to be learned. `rejected` of false is none."""
    return [name for name, value in fields.items() if _is_rejected(name) and _is_answer(value)]


@functools.lru_cache(4096)
def _is_rejected(name):
    return bool(_REJECTED.fullmatch(plain(name)))


def _is_answer(value):
    return value is not False and (value == [] or not says_nothing(value))


def refuse_preference(row: SourceRow, answer: object = None, answer_name: str = "", holder: dict | None = None) -> bool:
    """Whether the row, or `holder` in it, has a rejected answer, or a verdict, which is a problem.

    Beside `chosen` and `rejected` there may be an `answer` of its own, in the field `answer_name`.
    """
    fields = row.fields if holder is None else holder
    found = [name for name in rejected_in(fields) if name != answer_name]
    chosen = [name for name in fields if plain(name) == "chosen" and not is_empty(fields[name])]
    if found == ["rejected"] and answer and chosen:
        found = []
    if found:
        remedy = f"read it with {_call('read_preferences', 'rejected_field', found[0])}, {_READ.format('chosen')}"
        row.reject(f"preference row: {' and '.join([*chosen, *found])}, two answers to choose from", remedy)
        row.used |= {*chosen, *found}
    return bool(found) or refuse_verdict(row, answer_name, fields)


def refuse_verdict(row: SourceRow, answer_name: str = "", holder: dict | None = None) -> bool:
    """Whether the row, or `holder` in it, has a verdict other than its answer, which is a problem."""
    fields = row.fields if holder is None else holder
    if (verdict := verdict_in(fields)) in (None, answer_name):
        return False
    remedy = f"read it with {_call('read_rated', 'label_field', verdict)}, {_READ.format('good')}"
    row.reject(f"rated row: {verdict} is {fields[verdict]}", f"{remedy}; rename the field where it is no verdict")
    row.used.add(verdict)
    return True


def _call(reader, argument, name):
    is_usual = name == plain(name) or "_" in name and name.islower()
    return f"vlmhelpers.data.{reader}" + ("" if is_usual else f"(..., {argument}={name!r})")
