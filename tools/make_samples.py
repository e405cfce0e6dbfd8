"""Draws the sample data, data/products.csv and its pictures: the same bytes every time."""

import argparse
import csv
import random
from pathlib import Path

from texts import listing

from vlmhelpers.drawing import CATEGORIES, COLORS, PATTERNS, PRICES, Product, draw

REPEATS, SIDE, SEED = 6, 80, "samples"
INSTRUCTION = "Write the shop listing for this image."


def make_samples(folder):
    """Writes `products.csv` (image_path, instruction, description) and `images/*.jpg` into `folder`."""
    rng = random.Random(SEED)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    with open(folder / "products.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image_path", "instruction", "description"])
        for i, product in enumerate(choose_products(rng), start=1):
            name = f"images/{i:03}.jpg"
            draw(product, rng, SIDE).save(folder / name, quality=80, optimize=True)
            table.writerow([name, INSTRUCTION, listing(product)])


def choose_products(rng):
    """384 products in random order: every category in every color six times, patterns and prices by chance."""
    pairs = [(category, color) for category in CATEGORIES for color in COLORS] * REPEATS
    products = [Product(*pair, rng.choice(PATTERNS), rng.choice(PRICES)) for pair in pairs]
    rng.shuffle(products)
    return products


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "data")
    make_samples(parser.parse_args().out)
