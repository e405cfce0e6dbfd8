"""What the doctor found: the rows to train on, and a reason and a remedy for every other row."""

import csv
import itertools
import re
from collections import Counter
from typing import NamedTuple

from datasets import DatasetDict

from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.image_errors import short_path
from vlmhelpers.data.rows import READER_FEATURES, plain_rows, source_column
from vlmhelpers.data.schema import FEATURES

_LINES = 20  # of each kind in the plain text
_ATTRIBUTES = {"Rejected": "rejected", "To look at": "warnings", "Repaired": "repaired"}  # by their titles
_ROWS_PER_CHUNK = 200


class Finding(NamedTuple):
    """Something to say of the row at place `index` of `split`; a reason reads "kind" or "kind: details"."""

    split: str
    index: int
    reason: str
    remedy: str


class Report:
    """The doctor's report. Shows itself as a table and pictures in a notebook, as plain text elsewhere.

    dataset: the kept rows, ready to train on, as a Dataset or DatasetDict like the one that was checked.
    rejected: a dict for each rejected row: `split`, `row` (its number in the source), `index` (its place in
        the checked dataset), `image` (its picture's path), `reason`, `remedy`, `fields` (the source's columns).
    repaired, warnings: dicts of the same form for kept rows; a row can have several.
    counts: `read`, `kept`, `rejected`, `repaired` and `warned` rows, `by_reason` (kind of reason -> rejected
        rows) and `by_split` (split -> read, kept, rejected). Always kept + rejected == read.
    """

    def __init__(self, dataset, rejected, repaired, warnings, counts, splits):
        self.dataset, self.rejected, self.repaired, self.warnings = dataset, rejected, repaired, warnings
        self.counts, self._splits = counts, splits

    def save_rejected(self, path):
        """Writes the rejected rows to a CSV that can be mended and read again: the source's columns, then the
        row's number as `source_row`, its split if it has one as `source_split`, `reason` and `remedy`.

        The file appears whole or not at all. It is UTF-8 with the byte order mark that Excel needs.
        """
        rows = [_to_save(record) for record in self.rejected]
        names = list(dict.fromkeys(name for row in rows for name in row)) or ["reason", "remedy"]
        with atomic_file(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, names, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    def __repr__(self):
        """The counts, then a line with the reason and one with the remedy for each row that needs them."""
        parts = [_text_of(title, records) for title, records in self.sections() if records]
        return "\n".join([self.summary(), *parts])

    def _repr_html_(self):
        from vlmhelpers.data.report_html import to_html  # takes matplotlib along, which only a notebook needs

        return to_html(self)

    def summary(self):
        """The counts as one line."""
        c = self.counts
        line = f"{c['read']} rows read: {c['kept']} kept, {c['rejected']} rejected"
        splits = [f"{name} {n['kept']} of {n['read']}" for name, n in c["by_split"].items() if name]
        line += f" (kept: {', '.join(splits)})" if splits else ""
        return f"{line}; {c['repaired']} repaired, {c['warned']} to look at"

    def sections(self):
        """(title, records) of the three kinds of findings."""
        return [(title, getattr(self, attribute)) for title, attribute in _ATTRIBUTES.items()]

    def rejected_images(self):
        """(record, encoded images) of each rejected row, read from the checked dataset when asked for."""
        for record in self.rejected:
            yield record, plain_rows(self._splits[record["split"]], [record["index"]])[0]["images"]


def make_report(splits, rejected, repaired, warnings):
    """The Report on `splits` from Findings; `rejected` maps (split, index) to one Finding."""
    kept, by_split = {}, {}
    for split, rows in splits.items():
        places = [index for index in range(len(rows)) if (split, index) not in rejected]
        helpers = [name for name in ("problem", "note") if name in rows.column_names]
        kept[split] = rows.select(places).remove_columns(helpers)
        by_split[split] = {"read": len(rows), "kept": len(places), "rejected": len(rows) - len(places)}
    counts = {key: sum(numbers[key] for numbers in by_split.values()) for key in ("read", "kept", "rejected")}
    assert counts["rejected"] == len(rejected) and counts["kept"] + len(rejected) == counts["read"]
    rejected_records = _records(splits, rejected.values())
    repaired, warnings = (
        _records(splits, [finding for finding in findings if finding[:2] not in rejected])
        for findings in (repaired, warnings)
    )
    counts["repaired"], counts["warned"] = _count_rows(repaired), _count_rows(warnings)
    kinds = Counter(re.split("[:;]", record["reason"])[0] for record in rejected_records)
    counts["by_reason"] = dict(kinds.most_common())
    counts["by_split"] = by_split
    dataset = kept[""] if list(kept) == [""] else DatasetDict(kept)
    return Report(dataset, rejected_records, repaired, warnings, counts, splits)


def _count_rows(records):
    return len({(record["split"], record["index"]) for record in records})


def _records(splits, findings):
    """Findings as the dicts of a Report, in the order of the rows."""
    ranks = list(splits)
    findings = sorted(findings, key=lambda finding: (ranks.index(finding.split), finding.index))
    records = []
    for split, group in itertools.groupby(findings, key=lambda finding: finding.split):
        while chunk := list(itertools.islice(group, _ROWS_PER_CHUNK)):
            rows = plain_rows(splits[split], [finding.index for finding in chunk])
            records += [_record(*pair) for pair in zip(chunk, rows, strict=True)]
    return records


def _record(finding, row):
    paths = [image["path"] for image in row["images"] or [] if image and image["path"]]
    return {
        "split": finding.split,
        "row": row.get("row") or finding.index + 1,
        "index": finding.index,
        "image": short_path(paths[0]) if paths else "",
        "reason": finding.reason,
        "remedy": finding.remedy,
        "fields": _source_fields(row, paths),
    }


def _source_fields(row, paths):
    """The columns that the row has from its source; without any, those that read_csv would make it from."""
    ours = {*FEATURES, *READER_FEATURES}
    fields = {name: value for name, value in row.items() if name not in ours}
    if fields:
        return fields
    path = paths[0] if paths else ""
    return {"image_path": path, "instruction": _said(row, "user"), "description": _said(row, "assistant")}


def _said(row, role):
    """The texts of the last turn of `role`, whatever is wrong with the row."""
    turns = [message["content"] for message in row["messages"] or [] if message["role"] == role]
    parts = turns[-1] if turns and isinstance(turns[-1], list) else []
    return "".join(part["text"] or "" for part in parts)


def _to_save(record):
    """A rejected record as a row of the CSV; columns that the reader renamed get their own names again."""
    renamed = {source_column(name): name for name in (*FEATURES, *READER_FEATURES)}
    row = {renamed.get(name, name): value for name, value in record["fields"].items()}
    row["source_row"] = record["row"]
    if record["split"]:
        row["source_split"] = record["split"]
    return row | {"reason": record["reason"], "remedy": record["remedy"]}


def _text_of(title, records):
    """A titled block of lines: the row, its reason and, below it, the remedy."""
    names = [f"{record['split']} row {record['row']}".strip() for record in records[:_LINES]]
    width = max(map(len, names))
    lines = [f"{title}:"]
    for name, record in zip(names, records, strict=False):
        lines.append(f"  {name:<{width}}  {_plain(record['reason'])}{_of_image(record)}")
        if record["remedy"]:
            lines.append(f"  {'':<{width}}  -> {_plain(record['remedy'])}")
    if len(records) > _LINES:
        lines.append(f"  ... and {len(records) - _LINES} more, in report.{_ATTRIBUTES[title]}")
    return "\n".join(lines)


def _of_image(record):
    image = record["image"]
    return f"  [{_plain(image)}]" if image and image not in record["reason"] else ""


def _plain(text):
    """The text without line breaks or control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)
