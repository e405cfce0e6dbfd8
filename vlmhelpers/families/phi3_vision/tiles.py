"""How a picture becomes the tiles and tokens of Phi-3-Vision, drawn."""

from matplotlib.patches import Rectangle

from vlmhelpers.common.chart import Chart
from vlmhelpers.common.images import repair

_WIDTH, _HEIGHT = 3.0, 3.4  # inches of one panel


def show_crops(image_processor, image, num_crops=(1, 4, 16)):
    """A figure of the tiles that a `Phi3VImageProcessor` cuts `image` into, a panel for each number of `num_crops`.

    Each panel has the picture as the tiles cover it, resized and with its white bars, the borders of the tiles, the
    overview beside it, and the count of tokens as `count_tokens` gives it. `image` is a PIL image.
    """
    image = repair(image)
    figure = Chart(figsize=(_WIDTH * len(num_crops), _HEIGHT), dpi=90, layout="constrained")
    panels = figure.add_gridspec(2, len(num_crops), height_ratios=[4, 1])
    for column, allowed in enumerate(num_crops):
        axes = figure.add_subplot(panels[0, column])
        _draw_tiles(axes, image_processor, image, allowed)
        axes = figure.add_subplot(panels[1, column])
        axes.imshow(image_processor.arrange(image, allowed).resize(_tile(image_processor)))
        axes.set_title("the overview", fontsize=8)
        axes.axis("off")
    return figure


def _tile(image_processor):
    return image_processor.size["width"], image_processor.size["height"]


def _draw_tiles(axes, image_processor, image, allowed):
    rows, columns = image_processor.tile_grid(*image.size, allowed)
    width, height = _tile(image_processor)
    axes.imshow(image_processor.arrange(image, allowed))
    for row in range(rows):
        for column in range(columns):
            corner = (column * width - 0.5, row * height - 0.5)
            axes.add_patch(Rectangle(corner, width, height, fill=False, edgecolor="tab:red", linewidth=1.2))
    tokens = image_processor.count_tokens(*image.size, allowed)
    axes.set_title(
        f"num_crops={allowed}: {rows} x {columns} tile{'s' * (rows * columns > 1)}\n{tokens} tokens", fontsize=9
    )
    axes.axis("off")
