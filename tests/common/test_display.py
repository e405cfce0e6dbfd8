"""What a notebook shows of images."""

import base64
import io
import re

from PIL import Image

from vlmhelpers.common.display import thumbnail


def test_thumbnail_is_a_small_jpeg_of_the_upright_image():
    photo = Image.new("RGB", (800, 400), "red")
    exif = photo.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    buffer = io.BytesIO()
    photo.save(buffer, "JPEG", exif=exif)
    markup = thumbnail(Image.open(buffer), side=60)
    image = Image.open(io.BytesIO(base64.b64decode(re.search('base64,([^"]+)', markup).group(1))))
    assert image.size == (30, 60) and image.format == "JPEG" and len(markup) < 3000
    thumbnail(photo)
    assert photo.size == (800, 400)  # the image itself stays as it was
