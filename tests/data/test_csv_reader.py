"""Reading CSVs: encodings, separators, quotes, columns, paths, and what is wrong with a row."""

import os
import subprocess
import sys

import PIL.Image
import pytest
from datasets import Dataset, Image, List
from PIL import Image as Pictures

from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.readers.csv_table import read_table
from vlmhelpers.data.rows import READER_FEATURES
from vlmhelpers.data.rules import split_problem
from vlmhelpers.data.schema import FEATURES, assistant, user

HEADER = "image_path,instruction,description\n"


@pytest.fixture
def folder(tmp_path):
    """A folder with images/bag.jpg; the CSV goes beside it."""
    (tmp_path / "data" / "images").mkdir(parents=True)
    Pictures.new("RGB", (8, 8), "red").save(tmp_path / "data" / "images" / "bag.jpg")
    return tmp_path / "data"


@pytest.fixture
def read(folder):
    """read_csv of a text or bytes, beside images/."""

    def write_and_read(content, **options):
        path = folder / "products.csv"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return read_csv(path, **options)

    return write_and_read


def problem_of(row):
    return split_problem(row["problem"])[0]


# The rows


def test_a_sound_row(read, folder):
    dataset = read(HEADER + " images/bag.jpg , What is it?,A red bag.\n")
    assert isinstance(dataset, Dataset) and len(dataset) == 1
    row = dataset[0]
    assert row["messages"] == [user("What is it?", images=1), assistant("A red bag.")]
    assert row["images"][0].size == (8, 8)
    assert (row["row"], row["problem"], row["note"]) == (1, "", "")
    assert (row["image_path"], row["instruction"], row["description"]) == (
        "images/bag.jpg",
        "What is it?",
        "A red bag.",
    )
    raw = dataset.cast_column("images", List(Image(decode=False)))[0]["images"]
    assert raw == [{"path": os.path.realpath(folder / "images" / "bag.jpg"), "bytes": None}]


def test_features_are_those_of_the_schema_and_the_source(read):
    dataset = read("code," + HEADER + "17,images/bag.jpg,What?,A bag.\n")
    expected = {**FEATURES, **READER_FEATURES}
    assert {name: dataset.features[name] for name in expected} == expected
    assert dataset[0]["code"] == "17"


def test_reading_opens_no_image(read, monkeypatch):
    monkeypatch.setattr(PIL.Image, "open", lambda *_, **__: pytest.fail("an image was opened"))
    dataset = read(HEADER + "images/bag.jpg,What?,A bag.\nimages/gone.jpg,What?,A bag.\n")
    assert dataset["problem"] == ["", ""]


def test_columns_by_other_names(read):
    dataset = read(
        "text,image,response\nWhat?,images/bag.jpg,A bag.\n",
        image_field="image", text_field="text", response_field="response",
    )  # fmt: skip
    assert dataset[0]["messages"] == [user("What?", images=1), assistant("A bag.")]


def test_a_taken_column_name_gets_an_underscore(read):
    row = read("row,problem," + HEADER + "7,none,images/bag.jpg,What?,A bag.\n")[0]
    assert (row["row"], row["problem"], row["row_"], row["problem_"]) == (1, "", "7", "none")


def test_blank_lines_do_not_count_but_empty_cells_do(read):
    dataset = read(HEADER + "\nimages/bag.jpg,What?,A bag.\n\n   \n,,\nimages/bag.jpg,Why?,A bag.\n\n")
    assert dataset["row"] == [1, 2, 3]
    assert problem_of(dataset[1]) == "empty instruction; empty description; empty image path"
    assert dataset[1]["images"] == []


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("images/bag.jpg,What?,", "empty description"),
        ("images/bag.jpg,What?,  ", "empty description"),
        ("images/bag.jpg,,A bag.", "empty instruction"),
        (",What?,A bag.", "empty image path"),
        ("images/bag.jpg,What?", "too few cells: 2 of 3"),
        ("images/bag.jpg,What?,A bag, red, large", "too many cells: 5 of 3"),
    ],
)
def test_a_broken_row_keeps_its_place(read, line, reason):
    dataset = read(f"{HEADER}images/bag.jpg,First?,A bag.\n{line}\nimages/bag.jpg,Last?,A bag.\n")
    assert dataset["row"] == [1, 2, 3]
    assert [problem_of(row) for row in dataset] == ["", reason, ""]
    assert split_problem(dataset[1]["problem"])[1]


