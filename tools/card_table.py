"""Writes the table of what each notebook's models take on which GPU into README.md, between its markers.

    python tools/card_table.py           computes everything: five minutes
    python tools/card_table.py --check   says whether README.md has the table that is computed now

All figures are estimates by dry runs with the published shapes, as `suggest` makes them; nothing was measured on a GPU.
"""

import argparse
import sys
from pathlib import Path

from vlmhelpers.common.files import atomic_file
from vlmhelpers.estimation.memory import GIB, find_gpu
from vlmhelpers.estimation.suggestion import fit_answering, fit_training

ROOT = Path(__file__).resolve().parent.parent
START, END = "<!-- cards:start -->", "<!-- cards:end -->"
CARDS = ("T4", "L4", "A100 40")
ROWS_PER_STEP, NEW_TOKENS = 16, 128
# Notebook -> (a row in words, its tokens and those of images, labeled tokens where logits are computed there alone,
# models)
NOTEBOOKS = {
    "1": ("256 tokens and an image", (256, 6404), None, ["meta-llama/Llama-3.2-11B-Vision-Instruct"]),
    "2": (
        "1,024 tokens, as a replayed image has",
        (1024, 768),
        None,
        ["Qwen/Qwen3-VL-2B-Instruct", "Qwen/Qwen3-VL-4B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"],
    ),
    "3": ("1,024 tokens, 757 of an image", (1024, 757), None, ["microsoft/Phi-3.5-vision-instruct"]),
    "4": (
        "2,048 tokens, 1,792 of images",
        (2048, 1792),
        128,
        ["Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen3-VL-8B-Instruct"],
    ),
}


def cell(model_id, row, labeled, card):
    """Bits, then rows at once and the peak, in training and in answering; or what one row would take."""
    gpu = find_gpu(card)
    bits, rows, memory = fit_training(model_id, row, gpu, ROWS_PER_STEP, labeled_tokens=labeled)
    if not rows:
        return f"no: {memory.total / GIB:.1f} GiB"
    answers, answering = fit_answering(model_id, (row[0] + NEW_TOKENS, row[1]), gpu, bits)
    return f"{bits} bits: {rows}, {memory.total / GIB:.1f} GiB; {answers}, {answering / GIB:.1f} GiB"


def table():
    """The lines of the table."""
    gpus = [find_gpu(card) for card in CARDS]
    heads = [f"{gpu.name} ({gpu.gib:g} GiB)" for gpu in gpus]
    yield "| Notebook, a row of | Model | " + " | ".join(heads) + " |"
    yield "| --- | --- |" + " --- |" * len(heads)
    for number, (words, row, labeled, model_ids) in NOTEBOOKS.items():
        for model_id in model_ids:
            cells = [cell(model_id, row, labeled, card) for card in CARDS]
            yield f"| {number}: {words} | {model_id.partition('/')[2]} | " + " | ".join(cells) + " |"


def main(arguments=None):
    parser = argparse.ArgumentParser(description="Write the table of models and GPUs into README.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if out of date")
    options = parser.parse_args(arguments)
    readme = ROOT / "README.md"
    before, _, rest = readme.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    lines = "\n".join(table())
    new = f"{before}{START}\n{lines}\n{END}{after}"
    if options.check:
        return int(new != readme.read_text(encoding="utf-8"))
    with atomic_file(readme, encoding="utf-8") as file:
        file.write(new)
    return 0


if __name__ == "__main__":
    sys.exit(main())
