"""Makes the sample data, tables and drawn images: the same bytes every time."""

import argparse
import csv
import random
from pathlib import Path

from make_captain import make_captain
from make_shop import make_shop
from texts import listing

from vlmhelpers.samples.drawing import CATEGORIES, COLORS, PATTERNS, PRICES, QUESTIONS, Product, draw

REPEATS, SIDE, SEED = 6, 80, "samples"
INSTRUCTION = "Write the shop listing for this image."


def make_samples(folder):
    """Writes into `folder` two tables (image_path, instruction, description) and the images of both.

    `products.csv` asks for the shop's listing, `questions.csv` what the tiny bases can answer already.
    """
    rng = random.Random(SEED)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    listings, answers = [], []
    for i, product in enumerate(choose_products(rng)):
        name, question = f"images/{i + 1:03}.jpg", list(QUESTIONS)[i % len(QUESTIONS)]
        draw(product, rng, SIDE).save(folder / name, quality=80, optimize=True)
        listings.append([name, INSTRUCTION, listing(product)])
        answers.append([name, question, QUESTIONS[question](product)])
    write_table(folder / "products.csv", listings)
    write_table(folder / "questions.csv", answers)


def write_table(path, rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["image_path", "instruction", "description"])
        table.writerows(rows)


def choose_products(rng):
    """384 products in random order: every category in every color six times, patterns and prices by chance."""
    pairs = [(category, color) for category in CATEGORIES for color in COLORS] * REPEATS
    products = [Product(*pair, rng.choice(PATTERNS), rng.choice(PRICES)) for pair in pairs]
    rng.shuffle(products)
    return products


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).resolve().parents[1] / "data")
    folder = parser.parse_args().out
    make_samples(folder)
    make_captain(folder)
    make_shop(folder / "shop")