def test_surplus_cells_are_not_lost(read):
    dataset = read(HEADER + "images/bag.jpg,What?,A bag, red, large\nimages/bag.jpg,What?,A bag.,,\n")
    assert dataset["description"] == ["A bag, red, large", "A bag."]
    assert problem_of(dataset[1]) == ""  # empty surplus is harmless


# Encodings, separators, quotes


def test_a_byte_order_mark_is_no_part_of_the_first_name(read):
    dataset = read("\ufeff" + HEADER + "images/bag.jpg,Qu\u00e9?,A bag.\n")
    assert dataset[0]["instruction"] == "Qu\u00e9?" and dataset[0]["problem"] == ""


def test_windows_1252_is_read_where_it_stands_and_noted(read):
    text = "Caf\u00e9 \u201cLuma\u201d \u20ac5"
    lines = [HEADER.encode(), "images/bag.jpg,\u4f60\u597d \u00e9?,A bag.\n".encode()]
    dataset = read(b"".join([*lines, f"images/bag.jpg,{text},A bag.\n".encode("cp1252"), *lines[1:]]))
    assert dataset["instruction"] == ["\u4f60\u597d \u00e9?", text, "\u4f60\u597d \u00e9?"]
    assert dataset["note"] == ["", "bytes that are not UTF-8 read as Windows-1252", ""]
    assert dataset["problem"] == ["", "", ""]


IN_OTHER_ENCODINGS = {
    "cp1250": ("Windows-1250", ["Co to jest?", "\u017b\u00f3\u0142ta torba na zakupy z du\u017c\u0105 kieszeni\u0105"]),
    "cp1251": (
        "Windows-1251",
        [
            "\u0427\u0442\u043e \u044d\u0442\u043e?",
            "\u041a\u0440\u0430\u0441\u043d\u0430\u044f \u0441\u0443\u043c\u043a\u0430",
        ],
    ),
    "gbk": ("GBK", ["\u8fd9\u662f\u4ec0\u4e48\uff1f", "\u4e00\u4e2a\u7ea2\u8272\u7684\u624b\u63d0\u5305"]),
    "cp932": ("Shift JIS", ["\u3053\u308c\u306f\u4f55\u3067\u3059\u304b\uff1f", "\u8d64\u3044\u9784\u3067\u3059"]),
    "mac_roman": (
        "Mac Roman",
        ["Qu'est-ce que c'est ?", "Une \u00e9tiquette tr\u00e8s l\u00e9g\u00e8re \u00e0 c\u00f4t\u00e9"],
    ),
}


@pytest.mark.parametrize("encoding", IN_OTHER_ENCODINGS)
def test_other_encodings_are_recognized_and_noted(read, encoding):
    name, texts = IN_OTHER_ENCODINGS[encoding]
    dataset = read(
        HEADER.encode() + f"images/bag.jpg,{texts[0]},{texts[1]}\nimages/bag.jpg,Why?,So.\n".encode(encoding)
    )
    assert [dataset[0]["instruction"], dataset[0]["description"]] == texts and not any(dataset["problem"])
    assert dataset["note"] == [f"bytes that are not UTF-8 read as {name}", ""]


