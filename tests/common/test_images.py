"""Opening, verifying and repairing single images."""

import errno
import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib

import numpy as np
import pytest
from datasets import Dataset
from make_broken import bomb
from PIL import Image, ImageFile, ImageOps
from PIL.TiffImagePlugin import PHOTOMETRIC_INTERPRETATION, TiffImageFile

from vlmhelpers.common import image_colors, images
from vlmhelpers.common.digests import digest
from vlmhelpers.common.image_colors import repair_and_tell
from vlmhelpers.common.images import (
    ImageFacts,
    UnusableImage,
    image_header,
    image_identity,
    inspect_image,
    open_image,
    repair,
    strict_pillow,
)
from vlmhelpers.data.schema import FEATURES, make_row
from vlmhelpers.samples.drawing import COLORS, Product, draw, sample_products

SIDE = 48


@pytest.fixture
def picture():
    return sample_products(1, seed=3, size=SIDE)[0][1]


def encoded(image, image_format, **options):
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def rotation(orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def same_pixels(first, second):
    return first.mode == second.mode and first.size == second.size and first.tobytes() == second.tobytes()


def tiff_of(values, bands=1, **tags):
    """A TIFF of one strip, of numbers that Pillow may not write."""
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    numbers = {"width": 256, "height": 257, "compression": 259, "color": 262, "bands": 277, "extra": 338, "kind": 339}
    height, width = values.shape[:2]
    found = {"width": width, "height": height, "compression": 1, "color": 1, "bands": bands, "kind": kind} | tags
    found = {numbers[name]: value for name, value in found.items() if value is not None}
    found |= {278: height, 273: 200 + 2 * bands, 279: values.nbytes}
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in found.items()}
    bits = struct.pack("<H", 8 * values.dtype.itemsize) * bands
    entries[258] = struct.pack("<HHI", 258, 3, bands) + (bits.ljust(4, b"\0") if bands < 3 else struct.pack("<I", 200))
    directory = struct.pack("<H", len(entries)) + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return (b"II*\0\x08\0\0\0" + directory).ljust(200, b"\0") + bits + values.tobytes()


# Repair


def test_a_plain_rgb_picture_is_left_alone(picture):
    assert repair(picture) is picture


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "PA", "CMYK", "YCbCr", "HSV", "LAB", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_and_stays_the_same_when_repaired_again(mode):
    repaired = repair(Image.new(mode, (5, 3)))
    assert repaired.mode == "RGB" and repaired.size == (5, 3)
    assert same_pixels(repair(repaired), repaired)


