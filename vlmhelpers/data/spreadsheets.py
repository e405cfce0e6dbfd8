"""CSV cells that a spreadsheet program opens as text, never as a formula, whatever the data say.

Source: OWASP, CSV Injection. The apostrophe is the spreadsheets' own mark for text.
"""

import re

# The columns of `Report.save_rejected`, by which its files are known when they are read again.
SOURCE_ROW, REASON, REMEDY = "source_row", "reason", "remedy"
_FORMULA = re.compile(r"'*[=+\-@＝＋－＠\t\r\n]")  # after apostrophes of the data's own, so that none gets lost
_NUMBER = re.compile(r"[-+]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][-+]?[0-9]+)?")


def text_cell(value: object) -> str:
    """The cell for a value: its text, behind an apostrophe where that could be a formula; None is empty."""
    text = "" if value is None else str(value)
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def cell_text(cell: str) -> str:
    """The text that `text_cell` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell
