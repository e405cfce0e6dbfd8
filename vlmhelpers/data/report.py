"""The validation report: rows to train on, a reason and a remedy for every other row; and rows beside answers."""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from datasets import Dataset, DatasetDict
from markupsafe import Markup, escape

from vlmhelpers.common.display import Html, html_table, thumbnail
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.images import UnusableImage, open_image, short_path
from vlmhelpers.common.printable import one_line, printable, shortened
from vlmhelpers.data.given import given_rows, row_indices, texts_of_rows
from vlmhelpers.data.notes import notes_on
from vlmhelpers.data.rows import (
    ENCODED_ROWS_PER_BATCH,
    is_read,
    plain_rows,
    source_column,
    taken_columns,
    unused_fields,
)
from vlmhelpers.data.rules import row_number
from vlmhelpers.data.schema import all_images, conversations, kind_of, last_question
from vlmhelpers.data.spreadsheets import REASON, REMEDY, SOURCE_ROW, text_cell

_LINES = 20  # of each kind in plain text
_TABLE_BYTES, _KEPT_BYTES = 34_000, 18_000  # of HTML: a notebook with a report stays small
_KEPT, _PER_LINE = 12, 6  # images
_COLORS = {"Rejected": "#d9534f", "To look at": "#f0ad4e", "Repaired": "#5b9bd5", "Kept": "#5cb85c"}
_NO_IMAGE = Markup('<span style="display:inline-block;width:72px;height:72px;background:#8884">&nbsp;</span>')
_DIFFERENT = Markup('<span style="background:#d9534f33">{}</span>')


def show_rows(dataset: Dataset, rows: Iterable[int], **answers: Sequence[str]) -> Html:
    """Rows (indices from 0) as a table of images, prompt, expected answer, and a column for each list in `answers`.

    Pairs have the columns chosen and rejected, rated rows completion and label, prompts answer. Each list holds a
    string for each row of the dataset (which may also be a list of rows), or for the first of them. A cell that differs
    from the expected answer, the first one, is marked. Of a range or slice those rows are shown that there are;
    ValueError for any other index.
    """
    dataset, lines, table, names = given_rows(dataset, None), [], [], []
    indices = row_indices(rows, len(dataset))
    answers = {name: texts_of_rows(texts, indices, dataset, f"answers of {name!r}") for name, texts in answers.items()}
    for index in indices:
        row = dataset[index]
        prompt, shown = last_question(next(iter(conversations(row).values()))), _answers(row)
        expected, *_ = shown.values()
        given = {name: texts[index] for name, texts in answers.items()}
        cells = [text if text == expected else _DIFFERENT.format(text) for text in given.values()]
        table.append([Markup("").join(map(thumbnail, all_images(row))), prompt, *shown.values(), *cells])
        lines += [f"{index}: {prompt}", *(f"   {name}: {text}" for name, text in (shown | given).items())]
        names = list(shown)
    return Html(html_table(["", "prompt", *names, *answers], table), "\n".join(lines))


def _answers(row):
    """The texts of a row's answers by their columns in a table."""
    texts = {side: _last_text(messages, "assistant") for side, messages in conversations(row).items()}
    columns = {"messages": "expected", "prompt": "answer"}
    shown = {columns.get(side, side): text for side, text in texts.items()}
    return shown | ({"label": str(row["label"]).lower()} if kind_of(row) == "rated" else {})


class Finding(NamedTuple):
    """Something about the row of index `index` in `split`; a reason reads "kind" or "kind: details"."""

    split: str
    index: int
    reason: str
    remedy: str
    drawn: bool = True  # whether its first image can be: one that was refused may cost this process too much


