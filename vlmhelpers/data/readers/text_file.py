"""What holds for every text file that a reader takes: refused early when it is no text, its names explained."""

from difflib import get_close_matches

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
_NOT_TEXT = [
    (b"\xff\xfe", "UTF-16 text"),
    (b"\xfe\xff", "UTF-16 text"),
    (b"PK\x03\x04", "an Excel workbook or a zip archive"),
    (b"\x1f\x8b", "a gzip archive"),
]


def check_encoding(path, remedy, expected):
    """Raises ValueError where `path` is plainly no UTF-8 text, or empty; judged by its first 4,096 bytes.

    `remedy` is a sentence for the first case, `expected`, of what should be in the file, for the second.
    """
    with open(path, "rb") as file:
        head = file.read(4096)
        blank = not head.removeprefix(BYTE_ORDER_MARK).strip() and not any(line.strip() for line in file)
    found = next((what for mark, what in _NOT_TEXT if head.startswith(mark)), None)
    if found is None and b"\0" in head.split(b"\n")[0]:
        found = "UTF-16 text or a binary file"
    if found:
        raise ValueError(f"{path} is {found}, not UTF-8 text. {remedy}")
    if blank:
        raise ValueError(f"{path} is empty. {expected}")


def explain_missing(path, what, fields, there, reader):
    """The text of an error: which of the wanted names are missing, and what to pass to the reader instead.

    `what` is "column" or "field", `fields` maps the reader's arguments to the wanted names, `there` are the
    names in the file.
    """
    missing = {argument: name for argument, name in fields.items() if name not in there}
    free = [name for name in there if name not in fields.values()]
    advice = [f"{argument}={_closest(name, argument, free)!r}" for argument, name in missing.items()]
    return (
        f"{path} has no {what} {f' and no {what} '.join(map(repr, missing.values()))}. Its {what}s: "
        f"{', '.join(there)}. Name the right ones, for example {reader}(..., {', '.join(advice)})."
    )


def _closest(name, argument, names):
    """Of `names` the one most like `name`, else most like the argument's own name (image, text or response)."""
    lower = {candidate.lower(): candidate for candidate in names}
    for wanted in (name.lower(), argument.removesuffix("_field")):
        if found := get_close_matches(wanted, lower, n=1, cutoff=0.6):
            return lower[found[0]]
    return "..."
