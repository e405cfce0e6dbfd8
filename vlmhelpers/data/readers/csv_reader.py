"""Readers: files of questions, answers and image paths become a Dataset of the one schema.

A reader opens no image and drops no row. What it finds wrong with a row it writes into the row's `problem`;
the doctor (`check_dataset`) reports it along with what it finds in the images.
"""

from pathlib import Path

from vlmhelpers.data.readers.csv_file import read_table
from vlmhelpers.data.readers.text_file import explain_missing
from vlmhelpers.data.rows import ImageRoot, build_row, rows_to_dataset, source_column


def read_csv(path, image_root=None, image_field="image_path", text_field="instruction", response_field="description"):
    """Reads a CSV with an image path, a question and an answer in each row into a `datasets.Dataset`.

    path: the file, as UTF-8 (single bytes of Windows-1252 are understood), separated by comma, semicolon or
    tab. image_root: the folder that image paths start from and may not leave; by default the CSV's own.
    image_field, text_field, response_field: the names of the three columns.

    The Dataset has the schema's `messages` and `images` (paths, opened when a row is used), `row`,
    `problem` and `note` (see rows.READER_FEATURES), and every column of the CSV as strings under its own
    name; a name that is taken gets an underscore (`row_`). A row with a problem keeps its place, and an
    image path that cannot be used is None in `images`. Blank lines do not count as rows.

    Raises ValueError for what is wrong with the whole file: a missing column, no rows, and what
    csvfile.read_table names; FileNotFoundError or NotADirectoryError where there is no file or image_root.
    """
    header, records = read_table(path)
    fields = {"image_field": image_field, "text_field": text_field, "response_field": response_field}
    image, text, response = (header.index(name) for name in _find_columns(fields, header, path))
    root = ImageRoot(Path(path).parent if image_root is None else image_root)
    columns = [source_column(name) for name in header]

    def rows():
        for number, record in enumerate(records, start=1):
            cells = record.cells
            row = build_row(number, cells[text], cells[response], [cells[image]], root, record.problems, record.note)
            yield row | dict(zip(columns, cells, strict=True))

    return rows_to_dataset(rows(), columns, path)


def _find_columns(fields, header, path):
    """The names of the wanted columns. Raises ValueError that names all the missing ones and what to pass."""
    if not set(fields.values()) <= set(header):
        raise ValueError(explain_missing(path, "column", fields, header, "read_csv"))
    return fields.values()
