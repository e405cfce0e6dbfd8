"""The commands about data: converters, validation, the sample."""

import os
import sys
from itertools import combinations
from pathlib import Path

import vlmhelpers as vlm
from vlmhelpers.cli.advice import with_options


def convert(reader: str, input: str, output: str, rejected: str | None = None, **arguments: object) -> int | None:
    """Writes the rows that a reader of `data` makes of a file as JSONL; 1 where a row cannot be used.

    What was guessed or repaired in those that are written is said on stderr.
    Paths of images start at the output's folder, or where `image_root` says.
    """
    from vlmhelpers.data.report import rejected_lines, repaired_lines

    _refuse_same(input, output, rejected)
    report = _report(getattr(vlm, f"read_{reader}")(input, **arguments))
    if report.rejected and not rejected:
        lines = rejected_lines(report.rejected, input)
        print(*(with_options(reader, line) for line in lines), sep="\n", file=sys.stderr)
        print("Nothing was written. Correct these rows, or leave them out with --rejected FILE.", file=sys.stderr)
        return 1
    if rejected:
        report.save_rejected(rejected)
        print(f"{len(report.rejected)} rejected rows -> {rejected}", file=sys.stderr)
    if not len(report.dataset):
        print(f"{input} has no row that can be used. Nothing was written.", file=sys.stderr)
        return 1
    print(*repaired_lines(report.repaired, input), sep="\n", end="\n" * bool(report.repaired), file=sys.stderr)
    root = arguments.get("image_root")
    where = _write_from(root, report.dataset, output) if root else _write_with_images(report.dataset, output)
    print(f"{len(report.dataset)} rows -> {output}{where}")


def _refuse_same(*files):
    files = [file for file in files if file]
    same = any(os.path.samefile(*pair) for pair in combinations(filter(os.path.exists, files), 2))  # hard links, case
    if same or len(set(map(os.path.realpath, files))) < len(files):
        raise ValueError(f"two of {', '.join(files)} are the same file. Name another one to write to.")


def _report(dataset):
    """A Report by the reader, the messages and which images are there; no image is opened."""
    from vlmhelpers.data.images_beside import missing_images
    from vlmhelpers.data.report import Finding, Report
    from vlmhelpers.data.rows import READER_FEATURES, stream_plain_rows
    from vlmhelpers.data.rules import merge_problems, row_problems

    rejected, noted = {}, []
    for index, row in enumerate(stream_plain_rows(dataset, [*vlm.data.FEATURES, *READER_FEATURES], "checking")):
        if problems := row_problems(row) or missing_images(row):
            rejected["", index] = Finding("", index, *merge_problems(problems))
        elif row.get("note"):
            noted.append(Finding("", index, row["note"], ""))
    return Report({"": dataset}, rejected, noted)


def _write_with_images(dataset, output):
    """Writes rows whose image paths start at the output's folder; says where it has put images from elsewhere."""
    from vlmhelpers.data.images_beside import images_beside

    folder = Path(output).with_name(f"{Path(output).stem}_images")
    with images_beside(dataset, folder) as (rows, number):
        vlm.data.write_jsonl(rows, output)
    return f", {number} images -> {folder}" if number else ""


def _write_from(root, dataset, output):
    """Writes rows whose image paths start at the root where all images lie inside it, else at their deepest folder.

    With an embedded image they start at the output's folder, beside which it becomes a file.
    """
    from vlmhelpers.data.rows import ImageRoot, stream_plain_rows

    images = [image for row in stream_plain_rows(dataset, ["images"], "checking") for image in row["images"]]
    if any(image["bytes"] is not None for image in images):
        return _write_with_images(dataset, output)
    paths = [image["path"] for image in images if image["path"]]
    if not all(map(ImageRoot(root).relative, paths)):
        root = os.path.commonpath(list(map(os.path.dirname, paths)))
    vlm.data.write_jsonl(dataset, output, root)
    return f", image paths start at {root}" if images else ""


def check(file: str, model: str | None = None, rejected: str | None = None, **arguments: str) -> bool:
    """Prints the validation report of a file, for a family or a processor if one is named; whether a row is rejected.

    `arguments`: of read_dataset. Tables of products are read by read_products.
    """
    from vlmhelpers.data.readers.recognition import read_rows

    vlm.quiet()
    _refuse_same(file, rejected)
    dataset = (vlm.data.read_dataset if "instruction" in arguments else read_rows)(file, **arguments)
    report = vlm.check_dataset(dataset, model if model in vlm.families.FAMILIES else _processor(model))
    if (kind := vlm.data.kind_of(dataset.column_names)) != "messages":
        print(f"kind of rows: {kind}")
    print(with_options("check", str(report)))
    if rejected:
        report.save_rejected(rejected)
    return bool(report.rejected)


def _processor(name):
    from vlmhelpers.models.loading import load_processor

    try:
        return name and load_processor(name)
    except OSError:
        names = ", ".join(vlm.families.FAMILIES)
        raise ValueError(f"--model {name}: neither a family ({names}) nor a model's folder or hub id here") from None


def sample(output: str, num_examples: int = 10, **arguments: object) -> None:
    """Writes drawn products and questions about them."""
    vlm.samples.write_sample(output, num_examples, **arguments)
    print(f"{num_examples} rows -> {output}, their images -> {Path(output).parent / 'images'}")