WESTERN = [
    "Eine gro\u00dfe T\u00fcte f\u00fcr 5 \u20ac",
    "Caf\u00e9",
    "It\u2019s a bag",
    "20\u00b0 \u201cx\u201d \u2013 5 \u20ac",
    "5 \u00a3 \u00bd \u00ae",
    "Uma a\u00e7\u00e3o n\u00e3o \u00e9 s\u00f3 isso",
    "Et r\u00f8dt t\u00f8rkl\u00e6de p\u00e5 bordet",
    "\u00c9TIQUETTE TR\u00c8S L\u00c9G\u00c8RE",
    "l\u2019\u0153uvre d\u2019\u00c9mile, d\u00e9j\u00e0 \u00ab vue \u00bb",
    "R\u00f6d v\u00e4ska p\u00e5 \u00e5n",
]


@pytest.mark.parametrize("text", WESTERN)
def test_western_texts_stay_windows_1252(read, text):
    row = read(f'{HEADER}images/bag.jpg,What?,"{text}"\n'.encode("cp1252"))[0]
    assert row["description"] == text and row["note"].endswith("read as Windows-1252")


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "\ufeffsep=;", "SEP=;;;"])
def test_a_line_that_tells_excel_the_separator_is_no_header(read, line):
    row = read(f"{line}\r\n{HEADER.replace(',', ';')}images/bag.jpg;What, and why, and how?;A bag.\r\n")[0]
    assert (row["instruction"], row["description"], row["problem"]) == ("What, and why, and how?", "A bag.", "")
    assert read(f"sep=|\n{HEADER.replace(',', '|')}images/bag.jpg|What?|A bag.\n")["description"] == ["A bag."]


@pytest.mark.parametrize("word", ["nan", "NaN", "None", "null"])
def test_a_word_for_no_value_is_no_text(read, word):
    dataset = read(
        f"{HEADER}images/bag.jpg,What?,{word}\nimages/bag.jpg,{word},A bag.\nimages/bag.jpg,What?,{word}s.\n"
    )
    assert [problem_of(row) for row in dataset] == [f"empty description: {word}", f"empty instruction: {word}", ""]
    assert problem_of(read(f"Image,Question,Answer\nimages/bag.jpg,What?,{word}\n")[0]) == f"empty answer: {word}"


def test_bytes_of_no_known_encoding_are_a_problem(read):
    dataset = read(HEADER.encode() + b"images/bag.jpg,What\x81?,A bag.\n")
    assert problem_of(dataset[0]) == "bytes that no known encoding has"
    assert dataset[0]["instruction"] == "What\ufffd?"


@pytest.mark.parametrize("order", ["le", "be"])
def test_utf_16_with_its_mark_is_read(read, order):
    content = HEADER.replace(",", ";") + 'images/bag.jpg;"What;\r\nis it?";Eine T\u00fcte \U0001f45c.\r\n'
    row = read(("\ufeff" + content).encode(f"utf-16-{order}"))[0]
    assert (row["instruction"], row["description"]) == ("What;\nis it?", "Eine T\u00fcte \U0001f45c.")
    assert (row["problem"], row["note"]) == ("", "")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32"])
def test_utf_16_without_its_mark_is_an_error_with_a_remedy(read, encoding):
    with pytest.raises(ValueError, match="UTF-16.*Save it as 'CSV UTF-8"):
        read((HEADER + "images/bag.jpg,What?,A bag.\n").encode(encoding))


@pytest.mark.parametrize("damage", [b"\0", b"\0\xd8a\0"])  # half a character, half of a pair
def test_damaged_utf_16_is_an_error_with_a_remedy(read, damage):
    with pytest.raises(ValueError, match="products.csv is damaged UTF-16.*Save it as 'CSV UTF-8"):
        read((HEADER + "images/bag.jpg,What?,A bag.\n" * 10_000).encode("utf-16") + damage)


def test_a_mark_of_utf_16_alone_is_an_empty_file(read):
    with pytest.raises(ValueError, match="is empty"):
        read(b"\xff\xfe")


