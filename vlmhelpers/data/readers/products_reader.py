"""A table of products with links to their pictures as rows to train on; the answer is written from the columns."""

import os
import re
import string
from collections import Counter
from dataclasses import dataclass

from vlmhelpers.common.image_errors import UnusableImage, check_file, missing
from vlmhelpers.data.download.downloader import cached_images, download_images
from vlmhelpers.data.readers.links import is_link
from vlmhelpers.data.readers.tables import open_table
from vlmhelpers.data.readers.text_file import explain_missing
from vlmhelpers.data.rows import ImageRoot, finish_row, rows_to_dataset, source_column
from vlmhelpers.data.schema import make_row

_NUMBERS = dict.fromkeys(["full_price", "price", "full_price_eur", "price_eur"], "float64")
_NUMBERS |= dict.fromkeys(["product_code", "flg_discount"], "int64")
_TEXTS = ("string", "large_string", "string_view", "null")  # of a column without values, the type is null


def read_products(
    table,
    image_root=None,
    cache_dir=None,
    instruction="What is shown in this image?",
    response="Product: {title}, Category: {category3_code}, Full Price: {full_price}",
    image_field="imageurl",
    download=True,
    **rules,
):
    """Reads a table of products into a `datasets.Dataset`, and downloads their pictures.

    table: the path of a CSV or parquet file, a Dataset, a DatasetDict with one split, a pandas DataFrame, or the
        name of a dataset on the Hub, whose split "train" is taken (tables.open_table). In a CSV, the prices,
        product_code and flg_discount are numbers.
    image_root: the folder that paths in image_field start from and may not leave; by default the file's own.
    cache_dir, rules: where downloaded pictures are kept, and how they are got; see download_images.
    instruction: what the user says in every row.
    response: the answer, with names of columns in braces, as `str.format` has them. Numbers are written as Python
        prints them (2150.0).
    image_field: the column with an http or https URL, or a path, in each row.
    download: False takes only what is in cache_dir already.

    The Dataset has the schema's `messages` and `images` (paths), `row`, `problem` and `note` (see
    rows.READER_FEATURES), and every column of the table with its own type; a name that is taken gets an underscore
    (`row_`). A row whose answer lacks a value, or whose picture cannot be had, keeps its place: `problem` says why,
    and a missing picture is None in `images`. Pictures of rows that are unusable without them are not downloaded.
    One line is printed.

    Raises ValueError for missing columns, an image_field that holds no text, an empty instruction, a response that is
    no such template, a table without rows, and what open_table names; OSError where a file or folder cannot be read
    or written.
    """
    for name, text in (("instruction", instruction), ("response", response)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}: {text!r} is no text for a row to hold. Leave it out, or write one.")
    table = open_table(table, _NUMBERS)
    fields = _fields_of(response)
    _check_columns(table, image_field, fields)
    folder = table.folder if image_root is None else image_root
    root = None if folder is None else ImageRoot(folder)

    def products():
        return (_judge(*record, response, fields, image_field) for record in table.records())

    links = [product.place for product in products() if product.place and not product.problems]
    links = [place for place in links if is_link(place)]
    downloaded = download_images(links, cache_dir, **rules) if download else cached_images(links, cache_dir)
    kinds = Counter()

    def rows():
        for number, product in enumerate(products(), start=1):
            image, problems, guess = _picture(product.place, root, downloaded)
            row = make_row(instruction, product.answer, [image])
            problems, notes = product.problems + problems, [product.note, guess]
            row = finish_row(number, row["messages"], row["images"], problems, notes)
            kinds[re.split("[:;\n]", row["problem"])[0]] += 1
            yield row | {source_column(name): value for name, value in product.values.items()}

    columns = {source_column(name): feature for name, feature in table.features.items()}
    dataset = rows_to_dataset(rows(), columns, table.name)
    print(_summary(kinds))
    return dataset


# The answer


