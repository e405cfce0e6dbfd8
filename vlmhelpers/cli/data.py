"""The commands about data: converters, validation, the sample."""

import os
import sys
from itertools import combinations
from pathlib import Path

import vlmhelpers as vlm


def convert(reader: str, input: str, output: str, rejected: str | None = None, **arguments: object) -> int | None:
    """Writes the rows that a reader of `data` makes of a file as JSONL; 1 where a row cannot be used."""
    from vlmhelpers.data.report import rejected_lines

    files = [file for file in (input, output, rejected) if file]
    same = any(os.path.samefile(*pair) for pair in combinations(filter(os.path.exists, files), 2))  # hard links, case
    if same or len(set(map(os.path.realpath, files))) < len(files):
        raise ValueError(f"two of {', '.join(files)} are the same file. Name another one to write to.")
    report = _report(getattr(vlm, f"read_{reader}")(input, **arguments))
    if report.rejected and not rejected:
        print(*rejected_lines(report.rejected, input), sep="\n", file=sys.stderr)
        print("Nothing was written. Correct these rows, or leave them out with --rejected FILE.", file=sys.stderr)
        return 1
    if rejected:
        report.save_rejected(rejected)
        print(f"{len(report.rejected)} rejected rows -> {rejected}", file=sys.stderr)
    if not len(report.dataset):
        print(f"{input} has no row that can be used. Nothing was written.", file=sys.stderr)
        return 1
    root, where = arguments.get("image_root", Path(input).parent), ""
    if reader == "products" or "download" in arguments:
        root = _root_of_images(report.dataset, root)
        where = f", image paths start at {root}"
    vlm.data.write_jsonl(report.dataset, output, root)
    print(f"{len(report.dataset)} rows -> {output}{where}")


def _report(dataset):
    """A Report by the reader and the messages alone; no image is opened."""
    from vlmhelpers.data.report import Finding, Report
    from vlmhelpers.data.rows import stream_plain_rows
    from vlmhelpers.data.rules import merge_problems, row_problems

    rejected = {}
    for index, row in enumerate(stream_plain_rows(dataset, [*vlm.data.FEATURES, "problem"], "checking")):
        if problems := row_problems(row):
            rejected["", index] = Finding("", index, *merge_problems(problems))
    return Report({"": dataset}, rejected)


def _root_of_images(dataset, root):
    """`root` where all images lie inside it, else the deepest folder that holds them all."""
    from vlmhelpers.data.rows import ImageRoot, stream_plain_rows

    paths = [image["path"] for row in stream_plain_rows(dataset, ["images"], "checking") for image in row["images"]]
    if os.path.isdir(root) and all(map(ImageRoot(root).relative, paths)):
        return root
    return os.path.commonpath([os.path.dirname(path) for path in paths])


def check(file: str, image_root: str | None = None, rejected: str | None = None) -> bool:
    """Prints the validation report of a file; whether a row is rejected."""
    from vlmhelpers.data.readers.recognition import read_rows

    dataset = read_rows(file, image_root=image_root)
    report = vlm.check_dataset(dataset)
    if (kind := vlm.data.kind_of(dataset.column_names)) != "messages":
        print(f"kind of rows: {kind}")
    print(report)
    if rejected:
        report.save_rejected(rejected)
    return bool(report.rejected)


def sample(output: str, num_examples: int = 10, **arguments: object) -> None:
    """Writes drawn products and questions about them."""
    vlm.samples.write_sample(output, num_examples, **arguments)
    print(f"{num_examples} rows -> {output}, their images -> {Path(output).parent / 'images'}")