@pytest.mark.parametrize(
    ("orientation", "undo"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (4, Image.Transpose.FLIP_TOP_BOTTOM),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (7, Image.Transpose.TRANSVERSE),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_exif_rotation_gives_the_upright_twin(picture, orientation, undo):
    upright = picture.crop((0, 0, SIDE, SIDE // 2))
    data = encoded(upright.transpose(undo), "PNG", exif=rotation(orientation))
    assert same_pixels(repair(open_image(data)), upright)
    assert inspect_image(data).size == upright.size
    assert inspect_image(data).repairs == (f"turned upright (EXIF orientation {orientation})",)


def test_a_picture_is_not_turned_twice(picture):
    upright = picture.crop((0, 0, SIDE, SIDE // 2))
    data = encoded(upright.transpose(Image.Transpose.ROTATE_90), "PNG", exif=rotation(6))
    decoded_by_datasets = Dataset.from_list([make_row("What?", "A bag.", [data])], features=FEATURES)[0]["images"][0]
    assert same_pixels(decoded_by_datasets, upright)  # datasets turns it while decoding
    assert same_pixels(repair(decoded_by_datasets), upright)
    assert same_pixels(repair(repair(open_image(data))), upright)


def test_gray_of_16_bits_keeps_its_gradient():
    gradient = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    repaired = np.asarray(repair(open_image(encoded(Image.fromarray(gradient), "PNG"))))
    assert np.abs(repaired.astype(float) - gradient[..., None] / 257).max() <= 0.5
    assert len(np.unique(repaired)) == 256  # a plain conversion would clip to white


@pytest.mark.parametrize("bits", [10, 12, 14, 16])
def test_gray_of_fewer_bits_in_16_keeps_its_contrast(bits):
    gradient = np.linspace(0, 2**bits - 1, 64 * 64).reshape(64, 64).astype(np.uint16)
    repaired = np.asarray(repair(open_image(encoded(Image.fromarray(gradient), "PNG"))))
    assert (repaired.min(), repaired.max()) == (0, 255) and len(np.unique(repaired)) == 256


def test_dark_gray_of_16_bits_stays_dark():
    assert repair(Image.fromarray(np.full((4, 4), 100, np.uint16))).getpixel((0, 0)) == (25, 25, 25)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 128, 255]], np.int32), [0, 128, 255]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[-1000, 0, 1000]], np.int32), [0, 128, 255]),
        (np.array([[0.0, 0.5, 1.0]], np.float32), [0, 128, 255]),
        (np.array([[0.0, 128.0, 255.0]], np.float32), [0, 128, 255]),
        (np.array([[-5.0, np.nan, 5.0]], np.float32), [0, 128, 255]),
        (np.array([[7e5, 7e5, 7e5]], np.float32), [0, 0, 0]),
    ],
)
def test_wide_gray_is_scaled_by_its_range(values, expected):
    gray = np.asarray(repair(Image.fromarray(values)))[0, :, 0]
    assert np.abs(gray.astype(int) - expected).max() <= 1


RAMP = np.tile(np.linspace(0, 1, 64), (64, 1))


@pytest.mark.parametrize(
    ("gray", "marks", "most"),
    [
        ((RAMP * 500).astype(np.float32), [-9999], 500),
        ((RAMP * 500).astype(np.float32), [-3.4028235e38], 500),
        ((RAMP * 500).astype(np.float32), [3.4028235e38, -3.4028235e38], 500),
        ((RAMP * 500).astype(np.int32), [-(2**31)], 500),
        ((RAMP * 4095).astype(np.uint16), [65_535], 4095),
        ((RAMP * 4095).astype(np.uint16), [65_535, 65_000], 4095),
    ],
)
@pytest.mark.parametrize("most_of_it", [False, True])
def test_what_is_far_from_all_other_values_takes_no_contrast(gray, marks, most, most_of_it):
    clean, marked = np.asarray(repair(Image.fromarray(gray))), gray.copy()
    marked[0, : len(marks)] = marks
    marked[20:] = marks[0] if most_of_it else marked[20:]
    data = encoded(Image.fromarray(marked), "TIFF")
    repaired = np.asarray(repair(open_image(data)))
    assert np.abs(repaired[1:20].astype(int) - clean[1:20]).max() <= 1 and len(np.unique(repaired)) >= 64
    assert set(np.unique(repaired[0, : len(marks)])) <= {0, 255 if max(marks) > most else 0}
    assert inspect_image(data).repairs[0].endswith(f", but for values beyond 0 to {most}")


def test_few_values_of_a_mask_stay_as_they_are():
    for values in ([0, 1, 65_535], [0, 30_000, 65_535], [-1000, 0, 5]):
        image = Image.fromarray(np.tile(np.array(values, np.int32), (8, 8)))
        assert len(np.unique(np.asarray(repair(image)))) >= 2 and "beyond" not in str(repair_and_tell(image))


def test_numbers_of_32_bits_without_a_sign_are_none_with_one():
    ramp = (RAMP * (2**32 - 1)).astype(np.uint32)
    for data in (tiff_of(ramp), tiff_of(ramp, kind=None)):
        assert np.abs(np.asarray(repair(open_image(data)))[..., 0] - RAMP * 255).max() <= 1


def test_bands_that_are_not_read_are_told():
    bands = np.zeros((8, 8, 4), np.uint8)
    facts = inspect_image(tiff_of(bands, bands=4, color=2, extra=0))
    assert (facts.mode, facts.repairs) == ("RGB", ("3 of 4 bands read",))
    assert inspect_image(tiff_of(bands[..., :3].copy(), bands=3, color=2)).repairs == ()