def test_a_workbook_is_an_error_with_a_remedy(read):
    with pytest.raises(ValueError, match="Excel workbook.*Save it as 'CSV UTF-8"):
        read(b"PK\x03\x04\x14\0\x06\0")


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_the_separator_is_taken_from_the_header(read, separator):
    cells = ["images/bag.jpg", "What, and why; now?", "A\tbag, red; large"]
    lines = [HEADER.replace(",", separator), separator.join(f'"{cell}"' for cell in cells), "\n"]
    row = read("".join(lines))[0]
    assert [row[name] for name in ("image_path", "instruction", "description")] == cells


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_and_quoted_newlines(read, end):
    content = f'{HEADER}images/bag.jpg,"What\nis it?","A ""red"" bag.\n\nLarge."\nimages/bag.jpg,Why?,A bag.'
    dataset = read(content.replace("\n", end))
    assert dataset["instruction"] == ["What\nis it?", "Why?"]
    assert dataset["description"] == ['A "red" bag.\n\nLarge.', "A bag."]


def test_a_space_before_a_quote_does_not_matter(read):
    assert read(HEADER + 'images/bag.jpg, "What, and why?", "A bag."\n')[0]["instruction"] == "What, and why?"


def test_a_misplaced_quote_is_a_problem_of_its_row_alone(read):
    dataset = read(f'{HEADER}images/bag.jpg,"The "big" one?",A bag.\nimages/bag.jpg,Why?,A bag.\n')
    assert [problem_of(row) for row in dataset] == ["misplaced quote", ""]
    assert "big" in dataset[0]["instruction"]


def test_a_quote_that_swallows_a_row_is_not_taken_for_text(read):
    dataset = read(f'{HEADER}images/bag.jpg,What?,"A bag.\nimages/bag.jpg,What?,"A hat."\nimages/bag.jpg,Why?,A bag.\n')
    assert [problem_of(row) for row in dataset] == ["misplaced quote", ""]
    assert "A hat." in dataset[0]["description"]


def test_an_open_quote_names_the_row(read):
    rows = "images/bag.jpg,What?,A bag.\n" * 5
    with pytest.raises(ValueError, match=r"products.csv, row 3 \(line 4\): a quote opens and does not close"):
        read(HEADER + rows[:56] + 'images/bag.jpg,What?,"A bag.\n' + rows)
    with pytest.raises(ValueError, match=r"row 1: a cell of more than 16,777,216 characters, or a quote that"):
        read(HEADER + 'images/bag.jpg,What?,"A bag.\n' + "x" * 2**24)


def test_a_cell_may_be_long(read):
    assert len(read(f"{HEADER}images/bag.jpg,What?,{'x' * 140_000}\n")[0]["description"]) == 140_000


# Columns


@pytest.mark.parametrize(
    ("header", "advice"),
    [
        ("image_path,instruction,descripton", "read_csv(..., response_field='descripton')"),
        ("Picture_Path,instruction,description", "read_csv(..., image_field='Picture_Path')"),
        ("img_file,texts,respons", "image_field='img_file', text_field='texts', response_field='respons')"),
        ("image_path,instruction,x", "read_csv(..., response_field='x')"),  # the only one that is left
        ("id,image_path,question,labels", "read_csv(..., response_field='labels')"),
        ("image,prefix,suffix", "read_csv(..., text_field='prefix', response_field='suffix')"),
        ("photo,query,label", "read_csv(..., image_field='...', response_field='label')"),
        ("image_path,instruction,x,y", "read_csv(..., response_field='...')"),
    ],
)
def test_a_missing_column_names_the_file_the_columns_and_the_argument(read, header, advice):
    with pytest.raises(ValueError) as caught:
        read(f"{header}\nimages/bag.jpg,What?,A bag.\n")
    message = str(caught.value)
    assert "products.csv has no column " in message and advice in message
    assert f"Its columns: {header.replace(',', ', ')}." in message


