"""The data set of another program's file: where it lies, and whether the readers here take it as it is."""

from pathlib import Path
from typing import NamedTuple

from vlmhelpers.training.methods.catalog import METHODS

_FIELDS = ("text_field", "image_field", "response_field")
_KNOWN = {  # what the readers look for where no setting names a field
    "text_field": ("messages", "conversations", "instruction", "prompt", "text"),
    "image_field": ("image", "images"),
    "response_field": ("output", "response"),
}


class Source(NamedTuple):
    """A file of rows. fields: its names of fields, by setting, where it has other ones. odd: what no reader knows."""

    file: Path
    fields: dict[str, str]
    odd: list[str]


def find_file(settings: Path, path: Path) -> Path | None:
    """The absolute path of a relative one, from the working directory or from a folder at or above `settings`."""
    starts = [Path.cwd(), *settings.absolute().parents]
    return next((found for start in starts if (found := start / path).exists()), None)


def imported_rows(source: Source, method: str, root: Path | None, found: dict[str, object]) -> dict[str, object]:
    """`found` with `dataset`, `image_root` and the names of fields; what is to be done with the file, in "unmapped"."""
    file = source.file.absolute()
    found = found | {"dataset": str(file)}
    if root is not None and root.absolute() != file.parent:
        found["image_root"] = str(root.absolute())
    found |= {name: field for name, field in source.fields.items() if name in _FIELDS and field not in _KNOWN[name]}
    if why := _unread(source, file, method):
        found["unmapped"] = found.get("unmapped", {}) | {"dataset": why}
    return found


def _unread(source, file, method):
    """What keeps the readers here from taking the file as it is, or None."""
    if source.odd:
        odd = ", ".join(source.odd)
        return f"{file.name} has {odd}, which no reader here knows: write it anew, as JSONL of messages"
    if not file.is_file():
        return f"there is no file {file}: put it there, or name another one as dataset"
    from vlmhelpers.data.readers.recognition import recognize

    try:
        kind = recognize(file).kind
    except (OSError, ValueError) as error:
        return f"it cannot be read here: {error}"
    wanted = METHODS[method].rows
    if kind != wanted:
        return f"{file.name} holds {kind}, as the readers here see it, and {method} takes {wanted}: see vlmhelpers.data"
    return None