def test_gray_whose_zero_is_white_is_no_negative():
    gray = Image.fromarray(np.array([[0, 2000, 4095]], np.uint16))
    data = encoded(gray, "TIFF", tiffinfo={PHOTOMETRIC_INTERPRETATION: 0})
    assert np.abs(np.asarray(repair(open_image(data)))[0, :, 0].astype(int) - [255, 130, 0]).max() <= 1


def png_of(width, depth, kind, rows, *clear):
    """A PNG of the rows' bytes, of which the numbers in `clear` are transparent; Pillow writes not every depth."""
    parts = [(b"IHDR", struct.pack(">IIBBBBB", width, len(rows), depth, kind, 0, 0, 0))]
    parts += [(b"tRNS", struct.pack(f">{len(clear)}H", *clear))] if clear else []
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows))), (b"IEND", b"")]
    chunks = [len(data).to_bytes(4, "big") + name + data for name, data in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(c + zlib.crc32(c[4:]).to_bytes(4, "big") for c in chunks)


def colors_of_16_bits(bits, channels):
    """PNG whose colors use `bits` bits of their 16."""
    ramp = np.linspace(0, 2**bits - 1, 256).astype(">u2").reshape(16, 16, 1).repeat(channels, 2)
    return png_of(16, 16, {2: 4, 3: 2, 4: 6}[channels], [row.tobytes() for row in ramp])


def ppm_of_16_bits(bits):
    ramp = np.linspace(0, 2**bits - 1, 256).astype(">u2").repeat(3)
    return b"P6\n16 16\n65535\n" + ramp.tobytes()


def tiff_of_16_bits(bits):
    ramp = np.linspace(0, 2**bits - 1, 256).astype("<u2").repeat(3).tobytes()
    values = {256: 16, 257: 16, 259: 1, 262: 2, 277: 3, 278: 16, 279: len(ramp)}  # sizes, RGB, one strip
    entries = {tag: struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items()}
    end = 8 + 2 + 12 * (len(values) + 2) + 4
    entries[258], entries[273] = struct.pack("<HHII", 258, 3, 3, end), struct.pack("<HHII", 273, 4, 1, end + 6)
    directory = len(entries).to_bytes(2, "little") + b"".join(entries[tag] for tag in sorted(entries)) + bytes(4)
    return b"II*\0" + (8).to_bytes(4, "little") + directory + struct.pack("<3H", 16, 16, 16) + ramp


MAKERS = {
    "PNG RGB": lambda bits: colors_of_16_bits(bits, 3),
    "PNG RGBA": lambda bits: colors_of_16_bits(bits, 4),
    "PNG LA": lambda bits: colors_of_16_bits(bits, 2),
    "PPM": ppm_of_16_bits,
    "TIFF": tiff_of_16_bits,
}


def test_a_bright_pixel_does_not_make_dark_colors_fit():
    ramp = np.linspace(0, 4095, 256).astype(">u2").repeat(3)
    ramp[:3] = 65_535
    assert reason_of(b"P6\n16 16\n65535\n" + ramp.tobytes()).startswith("too dark to keep: ")


@pytest.mark.parametrize("maker", MAKERS)
def test_colors_of_16_bits_of_which_pillow_would_leave_black_are_refused(maker):
    assert open_image(MAKERS[maker](16)).size == (16, 16)
    assert reason_of(MAKERS[maker](12)).startswith(
        "too dark to keep: its colors use less than a quarter of their 16 bits"
    )


def test_a_value_that_gray_of_16_bits_calls_transparent_becomes_white():
    gray = Image.fromarray(np.array([[100, 1023, 4095]], np.uint16))
    repaired = repair(open_image(encoded(gray, "PNG", transparency=100)))
    assert [repaired.getpixel((x, 0))[0] for x in range(3)] == [255, 64, 255]


@pytest.mark.parametrize(
    ("depth", "kind", "row", "clear", "opaque"),
    [
        (16, 2, struct.pack(">6H", *[40_000] * 3, *[50_000] * 3), [40_000] * 3, 195),
        (8, 2, bytes([40] * 3 + [50] * 3), [40] * 3, 50),
        (16, 0, struct.pack(">2H", 40_000, 50_000), [40_000], 195),
        (8, 0, b"\x28\x32", [40], 50),
        (4, 0, b"\x78", [7], 136),
        (2, 0, b"\x60", [1], 170),
        (1, 0, b"\x80", [1], 0),
    ],
)
def test_a_color_that_a_png_calls_transparent_becomes_white_in_every_depth(depth, kind, row, clear, opaque):
    data = png_of(2, depth, kind, [row], *clear)
    repaired = repair(open_image(data))
    assert [repaired.getpixel((x, 0)) for x in (0, 1)] == [(255,) * 3, (opaque,) * 3]
    assert inspect_image(data).repairs[-1] == "transparency laid on white"


@pytest.mark.parametrize("mode", ["La", "RGBa"])
def test_transparency_that_is_multiplied_already_is_laid_on_white(mode):
    image = Image.new(mode, (1, 1), (100, 128) if mode == "La" else (100, 100, 100, 128))
    assert abs(repair(image).getpixel((0, 0))[0] - 227) <= 1


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "CMYK", "I;16", "F"])
@pytest.mark.parametrize("orientation", range(9))
def test_an_image_in_strips_is_the_image(monkeypatch, mode, orientation):
    values = np.random.default_rng(0).integers(0, 256, (23, 17, 4), np.uint8)
    image = (
        Image.fromarray(values[..., 0].astype(np.uint16) * 16) if mode == "I;16" else Image.fromarray(values[..., :3])
    )
    image = Image.fromarray(values) if mode == "RGBA" else image if mode == "I;16" else image.convert(mode)
    image.getexif()[0x0112] = orientation
    whole = repair(image)
    monkeypatch.setattr(image_colors, "_STRIP", 50)
    assert same_pixels(repair(image), whole)
    assert same_pixels(whole, repair(ImageOps.exif_transpose(image)))


