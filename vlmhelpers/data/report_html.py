"""The doctor's report as HTML: the counts, a table of findings, a contact sheet of kept and rejected rows.

Plain tables and inline styles, because notebook viewers strip style sheets and scripts. All that comes from
the user's data is escaped, and the whole stays under 60 kB, so that a notebook which is committed with it
stays small.
"""

import html

from vlmhelpers.common.display import thumbnail
from vlmhelpers.common.image_errors import UnusableImage
from vlmhelpers.common.images import open_image
from vlmhelpers.data.rows import plain_rows

_PICTURES = 12  # of each kind on the contact sheet
_PER_LINE = 6
_SHEET_BYTES, _TABLE_BYTES = 18_000, 16_000  # budgets: of each half of the sheet, and of the table
_COLORS = {"Rejected": "#d9534f", "To look at": "#f0ad4e", "Repaired": "#5b9bd5", "Kept": "#5cb85c"}


def to_html(report):
    """The whole report as one piece of HTML."""
    kept = ((_caption(split, row), row["images"]) for split, row in _some_kept(report))
    rejected = ((_caption(r["split"], r) + f": {r['reason']}", images) for r, images in report.rejected_images())
    return (
        f"<div><p><b>{html.escape(report.summary())}</b></p>{_table(report)}"
        f"{_sheet('Kept', kept)}{_sheet('Rejected', rejected)}</div>"
    )


def _table(report):
    found = [(title, record) for title, records in report.sections() for record in records]
    lines, left = [], _TABLE_BYTES
    for title, record in found:
        line = _line(title, record)
        left -= len(line.encode())
        if left < 0:
            break
        lines.append(line)
    hidden = len(found) - len(lines)
    more = f"<p>... and {hidden} more: report.rejected, report.warnings, report.repaired</p>" if hidden else ""
    heads = "".join(f"<th {_cell_style()}>{head}</th>" for head in ("", "row", "picture", "reason", "remedy"))
    return f"<table><tr>{heads}</tr>{''.join(lines)}</table>{more}" if found else ""


def _line(title, record):
    texts = (record["image"], record["reason"], record["remedy"])
    cells = "".join(f"<td {_cell_style()}>{_short(text, 160)}</td>" for text in texts)
    whole = 'style="text-align:left;vertical-align:top;white-space:nowrap'
    row = f'<td {whole}">{_short(_caption(record["split"], record), 40)}</td>'
    return f'<tr><td {whole};color:{_COLORS[title]}"><b>{title}</b></td>{row}{cells}</tr>'


def _cell_style():
    return 'style="text-align:left;vertical-align:top;overflow-wrap:anywhere"'


def _caption(split, row):
    return f"{split} row {row['row']}".strip()


def _short(text, length):
    return html.escape(text if len(text) <= length else f"{text[:length]}...")


def _some_kept(report):
    """(split, row) of the first few kept rows with a picture, the same number from each split."""
    kept = report.dataset if isinstance(report.dataset, dict) else {"": report.dataset}
    for split, rows in kept.items():
        for index, row in enumerate(plain_rows(rows, range(min(len(rows), _PICTURES // len(kept) or 1)))):
            if row["images"]:
                yield split, {"row": row.get("row") or index + 1, "images": row["images"]}


def _sheet(title, pictures):
    """A table of pictures, each over its caption; one that cannot be shown is a grey field."""
    cells, left = [], _SHEET_BYTES
    for caption, images in pictures:
        style = "text-align:center;vertical-align:top;width:8em"
        cell = f'<td style="{style}">{_picture(images)}<br>{_short(caption, 70)}</td>'
        left -= len(cell.encode())
        if left < 0 or len(cells) == _PICTURES:
            break
        cells.append(cell)
    lines = (cells[i : i + _PER_LINE] for i in range(0, len(cells), _PER_LINE))
    rows = "".join(f"<tr>{''.join(line)}</tr>" for line in lines)
    return (
        f'<p><b style="white-space:nowrap;color:{_COLORS[title]}">{title}</b></p><table>{rows}</table>' if cells else ""
    )


def _picture(images):
    try:
        return thumbnail(open_image(images[0]))
    except (UnusableImage, IndexError, TypeError):  # no picture at all, or None
        return '<span style="display:inline-block;width:72px;height:72px;background:#8884">&nbsp;</span>'
