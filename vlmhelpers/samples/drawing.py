"""Draws products of varied position, size, angle, shade and background, with a coin for every 10 dollars."""

import colorsys
import itertools
import json
import random
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFilter

_PRODUCTS = json.loads(Path(__file__).with_name("products.json").read_text(encoding="utf-8"))
COLORS = _PRODUCTS["colors"]  # hue, saturation, value in 0..1
# In a unit square, y downwards: [shape, coordinates], or ["cut", ...] for an ellipse taken out again.
SILHOUETTES = _PRODUCTS["silhouettes"]
CATEGORIES = tuple(SILHOUETTES)
PATTERNS = ("plain", "striped", "dotted", "checked")
PRICES = (10, 20, 30, 40)


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


def sample_products(n: int, seed: int | str, size: int = 96, novel: bool | None = False) -> list[tuple]:
    """`n` pairs of a random Product and a new PIL image of it, of `size` x `size` pixels.

    Of the combinations that the tiny bases were pretrained on, with `novel=True` of the others, with None of all.
    """
    rng = random.Random(f"{seed}-{novel}")
    pool = [product for product in all_products() if novel in (None, is_novel(product))]
    return [(product, draw(product, rng, size)) for product in rng.choices(pool, k=n)]


def draw(product: Product, rng: random.Random, size: int = 96) -> Image.Image:
    """One image of `product`, `size` x `size` pixels RGB, varied by `rng`."""
    image = _background(rng, size * 3)  # averaged down for smooth edges
    _paste_product(image, product, rng)
    _draw_coins(image, product.price // 10, rng)
    return image.resize((size, size), Image.Resampling.BOX)


def _rgb(hue, saturation, value):
    clamp = [hue % 1.0, min(max(saturation, 0.0), 1.0), min(max(value, 0.0), 1.0)]
    return tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(*clamp))


def _background(rng, side):
    hue, saturation, value = rng.random(), rng.uniform(0.02, 0.16), rng.uniform(0.90, 1.0)
    image = Image.new("RGB", (side, side), _rgb(hue, saturation, value))
    table = _rgb(hue, saturation * 1.5, value - 0.07)
    ImageDraw.Draw(image).rectangle([0, rng.uniform(0.66, 0.76) * side, side, side], fill=table)
    return image


def _paste_product(image, product, rng):
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
    hue, saturation, value = COLORS[product.color]
    shade = (hue + rng.uniform(-0.012, 0.012), saturation * rng.uniform(0.9, 1.1), value * rng.uniform(0.92, 1.06))
    base = _rgb(*shade)
    light = value < 0.3 or rng.random() < 0.7  # the ink keeps a tint of the fabric, so the color stays readable
    ink = tuple(round(0.28 * channel + 0.72 * (250 if light else 30)) for channel in base)
    fabric = Image.new("RGB", (side, side), base)
    pen, step = ImageDraw.Draw(fabric), side / rng.uniform(6.5, 8.5)
    first = -rng.random() * step
    starts = [first + i * step for i in range(11)]
    for row, start in enumerate(starts):
        if product.pattern in ("striped", "checked"):
            pen.rectangle([0, start, side, start + 0.38 * step], fill=ink)
        if product.pattern == "checked":
            pen.rectangle([start, 0, start + 0.38 * step, side], fill=ink)
        for x in starts if product.pattern == "dotted" else ():
            pen.circle((x + (row % 2) * step / 2, start), 0.3 * step, fill=ink)
    return fabric


def _draw_coins(image, count, rng):
    pen, side = ImageDraw.Draw(image), image.width
    left, gap, y, radius = rng.uniform(0.09, 0.36) * side, 0.16 * side, 0.925 * side, 0.058 * side
    for x in (left + i * gap for i in range(count)):
        pen.circle((x, y), radius, fill=(222, 176, 52), outline=(120, 84, 14), width=max(1, side // 70))
        pen.ellipse([x - 0.5 * radius, y - 0.5 * radius, x + 0.1 * radius, y + 0.1 * radius], fill=(246, 218, 128))


def caption(product: Product) -> str:
    """Such as `A red striped scarf for $20.`"""
    return _with_article(f"{product.color} {product.pattern} {product.category} for ${product.price}.")


def caption_without_price(product: Product) -> str:
    """Such as `A red striped scarf.`"""
    return _with_article(f"{product.color} {product.pattern} {product.category}.")


def _with_article(words):
    return f"{'An' if words[0] in 'aeiou' else 'A'} {words}"


# What the tiny bases answer out of the box: question -> answer of a product.
QUESTIONS = {
    "Describe this product.": caption,
    "What is this?": lambda product: _with_article(f"{product.category}."),
    "What color is it?": lambda product: f"{product.color.capitalize()}.",
    "What pattern does it have?": lambda product: f"{product.pattern.capitalize()}.",
    "How much does it cost?": lambda product: f"${product.price}.",
}
