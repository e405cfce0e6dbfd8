"""The images: the same every time, different from each other, and what data/ holds."""

import filecmp
import random

import pyarrow.parquet as pq
import pytest
from make_samples import make_samples
from make_shop import COLUMNS, FAULTS, make_shop

from vlmhelpers.samples.drawing import QUESTIONS, Product, all_products, draw, is_novel, sample_products


def test_same_seed_same_pixels():
    first, again, other = (sample_products(4, seed, size=48) for seed in ("a", "a", "b"))
    assert [image.tobytes() for _, image in first] == [image.tobytes() for _, image in again]
    assert [image.tobytes() for _, image in first] != [image.tobytes() for _, image in other]


def test_every_product_is_drawn_in_its_own_way():
    rng = random.Random(0)
    state = rng.getstate()
    seen = set()
    for product in all_products():
        rng.setstate(state)  # position, size and background alike: only the product differs
        seen.add(draw(product, rng, size=24).tobytes())
    assert len(seen) == len(all_products()) == 1024


def test_one_combination_in_eight_is_kept_from_the_bases():
    novel = [product for product in all_products() if is_novel(product)]
    assert len(novel) == 128
    assert not any(is_novel(product) for product, _ in sample_products(50, 0, size=8))
    assert all(is_novel(product) for product, _ in sample_products(50, 0, size=8, novel=True))


def test_captions_and_answers():
    answers = [answer(Product("umbrella", "orange", "plain", 30)) for answer in QUESTIONS.values()]
    assert answers == ["An orange plain umbrella for $30.", "An umbrella.", "Orange.", "Plain.", "$30."]


@pytest.mark.slow
@pytest.mark.slow
def test_sample_data_is_reproduced_byte_for_byte(tmp_path, data):
    make_samples(tmp_path)
    names = ["products.csv", "questions.csv", *(f"images/{path.name}" for path in (data / "images").iterdir())]
    assert len(names) == 386
    _, differing, missing = filecmp.cmpfiles(tmp_path, data, names, shallow=False)
    assert (differing, missing) == ([], [])


@pytest.mark.slow
@pytest.mark.slow
def test_the_shop_is_reproduced_byte_for_byte(tmp_path, data):
    make_shop(tmp_path)
    names = [str(path.relative_to(data / "shop")) for path in (data / "shop").rglob("*") if path.is_file()]
    assert len(names) == 1 + 840 + 5 and len(list(tmp_path.rglob("*.*"))) == len(names)
    _, differing, missing = filecmp.cmpfiles(tmp_path, data / "shop", names, shallow=False)
    assert (differing, missing) == ([], [])


def test_the_shops_table_has_the_columns_of_the_real_one_and_its_faults(data):
    table = pq.read_table(data / "shop" / "products.parquet").to_pylist()
    assert list(table[0]) == list(COLUMNS) and len(COLUMNS) == 17
    links = [row["imageurl"] for row in table]
    files = {f"https://shop.example/images/{path.name}" for path in (data / "shop" / "images").iterdir()}
    assert len(links) == 850 and links.count("N.A.") == 2 and len(set(links) - files - {"N.A."}) == 3
    assert len({row["product_code"] for row in table}) == 768 + len(FAULTS)
