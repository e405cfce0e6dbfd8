"""Draws the product images of this project, so that nothing has to be downloaded and every answer is known.

A product is a category, a color, a pattern and a price band (one coin below it for every 10 dollars). Position, size,
angle, shades and background vary, so that an image cannot be learned by heart.
"""

import colorsys
import itertools
import random
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFilter

CATEGORIES = ("shirt", "dress", "hat", "scarf", "bag", "boot", "mug", "umbrella")
COLORS = {  # hue, saturation, value in 0..1
    "red": (0.99, 0.82, 0.84),
    "orange": (0.07, 0.90, 0.97),
    "yellow": (0.145, 0.85, 0.98),
    "green": (0.37, 0.72, 0.58),
    "blue": (0.60, 0.80, 0.85),
    "purple": (0.76, 0.62, 0.66),
    "pink": (0.92, 0.42, 0.99),
    "black": (0.63, 0.10, 0.14),
}
PATTERNS = ("plain", "striped", "dotted", "checked")
PRICES = (10, 20, 30, 40)

SUPERSAMPLING = 3  # drawn larger and averaged down: smooth edges

# Silhouettes in a unit square, y downwards: (shape, coordinates), or ("cut", ...) for an ellipse taken out again.
# fmt: off
SILHOUETTES = {
    "shirt": [("polygon", (0.30, 0.14,  0.42, 0.14,  0.50, 0.22,  0.58, 0.14,  0.70, 0.14,  0.94, 0.36,  0.82, 0.50,
                           0.72, 0.42,  0.72, 0.88,  0.28, 0.88,  0.28, 0.42,  0.18, 0.50,  0.06, 0.36))],
    "dress": [("polygon", (0.38, 0.08,  0.45, 0.08,  0.50, 0.16,  0.55, 0.08,  0.62, 0.08,  0.60, 0.42,  0.88, 0.92,
                           0.12, 0.92,  0.40, 0.42))],
    "hat": [("ellipse", (0.05, 0.56,  0.95, 0.80)),
            ("polygon", (0.27, 0.68,  0.33, 0.28,  0.67, 0.28,  0.73, 0.68)),
            ("ellipse", (0.33, 0.20,  0.67, 0.36))],
    "scarf": [("ellipse", (0.16, 0.06,  0.84, 0.46)),
              ("cut", (0.32, 0.15,  0.68, 0.33)),
              ("polygon", (0.26, 0.36,  0.48, 0.40,  0.44, 0.96,  0.20, 0.94)),
              ("polygon", (0.50, 0.40,  0.70, 0.38,  0.78, 0.76,  0.58, 0.80))],
    "bag": [("ellipse", (0.26, 0.08,  0.74, 0.64)),
            ("cut", (0.35, 0.17,  0.65, 0.62)),
            ("polygon", (0.14, 0.40,  0.86, 0.40,  0.92, 0.90,  0.08, 0.90))],
    "boot": [("polygon", (0.30, 0.08,  0.60, 0.08,  0.60, 0.56,  0.84, 0.64,  0.93, 0.76,  0.93, 0.90,  0.30, 0.90))],
    "mug": [("ellipse", (0.54, 0.28,  0.95, 0.74)),
            ("cut", (0.65, 0.39,  0.84, 0.63)),
            ("polygon", (0.12, 0.16,  0.70, 0.16,  0.66, 0.88,  0.16, 0.88))],
    "umbrella": [("half", (0.05, 0.10,  0.95, 1.00)),
                 ("polygon", (0.47, 0.50,  0.53, 0.50,  0.53, 0.94,  0.47, 0.94))],
}
# fmt: on


@dataclass(frozen=True)
class Product:
    """What an image shows; `price` is in dollars."""

    category: str
    color: str
    pattern: str
    price: int


def all_products() -> list[Product]:
    """All 1,024 combinations, in a fixed order."""
    return [Product(*values) for values in itertools.product(CATEGORIES, COLORS, PATTERNS, PRICES)]


def is_novel(product: Product) -> bool:
    """True for one in eight (category, color, pattern) combinations: those the tiny bases never saw together."""
    index = 3 * CATEGORIES.index(product.category) + 5 * list(COLORS).index(product.color)
    return (index + 7 * PATTERNS.index(product.pattern)) % 8 == 0


def sample_products(
    n: int, seed: int | str, size: int = 96, novel: bool | None = False
) -> list[tuple[Product, Image.Image]]:
    """`n` random products with a new image each, of `size` x `size` pixels.

    `novel=False` draws from the combinations the tiny bases were pretrained on (the images are new whenever the seed
    is), `novel=True` from those held out, `novel=None` from all. The same arguments give the same pixels.
    """
    rng = random.Random(f"{seed}-{novel}")
    pool = [product for product in all_products() if novel in (None, is_novel(product))]
    return [(product, draw(product, rng, size)) for product in rng.choices(pool, k=n)]