def _fields_of(response):
    """The columns that the template names. Raises ValueError unless each pair of braces holds a name, and only that."""
    try:
        parts = list(string.Formatter().parse(response))
    except ValueError as error:
        raise ValueError(f"response: {error}. Double a brace that is text: {{{{ or }}}}.") from None
    fields = list(dict.fromkeys(name for _, name, _, _ in parts if name is not None))
    for name in fields:
        if not name or name.isdigit() or set(name) & set(".[]{}"):
            raise ValueError(f"response: {{{name}}} names no column. Write {{title}}, or another column's name.")
    if any("{" in (spec or "") or conversion not in (None, *"ars") for _, _, spec, conversion in parts):
        raise ValueError(f"response: {response!r} has more in its braces than a name and a format. Write {{title}}.")
    return fields


def _check_columns(table, image_field, fields):
    """Raises ValueError that names the columns which are not there, and what to pass."""
    there = list(table.features)
    if image_field not in there:
        raise ValueError(explain_missing(table.name, "column", {"image_field": image_field}, there, "read_products"))
    unknown = [name for name in fields if name not in there]
    if unknown:
        raise ValueError(
            f"{table.name} has no column {' and no column '.join(map(repr, unknown))}, which the response names. Its "
            f"columns: {', '.join(there)}. Name the right ones: read_products(..., response='... {{{there[0]}}} ...')."
        )
    if getattr(table.features[image_field], "dtype", None) not in _TEXTS:
        raise ValueError(f"{table.name}: image_field={image_field!r} holds no text. Name a column of URLs or paths.")
    for name in there:
        if (kept := source_column(name)) != name and kept in there:
            raise ValueError(f"{table.name}: {name!r} would be kept as {kept!r}, which is there. Rename one of them.")


@dataclass(frozen=True)
class _Product:
    """A record that was judged, but for its picture."""

    values: dict
    answer: str
    place: str | None  # of the picture, as it is written; None where the record is not to be trusted
    problems: list
    note: str


def _judge(values, problems, note, response, fields, image_field):
    if problems:
        return _Product(values, "", None, problems, note)
    empty = [name for name in fields if _is_empty(values[name])]
    problems = [(f"empty {name}", "fill it in, or leave the row out") for name in empty]
    answer = ""
    if not problems:
        try:
            answer = response.format_map(values)
        except (ValueError, TypeError) as error:
            problems = [(f"response does not fit the values: {error}", "change the response's format")]
    place = "" if _is_empty(values[image_field]) else values[image_field].strip()
    return _Product(values, answer, place, problems, note)


def _is_empty(value):
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is not itself


# The picture


def _picture(place, root, downloaded):
    """The image of the schema or None, (reason, remedy) pairs and a note; `downloaded` is what download_images gave."""
    if place is None or is_link(place) and place not in downloaded:
        return None, [], ""
    if not place:
        return None, [("empty image path", "write the picture's URL or path, or leave the row out")], ""
    if not is_link(place):
        return _local_picture(place, root)
    found = downloaded[place]
    return (_image(found), [], "") if isinstance(found, str) else (None, [found], "")


def _local_picture(place, root):
    reason = f"neither a URL nor a file: {place[:80]!r}"
    if root is None:
        return None, [(reason, "write an address that begins with http:// or https://, or pass image_root")], ""
    path, problems, note = root.resolve(place)
    if problems and place.startswith("//"):
        problems = [(reason, "if it is a URL, write https: in front of it")]
    if problems:
        return None, problems, note
    if not os.path.exists(path):
        return None, [(reason, missing(path).remedy)], note
    try:
        check_file(path)
    except UnusableImage as error:
        return None, [(error.reason, error.remedy)], note
    return _image(path), [], note


def _image(path):
    return {"path": path, "bytes": None}


def _summary(kinds):
    """One line: the rows, those with an answer and a picture, and why the others have none."""
    parts = [f"{kinds['']} with an answer and a picture"]
    parts += [f"{count} {kind}" for kind, count in kinds.most_common() if kind]
    return f"{kinds.total()} rows read: {', '.join(parts)}"
