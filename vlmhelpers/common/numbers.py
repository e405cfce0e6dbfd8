"""Numbers in texts as people write them: 1,299.50, 1.299,50, 1 299,50, 1'299.50."""

import math
import re
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import suppress
from decimal import Decimal
from functools import lru_cache

from babel.numbers import NumberFormatError, get_decimal_symbol, get_group_symbol, parse_decimal

from vlmhelpers.common.currencies import AFTER, BEFORE, thousandths_of

# A form -> a locale that writes numbers so. What several of them can read goes by the first: 1,299 is 1299.
CONVENTIONS = {
    "1,234.5": "en",
    "1.234,5": "de",
    "1 234,5": "fr",
    "1 234.5": "xh",
    "1'234.5": "de_CH",
    "12,34,567.8": "en_IN",
}
_LONGEST = 400  # characters of a number that a float can hold
_SIGNS = str.maketrans("'’ʼ`´−﹣－⁄٫٬،⹁，．", "’’’’’---/.,,,,.")  # other scripts' separators, too
_GROUP = "\xa0"  # any space but a plain one, which can part two numbers
_SPACED = r"\d{1,3}(?: \d{3}){1,6}(?!\d)(?:[.,]\d+)?"  # no more: a long list of numbers would take its square in time
_IN_GROUPS = re.compile(rf"{BEFORE} ?{_SPACED}|(?<![\d.,]){_SPACED}(?={AFTER})|^\s*[-+]?{_SPACED}\s*$")
_COMMA_FIRST = rf"(?<![\w.,)]),\d+(?(before)|(?={AFTER}))|(?<![\w.,)\s]),\d+(?=\s*$)"
_DIGITS = rf"(?:(?:\d{{1,3}}(?:[{_GROUP}’]\d{{3}})+(?!\d)|\d+)(?:[.,]\d+)*|(?<![\w.])\.\d+|{_COMMA_FIRST})"
_ONE_SIGN = re.compile(r"(\d{1,3}(?:([.,])\d{3})(?:\2\d{3})*)\2(\d\d)")  # 1.299.00
_LONE_SIGN = re.compile(r"[1-9]\d{0,2}([.,])\d{3}")
_DAY = r"\d{4}(?P<s>[-/.])\d\d?(?P=s)\d\d?|\d\d?(?P<z>[-/.])\d\d?(?P=z)(?:\d{4}|\d\d)"
_DATE = rf"(?<!\d)(?:{_DAY})(?!\d)(?:[T ]\d\d?:[\d:]+)?"
_NUMBER = re.compile(
    rf"(?P<date>{_DATE})|(?P<sign>(?<![\w.)])[-+])?(?P<before>{BEFORE}\s?)?(?P<inner>(?<![\w.)])-)?"
    rf"(?:(?:(?P<whole>\d{{1,9}}) )?(?P<part>\d{{1,9}})/(?P<of>\d{{1,9}})(?![/\d])|"
    rf"(?P<digits>{_DIGITS})(?P<power>[eE][-+]?\d+(?!\w))?)(?P<after>{AFTER})?"
)


def first_number(text: str, convention: str | None = None) -> float | None:
    """The first number of a text, as `find_numbers` reads it, or None."""
    return next(iter(find_numbers(text, convention)), None)


def find_numbers(text: str, convention: str | None = None) -> list[float]:
    """The numbers of a text, in any of CONVENTIONS: "1.299,00 €" is 1299.0, "12,50" 12.5, "3 for 2" 3.0 and 2.0.

    What can be read in two ways goes by `convention`, a key of CONVENTIONS, else as English has it: "1,299" is 1299.0,
    "1.299" is 1.299; but beside a currency, which few write with three decimals, "1.299 €" and "1.299,-" are 1299.0,
    also where fuel is meant, and "1.250 KWD" is 1.25. A plain space parts thousands beside a currency, or where there
    is nothing else: "1 299 €", not "12 128 GB". "1/2", "½" and "1 1/2" are fractions, "12.5%" is 12.5. Dates, versions
    (1.2.3) and what no float can hold are no numbers.
    """
    return [number for found in _matches(text) for number in _values(found, convention)]


def parse_number(text: str) -> float | None:
    """The number that a text is, with or without a currency, as `find_numbers` reads it; None for all else."""
    found = _NUMBER.fullmatch(_normal(text.strip()))
    values = _values(found, None) if found and found["digits"] else []
    return values[0] if len(values) == 1 else None


def readings(text: str) -> dict[str, float]:
    """What a text that is one number is by each of CONVENTIONS that allows it, the likeliest first."""
    found = _NUMBER.fullmatch(_normal(text.strip()))
    if not found or not found["digits"]:
        return {}
    return {name: value for name in _known(found) if (value := _value(found, name)) is not None}