def draw(product: Product, rng: random.Random, size: int = 96) -> Image.Image:
    """One image of `product`, `size` x `size` pixels RGB, varied by `rng`."""
    side = size * SUPERSAMPLING
    image = _background(rng, side)
    _paste_product(image, product, rng)
    _draw_coins(image, product.price // 10, rng)
    return image.resize((size, size), Image.Resampling.BOX)


def _rgb(hue, saturation, value):
    clamp = [hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(*clamp))


def _background(rng, side):
    """A pale wall over a slightly darker table."""
    hue, saturation, value = rng.random(), rng.uniform(0.02, 0.16), rng.uniform(0.90, 1.0)
    image = Image.new("RGB", (side, side), _rgb(hue, saturation, value))
    table = _rgb(hue, saturation * 1.5, value - 0.07)
    ImageDraw.Draw(image).rectangle([0, rng.uniform(0.66, 0.76) * side, side, side], fill=table)
    return image


def _paste_product(image, product, rng):
    """Pastes the fabric through the silhouette, at a random position, size and angle, over its soft shadow."""
    side = image.width
    body = round(side * 0.82 * rng.uniform(0.82, 1.0))
    mask = _silhouette(product.category, body)
    if rng.random() < 0.5:
        mask = mask.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    fabric = _fabric(product, rng, body)
    angle = rng.uniform(-10, 10)
    mask, fabric = (layer.rotate(angle, Image.Resampling.BILINEAR) for layer in (mask, fabric))
    x, y = rng.randint(0, side - body), rng.randint(0, max(0, round(side * 0.85) - body))
    drop = round(side * 0.012)
    shadow = mask.point(lambda alpha: alpha // 4).filter(ImageFilter.BoxBlur(drop))
    image.paste((40, 40, 60), (x + drop, y + 2 * drop), shadow)
    image.paste(fabric, (x, y), mask)


def _silhouette(category, side):
    mask = Image.new("L", (side, side), 0)
    pen = ImageDraw.Draw(mask)
    for shape, unit in SILHOUETTES[category]:
        points = [round(coordinate * side) for coordinate in unit]
        if shape == "polygon":
            pen.polygon(points, fill=255)
        elif shape == "half":
            pen.pieslice(points, 180, 360, fill=255)
        else:
            pen.ellipse(points, fill=0 if shape == "cut" else 255)
    return mask


def _fabric(product, rng, side):
    """A square of the product's color with its pattern, in shades that vary a little."""
    hue, saturation, value = COLORS[product.color]
    shade = (hue + rng.uniform(-0.012, 0.012), saturation * rng.uniform(0.9, 1.1), value * rng.uniform(0.92, 1.06))
    base = _rgb(*shade)
    light = value < 0.3 or rng.random() < 0.7  # the ink keeps a tint of the fabric, so the color stays readable
    ink = tuple(round(0.28 * channel + 0.72 * (250 if light else 30)) for channel in base)
    fabric = Image.new("RGB", (side, side), base)
    pen = ImageDraw.Draw(fabric)
    step = side / rng.uniform(6.5, 8.5)
    first = -rng.random() * step
    starts = [first + i * step for i in range(11)]
    for row, start in enumerate(starts):
        if product.pattern in ("striped", "checked"):
            pen.rectangle([0, start, side, start + 0.38 * step], fill=ink)
        if product.pattern == "checked":
            pen.rectangle([start, 0, start + 0.38 * step, side], fill=ink)
        for x in starts if product.pattern == "dotted" else ():
            _draw_disk(pen, x + (row % 2) * step / 2, start, 0.3 * step, fill=ink)
    return fabric


def _draw_disk(pen, x, y, radius, **options):
    pen.ellipse([x - radius, y - radius, x + radius, y + radius], **options)


def _draw_coins(image, count, rng):
    """The price band: `count` gold coins along the lower edge."""
    side = image.width
    pen = ImageDraw.Draw(image)
    left, gap, y, radius = rng.uniform(0.09, 0.36) * side, 0.16 * side, 0.925 * side, 0.058 * side
    for x in (left + i * gap for i in range(count)):
        _draw_disk(pen, x, y, radius, fill=(222, 176, 52), outline=(120, 84, 14), width=max(1, side // 70))
        pen.ellipse([x - 0.5 * radius, y - 0.5 * radius, x + 0.1 * radius, y + 0.1 * radius], fill=(246, 218, 128))


def caption(product: Product) -> str:
    """What every tiny base can say about an image: `A red striped scarf for $20.`"""
    article = "An" if product.color[0] in "aeiou" else "A"
    return f"{article} {product.color} {product.pattern} {product.category} for ${product.price}."


# What the tiny bases answer out of the box: question -> answer of a product.
QUESTIONS = {
    "Describe this product.": caption,
    "What is this?": lambda product: f"{'An' if product.category[0] in 'aeiou' else 'A'} {product.category}.",
    "What color is it?": lambda product: f"{product.color.capitalize()}.",
    "What pattern does it have?": lambda product: f"{product.pattern.capitalize()}.",
    "How much does it cost?": lambda product: f"${product.price}.",
}