def test_exif_that_cannot_be_read_turns_nothing(picture):
    data = encoded(picture, "JPEG", exif=b"Exif\0\0II*\0" + b"\xff" * 20)
    with strict_pillow(), warnings.catch_warnings(action="ignore"):
        assert inspect_image(data).repairs == () and inspect_image(data).size == picture.size


def test_transparency_is_laid_on_white(picture):
    layer = picture.convert("RGBA")
    alpha = np.zeros((SIDE, SIDE), np.uint8)
    alpha[:, : SIDE // 3], alpha[:, SIDE // 3 : SIDE // 2] = 255, 128
    layer.putalpha(Image.fromarray(alpha))
    weight = alpha[..., None] / 255
    expected = np.asarray(picture) * weight + 255 * (1 - weight)
    for form in (
        layer,
        open_image(encoded(layer, "PNG")),
        open_image(encoded(layer, "WEBP", lossless=True, exact=True)),
    ):
        assert np.abs(np.asarray(repair(form)) - expected).max() <= 1
    assert inspect_image(encoded(layer, "PNG")).repairs == ("transparency laid on white",)


def test_palette_transparency_is_laid_on_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([200, 10, 10, 0, 0, 0])
    palette.putpixel((1, 0), 1)
    repaired = repair(open_image(encoded(palette, "PNG", transparency=1)))
    assert [repaired.getpixel((x, 0)) for x in (0, 1)] == [(200, 10, 10), (255, 255, 255)]


def test_an_opaque_alpha_channel_is_nothing_to_report(picture):
    facts = inspect_image(encoded(picture.convert("RGBA"), "PNG"))
    assert facts.repairs == () and facts.pixels == inspect_image(encoded(picture, "PNG")).pixels


def test_cmyk_keeps_its_colors(picture):
    data = encoded(picture.convert("CMYK"), "JPEG", quality=95)
    assert np.abs(np.asarray(repair(open_image(data))).astype(int) - np.asarray(picture)).mean() < 4
    assert inspect_image(data).mode == "CMYK" and inspect_image(data).repairs == ("CMYK converted to RGB",)


def test_an_animation_shows_its_first_frame(picture):
    first = picture.quantize(64)
    data = encoded(first, "GIF", save_all=True, append_images=[Image.new("P", first.size)])
    image = open_image(data)
    image.seek(1)
    assert same_pixels(repair(image), first.convert("RGB"))
    assert inspect_image(data).repairs == ("first of several frames taken",)


def test_a_photo_with_a_preview_is_no_animation(picture):
    data = encoded(picture, "MPO", save_all=True, append_images=[picture.resize((8, 8))])
    facts = inspect_image(data)
    assert (facts.format, facts.size, facts.repairs) == ("MPO", picture.size, ())


# Unusable files


def reason_of(source, **options):
    with pytest.raises(UnusableImage) as caught:
        open_image(source, **options)
    assert caught.value.remedy and caught.value.remedy in str(caught.value)
    return caught.value.reason


def test_a_missing_file_says_what_was_meant(tmp_path, picture):
    assert reason_of(tmp_path / "bag.jpg").startswith("missing file: ")
    picture.save(tmp_path / "bag.JPG")
    with pytest.raises(UnusableImage, match="write 'bag.JPG', which is there"):
        open_image(tmp_path / "bag.png")


def test_an_empty_file_a_folder_and_a_pipe(tmp_path):
    (tmp_path / "empty.jpg").touch()
    assert reason_of(tmp_path / "empty.jpg") == "empty file: 0 bytes" == reason_of(b"")
    assert reason_of(tmp_path).endswith("is a folder")
    if hasattr(os, "mkfifo"):
        os.mkfifo(tmp_path / "pipe.jpg")
        assert reason_of(tmp_path / "pipe.jpg").endswith("is a device or a pipe")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"This is no picture.\n", "it is text, 'This is no picture.'"),
        (b"version https://git-lfs.github.com/spec/v1\n", "it is a Git LFS pointer"),
        (b"\n<!DOCTYPE HTML><html>", "it is a web page"),
        (b"<svg xmlns='x'>", "it is an SVG drawing"),
        (b"%PDF-1.7", "it is a PDF"),
        (b'<?xml version="1.0"?>\n<!-- <html> -->\n<!DOCTYPE svg [<!ENTITY a "b">]>\n<svg>', "it is an SVG drawing"),
        (b'<?xml version="1.0"?><!DOCTYPE html><html><svg>', "it is a web page"),
        (b'<?xml version="1.0"?><bag></bag>', "it is text, '<?xml version=\"1.0\"?><ba'"),
        (b"<!-- ?><!-- -->" * 100 + b"<bag>", "it is text, '<!-- ?><!-- --><!-- ?><!'"),
        (b"\0\0\0\x18ftypheic\0\0", "it is a HEIC photo"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "it is a HEIC photo"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42", "it is a video"),
        (b"RIFF\x24\0\0\0AVI LIST", "it is a video"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "it is a sound"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is text, '%!PS-Adobe-3.0 EPSF-3.0 '"),
        (b"\x01\x02\x03\xff", "it begins with 01 02 03 ff"),
    ],
)
def test_what_is_not_an_image_is_named(tmp_path, content, expected):
    (tmp_path / "bag.jpg").write_bytes(content)
    assert reason_of(tmp_path / "bag.jpg") == f"not an image: {expected}" == reason_of(content)


