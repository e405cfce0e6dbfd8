"""A validation report as HTML: the counts, a table of findings with their images, and images of kept rows.

Inline styles, because notebook viewers strip style sheets and scripts. The whole stays under 60 kB, so that a notebook
that is committed with it stays small.
"""

from collections.abc import Iterable, Iterator

from markupsafe import Markup, escape

from vlmhelpers.common.display import html_table, thumbnail
from vlmhelpers.common.images import UnusableImage, open_image
from vlmhelpers.data.rows import plain_rows

_TABLE_BYTES, _KEPT_BYTES = 34_000, 18_000
_KEPT, _PER_LINE = 12, 6  # images
_COLORS = {"Rejected": "#d9534f", "To look at": "#f0ad4e", "Repaired": "#5b9bd5", "Kept": "#5cb85c"}
_NO_IMAGE = Markup('<span style="display:inline-block;width:72px;height:72px;background:#8884">&nbsp;</span>')


def report_html(report) -> Markup:
    """A whole Report as one piece of HTML; all that comes from the user's data is escaped."""
    found = [(title, record) for title, _, records in report.sections() for record in records]
    rows = list(_within(_TABLE_BYTES, (_finding(report, title, record) for title, record in found)))
    table = html_table(["", "row", "image", "reason", "remedy"], rows) if found else ""
    more = f"... and {len(found) - len(rows)} more: report.rejected, report.warnings, report.repaired"
    kept = [cell for (cell,) in _within(_KEPT_BYTES, ([cell] for cell in _kept_images(report)))]
    lines = [kept[i : i + _PER_LINE] for i in range(0, len(kept), _PER_LINE)]
    parts = (
        Markup("<p><b>{}</b></p>").format(report.summary()),
        table,
        Markup("<p>{}</p>").format(more) if len(rows) < len(found) else "",
        Markup("<p>{}</p>{}").format(_title("Kept"), html_table([], lines)) if kept else "",
    )
    return Markup("<div>{}{}{}{}</div>").format(*parts)


def _finding(report, title, record):
    """The cells of a line of the table."""
    images = plain_rows(report.splits[record["split"]], [record["index"]])[0]["images"]
    texts = [_short(record["reason"]), _short(record["remedy"])]
    return [_title(title), _row_name(record["split"], record), _captioned(images, record["image"]), *texts]


def _kept_images(report):
    """A cell for each of the first kept rows with an image, the same number from each split."""
    splits = report.dataset if isinstance(report.dataset, dict) else {"": report.dataset}
    for split, rows in splits.items():
        for index, row in enumerate(plain_rows(rows, range(min(len(rows), _KEPT // len(splits) or 1)))):
            if row["images"]:
                yield _captioned(row["images"], _row_name(split, {"row": row.get("row") or index + 1}))


def _captioned(images, caption):
    """The first image over its caption; one that cannot be shown is a gray field."""
    try:
        image = thumbnail(open_image(images[0]))
    except (UnusableImage, IndexError, TypeError):  # no image at all, or None
        image = _NO_IMAGE
    return Markup("{}<br>{}").format(image, _short(caption))


def _title(title):
    return Markup('<b style="white-space:nowrap;color:{}">{}</b>').format(_COLORS[title], title)


def _row_name(split, row):
    return f"{split} row {row['row']}".strip()


def _short(text):
    return text if len(text) <= 160 else f"{text[:160]}..."


def _within(budget: int, rows: Iterable[list]) -> Iterator[list]:
    """The first rows of cells, as many as take up `budget` bytes of HTML."""
    for row in rows:
        budget -= sum(len(escape(cell).encode()) + 100 for cell in row)  # 100 for the cell's style
        if budget < 0:
            return
        yield row
