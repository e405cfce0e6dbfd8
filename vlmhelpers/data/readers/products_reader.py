"""A table of products with links to their images as rows to train on; the answer is written from the columns."""

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Value, load_dataset
from datasets.table import InMemoryTable

from vlmhelpers.common.images import UnusableImage, check_file
from vlmhelpers.data.download.downloader import cached_images, download_images, is_link
from vlmhelpers.data.readers.arrow_rows import COPY, explained, refuse_twice, stored_rows
from vlmhelpers.data.readers.csv_table import read_table
from vlmhelpers.data.readers.number_columns import NumberColumn
from vlmhelpers.data.readers.source import DataError, SourceRow, explain_missing, to_dataset
from vlmhelpers.data.rows import ImageRoot, unpacked_rows
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
    **rules: object,
) -> Dataset:
    """Reads a table of products into a `datasets.Dataset`, downloads their images, and prints one line.

    table: see open_table; its columns keep their types. image_field: the column of http or https URLs, or of paths.
    instruction: what the user says in every row. response: the answer, a template for `str.format` with names of
        columns; in a row that lacks a value, that is a problem.
    cache_dir, rules: see download_images, which gets the images of rows without another problem; without
        `download`, only what is in cache_dir already is taken.

    For image_root, columns and errors, see vlmhelpers.data.readers.
    """
    for name, text in (("instruction", instruction), ("response", response)):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{name}: {text!r} is no text for a row to hold. Leave it out, or write one.")
    table = open_table(table)
    columns = _columns_of(response)
    _check_columns(table, image_field, columns)
    folder = table.folder if image_root is None else image_root
    root = None if folder is None else ImageRoot(folder)
    links = _links_of_sound_rows(table, response, columns, image_field)
    downloaded = download_images(links, cache_dir, **rules) if download else cached_images(links, cache_dir)

    def build(row):
        answer = _answer(row, response, columns)
        row.used.update(columns, [image_field])
        path = _image_path(row, _source(row, image_field), root, downloaded)
        return make_row(instruction, answer, [path and {"path": path, "bytes": None}])

    dataset = to_dataset(table.rows(), build, table.features, table.name)
    kinds = Counter(re.split("[:;\n]", problem)[0] for problem in dataset["problem"])
    failed = "".join(f", {count} {kind}" for kind, count in kinds.most_common() if kind)
    print(f"{kinds.total()} rows read: {kinds['']} with an answer and an image{failed}")
    return dataset


@dataclass(frozen=True)
class Table:
    """A table with types. `rows()` yields each row, as often as called; `folder` is None for no file."""

    name: str
    features: dict
    rows: Callable[[], Iterator[SourceRow]]
    folder: Path | None = None


def open_table(source: str | os.PathLike | Dataset | DatasetDict | pd.DataFrame) -> Table:
    """The Table in a .csv or .parquet file, a Dataset, a DatasetDict of one split, a DataFrame or, from the Hub, in the
    split "train" of "owner/name".

    In a CSV, the prices, product_code and flg_discount are numbers, or None; what is no number is a problem, but for a
    column of prices that all have a currency, such as "$12.50", or are no numbers: it stays text. Prices may be written
    like 1234.5 or in one of the forms of `common.numbers.CONVENTIONS`, by which all of the column can be read: a note
    says which. Raises ValueError for several splits or an unreadable file, TypeError for what is no table, and OSError.
    """
    if isinstance(source, dict):
        if len(source) != 1:
            splits = ", ".join(map(repr, source)) or "none"
            raise DataError(f"the table has the splits {splits}. Pass the one to read, such as table['train'].")
        (source,) = source.values()
    if isinstance(source, pd.DataFrame):
        remedy = "Give each column a name of its own and one plain type, such as text or numbers, or leave it out"
        with explained("the DataFrame cannot be read", remedy):
            source = Dataset.from_pandas(source, preserve_index=False)
    if isinstance(source, Dataset):
        return _from_dataset("the table", source)
    if not isinstance(source, str | os.PathLike):
        raise TypeError(f"a {type(source).__name__} is no table; pass a file, a Dataset or a DataFrame")
    suffix = Path(source).suffix.lower()
    if suffix == ".csv":
        return _from_csv(source)
    if suffix == ".parquet":
        return _from_parquet(source)
    if isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not os.path.exists(source):
        return _from_dataset(source, load_dataset(source, split="train"))
    raise DataError(f"{source} is no .csv or .parquet file, and no name of a dataset on the Hub (owner/name).")


