"""What a notebook shows: images and notes."""

import base64
import io
import re

from PIL import Image

from vlmhelpers.common import display
from vlmhelpers.common.display import show_note, thumbnail


def test_thumbnail_is_a_small_webp_of_the_upright_image():
    photo = Image.new("RGB", (800, 400), "red")
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=exif)
    markup = thumbnail(Image.open(buffer), side=60)
    image = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', markup).group(1))))
    assert image.size == (30, 60) and image.format == "WEBP" and len(markup) < 3000
    thumbnail(photo)
    assert photo.size == (800, 400)  # the image itself stays as it was


def test_a_note_is_a_box_in_a_notebook_and_a_line_elsewhere(monkeypatch, capsys):
    show_note("The <model>", "a tiny\none")
    assert capsys.readouterr().out == "The <model>: a tiny one\n"
    shown = []
    monkeypatch.setattr(display, "in_notebook", lambda: True)
    monkeypatch.setattr("IPython.display.display", shown.append)
    show_note("The <model>", "a tiny\none")
    assert "<b>The &lt;model&gt;</b>" in shown[0]._repr_html_() and repr(shown[0]) == "The <model>: a tiny one"
