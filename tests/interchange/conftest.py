"""Rows of every kind, as the readers make them of files."""

import json

import pytest

from vlmhelpers.data.readers.recognition import read_rows
from vlmhelpers.samples.drawing import caption, caption_without_price, sample_products

QUESTION = "Describe this product."


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """Kind -> a Dataset of eight rows about drawn products, read from a file beside its images."""
    folder = tmp_path_factory.mktemp("rows")
    written = {"messages": [], "pairs": [], "rated": [], "prompts": []}
    for number, (product, image) in enumerate(sample_products(8, "interchange", 48)):
        image.save(folder / f"{number}.png")
        shown, long, short = {"images": [f"{number}.png"]}, caption(product), caption_without_price(product)
        written["messages"].append({"text": QUESTION, "image": f"{number}.png", "response": short})
        written["pairs"].append({"prompt": QUESTION, "chosen": short, "rejected": long} | shown)
        good = bool(number % 2)
        written["rated"].append({"prompt": QUESTION, "completion": short if good else long, "label": good} | shown)
        written["prompts"].append({"prompt": QUESTION, "answer": short} | shown)
    datasets = {}
    for kind, of_kind in written.items():
        file = folder / f"{kind}.jsonl"
        file.write_text("".join(json.dumps(row) + "\n" for row in of_kind))
        datasets[kind] = read_rows(file, kind)
    return datasets