def test_a_header_may_have_nameless_columns_but_no_name_twice(read):
    dataset = read("," + HEADER + "0,images/bag.jpg,What?,A bag.\n")  # as pandas writes its index
    assert dataset[0]["column_1"] == "0"
    with pytest.raises(ValueError, match="two columns named 'description'"):
        read(HEADER.replace("instruction", "description") + "a,b,c\n")


def test_empty_files(read):
    for content in ("", "\ufeff", "\n \n"):
        with pytest.raises(ValueError, match="is empty"):
            read(content)
    with pytest.raises(ValueError, match="holds no rows"):
        read(HEADER)


def test_wrong_paths_of_the_file_or_the_root(folder, read):
    with pytest.raises(FileNotFoundError):
        read_csv(folder / "gone.csv")
    with pytest.raises(NotADirectoryError, match="image_root: there is no folder .*gone"):
        read(HEADER + "bag.jpg,What?,A bag.\n", image_root=folder / "gone")


# Image paths


def paths_read(read, *written, **options):
    """The rows for some image paths, with images undecoded."""
    dataset = read(HEADER + "".join(f'"{path}",What?,A bag.\n' for path in written), **options)
    return list(dataset.cast_column("images", List(Image(decode=False))))


def test_paths_inside_the_root(read, folder):
    written = [
        "images/bag.jpg",
        "./images/../images/bag.jpg",
        "images//bag.jpg",
        f"{folder}/images/bag.jpg",
        "images/b\u00e4g \u5305.jpg",
        "images/gone.jpg",
        "new/gone.jpg",
        "images/b:g.jpg",
        "images/..bag.jpg",
    ]
    rows = paths_read(read, *written)
    assert [row["problem"] for row in rows] == [""] * len(written)
    root = os.path.realpath(folder)
    assert {row["images"][0]["path"] for row in rows[:4]} == {f"{root}/images/bag.jpg"}
    assert rows[4]["images"][0]["path"] == f"{root}/images/b\u00e4g \u5305.jpg"


@pytest.mark.parametrize(
    "written",
    ["../../etc/passwd", "/etc/passwd", "images/../../outside.jpg", "..", "images/../..", "../data2/bag.jpg",
     r"..\..\etc\passwd", r"C:\images\bag.jpg", "C:bag.jpg", r"\\server\bag.jpg"],
)  # fmt: skip
def test_paths_that_leave_the_root(read, folder, written):
    (folder.parent / "outside.jpg").touch()
    (folder.parent / "data2").mkdir()  # a sibling whose name begins like the root's
    row = paths_read(read, written)[0]
    assert problem_of(row) == f"path leaves the image root: {written!r}"
    assert row["images"] == [None] and row["messages"][0] == user("What?", images=1)


def test_links_that_leave_the_root(read, folder):
    outside = folder.parent / "outside"
    outside.mkdir()
    Pictures.new("RGB", (8, 8)).save(outside / "secret.jpg")
    (folder / "images" / "link.jpg").symlink_to(outside / "secret.jpg")
    (folder / "images" / "folder").symlink_to(outside)
    (folder / "images" / "inside.jpg").symlink_to("bag.jpg")
    (folder / "images" / "loop.jpg").symlink_to("loop.jpg")
    rows = paths_read(read, "images/link.jpg", "images/folder/secret.jpg", "images/inside.jpg", "images/loop.jpg")
    assert [problem_of(row) for row in rows[:2]] == [
        "path leaves the image root: 'images/link.jpg', through a link",
        "path leaves the image root: 'images/folder/secret.jpg', through a link",
    ]
    assert [row["images"] for row in rows[:2]] == [[None], [None]]
    assert rows[2]["images"][0]["path"] == os.path.realpath(folder / "images" / "bag.jpg")
    assert rows[3]["problem"] == ""  # validation will not find a file there