def is_price(text: str) -> bool:
    """Whether a text is one number with a currency, or a mark of prices: "$5", "5,-"."""
    found = _NUMBER.fullmatch(_normal(text.strip()))
    return bool(found and _currency(found))


class SharedConventions:
    """Those of CONVENTIONS by which the first numbers of all texts that it learns can be read."""

    def __init__(self):
        self._names, self._preferred = list(CONVENTIONS), set()

    def learn(self, text: str) -> None:
        """Leaves those by which the first number of the text, if it has one, can be read."""
        if found := next((found for found in _matches(text) if found["digits"]), None):
            known = _known(found)
            self._names = [name for name in self._names if name in known] if known else self._names
            self._preferred.update(filter(None, [_preferred(found)]))

    @property
    def names(self) -> list[str]:
        """The likeliest first. Where nothing but the currencies beside 1.299 and 1,299 could decide: none."""
        both = {"1,234.5", "1.234,5"}
        if self._preferred == both <= set(self._names):
            return []
        return sorted(self._names, key=lambda name: name not in self._preferred)


def shared_conventions(texts: Iterable[str]) -> list[str]:
    """Those of CONVENTIONS by which the first numbers of all texts can be read; texts without one do not count."""
    shared = SharedConventions()
    for text in texts:
        shared.learn(text)
    return shared.names


def _normal(text):
    """The text with ASCII's digits, signs and fractions, and other spaces than plain ones between thousands."""
    text = "".join(map(_normal_character, text.translate(_SIGNS))) if not text.isascii() or "'" in text else text
    return _IN_GROUPS.sub(lambda found: found[0].replace(" ", _GROUP), text)


def _normal_character(character):
    kind = unicodedata.category(character)
    if kind == "Nd":
        return str(unicodedata.decimal(character))
    if kind == "Zs" and character != " ":
        return _GROUP
    if kind == "Cf":  # the direction of Arabic and Hebrew
        return ""
    is_fraction = kind == "No" and "fraction" in unicodedata.decomposition(character)
    return " " + unicodedata.normalize("NFKC", character).replace("⁄", "/") if is_fraction else character


def _matches(text) -> Iterator[re.Match]:
    return (found for found in _NUMBER.finditer(_normal(text)) if not found["date"])


def _values(found, convention):
    """The numbers of a match: one, none, or those of a list without spaces, such as 1,2,3."""
    if found["of"]:
        whole, part, of = (int(found[name] or 0) for name in ("whole", "part", "of"))
        return [_signed(found, whole + part / of)] if of else []
    known = _known(found)
    if not known and "," in found["digits"]:
        return [number for part in found["digits"].split(",") for number in find_numbers(part)]
    name = convention if convention in known else next(iter(known), None)
    value = _value(found, name) if name else None
    return [] if value is None else [value]


def _value(found, name):
    """The number of a match by a convention that allows it; None where it is too large."""
    value = float(f"{_known(found)[name]:f}{found['power'] or ''}")
    return _signed(found, value) if math.isfinite(value) else None


def _known(found):
    """What the digits of a match are by each of CONVENTIONS that allows them, the likeliest first."""
    digits, first = found["digits"], _preferred(found)
    if _currency(found) and (one := _ONE_SIGN.fullmatch(digits)):  # 1.299.00 €
        digits = f"{one[1]}{',' if one[2] == '.' else '.'}{one[3]}"
    known = _read(digits)
    return {first: known[first]} | known if first in known else known


def _preferred(found):
    """The convention by which a price with one point and three digits after it is read: 1.299 €, 1.250 KWD."""
    currency = _currency(found)
    lone = _LONE_SIGN.fullmatch(found["digits"]) if currency else None
    return lone and ("1,234.5" if (lone[1] == ",") != (lone[1] in thousandths_of(currency)) else "1.234,5")


def _currency(found):
    return (found["before"] or "") + (found["after"] or "")


def _signed(found, value):
    return -value if found["sign"] == "-" or found["inner"] else value


@lru_cache(10_000)
def _read(digits: str) -> dict[str, Decimal]:
    """What digits with their separators are by each of CONVENTIONS that allows them."""
    if len(digits) > _LONGEST:
        return {}
    if digits.isdecimal():
        return dict.fromkeys(CONVENTIONS, Decimal(digits))
    found = {}
    for name, locale in CONVENTIONS.items():
        group, point = get_group_symbol(locale), get_decimal_symbol(locale)
        written = digits.replace(_GROUP, group) if group.isspace() else digits
        with suppress(NumberFormatError):
            if {group, point}.issuperset(re.sub(r"\d", "", written)):  # Babel itself lets any point pass
                found[name] = parse_decimal(written, locale, strict=True)
    return found
