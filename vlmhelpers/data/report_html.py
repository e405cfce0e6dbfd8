"""A validation report as HTML: the counts, a table of findings, and images of kept and rejected rows.

Inline styles, because notebook viewers strip style sheets and scripts. The whole stays under 60 kB, so that a notebook
that is committed with it stays small.
"""

from collections.abc import Iterable, Iterator
from itertools import islice

from markupsafe import Markup, escape

from vlmhelpers.common.display import html_table, thumbnail
from vlmhelpers.common.image_errors import UnusableImage
from vlmhelpers.common.images import open_image
from vlmhelpers.data.report import Report
from vlmhelpers.data.rows import plain_rows

_IMAGES = 12  # of each kind
_PER_LINE = 6
_IMAGES_BYTES, _TABLE_BYTES = 18_000, 16_000  # budgets: of the kept or the rejected images, and of the table
_COLORS = {"Rejected": "#d9534f", "To look at": "#f0ad4e", "Repaired": "#5b9bd5", "Kept": "#5cb85c"}
_NO_IMAGE = Markup('<span style="display:inline-block;width:72px;height:72px;background:#8884">&nbsp;</span>')


def report_html(report: Report) -> Markup:
    """The whole report as one piece of HTML; all that comes from the user's data is escaped."""
    kept = ((_row_name(split, row), row["images"]) for split, row in _some_kept(report))
    rejected = ((f"{_row_name(r['split'], r)}: {r['reason']}", images) for r, images in report.rejected_images())
    parts = _findings(report), _images("Kept", kept), _images("Rejected", rejected)
    return Markup("<div><p><b>{}</b></p>{}{}{}</div>").format(report.summary(), *parts)


def _findings(report):
    found = [(title, record) for title, _, records in report.sections() for record in records]
    rows = list(_within(_TABLE_BYTES, (_cells(title, record) for title, record in found)))
    more = Markup("<p>... and {} more: report.rejected, report.warnings, report.repaired</p>").format
    table = html_table(["", "row", "image", "reason", "remedy"], rows) if found else Markup()
    return table + (more(len(found) - len(rows)) if len(rows) < len(found) else "")


def _cells(title, record):
    name = _row_name(record["split"], record)
    return [_title(title), *(_short(text) for text in (name, record["image"], record["reason"], record["remedy"]))]


def _title(title):
    return Markup('<b style="white-space:nowrap;color:{}">{}</b>').format(_COLORS[title], title)


def _row_name(split, row):
    return f"{split} row {row['row']}".strip()


def _short(text, length=160):
    return text if len(text) <= length else f"{text[:length]}..."


def _within(budget: int, rows: Iterable[list]) -> Iterator[list]:
    """The first rows of cells, as many as take up `budget` bytes of HTML."""
    for row in rows:
        budget -= sum(len(escape(cell).encode()) + 100 for cell in row)  # 100 for the cell's style
        if budget < 0:
            return
        yield row


def _some_kept(report):
    """(split, row) of the first few kept rows with an image, the same number from each split."""
    kept = report.dataset if isinstance(report.dataset, dict) else {"": report.dataset}
    for split, rows in kept.items():
        for index, row in enumerate(plain_rows(rows, range(min(len(rows), _IMAGES // len(kept) or 1)))):
            if row["images"]:
                yield split, {"row": row.get("row") or index + 1, "images": row["images"]}


def _images(title, captioned):
    """A table of images, each over its caption; one that cannot be shown is a gray field."""
    cells = ([_thumbnail(images) + Markup("<br>") + _short(caption, 70)] for caption, images in captioned)
    cells = [cell for (cell,) in _within(_IMAGES_BYTES, islice(cells, _IMAGES))]
    lines = [cells[i : i + _PER_LINE] for i in range(0, len(cells), _PER_LINE)]
    style = "text-align:center;vertical-align:top;width:8em"
    return Markup("<p>{}</p>{}").format(_title(title), html_table([], lines, style)) if cells else Markup()


def _thumbnail(images):
    try:
        return thumbnail(open_image(images[0]))
    except (UnusableImage, IndexError, TypeError):  # no image at all, or None
        return _NO_IMAGE