def test_a_link_is_looked_at_anew_each_time(read, folder):
    link = folder / "images" / "link.jpg"
    link.symlink_to("/etc/passwd")
    assert paths_read(read, "images/link.jpg")[0]["images"] == [None]
    link.unlink()
    link.symlink_to("bag.jpg")
    assert paths_read(read, "images/link.jpg")[0]["problem"] == ""


def test_an_edited_file_is_read_anew(read, folder):
    os.utime(folder, (0, 0))
    assert read(HEADER + "images/bag.jpg,What?,A bag.\n")["description"] == ["A bag."]
    stamp = os.stat(folder / "products.csv").st_mtime_ns
    path = folder / "products.csv"
    path.write_text(HEADER + "images/bag.jpg,What?,A hat.\n")
    os.utime(path, ns=(stamp, stamp))  # the same size and time
    assert read_csv(path)["description"] == ["A hat."]


def test_other_paths_that_name_no_file(read):
    rows = paths_read(read, "images/b\0g.jpg", "https://example.com/bag.jpg")
    assert [problem_of(row) for row in rows] == [
        "NUL character in the image path",
        "not a local file: 'https://example.com/bag.jpg'",
    ]
    assert [row["images"] for row in rows] == [[None], [None]]


@pytest.mark.skipif(os.name == "nt", reason="there a backslash is a slash")
def test_backslashes_count_as_slashes_and_are_noted(read, folder):
    row = paths_read(read, r"images\bag.jpg")[0]
    assert row["images"][0]["path"] == os.path.realpath(folder / "images" / "bag.jpg")
    assert row["note"] == "backslashes in the image path read as slashes"


def test_the_root_may_be_elsewhere_relative_or_a_link(read, folder, monkeypatch):
    (folder.parent / "link").symlink_to(folder)
    monkeypatch.chdir(folder.parent)
    real = os.path.realpath(folder / "images" / "bag.jpg")
    for root in (folder / "images", "data/images", "link/images"):
        assert paths_read(read, "bag.jpg", image_root=root)[0]["images"][0]["path"] == real
    assert paths_read(read, f"{folder.parent}/link/images/bag.jpg")[0]["problem"] == ""


# Files on disk


def test_an_image_that_is_none_survives_saving_and_loading(read, tmp_path):
    dataset = read(HEADER + "../gone.jpg,What?,A bag.\nimages/bag.jpg,What?,A bag.\n")
    dataset.save_to_disk(tmp_path / "saved")
    loaded = Dataset.load_from_disk(tmp_path / "saved")
    assert loaded[0]["images"] == [None] and loaded[1]["images"][0].size == (8, 8)
    assert dataset[0:2]["images"][0] == [None]


def test_other_processes_may_use_the_rows_and_leave(read):
    dataset = read(HEADER + "images/bag.jpg,What?,A bag.\n" * 4)
    mapped = dataset.map(lambda row: {"width": row["images"][0].width}, num_proc=2)
    assert mapped["width"] == [8] * 4
    assert dataset[3]["images"][0].size == (8, 8)  # the file is still there


@pytest.mark.slow
def test_nothing_is_left_behind(folder, tmp_path):
    (folder / "products.csv").write_text(HEADER + "images/bag.jpg,What?,A bag.\n")
    (tmp_path / "tmp").mkdir()
    code = "import sys; from vlmhelpers.data.readers.csv_reader import read_csv; print(len(read_csv(sys.argv[1])))"
    done = subprocess.run(
        [sys.executable, "-c", code, folder / "products.csv"],
        env=os.environ | {"TMPDIR": str(tmp_path / "tmp")}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout == "1\n" and done.stderr == ""
    assert list((tmp_path / "tmp").iterdir()) == []


def test_the_table_is_read_lazily(folder):
    path = folder / "products.csv"
    path.write_text(HEADER + "images/bag.jpg,What?,A bag.\n" * 3 + '"open')
    header, rows = read_table(path)
    assert header == ["image_path", "instruction", "description"]
    assert next(rows).fields["instruction"] == "What?"  # the broken end was not reached
