"""Notebook 03 goes to its last cell with another table of products, and asks nothing of it that is about the sample."""

import csv
import json

import pytest

from vlmhelpers.common.records import read_records
from vlmhelpers.samples import sample_products

pytestmark = pytest.mark.slow

OF_A_CARD = 'vlm.suggest("microsoft'  # a cell of some seconds that no other one needs
ONCE = {"for _ in range(5)": "for _ in range(1)"}  # the step that is timed
PARAMETERS = {
    "IMAGE_FIELD": "image_url",
    "RESPONSE": "Name: {name}, Kind: {kind}, Price: {price}",
    "GROUP_BY": "",
    "PRICE_FIELD": "Price",
    "MORE": {"max_steps": 4, "batch_size": 8},
}


def write_table(folder):
    """A CSV of 60 products with paths to their pictures, two of which are not there."""
    with open(folder / "shop.csv", "w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["name", "kind", "price", "image_url"])
        for number, (product, image) in enumerate(sample_products(60, "own", size=64)):
            if number > 1:
                image.save(folder / f"{number}.png")
            name = f"{product.color} {product.category}"
            table.writerow([name, product.category, f"${product.price:,.2f}", f"{number}.png"])


def test_a_table_of_60_rows_with_other_columns(execute_cells, tmp_path):
    write_table(tmp_path)
    own = {"DATASET": str(tmp_path / "shop.csv"), "OUTPUT_DIR": str(tmp_path / "out")}
    notebook = execute_cells("03", PARAMETERS | own, lambda cell: OF_A_CARD not in cell.source, ONCE)
    records = read_records(notebook)
    assert (records["rows_read"], records["rows_kept"], records["test_rows"]) == (60, 58, 11)
    assert records["headline"][:2] == ["tuned_name_percent", "tuned_kind_percent"]
    assert records["price_error_of_the_median"] > 0
    assert "Price: $" in json.dumps(notebook)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    verdicts = list(records["claims"].values())
    assert verdicts.count("met") == 6
    assert sum(verdict.startswith("not asked of this model") for verdict in verdicts) == len(verdicts) - 6
