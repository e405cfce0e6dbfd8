"""The speed of answers, by hand and of a tiny model."""

import json

import pytest

from vlmhelpers.common.digests import digest
from vlmhelpers.families import tiny_model
from vlmhelpers.inference.answer_log import Answer
from vlmhelpers.inference.generation import generate
from vlmhelpers.inference.speed import Answers, Speed
from vlmhelpers.models.loading import load_model


def test_a_batch_counts_once_for_the_rate_and_for_each_of_its_answers_for_the_latency():
    batches = [
        Answer("a", False, 10, 2.0, 2, "cpu"),
        Answer("b", False, 6, 2.0, 2, "cpu"),
        Answer("c", True, 4, 3.0, 1, "T4"),
    ]
    found = Speed.of([*batches, Answer("of an earlier version", False)])
    assert (found.tokens_per_second, found.median, found.p95) == pytest.approx((20 / 5, 2, 2.9))
    assert str(found) == "4 tokens/s, an answer in 2.00 s (median), 2.90 s (p95), up to 2 together on T4 and cpu"
    assert Speed.of([Answer("a", False)]) is None and Answers().speed is None
    assert Answers(batches) == ["a", "b", "c"] and Answers(batches).speed == found


@pytest.mark.slow
def test_new_tokens_are_counted_without_padding(rows_of, tmp_path):
    model, processor = load_model(tiny_model("qwen3-vl"), bits=16)
    dataset = rows_of([("Write 3 as a word.", "", []), ("Tell me a story.", "", [])])
    run = {"progress": False, "save_to": tmp_path / "answers.jsonl", "max_new_tokens": 5}
    answers = generate(model, processor, dataset, **run)
    head, *lines = run["save_to"].read_text().splitlines()
    counted = {
        line["row"]: (line["tokens"], line["cut"], line["together"], line["device"]) for line in map(json.loads, lines)
    }
    whole = len(processor.tokenizer(answers[0])["input_ids"])
    assert counted == {0: (whole + 1, False, 2, "cpu"), 1: (5, True, 2, "cpu")} and whole + 1 < 5
    seconds = json.loads(lines[0])["seconds"]
    assert answers.speed.median == seconds > 0
    assert answers.speed.tokens_per_second == pytest.approx((whole + 6) / seconds)
    assert generate(model, processor, dataset, **run).speed == answers.speed
    # what an earlier version has written holds no times
    parts = [dict(list(json.loads(line).items())[:5]) for line in lines]
    old = [json.dumps(part | {"digest": digest(*part.values())}) for part in parts]
    run["save_to"].write_text("\n".join([head, *old, ""]))
    again = generate(model, processor, dataset, **run)
    assert again == answers and again.speed is None