def frame(marker, bits=8, layers=1):
    """The header of a JPEG: bits and layers, and how they are encoded, as ISO/IEC 10918-1 numbers it."""
    return b"\xff\xd8\xff" + struct.pack(">BHBHHB", marker, 8 + 3 * layers, bits, 8, 8, layers) + b"\1\x11\0" * layers


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (frame(0xC1, bits=12), "cannot handle 12-bit layers"),
        (frame(0xC3, bits=16), "cannot handle 16-bit layers"),  # lossless
        (frame(0xC0, layers=2), "cannot handle 2-layer images"),
        (tiff_of(np.zeros((4, 4))), "unknown pixel mode"),
        (tiff_of(np.zeros((4, 4), np.uint8), compression=34712), "unknown compression 34712"),
        (
            b"BM" + struct.pack("<3I", 0, 0, 54) + struct.pack("<3I2H6I", 40, 4, 4, 1, 24, 4, *[0] * 5),
            "Unsupported BMP ",
        ),
    ],
)
def test_what_pillow_does_not_decode_is_no_damage(tmp_path, content, said):
    (tmp_path / "bag.jpg").write_bytes(content)
    assert reason_of(tmp_path / "bag.jpg") == reason_of(content)
    assert reason_of(content).startswith(f"not supported: {said}")


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data")
@pytest.mark.parametrize("content", [frame(0xC0)[:4], tiff_of(np.zeros((4, 4)))[:30], b"BM\0\xff", b"GIF89a"])
def test_a_header_that_breaks_off_is_damage(content):
    assert reason_of(content) == "truncated or damaged image: its header cannot be read"


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF"])
def test_a_truncated_file_is_found_in_every_format(picture, image_format):
    data = encoded(picture, image_format)
    assert isinstance(inspect_image(data), ImageFacts)
    assert reason_of(data[: len(data) * 2 // 3]).startswith("truncated or damaged image: ")


def test_a_damaged_header_is_not_taken_for_another_kind_of_file(picture):
    data = encoded(picture, "PNG")
    assert reason_of(data[:18] + b"\xff" + data[19:]) == "truncated or damaged image: its header cannot be read"


def test_truncated_files_are_found_even_where_pillow_was_told_to_accept_them(picture, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    data = encoded(picture, "JPEG")[:-200]
    with strict_pillow():
        assert reason_of(data).startswith("truncated or damaged image: ")
    assert ImageFile.LOAD_TRUNCATED_IMAGES is True


@pytest.mark.parametrize("side", [9_460, 12_000, 60_000])  # just over the limit, where Pillow warns, where it raises
def test_a_bomb_is_refused_by_its_header(side, monkeypatch):
    monkeypatch.setattr(ImageFile.ImageFile, "load", lambda self: pytest.fail("it was decoded"))
    with strict_pillow(), warnings.catch_warnings(record=True) as caught:
        assert reason_of(bomb(side)).startswith("too many pixels: ")
    assert not caught


def test_a_bomb_is_refused_where_warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert reason_of(bomb(12_000)).startswith("too many pixels: ")


NO_HEADERS = {
    "no bytes": {"path": None, "bytes": b""},
    "nothing": {"path": None, "bytes": None},
    "a NUL in the name": "bag\0.png",
    "no such file": "gone.png",
    "long comments": b"P6\n" + b"# so\n" * 20_000 + b"1 1\n255\n...",
    "another format": encoded(Image.new("RGB", (16, 16)), "ICO"),
}


@pytest.mark.parametrize("source", NO_HEADERS.values(), ids=NO_HEADERS)
def test_a_header_that_is_not_opened_says_nothing(source):
    assert image_header(source) is None


def test_a_header_says_format_and_pixels(tmp_path, picture):
    picture.save(tmp_path / "bag.png")
    assert image_header(tmp_path / "bag.png") == ("PNG", SIDE * SIDE)
    assert image_header({"path": None, "bytes": encoded(picture, "JPEG")}) == ("JPEG", SIDE * SIDE)


def test_the_limit_is_an_argument(picture):
    data = encoded(picture, "PNG")
    assert open_image(data, max_pixels=SIDE * SIDE).size == picture.size
    assert "48 x 48, the limit is 2,303" in reason_of(data, max_pixels=SIDE * SIDE - 1)


def test_a_sliver_is_refused():
    assert reason_of(encoded(Image.new("RGB", (201, 1)), "PNG")) == "too narrow: 201 x 1 pixels"
    assert open_image(encoded(Image.new("RGB", (200, 1)), "PNG")).size == (200, 1)


def fail(number):
    def raise_it(*_, **__):
        raise OSError(number, os.strerror(number))

    return raise_it


READERS = [open_image, inspect_image, lambda path: image_identity({"path": str(path), "bytes": None})]
PLACES = ["builtins.open", "PIL.Image.open", "os.stat", "PIL.ImageFile.ImageFile.load"]
OF_THE_MACHINE = [
    "EMFILE",
    "ENFILE",
    "ENOMEM",
    "EIO",
    "ESTALE",
    "ETIMEDOUT",
    "ENOTCONN",
    "EHOSTDOWN",
    "EACCES",
    "EPERM",
]


@pytest.mark.parametrize("name", OF_THE_MACHINE)
@pytest.mark.parametrize("place", PLACES)
def test_what_fails_in_the_machine_is_no_fault_of_the_image(tmp_path, picture, monkeypatch, place, name):
    path, number = tmp_path / "bag.png", getattr(errno, name)
    picture.save(path)
    monkeypatch.setattr(place, fail(number))
    for read in READERS[: 2 if place.startswith("PIL") else 3]:
        with pytest.raises(OSError, match=r"(?s)not at fault; \w+.*bag\.png") as caught:
            read(path)
        assert caught.value.errno == (errno.EACCES if name == "EPERM" else number)


def test_a_disk_that_fails_under_a_decoder_in_c_is_no_fault_of_the_image(tmp_path, picture, monkeypatch):
    picture.save(tmp_path / "bag.tif", compression="tiff_lzw")

    def undecodable(_):
        monkeypatch.setattr("builtins.open", fail(errno.EIO))
        raise OSError("decoder error -2")

    monkeypatch.setattr(TiffImageFile, "load", undecodable)
    with pytest.raises(OSError, match=r"not at fault.*bag\.tif"):
        open_image(tmp_path / "bag.tif")


@pytest.mark.parametrize("forbidden", ["bag.png", "."])
def test_a_file_that_its_mode_forbids_is_a_problem_of_its_row(tmp_path, picture, monkeypatch, forbidden):
    if not hasattr(os, "geteuid"):
        pytest.skip("Windows has no modes")
    path = tmp_path / "inner" / "bag.png"
    path.parent.mkdir()
    picture.save(path)
    allowed = os.stat(path.parent / forbidden).st_mode
    (path.parent / forbidden).chmod(0)
    for place in ("builtins.open", "os.open"):  # root may read all
        monkeypatch.setattr(place, fail(errno.EACCES))
    monkeypatch.setattr("PIL.Image.open", fail(errno.EACCES))
    assert reason_of(path) == "not readable: permission denied"
    assert image_identity({"path": str(path), "bytes": None})
    (path.parent / forbidden).chmod(allowed)
    with pytest.raises(PermissionError, match="its mode lets you read it"):
        open_image(path)


@pytest.mark.parametrize("free", [True, False])
@pytest.mark.parametrize("error", [MemoryError(), OSError("out of memory error when reading image file")])
def test_memory_that_a_damaged_file_asks_for_is_told_from_memory_that_the_machine_lacks(
    picture, monkeypatch, error, free
):
    def load(_):
        raise error

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    if not free:
        monkeypatch.setattr(images.np, "empty", lambda *_: load(None))
        error = MemoryError()
        with pytest.raises(OSError, match="Cannot allocate memory.*use fewer workers"):
            open_image(encoded(picture, "BMP"))
    else:
        assert reason_of(encoded(picture, "BMP")).startswith("truncated or damaged image: ")


FEW_DESCRIPTORS = """
import os, resource, sys
from vlmhelpers.common.images import UnusableImage, image_identity, inspect_image
from vlmhelpers.common.file_digests import file_digest

paths = sys.argv[1:]
file_digest(paths[0])  # opens its table
for taken in range(4):  # descriptors that are left, from none
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")) - 1 + taken, 4096))
    for path in paths:
        for read in (inspect_image, lambda path: image_identity({"path": path, "bytes": None})):
            try:
                read(path)
                print("read", taken)
            except UnusableImage as error:
                sys.exit(f"{taken} left: {path}: {error}")
            except OSError as error:
                assert path in str(error) and "raise the limit" in str(error), error
                print("error", taken)
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, 4096))
"""


@pytest.mark.slow
def test_without_descriptors_no_sound_image_is_called_damaged(tmp_path, picture):
    if not os.path.exists("/proc/self/fd"):
        pytest.skip("descriptors are counted in /proc")
    paths = [str(tmp_path / f"bag.{ending}") for ending in ("png", "jpg", "webp", "gif", "bmp", "tif", "jp2", "avif")]
    for path in paths:
        picture.save(path)
    done = subprocess.run([sys.executable, "-c", FEW_DESCRIPTORS, *paths], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines.count("error 0") == 2 * len(paths) == lines.count("read 3")


def test_damaged_bytes_never_raise_anything_else(picture):
    rng = random.Random(0)
    exif = rotation(6)
    files = [encoded(picture, kind, exif=exif) for kind in ("JPEG", "PNG", "WEBP")] + [encoded(picture, "GIF")]
    found = set()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(400):
            data = bytearray(rng.choice(files))
            for _ in range(rng.randint(1, 8)):
                data[rng.randrange(len(data) if rng.random() < 0.5 else 200)] = rng.randrange(256)
            try:
                found.add(inspect_image(bytes(data)).mode)
            except UnusableImage as error:
                found.add(error.reason.partition(":")[0])
    assert {"RGB", "truncated or damaged image", "not an image"} <= found


# What an image is recognized by


def test_pixels_are_equal_only_for_the_same_picture(picture):
    facts = inspect_image(encoded(picture, "PNG"))
    changed = picture.copy()
    changed.putpixel((3, 3), tuple(255 - value for value in picture.getpixel((3, 3))))
    assert inspect_image(encoded(picture, "BMP")).pixels == facts.pixels
    assert inspect_image(encoded(changed, "PNG")).pixels != facts.pixels
    wide, tall = Image.new("RGB", (8, 4)), Image.new("RGB", (4, 8))  # the same bytes in another shape
    assert inspect_image(encoded(wide, "PNG")).pixels != inspect_image(encoded(tall, "PNG")).pixels


def test_every_color_has_its_own_thumbnail():
    pictures = [draw(Product("mug", color, "plain", 10), random.Random(1), SIDE) for color in COLORS]
    assert len({inspect_image(encoded(picture, "PNG")).thumbnail for picture in pictures}) == len(COLORS)


def test_sources_may_be_paths_bytes_or_what_arrow_stores(tmp_path, picture):
    data = encoded(picture, "PNG")
    (tmp_path / "bag.png").write_bytes(data)
    path = str(tmp_path / "bag.png")
    sources = [path, tmp_path / "bag.png", data, {"path": path, "bytes": None}, {"path": "gone.png", "bytes": data}]
    assert {inspect_image(source).pixels for source in sources} == {inspect_image(data).pixels}
    assert image_identity({"path": "a.png", "bytes": data}) == image_identity({"path": "b.png", "bytes": data})
    (tmp_path / "link.png").symlink_to(path)
    identity = image_identity({"path": path, "bytes": None})
    assert identity == image_identity({"path": str(tmp_path / "link.png")}) != image_identity({"path": "gone.png"})
    assert image_identity(None) is None
    (tmp_path / "bag.png").write_bytes(data + b"x")
    assert image_identity({"path": path, "bytes": None}) != identity


def test_the_identity_of_an_image_does_not_depend_on_strips(picture, monkeypatch):
    expected = digest(picture.size, picture.tobytes())
    assert image_identity(picture) == expected == inspect_image(encoded(picture, "PNG")).pixels
    monkeypatch.setattr(image_colors, "_STRIP", 100)
    assert image_identity(picture) == expected
