"""Rows as one line each, which a table of a test can hold: `user: [red] What? | assistant: Red.`

An image is its color in brackets. An answer that is not learned has a minus after its role. The parts of a pair are
`prompt // chosen // rejected`, of a rated row `prompt // completion // true`, of a prompt `prompt // answer`. What
validation rejects is `! ` and the reason.
"""

from PIL import Image

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data import read_dataset
from vlmhelpers.data.schema import kind_of

COLORS = {"red": (255, 0, 0), "blue": (0, 0, 255)}


def draw_images(folder):
    """red.png and blue.png, and the same under images/ and upload/1/."""
    for place in (folder, folder / "images", folder / "upload" / "1"):
        place.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 48), "red").save(place / "red.png")
        Image.new("RGB", (48, 64), "blue").save(place / "blue.png")
    return folder


def read_outlines(source, **options):
    """The outlines of all rows that read_dataset finds in a source, after validation."""
    return outlines(read_dataset(source, **options))


def outlines(dataset):
    """The outline of every row, of a dict of splits those of one after the other."""
    if not hasattr(dataset, "features"):
        return [line for name in dataset for line in outlines(dataset[name])]
    rejected = {record["index"]: record["reason"] for record in check_dataset(dataset, progress=False).rejected}
    return [f"! {rejected[i]}" if i in rejected else _outline(dataset[i]) for i in range(len(dataset))]


def agree(found, expected):
    """Whether a row's outline is the expected one; of a rejection, `! ` and some words that its reason has."""
    if not expected.startswith("!"):
        return found == expected
    return found.startswith("!") and all(word in found.lower() for word in expected[1:].lower().split())


def _outline(row):
    kind, shown = kind_of(row), iter(row["images"])
    if kind == "messages":
        return _turns(row["messages"], shown)
    prompt = _turns(row["prompt"], shown)
    if kind == "prompts":
        return f"{prompt} // {row['answer']}"
    if kind == "rated":
        return f"{prompt} // {_turns(row['completion'], shown)} // {str(row['label']).lower()}"
    others = iter(row.get("rejected_images") or [])
    again = "".join(f" ({_color(image)})" for image in others)
    return f"{prompt} // {_turns(row['chosen'], shown)} // {_turns(row['rejected'], shown)}{again}"


def _turns(messages, shown):
    return " | ".join(_turn(message, shown) for message in messages)


def _turn(message, shown):
    unlearned = "-" if message.get("train") is False else ""
    parts = [_color(next(shown)) if part["type"] == "image" else part["text"] for part in message["content"]]
    return f"{message['role']}{unlearned}: {' '.join(' '.join(parts).split())}"


def _color(image):
    pixel = image.convert("RGB").getpixel((0, 0))
    return f"[{next((name for name, color in COLORS.items() if color == pixel), pixel)}]"
