"""Makes data/shop/: a product table as the web shop's, with links to drawn images; the same bytes every time.

`products.parquet` has the 17 columns of `DBQ/Burberry.Product.prices.United.States`, and the faults of such tables:
some products have a second image, some links are no links, and some lead to nothing or to what is no image.
"""

import datetime
import random

import pyarrow as pa
import pyarrow.parquet as pq
from texts import PLURALS, SHOP_COLORS

from vlmhelpers.samples.drawing import CATEGORIES, COLORS, PATTERNS, PRICES, Product, draw

SITE = "https://shop.example"
PER_PAIR, SECOND_IMAGES, SIDE, SEED = 12, 72, 80, "shop"  # products for each category and color
FAULTS = ("N.A.", "N.A.", "gone", "gone", "gone", "page", "page", "cut", "cut", "empty")
EURO = 0.92  # per dollar
COIN = 12.0  # per dollar of the drawing: an image with two coins, $20, costs 240.0
COLUMNS = {
    "website_name": pa.string(), "competence_date": pa.string(), "country_code": pa.string(),
    "currency_code": pa.string(), "brand": pa.string(), "category1_code": pa.string(), "category2_code": pa.string(),
    "category3_code": pa.string(), "product_code": pa.int64(), "title": pa.string(), "itemurl": pa.string(),
    "imageurl": pa.string(), "full_price": pa.float64(), "price": pa.float64(), "full_price_eur": pa.float64(),
    "price_eur": pa.float64(), "flg_discount": pa.int64(),
}  # fmt: skip


def make_shop(folder):
    """Writes `products.parquet` and `images/` into `folder`."""
    rng = random.Random(SEED)
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    products = [Product(*pair, rng.choice(PATTERNS), rng.choice(PRICES)) for pair in _pairs() * PER_PAIR]
    rng.shuffle(products)
    rows = []
    for code, product in enumerate(products, start=80000001):
        row = describe(product, code, rng)
        for view in range(1 + (code % len(products) < SECOND_IMAGES)):
            name = f"{code}_{view + 1}.jpg"
            draw(product, rng, SIDE).save(images / name, quality=80, optimize=True)
            rows.append(row | {"imageurl": f"{SITE}/images/{name}"})
    rows += [_spoil(describe(rng.choice(products), 81000001 + i, rng), fault, images) for i, fault in enumerate(FAULTS)]
    rng.shuffle(rows)
    schema = pa.schema(COLUMNS)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / "products.parquet", compression="zstd")


def _pairs():
    return [(category, color) for category in CATEGORIES for color in COLORS]


def describe(product, code, rng):
    """A product's row, all but its image's link. The price is what the coins say."""
    price = product.price * COIN
    discount = rng.random() < 0.2
    now = price * 0.7 if discount else price
    day = datetime.date(2023, 6, 1) + datetime.timedelta(days=rng.randrange(30))
    return {
        "website_name": "Shop", "competence_date": day.isoformat(), "country_code": "USA", "currency_code": "USD",
        "brand": "Shop", "category1_code": rng.choice(["MAN", "WOMAN", "CHILDREN"]), "category2_code": "ALL",
        "category3_code": PLURALS[product.category].capitalize(), "product_code": code,
        "title": f"{SHOP_COLORS[product.color]} {product.pattern} {product.category}",
        "itemurl": f"{SITE}/p{code}", "full_price": price, "price": round(now, 2),
        "full_price_eur": round(price * EURO, 2), "price_eur": round(now * EURO, 2), "flg_discount": int(discount),
    }  # fmt: skip


def _spoil(row, fault, images):
    """The row with a link that gives no image."""
    name = f"{row['product_code']}_1.jpg"
    sound = next(iter(sorted(images.iterdir()))).read_bytes()
    served = {"page": b"<!doctype html><title>Sold out</title>", "cut": sound[: len(sound) // 2], "empty": b""}
    if fault in served:
        (images / name).write_bytes(served[fault])
    return row | {"imageurl": fault if fault == "N.A." else f"{SITE}/images/{name}"}
