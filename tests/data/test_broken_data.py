"""The broken sample data: made anew byte for byte, and every case found by validation for what it is."""

import filecmp
import os
from pathlib import Path

import numpy as np
import pytest
from make_broken import make_broken

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.common.images import open_image, repair
from vlmhelpers.data.readers.csv_reader import read_csv
from vlmhelpers.data.splitting import split

FOLDER = Path(__file__).parents[2] / "data" / "broken"
LINK = Path("images/link.jpg")  # a checkout on Windows may have no symbolic links

REJECTED = {
    "truncated": "truncated or damaged image",
    "missing": "missing file",
    "text": "not an image: it is text, 'This was meant to be a p'",
    "empty": "empty file: 0 bytes",
    "bomb": "too many pixels",
    "folder": "not a file",
    "path upwards": "path leaves the image root: '../../etc/passwd'",
    "absolute path": "path leaves the image root: '/etc/passwd'",
    "link to outside": "path leaves the image root: 'images/link.jpg', through a link",
    "drive": r"path leaves the image root: 'C:\\images\\bag.jpg'",
    "empty description": "empty description",
    "short row": "too few cells: 3 of 4",
    "unquoted comma": "too many cells: ",
    "misplaced quote": "misplaced quote",
    "duplicate": "duplicate: the same as row 1",
}
REPAIRED = {
    "rotated by EXIF": "turned upright (EXIF orientation 6)",
    "CMYK": "CMYK converted to RGB",
    "transparent palette": "transparency laid on white",
    "grey of 16 bits": "gray of mode I;16 scaled to 8 bits",
    "animation": "first of several frames taken",
    "backslash": "backslashes in the image path read as slashes",
    "control tokens": "control tokens of some models, taken as plain text: <|image|> <|eot_id|>",
    "Windows-1252": "bytes that are not UTF-8 read as Windows-1252",
}
WARNED = {
    "other answer": "another answer: row 1 has the same question about the same image",
    "near-duplicate": "near-duplicate: nearly the same image as row 1",
}
SOUND = {f"sound {number}" for number in range(1, 7)} | {"quoted newline"}


@pytest.fixture(scope="module")
def remade(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "broken"
    make_broken(folder)
    return folder


@pytest.fixture(scope="module")
def report(remade):
    """Validation of the remade data, whose link is always one; its pictures are those of data/broken."""
    return check_dataset(read_csv(remade / "products.csv"))


def files_of(folder):
    return {path.relative_to(folder) for path in folder.rglob("*")}


def test_the_files_are_made_anew_byte_for_byte(remade):
    assert files_of(remade) == files_of(FOLDER)
    names = [str(path) for path in files_of(FOLDER) if path != LINK and not (FOLDER / path).is_dir()]
    assert filecmp.cmpfiles(remade, FOLDER, names, shallow=False)[0] == names
    if (FOLDER / LINK).is_symlink():
        assert os.readlink(remade / LINK) == os.readlink(FOLDER / LINK)
    make_broken(remade)  # over what is there
    assert filecmp.cmpfiles(remade, FOLDER, names, shallow=False)[0] == names


def test_the_data_is_small():
    assert sum((FOLDER / path).lstat().st_size for path in files_of(FOLDER)) < 150_000


def test_the_csv_has_the_bytes_it_is_broken_by():
    content = (FOLDER / "products.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf") and b"Caf\xe9 \x93Luma\x94" in content
    assert b'"Write the shop listing\nfor this image."' in content


def found(records):
    return {record["fields"]["case"]: record["reason"] for record in records}


def test_every_case_is_rejected_for_what_it_is(report):
    reasons = found(report.rejected)
    assert reasons.keys() == REJECTED.keys()
    assert all(reasons[case].startswith(reason) for case, reason in REJECTED.items()), reasons
    assert all(record["remedy"] for record in report.rejected)


def test_every_case_that_can_be_repaired_is_kept(report):
    assert found(report.repaired) == REPAIRED
    assert found(report.warnings) == WARNED
    assert set(report.dataset["case"]) == SOUND | REPAIRED.keys() | WARNED.keys()


def test_no_case_is_lost(report):
    counts = report.counts
    assert counts["read"] == 32 == len(SOUND) + len(REPAIRED) + len(WARNED) + len(REJECTED)
    assert (counts["kept"], counts["rejected"]) == (len(report.dataset), len(report.rejected)) == (17, 15)


def test_every_kept_picture_can_be_used(report):
    for row in report.dataset:
        assert repair(row["images"][0]).mode == "RGB" and row["images"][0].size == (80, 80)


def test_texts_arrive_as_they_were_meant(report):
    texts = dict(zip(report.dataset["case"], report.dataset["instruction"], strict=True))
    assert texts["Windows-1252"] == "Caf\u00e9 \u201cLuma\u201d: write the listing."
    assert texts["quoted newline"] == "Write the shop listing\nfor this image."
    assert texts["sound 1"] == "Write the shop listing for this image."


def test_repaired_pictures_look_as_they_should():
    def pixels(name):
        return np.asarray(repair(open_image(FOLDER / "images" / name)))

    stored = np.asarray(open_image(FOLDER / "images" / "rotated_by_EXIF.jpg"))
    assert (pixels("rotated_by_EXIF.jpg") == np.rot90(stored, -1)).all()
    above = np.triu_indices(80)
    assert (pixels("transparent_palette.png")[above] == 255).all()
    assert (pixels("transparent_palette.png")[40:, :30] < 250).any()
    gray = np.asarray(open_image(FOLDER / "images" / "grey_of_16_bits.png"))
    assert gray.max() > 50_000 and (pixels("grey_of_16_bits.png")[..., 0] == gray // 257).all()


def test_a_missing_column_names_the_one_to_take():
    with pytest.raises(ValueError, match=r"no column 'description'.*response_field='descriptions'"):
        read_csv(FOLDER / "missing_column.csv")
    dataset = read_csv(FOLDER / "missing_column.csv", response_field="descriptions")
    assert check_dataset(dataset).counts["kept"] == 1


def test_a_picture_saved_twice_leaks_from_train_into_test():
    report = check_dataset({name: read_csv(FOLDER / f"{name}.csv") for name in ("train", "test")})
    assert found(report.rejected) == {"twin in train": "leak: nearly the same image as row 3 of test"}
    assert len(report.dataset["test"]) == 3


def test_the_kept_rows_can_be_split(report):
    parts = split(report.dataset, 5)
    assert len(parts["test"]) == 5
    shared = set(parts["train"]["image_path"]) & set(parts["test"]["image_path"])
    assert not shared
