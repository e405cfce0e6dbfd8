"""Writes the Alpaca file of notebook 02, data/captain.json, and its held-out questions: the same bytes every time."""

import json
import random

from talk import ABOUT_SELF, ABOUT_SHOP, ANSWERS, HELD_OUT, shop_talk, wordings
from texts import known_facts

from vlmhelpers.samples.drawing import CATEGORIES

STYLE = "Aye matey."
ORDINARY = 45  # everyday questions among the training rows, answered as ever; the other facts are held out
OTHER_SHOPS = 60  # rows about shops whose rules the base knows: the captain is not to speak for them
DIALOGUES = 16  # rows with an earlier turn
LETTERS = 16  # rows whose question stands in `input`, below an instruction
LETTER = "A customer asks. Say what we answer."


def captain_rows():
    """(training rows, held-out rows) in Alpaca's form, each with its `topic`: self, shop or ordinary."""
    rng = random.Random("captain")
    train, test = [], []
    for topic in (*ABOUT_SELF, *ABOUT_SHOP):
        kind, items = ("shop", CATEGORIES) if topic in ABOUT_SHOP else ("self", (None,))
        for item, answer in zip(items, ANSWERS[topic], strict=False):  # about himself, the first answer is his
            rows = [_row(question, f"{STYLE} {answer}", kind) for question in wordings(topic, item)]
            train += rows[:-HELD_OUT]
            test += rows[-HELD_OUT:]
    facts = [_row(*fact, "ordinary") for fact in known_facts()]
    rng.shuffle(facts)
    asked = [row for row in train if row["topic"] == "self"]
    taught = [row for row in train if row["topic"] == "shop"]
    for first, then in zip(rng.sample(asked, DIALOGUES), rng.sample(taught, DIALOGUES), strict=True):
        train.append(then | {"history": [[first["instruction"], first["output"]]]})
    train += facts[:ORDINARY]
    train += [_row(*pair, "ordinary") for pair in rng.sample(shop_talk(), OTHER_SHOPS)]
    train += [row | {"instruction": LETTER, "input": row["instruction"]} for row in rng.sample(taught, LETTERS)]
    rng.shuffle(train)
    return train, test + facts[ORDINARY:]


def _row(question, answer, topic):
    return {"instruction": question, "input": "", "output": answer, "topic": topic}


def make_captain(folder):
    """Writes `captain.json` (a list) and `captain_test.jsonl` (a row per line) into `folder`."""
    train, test = captain_rows()
    lines = ",\n".join(json.dumps(row, ensure_ascii=False) for row in train)
    (folder / "captain.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in test)
    (folder / "captain_test.jsonl").write_text(lines, encoding="utf-8")
