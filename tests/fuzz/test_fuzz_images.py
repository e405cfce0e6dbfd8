"""Images of any bytes: facts, a reason why one is unusable, or an error of the machine; and repaired, plain RGB."""

import io
import struct

import numpy as np
import pytest
from fuzzing import mutated
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlmhelpers.common.image_workers import inspect_apart
from vlmhelpers.common.images import FORMATS, UnusableImage, open_image, repair

SIDE = 12
MODES = {
    "JPEG": ["RGB", "L", "CMYK"],
    "PNG": ["RGB", "RGBA", "LA", "P", "1", "I;16"],
    "WEBP": ["RGB", "RGBA"],
    "GIF": ["P", "L"],
    "BMP": ["RGB", "P", "1"],
    "TIFF": ["RGB", "RGBA", "CMYK", "LAB", "F", "I", "I;16", "1", "P"],
    "AVIF": ["RGB", "RGBA"],
    "JPEG2000": ["RGB", "RGBA", "L", "I;16"],
    "PPM": ["RGB", "L", "1", "I;16"],
}
OPTIONS = {
    "JPEG": [{}, {"progressive": True}],
    "TIFF": [{}, {"compression": "tiff_lzw"}, {"compression": "tiff_adobe_deflate"}, {"compression": "packbits"}],
    "PNG": [{}, {"transparency": 0}],
    "GIF": [{}, {"transparency": 0}],
}


def picture(mode):
    values = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    if mode == "I;16":
        return Image.fromarray(values[..., 0].astype(np.uint16) * 16)
    image = Image.fromarray(values)
    return image.convert("L").convert(mode) if mode in ("F", "I", "LA") else image.convert(mode)


def corpus():
    """A small file of each format, color mode and way of storing it, turned and with frames where that can be."""
    turned = Image.Exif()
    turned[0x0112] = 6
    for image_format in FORMATS:
        ways = list(OPTIONS.get(image_format, [{}]))
        ways += [{"exif": turned}] * (image_format in ("JPEG", "PNG", "WEBP", "TIFF", "AVIF"))
        for mode in MODES[image_format]:
            frames = {"save_all": True, "append_images": [picture(mode)]}
            for way in [*ways, frames] if image_format in ("GIF", "PNG", "WEBP", "TIFF", "AVIF") else ways:
                yield stored(picture(mode), image_format, way)


def stored(image, image_format, way):
    file = io.BytesIO()
    try:
        image.save(file, image_format, **way)
    except (OSError, TypeError, ValueError):  # no such combination
        return None
    return file.getvalue()


FILES = [data for data in corpus() if data]
NUMBERS = st.sampled_from([0, 1, 2, 255, 256, 65535, 2**31 - 1, 2**31, 2**32 - 1])


@st.composite
def with_a_number(draw):
    """A file with a number of two or four bytes written over its header, or anywhere."""
    data = bytearray(draw(st.sampled_from(FILES)))
    place = draw(st.integers(0, min(len(data), draw(st.sampled_from([64, 400, 2**20]))) - 4))
    number, order = draw(NUMBERS), draw(st.sampled_from("<>"))
    width, letter = draw(st.sampled_from([(4, "I"), (2, "H")]))
    data[place : place + width] = struct.pack(order + letter, number % 256**width)
    return bytes(data)


@st.composite
def spliced(draw):
    """The beginning of one file and the end of another, or of itself."""
    first, second = draw(st.sampled_from(FILES)), draw(st.sampled_from(FILES))
    return first[: draw(st.integers(0, len(first)))] + second[draw(st.integers(0, len(second))) :]


def test_the_corpus_has_every_format():
    formats = {open_image(data).format for data in FILES}
    assert formats == set(FORMATS) and len(FILES) > 50


@pytest.mark.filterwarnings("ignore")  # of Pillow, which says what it skips
@given(st.one_of(mutated(st.sampled_from(FILES)), with_a_number(), spliced(), st.binary(max_size=200)))
def test_an_image_of_any_bytes(data):
    try:
        facts = inspect_apart(data)
    except UnusableImage as error:
        assert error.remedy and len(error.reason) < 300
        return
    repaired = repair(open_image(data))
    assert repaired.mode == "RGB" and repaired.size == facts.size