class Report:
    """What `check_dataset` found. Shows itself as tables with images in a notebook, as text elsewhere.

    splits: the checked rows as Datasets by name; a single Dataset has the name "".
    dataset: the kept rows, as a Dataset or DatasetDict like the one that was checked.
    rejected: a dict for each rejected row: `split`, `row` (its number in the source), `index` (in the checked
        dataset), `image` (its path), `reason`, `remedy`, `fields` (the source's columns).
    repaired, warnings: the same for kept rows; a row can have several.
    families: sentences on the families of models that do not take all kept rows as they are, where none was named.
    notes: sentences on the kept pairs, rated rows or prompts as a whole, such as labels that are all the same.
    quality: sentences on what images and questions are like, beside the usual advice.
    unused: the names of the source's fields that its reader did not use.
    counts: `read`, `kept`, `rejected`, `repaired` and `warned` rows, `by_reason` (kind -> rejected rows) and
        `by_split` (split -> read, kept, rejected). Always kept + rejected == read.
    """

    def __init__(
        self,
        splits: dict[str, Dataset],
        rejected: dict[tuple[str, int], Finding],
        repaired: Iterable[Finding] = (),
        warnings: Iterable[Finding] = (),
        quality: Iterable[str] = (),
    ):
        self.splits = splits
        self._undrawn = {place for place, finding in rejected.items() if not finding.drawn}
        self.rejected = _records(splits, rejected.values())
        self.repaired, self.warnings = (
            _records(splits, [finding for finding in findings if finding[:2] not in rejected])
            for findings in (repaired, warnings)
        )
        kept = {}
        for name, rows in splits.items():
            left_out = [index for split, index in rejected if split == name]
            sound = rows.select(np.delete(np.arange(len(rows)), left_out) if left_out else range(len(rows)))
            kept[name] = sound.remove_columns(["problem", "note"] if is_read(rows) else [])
        self.dataset = kept[""] if list(kept) == [""] else DatasetDict(kept)
        self.notes, self.quality, self.families = notes_on(kept.values()), list(quality), []
        self.unused = sorted({name for rows in splits.values() for name in unused_fields(rows)})
        read = {name: (len(rows), len(kept[name])) for name, rows in splits.items()}
        by_split = {name: {"read": n, "kept": k, "rejected": n - k} for name, (n, k) in read.items()}
        self.counts = {key: sum(n[key] for n in by_split.values()) for key in ("read", "kept", "rejected")}
        assert self.counts["rejected"] == len(self.rejected)
        for key, records in (("repaired", self.repaired), ("warned", self.warnings)):
            self.counts[key] = len({(record["split"], record["index"]) for record in records})
        kinds = Counter(re.split("[:;]", record["reason"])[0] for record in self.rejected)
        self.counts |= {"by_reason": dict(kinds.most_common()), "by_split": by_split}

    def save_rejected(self, path: str | os.PathLike) -> None:
        """Writes the rejected rows to a CSV that can be mended and read again, atomically, in UTF-8 with the byte
        order mark that Excel needs: the source's columns, `source_row`, `source_split`, `reason` and `remedy`.

        A cell that a spreadsheet would take for a formula has an apostrophe before it, which read_csv takes off again.
        """
        rows = []
        for record in self.rejected:
            kind = kind_of(self.splits[record["split"]].column_names)
            renamed = {source_column(name, kind): name for name in taken_columns(kind)}
            fields = {renamed.get(name, name): value for name, value in record["fields"].items()}
            split = {"source_split": record["split"]} if record["split"] else {}
            row = fields | {SOURCE_ROW: record["row"]} | split
            row |= {REASON: record["reason"], REMEDY: record["remedy"]}
            rows.append({text_cell(name): text_cell(value) for name, value in row.items()})
        names = list(dict.fromkeys(name for row in rows for name in row)) or [REASON, REMEDY]
        with atomic_file(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, names, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    def __repr__(self):
        sections = (_text_of(*section) for section in self._sections())
        return "\n".join([one_line(self._summary()), *self._sentences(), *sections])

    def _repr_html_(self):
        found = [(title, record) for title, _, records in self._sections() for record in records]
        rows = list(_within(_TABLE_BYTES, (self._cells(title, record) for title, record in found)))
        more = f"... and {len(found) - len(rows)} more: report.rejected, report.warnings, report.repaired"
        kept = [cell for (cell,) in _within(_KEPT_BYTES, ([cell] for cell in self._kept_images()))]
        lines = [kept[i : i + _PER_LINE] for i in range(0, len(kept), _PER_LINE)]
        page = Markup("<div><p><b>{}</b></p>{}{}{}{}</div>").format(
            self._summary(),
            Markup("").join(map(Markup("<p>{}</p>").format, self._sentences())),
            html_table(["", "row", "image", "reason", "remedy"], rows) if found else "",
            Markup("<p>{}</p>").format(more) if len(rows) < len(found) else "",
            Markup("<p>{}</p>{}").format(_title("Kept"), html_table([], lines)) if kept else "",
        )
        return printable(page)

    def _summary(self):
        c = self.counts
        line = f"{c['read']} rows read: {c['kept']} kept, {c['rejected']} rejected"
        splits = [f"{name} {n['kept']} of {n['read']}" for name, n in c["by_split"].items() if name]
        line += f" (kept: {', '.join(splits)})" if splits else ""
        return f"{line}; {c['repaired']} repaired, {c['warned']} to look at"

    def _sentences(self):
        unused = [f"Fields that are not used: {shortened(', '.join(self.unused), 1000)}."] if self.unused else []
        return [*self.families, *self.notes, *self.quality, *map(one_line, unused)]

    def _sections(self):
        titles = {"Rejected": "rejected", "To look at": "warnings", "Repaired": "repaired"}
        found = [(title, name, getattr(self, name)) for title, name in titles.items()]
        return [section for section in found if section[2]]

    def _cells(self, title, record):
        place = record["split"], record["index"]
        images = [] if place in self._undrawn else all_images(plain_rows(self.splits[place[0]], [place[1]])[0])
        texts = [_short(record["reason"]), _short(record["remedy"])]
        return [_title(title), _row_name(**record), _captioned(images, record["image"]), *texts]

    def _kept_images(self):
        """A cell for each of the first kept rows with an image, the same number from each split."""
        splits = self.dataset if isinstance(self.dataset, dict) else {"": self.dataset}
        for split, rows in splits.items():
            for index, row in enumerate(plain_rows(rows, range(min(len(rows), _KEPT // len(splits) or 1)))):
                if row["images"]:
                    yield _captioned(row["images"], _row_name(split, row_number(row, index)))


def rejected_lines(records: list[dict], source: str | os.PathLike) -> list[str]:
    """The first records of `Report.rejected`, a printable line each, and how many more there are."""
    return _first_lines([f"{source}, row {r['row']}: {r['reason']} -> {r['remedy']}" for r in records])


def repaired_lines(records: list[dict], source: str | os.PathLike) -> list[str]:
    """The same of `Report.repaired`, where what is said of several rows is a line with the first of them."""
    rows = {}
    for record in records:
        rows.setdefault(record["reason"], []).append(record["row"])
    more = {reason: f" and {len(found) - 1} more" * (len(found) > 1) for reason, found in rows.items()}
    return _first_lines([f"{source}, row {found[0]}{more[reason]}: {reason}" for reason, found in rows.items()])


def _first_lines(lines):
    return [*map(one_line, lines[:_LINES]), *([f"... and {len(lines) - _LINES} more"] if len(lines) > _LINES else [])]


def _records(splits, findings):
    records = []
    for split, rows in splits.items():
        found = sorted((finding for finding in findings if finding.split == split), key=lambda finding: finding.index)
        for start in range(0, len(found), ENCODED_ROWS_PER_BATCH):
            chunk = found[start : start + ENCODED_ROWS_PER_BATCH]
            records += map(_record, chunk, plain_rows(rows, [finding.index for finding in chunk]))
    return records


def _record(finding, row):
    paths = [image["path"] for image in all_images(row) if image and image["path"]]
    image, fields = short_path(paths[0]) if paths else "", _source_fields(row, paths)
    split, index, reason, remedy, _ = finding
    found = {"split": split, "row": row_number(row, index), "index": index, "image": image}
    return found | {"reason": reason, "remedy": remedy, "fields": fields}


def _source_fields(row, paths):
    """The columns that the row has from its source; without any, those that a reader of CSV would make it from."""
    taken = taken_columns(kind_of(row))
    if fields := {name: value for name, value in row.items() if name not in taken}:
        return fields
    image = {"image_path": "".join(paths[:1])}
    question, answers = _last_text(next(iter(conversations(row).values())), "user"), _answers(row)
    if "expected" in answers:
        return image | {"instruction": question, "description": answers["expected"]}
    return image | {"question": question} | answers


def _last_text(messages, role):
    turns = [message["content"] or [] for message in messages if message and message["role"] == role]
    return "".join(part["text"] or "" for part in turns[-1] if part) if turns else ""


def _text_of(title, attribute, records):
    names = [one_line(_row_name(**record)) for record in records[:_LINES]]
    width = max(map(len, names))
    lines = []
    for name, record in zip(names, records, strict=False):
        image = f"  [{one_line(record['image'])}]" if record["image"] not in record["reason"] else ""
        lines.append(f"  {name:<{width}}  {one_line(record['reason'])}{image}")
        if record["remedy"]:
            lines.append(f"  {'':<{width}}  -> {one_line(record['remedy'])}")
    if len(records) > _LINES:
        lines.append(f"  ... and {len(records) - _LINES} more, in report.{attribute}")
    return "\n".join([f"{title}:", *lines])


def _captioned(images, caption):
    """The first image over its caption; one that cannot be shown is a gray field."""
    try:
        image = thumbnail(open_image(images[0]))
    except (UnusableImage, IndexError, TypeError):  # no image at all, or None
        image = _NO_IMAGE
    return Markup("{}<br>{}").format(image, _short(caption))


def _title(title):
    return Markup('<b style="white-space:nowrap;color:{}">{}</b>').format(_COLORS[title], title)


def _row_name(split, row, **_):
    return f"{split} row {row}".strip()


def _short(text):
    return text if len(text) <= 160 else f"{text[:160]}..."


def _within(budget: int, rows: Iterable[list]) -> Iterator[list]:
    """The first rows of cells, as many as take up `budget` bytes of HTML."""
    for row in rows:
        budget -= sum(len(printable(escape(cell)).encode()) + 100 for cell in row)  # 100 for the cell's style
        if budget < 0:
            return
        yield row
