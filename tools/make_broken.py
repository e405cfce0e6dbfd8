"""Makes data/broken/: a CSV with all that goes wrong in real data, its images; the same bytes each time.

Run `python tools/make_broken.py`. `products.csv` has one row for each case, and its column `case` says
which. Three smaller files: `missing_column.csv` lacks a column, and `train.csv` and `test.csv` share a
image that was saved twice.
"""

import argparse
import csv
import io
import random
import struct
import zlib
from pathlib import Path

import numpy as np
from make_samples import INSTRUCTION, SIDE
from PIL import Image
from texts import listing

from vlmhelpers.samples.drawing import all_products, draw

SEED = "broken"
COLUMNS = ["case", "image_path", "instruction", "description"]


def make_broken(folder):
    """Writes the CSVs and images/ into `folder`."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    shop = Shop(folder)
    rows = [*sound_rows(shop), *unusable_images(shop), *odd_images(shop), *odd_paths(shop), *odd_texts(shop)]
    rows += repeated_rows(shop, rows[0])
    (folder / "products.csv").write_bytes(b"\xef\xbb\xbf" + _line(COLUMNS) + b"".join(rows))
    make_missing_column(shop)
    make_train_and_test(shop)


class Shop:
    """Draws products, each another one, and saves their images."""

    def __init__(self, folder):
        self.folder = folder
        self.rng = random.Random(SEED)
        self.products = self.rng.sample(all_products(), 60)

    def next(self):
        """The image and the listing of the next product."""
        product = self.products.pop()
        return draw(product, self.rng, SIDE), listing(product)

    def save(self, image, name, **options):
        """Saves an image as images/`name` and returns that path."""
        options = {"quality": 80, "optimize": True} | options if name.endswith(".jpg") else options
        image.save(self.folder / "images" / name, **options)
        return f"images/{name}"

    def row(self, case, change=lambda image: image, ending="jpg", **options):
        """A CSV line with a new product, its image changed by `change` and saved under the case's name."""
        image, text = self.next()
        name = f"{case.replace(' ', '_')}.{ending}"
        return _line([case, self.save(change(image), name, **options), INSTRUCTION, text])


def _line(cells):
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue().encode()


def sound_rows(shop):
    return [shop.row(f"sound {number}") for number in range(1, 7)]


def unusable_images(shop):
    """A missing file, a truncated one, a text, an empty one, a folder and a decompression bomb."""
    text = shop.next()[1]
    truncated = shop.row("truncated")
    images = shop.folder / "images"
    whole = (images / "truncated.jpg").read_bytes()
    (images / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (images / "text.jpg").write_bytes(b"This was meant to be a picture.\n")
    (images / "empty.jpg").write_bytes(b"")
    (images / "bomb.png").write_bytes(bomb())
    names = {"missing": "missing.jpg", "text": "text.jpg", "empty": "empty.jpg", "bomb": "bomb.png", "folder": ""}
    return [truncated, *(_line([case, f"images/{name}", INSTRUCTION, text]) for case, name in names.items())]


def bomb(side=60_000):
    """A PNG of 65 bytes whose header promises `side` x `side` pixels."""
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = _chunk(b"IHDR", header), _chunk(b"IDAT", zlib.compress(b"")), _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def _chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def odd_images(shop):
    """Images in forms that have to be repaired before a model can see them."""
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: to be turned clockwise
    frames = [shop.next()[0].quantize(32) for _ in range(2)]
    animated = {"save_all": True, "append_images": frames}
    return [
        shop.row("rotated by EXIF", lambda image: image.transpose(Image.Transpose.ROTATE_90), exif=exif),
        shop.row("CMYK", lambda image: image.convert("CMYK")),
        shop.row("transparent palette", _see_through_corner, "png", optimize=True),
        shop.row("grey of 16 bits", _gray_of_16_bits, "png", optimize=True),
        shop.row("animation", lambda image: image.quantize(32), "gif", **animated),
    ]


def _see_through_corner(image):
    """The image in 31 colors, with everything above its diagonal see-through."""
    palette = image.quantize(31)
    indices = np.asarray(palette).copy()
    indices[np.triu_indices(SIDE)] = 31
    cut = Image.fromarray(indices).convert("P")
    cut.putpalette(palette.getpalette()[: 31 * 3] + [0, 0, 0])
    cut.info["transparency"] = 31
    return cut


def _gray_of_16_bits(image):
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 257)


def odd_paths(shop):
    """Paths that leave the folder, one that needs a second look, and a link to an image outside."""
    link = shop.folder / "images" / "link.jpg"
    link.unlink(missing_ok=True)
    link.symlink_to("../../images/001.jpg")
    paths = {
        "path upwards": "../../etc/passwd",
        "absolute path": "/etc/passwd",
        "link to outside": "images/link.jpg",
        "drive": r"C:\images\bag.jpg",
    }
    shop.save(shop.next()[0], "backslash.jpg")
    text = shop.next()[1]
    rows = [_line([case, path, INSTRUCTION, text]) for case, path in paths.items()]
    return [*rows, _line(["backslash", r"images\backslash.jpg", INSTRUCTION, text])]


def odd_texts(shop):
    """Lines that a spreadsheet or a hand left unusual, some of them broken."""
    image, text = shop.next()
    path = shop.save(image, "texts.jpg")
    tokens = f"{INSTRUCTION} It says <|image|> and <|eot_id|>."
    western = _line(["Windows-1252", path, "Caf\u00e9 \u201cLuma\u201d: write the listing.", text])
    return [
        _line(["quoted newline", path, "Write the shop listing\nfor this image.", text]),
        _line(["control tokens", path, tokens, text]),
        western.decode().encode("cp1252"),
        _line(["empty description", path, INSTRUCTION, ""]),
        _line(["short row", path, INSTRUCTION]),
        f"unquoted comma,{path},{INSTRUCTION},{text}\n".encode(),
        f'misplaced quote,{path},"The "big" one: write the listing.","{text}"\n'.encode(),
    ]


def repeated_rows(shop, first):
    """The first row again, its image with another answer, and its image saved again."""
    _, path, instruction, text = next(csv.reader([first.decode()]))
    other = shop.next()[1]
    image = Image.open(shop.folder / path)
    again = shop.save(image, "saved_again.jpg", quality=60)
    return [
        _line(["duplicate", path, instruction, text]),
        _line(["other answer", path, instruction, other]),
        _line(["near-duplicate", again, instruction, text]),
    ]


def make_missing_column(shop):
    """A file with a sound row whose answers stand in `descriptions` instead of `description`."""
    image, text = shop.next()
    path = shop.save(image, "missing_column.jpg")
    header = _line(["image_path", "instruction", "descriptions"])
    (shop.folder / "missing_column.csv").write_bytes(header + _line([path, INSTRUCTION, text]))


def make_train_and_test(shop):
    """Two files of which each is sound, but one image of train.csv is in test.csv too, saved smaller."""
    image, text = shop.next()
    smaller = image.resize((SIDE * 3 // 4, SIDE * 3 // 4), Image.Resampling.LANCZOS)
    twins = {"train": shop.save(image, "twin.jpg"), "test": shop.save(smaller, "twin_smaller.jpg")}
    for name, path in twins.items():
        rows = [shop.row(f"{name} {number}") for number in (1, 2)]
        twin = _line([f"twin in {name}", path, INSTRUCTION, text])
        (shop.folder / f"{name}.csv").write_bytes(b"".join([_line(COLUMNS), *rows, twin]))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "data" / "broken")
    make_broken(parser.parse_args().out)
