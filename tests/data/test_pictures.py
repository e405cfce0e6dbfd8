"""Tables and figures show the rows they were given, and nothing of the rows can break them."""

import base64
import io
import re

from PIL import Image

from vlmhelpers.common.display import thumbnail
from vlmhelpers.data.display import show_rows
from vlmhelpers.families.phi3_vision import Phi3VImageProcessor
from vlmhelpers.families.phi3_vision.tiles import show_crops


def test_thumbnail_is_a_small_jpeg_of_the_upright_picture():
    photo = Image.new("RGB", (800, 400), "red")
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=exif)
    markup = thumbnail(Image.open(buffer), side=60)
    image = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', markup).group(1))))
    assert image.size == (30, 60) and image.format == "JPEG" and len(markup) < 3000
    thumbnail(photo)
    assert photo.size == (800, 400)  # the picture itself stays as it was


def test_rows_with_prompts_and_answers(rows_of, picture):
    dataset = rows_of([("What <b>is</b> it?", "A hat.", [picture]), ("Why?", "Because.", [])])
    shown = show_rows(dataset, [0, 1], base=["A bag.", "Because."])
    html = shown._repr_html_()
    assert html.count("<img") == 1 and html.count("<tr>") == 3
    assert "What &lt;b&gt;is&lt;/b&gt; it?" in html and "<b>" not in html
    assert html.count("background") == 1  # the wrong answer only
    assert "expected: A hat." in repr(shown) and "base: A bag." in repr(shown)


def test_tiles_are_drawn_where_they_lie():
    image_processor = Phi3VImageProcessor()
    figure = show_crops(image_processor, Image.new("RGB", (800, 400), "red"), (1, 4))
    few, many = figure.axes[0], figure.axes[2]
    assert "1 x 1 tile\n313 tokens" in few.get_title() and len(few.patches) == 1
    assert "1 x 2 tiles\n457 tokens" in many.get_title()
    assert [patch.get_xy() for patch in many.patches] == [(-0.5, -0.5), (335.5, -0.5)]
    assert many.images[0].get_array().shape[:2] == (336, 672)
    assert figure._repr_png_().startswith(b"\x89PNG")
