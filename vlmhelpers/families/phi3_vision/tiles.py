"""How an image becomes the tiles and tokens of Phi-3-Vision, drawn."""

from collections.abc import Sequence

from matplotlib.patches import Rectangle
from PIL import Image
from transformers import BaseImageProcessor

from vlmhelpers.common.chart import Chart
from vlmhelpers.common.images import repair


def show_crops(image_processor: BaseImageProcessor, image: Image.Image, num_crops: Sequence[int] = (1, 4, 16)) -> Chart:
    """A figure of the tiles that a `Phi3VImageProcessor` cuts a PIL image into, a panel for each of `num_crops`.

    Each shows the image as the tiles cover it, their borders, the overview below, and the count of tokens.
    """
    image, size = repair(image), (image_processor.size["width"], image_processor.size["height"])
    figure = Chart(figsize=(3 * len(num_crops), 3.4), dpi=90, layout="constrained")  # inches
    panels = figure.add_gridspec(2, len(num_crops), height_ratios=[4, 1])
    for column, allowed in enumerate(num_crops):
        axes = figure.add_subplot(panels[0, column])
        _draw_tiles(axes, image_processor, image, allowed, *size)
        axes = figure.add_subplot(panels[1, column])
        axes.imshow(image_processor.arrange(image, allowed).resize(size))
        axes.set_title("the overview", fontsize=8)
        axes.axis("off")
    return figure


def _draw_tiles(axes, image_processor, image, allowed, width, height):
    rows, columns = image_processor.tile_grid(*image.size, allowed)
    axes.imshow(image_processor.arrange(image, allowed))
    for row in range(rows):
        for column in range(columns):
            corner = (column * width - 0.5, row * height - 0.5)
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="tab:red", linewidth=1.2))
    tiles, tokens = f"{rows} x {columns} tile", image_processor.count_tokens(*image.size, allowed)
    axes.set_title(f"num_crops={allowed}: {tiles}{'s' * (rows * columns > 1)}\n{tokens} tokens", fontsize=9)
    axes.axis("off")