def _from_parquet(path):
    with explained(f"{path} cannot be read as Parquet", COPY):
        schema = pq.read_schema(path)
        refuse_twice(path, schema.names)
        features = Dataset(InMemoryTable(schema.empty_table())).features
    return Table(str(path), dict(features), lambda: map(SourceRow, stored_rows(path)), Path(path).parent)


def _from_dataset(name, dataset):
    def rows():
        for batch in dataset.with_format("arrow").iter(1000):
            yield from map(SourceRow, unpacked_rows(batch))

    return Table(name, dict(dataset.features), rows)


def _from_csv(path):
    columns = _columns_of_numbers(path)

    def rows():
        for row in read_table(path)[1]:
            for name, column in columns.items():
                row.fields[name] = column.read(row)
            yield row

    features = {name: Value(columns[name].kind if name in columns else "string") for name in read_table(path)[0]}
    return Table(str(path), features, rows, Path(path).parent)


def _columns_of_numbers(path):
    """The columns of numbers by name. Prices of which none is a number, such as "$12.50", stay text."""
    header, rows = read_table(path)
    columns = {name: NumberColumn(name, kind) for name, kind in _NUMBERS.items() if name in header}
    prices = [column for column in columns.values() if column.kind == "float64"]
    for row in rows:
        for column in prices:
            column.learn(row.fields[column.name])
    return {name: column for name, column in columns.items() if not column.is_text}


def _columns_of(response):
    """The columns that the template names. Raises ValueError unless each pair of braces holds one, and only that."""
    unescaped = response.replace("{{", "").replace("}}", "")
    names = list(dict.fromkeys(_COLUMN.findall(unescaped)))
    if re.search("[{}]", _COLUMN.sub("", unescaped)) or any(map(str.isdigit, names)):
        remedy = "Write {title}, and double a brace that is text: {{ or }}."
        raise DataError(f"response: {response!r} has other than a column's name and format in braces. {remedy}")
    return names


def _check_columns(table, image_field, columns):
    there = list(table.features)
    if image_field not in there:
        raise DataError(explain_missing(table.name, "column", {"image_field": image_field}, there, "read_products"))
    if unknown := [name for name in columns if name not in there]:
        raise DataError(
            f"{table.name} has no column {' and no column '.join(map(repr, unknown))}, which the response names. Its "
            f"columns: {', '.join(there)}. Name the right ones: read_products(..., response='... {{{there[0]}}} ...')."
        )
    if getattr(table.features[image_field], "dtype", None) not in _TEXTS:
        raise DataError(f"{table.name}: image_field={image_field!r} holds no text. Name a column of URLs or paths.")


def _links_of_sound_rows(table, response, columns, image_field):
    for row in table.rows():
        _answer(row, response, columns)
        source = _source(row, image_field)
        if is_link(source) and not row.problems:
            yield source


def _answer(row, response, columns):
    """The answer written from the row; "" where it cannot be, which is a problem."""
    for name in [] if row.problems else columns:
        if _is_empty(row.fields[name]):
            row.reject(f"empty {name}", "fill it in, or leave the row out")
    try:
        return "" if row.problems else response.format_map(row.fields)
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
    reason = f"neither a URL nor a file: {source[:80]!r}"
    if is_link(source):
        found = downloaded.get(source)
    elif not source:
        found = ("empty image path", "write the image's URL or path, or leave the row out")
    elif root is None:
        found = (reason, "write an address that begins with http:// or https://, or pass image_root")
    else:
        found = _find_file(row, source, root, reason)
    if isinstance(found, tuple):
        row.reject(*found)
        return None
    return found


def _find_file(row, source, root, reason):
    """The path of an image file, or the problem why there is none."""
    path, problems, note = root.resolve(source)
    row.notes.append(note)
    if problems:
        return (reason, "if it is a URL, write https: in front of it") if source.startswith("//") else problems[0]
    try:
        check_file(path)
    except UnusableImage as error:
        return (error.reason if os.path.exists(path) else reason), error.remedy
    return path
