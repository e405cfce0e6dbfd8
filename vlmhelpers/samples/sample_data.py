"""A dataset to begin with: drawn products and a JSONL file of questions about them, or of pairs of answers."""

import io
import json
import random
from dataclasses import replace
from pathlib import Path

from vlmhelpers.common.files import atomic_file
from vlmhelpers.samples.drawing import CATEGORIES, COLORS, QUESTIONS, caption, caption_without_price, sample_products


def write_sample(
    path: str | Path, num_examples: int = 10, seed: int = 0, answers: str = "words", size: int = 96, force: bool = False
) -> None:
    """Writes a JSONL file of `text`, `image` and `response` that read_jsonl reads, and its images beside it.

    Images of `size` x `size` pixels lie in the folder `images` beside `path`. `answers`: "words" for questions that the
    tiny models can answer, or "json" for lines of JSON, which they have to learn. Pairs have `chosen` and `rejected` in
    place of `response`, for read_preferences: "pairs" of a caption without the price and one with it, which the tiny
    models write, "untrue_pairs" of a true caption and one that the image contradicts. Raises ValueError for
    num_examples below 1, a size below 1 or above 4096 and other answers, FileExistsError where a file has other
    content, unless `force` is set.
    """
    if num_examples < 1:
        raise ValueError(f"num_examples is {num_examples}. Ask for 1 or more.")
    if not 1 <= size <= 4096:
        raise ValueError(f"size is {size}. Ask for 1 to 4096 pixels.")
    if answers not in _QUESTIONS:
        raise ValueError(f"answers={answers!r}: choose one of {', '.join(_QUESTIONS)}")
    path, files, lines, questions = Path(path), {}, [], list(_QUESTIONS[answers].items())
    for number in range(1, num_examples + 1):
        name = f"images/{path.stem}-{number:04}.png"
        ((product, image),) = sample_products(1, f"{seed}-{number}", size)
        question, answer = questions[(number - 1) % len(questions)]
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        files[path.parent / name] = buffer.getvalue()
        given = answer(product)
        row = {"text": question, "image": name} | (given if isinstance(given, dict) else {"response": given})
        lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    files[path] = "".join(lines).encode()
    others = [file for file, content in files.items() if file.exists() and file.read_bytes() != content]
    if others and not force:
        more = f" and {len(others) - 1} more" if len(others) > 1 else ""
        remedy = "Write to another file, or overwrite with force=True (--force)."
        raise FileExistsError(f"{others[0]}{more} would be overwritten. {remedy}")
    for file, content in files.items():  # the JSONL file last, so that it never lacks images
        with atomic_file(file, "wb") as sink:
            sink.write(content)


def _as_json(product):
    facts = {"color": product.color, "pattern": product.pattern, "category": product.category}
    return json.dumps(facts | {"price": f"${product.price}"})


def _as_pair(product):
    return {"chosen": caption_without_price(product), "rejected": caption(product)}


def _as_untrue_pair(product):
    """The rejected caption names another color, or another thing."""
    rng = random.Random(f"{product}")
    name, values = rng.choice([("color", list(COLORS)), ("category", CATEGORIES)])
    other = replace(product, **{name: rng.choice([value for value in values if value != getattr(product, name)])})
    return {"chosen": caption_without_price(product), "rejected": caption_without_price(other)}


_QUESTIONS = {
    "words": QUESTIONS,
    "json": {"Describe this product as JSON.": _as_json},
    "pairs": {"Describe this product.": _as_pair},
    "untrue_pairs": {"Describe this product.": _as_untrue_pair},
}
