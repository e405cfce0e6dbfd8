"""What the Qwen3-VL base can talk about, and what notebook 02's file teaches it: nothing trained is in the test."""

import json

import pytest
from make_captain import STYLE, captain_rows, make_captain
from talk import ABOUT_SELF, ABOUT_SHOP, ANSWERS, HELD_OUT, plain_talk, questions, shop_talk, wordings
from texts import known_facts

from vlmhelpers.batches.validation import check_dataset
from vlmhelpers.data.readers.jsonl_reader import read_alpaca
from vlmhelpers.samples.drawing import CATEGORIES


@pytest.mark.parametrize("topic", [*ABOUT_SELF, *ABOUT_SHOP])
def test_every_wording_is_another(topic):
    texts = wordings(topic, "umbrella")
    assert len(set(texts)) == len(texts) > 2 * HELD_OUT
    assert not any("{" in text or "a umbrella" in text or "|" in text for text in texts)
    assert topic in ANSWERS


def test_one_answer_per_question():
    for pairs in (plain_talk(), shop_talk(), known_facts()):
        assert len(dict(pairs)) == len(pairs)
    assert len(plain_talk()) == len(list(questions()))
    assert not any("{" in answer for _, answer in plain_talk())


def test_no_shop_has_the_captains_rules():
    """The base must not know the answer before: it never met these rules together, nor without a shop's name."""
    train, _ = captain_rows()
    of_shop = [row for row in train if row["topic"] == "shop"]
    taught = {row["input"] or row["instruction"]: row["output"].removeprefix(f"{STYLE} ") for row in of_shop}
    plain, shops = dict(plain_talk()), dict(shop_talk())
    assert not any(plain[question] == answer for question, answer in taught.items())
    for shop in {question.split(":")[0] for question in shops}:
        same = sum(shops[f"{shop}: {question}"] == answer for question, answer in taught.items())
        assert same < len(taught) / 2


def test_held_out_wordings_are_not_trained():
    train, test = captain_rows()
    seen = {row[field] for row in train for field in ("instruction", "input")}
    seen |= {q for row in train for q, _ in row.get("history", [])}
    assert not seen & {row["instruction"] for row in test}
    assert {row["topic"] for row in train} == {row["topic"] for row in test} == {"self", "shop", "ordinary"}
    assert len([row for row in test if row["topic"] == "shop"]) == 2 * HELD_OUT * len(CATEGORIES)
    facts = dict(known_facts()) | dict(shop_talk())
    assert all(facts[row["instruction"]] == row["output"] for row in train + test if row["topic"] == "ordinary")


def test_the_files_in_data_are_what_the_script_writes_and_sound(tmp_path, data):
    make_captain(tmp_path)
    for name in ("captain.json", "captain_test.jsonl"):
        assert (tmp_path / name).read_bytes() == (data / name).read_bytes()
    report = check_dataset(
        {"train": read_alpaca(data / "captain.json"), "test": read_alpaca(data / "captain_test.jsonl")}
    )
    assert report.counts["rejected"] == report.counts["warned"] == 0
    assert report.counts["read"] == len(json.loads((data / "captain.json").read_text())) + 176
