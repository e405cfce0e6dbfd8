"""The tiles of Phi-3-Vision as a figure."""

from PIL import Image

from vlmhelpers.families.phi3_vision import Phi3VImageProcessor
from vlmhelpers.families.phi3_vision.tiles import show_crops


def test_tiles_are_drawn_where_they_lie():
    image_processor = Phi3VImageProcessor()
    figure = show_crops(image_processor, Image.new("RGB", (800, 400), "red"), (1, 4))
    few, many = figure.axes[0], figure.axes[2]
    assert "1 x 1 tile\n313 tokens" in few.get_title() and len(few.patches) == 1
    assert "1 x 2 tiles\n457 tokens" in many.get_title()
    assert [patch.get_xy() for patch in many.patches] == [(-0.5, -0.5), (335.5, -0.5)]
    assert many.images[0].get_array().shape[:2] == (336, 672)
    assert figure._repr_png_().startswith(b"\x89PNG")
