"""A table of products with links to their images as rows to train on; the answer is written from the columns."""

import os
import re
from collections import Counter

import pandas as pd
from datasets import Dataset, DatasetDict

from vlmhelpers.common.images import UnusableImage, check_file, missing
from vlmhelpers.data.download.downloader import cached_images, download_images
from vlmhelpers.data.readers.links import is_link
from vlmhelpers.data.readers.source import explain_missing, to_dataset
from vlmhelpers.data.readers.tables import open_table
from vlmhelpers.data.rows import ImageRoot
from vlmhelpers.data.schema import make_row

_NUMBERS = dict.fromkeys(["full_price", "price", "full_price_eur", "price_eur"], "float64")
_NUMBERS |= dict.fromkeys(["product_code", "flg_discount"], "int64")
_TEXTS = ("string", "large_string", "string_view", "null")  # of a column without values, the type is null
_COLUMN = re.compile(r"\{([^{}.\[\]!:]+)(?:![ars])?(?::[^{}]*)?\}")  # in a response


def read_products(
    table: str | os.PathLike | Dataset | DatasetDict | pd.DataFrame,
    image_root: str | os.PathLike | None = None,
    cache_dir: str | os.PathLike | None = None,
    instruction: str = "What is shown in this image?",
    response: str = "Product: {title}, Category: {category3_code}, Full Price: {full_price}",
    image_field: str = "imageurl",
    download: bool = True,
    **rules,
) -> Dataset:
    """Reads a table of products into a `datasets.Dataset`, and downloads their images.

    table: the path of a CSV or parquet file, a Dataset, a DatasetDict with one split, a pandas DataFrame, or the
        name of a dataset on the Hub, whose split "train" is taken (tables.open_table). In a CSV, the prices,
        product_code and flg_discount are numbers.
    image_root: the folder that paths in image_field start from and may not leave; by default the file's own.
    cache_dir, rules: where downloaded images are kept, and how they are got; see download_images.
    instruction: what the user says in every row.
    response: the answer, with names of columns in braces, as `str.format` has them. Numbers are written as Python
        prints them (2150.0).
    image_field: the column with an http or https URL, or a path, in each row.
    download: False takes only what is in cache_dir already.

    The Dataset has the schema's `messages` and `images` (paths), `row`, `problem` and `note` (see
    rows.READER_FEATURES), and every column of the table with its own type; a name that is taken gets an underscore
    (`row_`). A row whose answer lacks a value, or whose image cannot be had, keeps its number: `problem` says why,
    and a missing image is None in `images`. Images of rows with another problem are not downloaded. One line is
    printed.

    Raises ValueError for missing columns, an image_field that holds no text, an empty instruction, a response that is
    no such template, a table without rows, and what open_table names; OSError where a file cannot be read or written.
    """
    for name, text in (("instruction", instruction), ("response", response)):
        if not isinstance(text, str) or not text.strip():
            raise ValueError(f"{name}: {text!r} is no text for a row to hold. Leave it out, or write one.")
    table = open_table(table, _NUMBERS)
    columns = _columns_of(response)
    _check_columns(table, image_field, columns)
    folder = table.folder if image_root is None else image_root
    root = None if folder is None else ImageRoot(folder)
    links = _links_of_sound_rows(table, response, columns, image_field)
    downloaded = download_images(links, cache_dir, **rules) if download else cached_images(links, cache_dir)

    def build(row):
        answer = _answer(row, response, columns)
        path = _image_path(row, _source(row, image_field), root, downloaded)
        return make_row(instruction, answer, [path and {"path": path, "bytes": None}])

    dataset = to_dataset(table.rows(), build, table.features, table.name)
    kinds = Counter(re.split("[:;\n]", problem)[0] for problem in dataset["problem"])
    failed = "".join(f", {count} {kind}" for kind, count in kinds.most_common() if kind)
    print(f"{kinds.total()} rows read: {kinds['']} with an answer and an image{failed}")
    return dataset


def _columns_of(response):
    """The columns that the template names. Raises ValueError unless each pair of braces holds one, and only that."""
    unescaped = response.replace("{{", "").replace("}}", "")
    names = list(dict.fromkeys(_COLUMN.findall(unescaped)))
    if re.search("[{}]", _COLUMN.sub("", unescaped)) or any(map(str.isdigit, names)):
        raise ValueError(
            f"response: {response!r} has something else in braces than a column's name and a format. Write {{title}}, "
            "and double a brace that is text: {{ or }}."
        )
    return names


def _check_columns(table, image_field, columns):
    """Raises ValueError that names the columns which are not there, and what to pass."""
    there = list(table.features)
    if image_field not in there:
        raise ValueError(explain_missing(table.name, "column", {"image_field": image_field}, there, "read_products"))
    unknown = [name for name in columns if name not in there]
    if unknown:
        raise ValueError(
            f"{table.name} has no column {' and no column '.join(map(repr, unknown))}, which the response names. Its "
            f"columns: {', '.join(there)}. Name the right ones: read_products(..., response='... {{{there[0]}}} ...')."
        )
    if getattr(table.features[image_field], "dtype", None) not in _TEXTS:
        raise ValueError(f"{table.name}: image_field={image_field!r} holds no text. Name a column of URLs or paths.")


def _links_of_sound_rows(table, response, columns, image_field):
    for row in table.rows():
        _answer(row, response, columns)
        source = _source(row, image_field)
        if is_link(source) and not row.problems:
            yield source


def _answer(row, response, columns):
    """The answer written from the row; "" where it cannot be, which is a problem."""
    if row.problems:
        return ""
    if empty := [name for name in columns if _is_empty(row.fields[name])]:
        for name in empty:
            row.reject(f"empty {name}", "fill it in, or leave the row out")
        return ""
    try:
        return response.format_map(row.fields)
    except (ValueError, TypeError) as error:
        row.reject(f"response does not fit the values: {error}", "change the response's format")
        return ""


def _is_empty(value):
    return value is None or value != value or (isinstance(value, str) and not value.strip())  # NaN is not itself


def _source(row, image_field):
    """The path or URL of the row's image, "" where there is none."""
    value = row.fields[image_field]
    return "" if _is_empty(value) else value.strip()


def _image_path(row, source, root, downloaded):
    """The path of the row's image, or None; why there is none is a problem, but for a link that was not asked for."""
    if is_link(source):
        found = downloaded.get(source)
        if not isinstance(found, tuple):
            return found
        row.reject(*found)
    elif not source:
        row.reject("empty image path", "write the image's URL or path, or leave the row out")
    else:
        return _local_path(row, source, root)
    return None


def _local_path(row, source, root):
    reason = f"neither a URL nor a file: {source[:80]!r}"
    if root is None:
        row.reject(reason, "write an address that begins with http:// or https://, or pass image_root")
        return None
    path, problems, note = root.resolve(source)
    row.notes.append(note)
    if path and not os.path.exists(path):
        problems = [(reason, missing(path).remedy)]
    elif path:
        try:
            check_file(path)
        except UnusableImage as error:
            problems = [(error.reason, error.remedy)]
    elif source.startswith("//"):
        problems = [(reason, "if it is a URL, write https: in front of it")]
    for problem in problems:
        row.reject(*problem)
    return None if problems else path
