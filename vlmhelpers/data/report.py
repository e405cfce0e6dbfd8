"""The validation report: the rows to train on, and a reason and a remedy for every other row."""

import csv
import os
import re
from collections import Counter
from collections.abc import Iterable
from typing import NamedTuple

from datasets import Dataset, DatasetDict

from vlmhelpers.common.display import printable
from vlmhelpers.common.files import atomic_file
from vlmhelpers.common.images import short_path
from vlmhelpers.data.rows import READER_FEATURES, plain_rows, source_column
from vlmhelpers.data.schema import FEATURES

_LINES = 20  # of each kind in plain text
_ROWS_PER_CHUNK = 200


class Finding(NamedTuple):
    """Something about the row of index `index` in `split`; a reason reads "kind" or "kind: details"."""

    split: str
    index: int
    reason: str
    remedy: str


class Report:
    """What `check_dataset` found. Shows itself as tables of findings and images in a notebook, as text elsewhere.

    splits: the checked rows as Datasets by name; a single Dataset has the name "".
    dataset: the kept rows, ready to train on, as a Dataset or DatasetDict like the one that was checked.
    rejected: a dict for each rejected row: `split`, `row` (its number in the source), `index` (in the checked
        dataset), `image` (its image's path), `reason`, `remedy`, `fields` (the source's columns).
    repaired, warnings: dicts of the same form for kept rows; a row can have several.
    counts: `read`, `kept`, `rejected`, `repaired` and `warned` rows, `by_reason` (kind of reason -> rejected
        rows) and `by_split` (split -> read, kept, rejected). Always kept + rejected == read.
    """

    def __init__(
        self,
        splits: dict[str, Dataset],
        rejected: dict[tuple[str, int], Finding],
        repaired: Iterable[Finding] = (),
        warnings: Iterable[Finding] = (),
    ):
        """`rejected` has one Finding by (split, index)."""
        self.splits = splits
        self.rejected = _records(splits, rejected.values())
        self.repaired, self.warnings = (
            _records(splits, [finding for finding in findings if finding[:2] not in rejected])
            for findings in (repaired, warnings)
        )
        kept = {name: _kept_rows(name, rows, rejected) for name, rows in splits.items()}
        self.dataset = kept[""] if list(kept) == [""] else DatasetDict(kept)
        self.counts = self._count(kept)

    def _count(self, kept):
        by_split = {
            name: {"read": len(rows), "kept": len(kept[name]), "rejected": len(rows) - len(kept[name])}
            for name, rows in self.splits.items()
        }
        counts = {key: sum(of_split[key] for of_split in by_split.values()) for key in ("read", "kept", "rejected")}
        assert counts["rejected"] == len(self.rejected)
        for key, records in (("repaired", self.repaired), ("warned", self.warnings)):
            counts[key] = len({(record["split"], record["index"]) for record in records})
        kinds = Counter(re.split("[:;]", record["reason"])[0] for record in self.rejected)
        return counts | {"by_reason": dict(kinds.most_common()), "by_split": by_split}

    def save_rejected(self, path: str | os.PathLike) -> None:
        """Writes the rejected rows to a CSV that can be mended and read again: the source's columns, then the
        row's number as `source_row`, its split if it has one as `source_split`, `reason` and `remedy`.

        An atomic write, in UTF-8 with the byte order mark that Excel needs.
        """
        rows = [_to_save(record) for record in self.rejected]
        names = list(dict.fromkeys(name for row in rows for name in row)) or ["reason", "remedy"]
        with atomic_file(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, names, restval="", lineterminator="\n")
            table.writeheader()
            table.writerows(rows)

    def __repr__(self):
        """The counts, then a line with the reason and one with the remedy for each row that needs them."""
        return "\n".join([self.summary(), *(_text_of(*section) for section in self.sections())])

    def _repr_html_(self):
        from vlmhelpers.data.report_html import report_html

        return report_html(self)

    def summary(self) -> str:
        """The counts as one line."""
        c = self.counts
        line = f"{c['read']} rows read: {c['kept']} kept, {c['rejected']} rejected"
        splits = [f"{name} {n['kept']} of {n['read']}" for name, n in c["by_split"].items() if name]
        line += f" (kept: {', '.join(splits)})" if splits else ""
        return f"{line}; {c['repaired']} repaired, {c['warned']} to look at"

    def sections(self) -> list[tuple[str, str, list[dict]]]:
        """(title, attribute, records) of the kinds of findings that there are."""
        titles = {"Rejected": "rejected", "To look at": "warnings", "Repaired": "repaired"}
        found = [(title, name, getattr(self, name)) for title, name in titles.items()]
        return [section for section in found if section[2]]


def rejected_lines(records: list[dict], source: str | os.PathLike) -> list[str]:
    """The first records of `Report.rejected`, a printable line each, and how many more there are."""
    lines = [
        printable(f"{source}, row {record['row']}: {record['reason']} -> {record['remedy']}")
        for record in records[:_LINES]
    ]
    return [*lines, f"... and {len(records) - _LINES} more"] if len(records) > _LINES else lines


def _kept_rows(split, rows, rejected):
    indices = [index for index in range(len(rows)) if (split, index) not in rejected]
    return rows.select(indices).remove_columns([name for name in ("problem", "note") if name in rows.column_names])


def _records(splits, findings):
    """Findings as the dicts of a Report, in the order of the rows."""
    records = []
    for split, rows in splits.items():
        found = sorted((finding for finding in findings if finding.split == split), key=lambda finding: finding.index)
        for start in range(0, len(found), _ROWS_PER_CHUNK):
            chunk = found[start : start + _ROWS_PER_CHUNK]
            records += map(_record, chunk, plain_rows(rows, [finding.index for finding in chunk]))
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
    question, answer = (_last_text(row, role) for role in ("user", "assistant"))
    return fields or {"image_path": "".join(paths[:1]), "instruction": question, "description": answer}


def _last_text(row, role):
    """The texts of the last turn of `role`, whatever is wrong with the row."""
    turns = [message["content"] or [] for message in row["messages"] or [] if message["role"] == role]
    return "".join(part["text"] or "" for part in turns[-1]) if turns else ""


def _to_save(record):
    """A rejected record as a row of the CSV; columns that the reader renamed get their own names again."""
    renamed = {source_column(name): name for name in (*FEATURES, *READER_FEATURES)}
    row = {renamed.get(name, name): value for name, value in record["fields"].items()}
    split = {"source_split": record["split"]} if record["split"] else {}
    return row | {"source_row": record["row"], **split, "reason": record["reason"], "remedy": record["remedy"]}


def _text_of(title, attribute, records):
    """A titled block of lines: the row, its reason and, below it, the remedy."""
    names = [f"{record['split']} row {record['row']}".strip() for record in records[:_LINES]]
    width = max(map(len, names))
    lines = [f"{title}:"]
    for name, record in zip(names, records, strict=False):
        image = f"  [{record['image']}]" if record["image"] not in record["reason"] else ""
        lines.append(printable(f"  {name:<{width}}  {record['reason']}{image}"))
        if record["remedy"]:
            lines.append(printable(f"  {'':<{width}}  -> {record['remedy']}"))
    if len(records) > _LINES:
        lines.append(f"  ... and {len(records) - _LINES} more, in report.{attribute}")
    return "\n".join(lines)
