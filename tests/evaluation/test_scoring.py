"""Scores against numbers worked out by hand or by another library."""

import numpy as np
import pytest
from datasets import Image, List

from vlmhelpers.data.schema import make_prompt, text_part, user
from vlmhelpers.evaluation.browser import browse
from vlmhelpers.evaluation.comparison import compare
from vlmhelpers.evaluation.metrics import METRICS
from vlmhelpers.evaluation.scoring import by_slice, evaluate, parse_fields, parsed, price_error, says_all, word_shift
from vlmhelpers.evaluation.statistics import share

GOOD = "Product: Red Hat, Color: Navy, Full Price: $20.00"


def test_fields_are_read_from_lines_and_commas():
    assert parse_fields(GOOD) == {"Product": "Red Hat", "Color": "Navy", "Full Price": "$20.00"}
    assert parse_fields("Title: a, b and c\nPrice: 3") == {"Title": "a, b and c", "Price": "3"}
    assert parse_fields("A red hat for $20.") == {}


def test_fields_are_read_from_a_json_object():
    assert parse_fields('{"Product": "Red Hat", "sizes": [1, 2], "price": 20}') == {
        "Product": "Red Hat", "sizes": "[1, 2]", "price": "20",
    }  # fmt: skip
    assert parse_fields('["Red Hat"]') == parse_fields('{"Product": ') == {}
    assert parse_fields("12") == {}


@pytest.mark.parametrize(
    "text",
    [
        '```json\n{"Product": "Red Hat", "price": 20}\n```',
        'Sure: here is the JSON.\n{"Product": "Red Hat", "price": 20.0}\nAnything else?',
        'As {asked}:\n{\n  "Product": "Red Hat",\n  "price": 2e1\n}\n{"Product": "other"}',
    ],
)
def test_fields_are_read_from_json_inside_other_text(text):
    assert parse_fields(text) == {"Product": "Red Hat", "price": "20"}


def test_json_values_are_compared_as_values():
    one = parse_fields('{"size": {"w": 1.0, "h": 2.50}, "tags": ["é", 1], "new": true, "sku": "20.0"}')
    other = parse_fields('{"size": {"h": 2.5, "w": 1}, "tags": ["é", 1.0], "new": true, "sku": "20"}')
    assert one == {"size": '{"h": 2.5, "w": 1}', "tags": '["é", 1]', "new": "true", "sku": "20.0"}
    assert one | {"sku": "20"} == other  # a string is not a number
    assert parse_fields('{"tags": [1, 2]}') != parse_fields('{"tags": [2, 1]}')


@pytest.mark.parametrize(
    "text", ['{"a": {"b": 1}', '[{"a": 1}, {"a": 2}]', "[[" * 100_000, '{"a": ' * 100_000, "{}", '{"a": 1e']
)
def test_json_that_is_cut_off_or_no_object_has_no_fields(text):
    assert parse_fields(text) == {}


def test_fields_may_hold_lists():
    assert parse_fields('Product: hat, Sizes: ["S", "M"]') == {"Product": "hat", "Sizes": '["S", "M"]'}


def test_answers_are_compared_in_one_unicode_form(rows_of):
    composed, apart = "caf\u00e9, \ud55c", "cafe\u0301, \u1112\u1161\u11ab"
    expected = [composed, f"Drink: {composed}", f'{{"caf\u00e9": "{composed}", "all": ["{composed}"]}}']
    spelled = '{"cafe\\u0301": "cafe\\u0301, \\u1112\\u1161\\u11ab", "all": ["cafe\u0301, \u1112\u1161\u11ab"]}'
    given = [apart, f"<think>e\u0301</think>Drink: {apart}", spelled]
    dataset = rows_of([("?", text, []) for text in expected])
    found = evaluate(given, dataset, "all", says_all)
    assert found.hits == (True, True, False)
    assert found.values["ANLS"][:2] == (1, 1)
    for name, hits in {"Drink": (True, None), "caf\u00e9": (None, True), "all": (None, True)}.items():
        assert found.values[name][1:] == hits
    assert found.values["judge"] == (True, True, True)
    for name in METRICS:
        one, other = (evaluate([text] * 2, rows_of([("?", composed, [])] * 2), name) for text in (composed, apart))
        assert one.scores[name] == other.scores[name]
    assert word_shift([composed], [apart]) == [("caf\u00e9", 1, 1), ("\ud55c", 1, 1)]
    assert (
        browse(dataset, given=given).kinds["right"] == [0, 1]
        and "<mark" not in browse(dataset.select([0]), a=[apart])._repr_html_()
    )


@pytest.mark.parametrize("right, n", [(0, 200), (200, 200), (190, 200), (1, 2)])
def test_wilson_interval_solves_its_equation(right, n):
    score = share([True] * right + [False] * (n - right))
    assert (score.value, score.n) == (right / n, n)
    assert 0 <= score.low <= score.value <= score.high <= 1 and score.low < score.high
    for bound in {score.low, score.high} - {0.0, 1.0}:  # the bounds are the shares 1.96 standard errors away
        assert abs(score.value - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / n) ** 0.5)


def test_no_rows_is_an_error():
    with pytest.raises(ValueError, match="no rows to score"):
        share([])


def test_exact_match_overall_and_by_field(rows_of):
    dataset = rows_of([("?", GOOD, []), ("?", GOOD, []), ("?", "plain words", [])])
    found = evaluate([f" {GOOD}\n", GOOD.replace("Navy", "Rose"), "plain words"], dataset)
    assert found.hits == (True, False, True)
    assert {name: (score.value, score.n) for name, score in found.scores.items()} == {
        "exact match": (2 / 3, 3),
        "Product": (1.0, 2),
        "Color": (0.5, 2),
        "Full Price": (1.0, 2),
    }
    assert "66.7%" in repr(found)


def test_every_score_that_is_a_mean_has_its_values_by_row(rows_of):
    dataset = rows_of([("?", GOOD, []), ("?", "red hat", []), ("?", "Color: Navy", [])])
    found = evaluate([GOOD, "A red hat.", "Color: Rose"], dataset, metrics=("exact match", "normalized match", "ANLS"))
    assert list(found.scores) == ["exact match", "Product", "Color", "Full Price", "normalized match", "ANLS"]
    assert found.values["exact match"] == found.hits == (True, False, False)
    assert found.values["Product"] == (True, None, None) and found.values["Color"] == (True, None, False)
    assert found.values["normalized match"] == (True, True, False)
    assert found.values["ANLS"] == pytest.approx((1, 7 / 10, 7 / 11))
    assert found.scores["normalized match"] == share([True, True, False])
    assert found.scores["ANLS"].value == pytest.approx((1 + 7 / 10 + 7 / 11) / 3)
    assert found.scores["ANLS"].low < found.scores["ANLS"].value < found.scores["ANLS"].high


def test_all_scores_have_an_interval_and_the_default_ones_stay(rows_of):
    dataset = rows_of([("?", text, []) for text in [GOOD, "a red hat", "a blue bag", "20"] * 3])
    answers = [GOOD, "a red bag", "the blue bag", "20.5"] * 3
    plain, full = evaluate(answers, dataset), evaluate(answers, dataset, metrics="all")
    assert list(full.scores) == [*plain.scores, *METRICS]
    assert full.hits == plain.hits and full.scores | plain.scores == full.scores
    for name, score in full.scores.items():
        assert score.low <= score.value <= score.high and score.n == (12 if name in METRICS else plain.scores[name].n)
    assert {*full.scores} - {*full.values} == {"BLEU", "chrF", "CER"}
    assert all(len(of_rows) == 12 for of_rows in full.values.values())
    assert evaluate(answers, dataset, metrics="CER").scores["CER"] == full.scores["CER"]
    assert len(repr(full).splitlines()) == len(full.scores)


def test_an_unknown_metric_is_refused_with_the_names_there_are(rows_of):
    with pytest.raises(ValueError, match="unknown metric 'anls': choose \"all\" or some of normalized match, ANLS, "):
        evaluate(["a"], rows_of([("?", "a", [])]), metrics=["anls"])


def test_reasoning_is_scored_by_no_metric(rows_of):
    found = evaluate(["<think>hat, hat</think>bag"], rows_of([("?", "bag", [])]), metrics="all")
    assert found.scores["token F1"].value == 1 and found.scores["CER"].value == 0


def test_a_judge_sees_the_row_and_its_mean_is_a_score(rows_of, picture):
    seen = []

    def judge(*row):
        seen.append(row)
        return 0.25 * len(seen)

    dataset = rows_of([("What is it?", "a hat", [picture]), ("And this?", "a bag", [])])
    found = evaluate(["<think>hm</think>hat", "bag"], dataset, judge=judge)
    assert [(prompt, expected, answer) for prompt, _, expected, answer in seen] == [
        ("What is it?", "a hat", "hat"),
        ("And this?", "a bag", "bag"),
    ]
    assert [image.size for image in seen[0][1]] == [picture.size] and seen[1][1] == []
    assert found.values["judge"] == (0.25, 0.5) and found.scores["judge"].value == 0.375
    agreed = evaluate(["hat", "bag"], dataset, judge=lambda prompt, images, expected, answer: answer in expected)
    assert agreed.scores["judge"] == share([True, True])
    assert "judge" not in evaluate(["hat", "bag"], dataset).scores


def test_the_judge_of_content_goes_by_the_values_and_not_by_the_form(rows_of):
    expected = '{"color": "blue", "category": "shirt", "price": "$40"}'
    answers = [expected, "A Blue shirt for $40.", "A blue boot for $40.", ""]
    found = evaluate(answers, rows_of([("?", expected, [])] * 4), judge=says_all)
    assert found.values["judge"] == (True, True, False, False) and found.hits == (True, False, False, False)
    assert says_all("?", [], "A hat", "It is a hat.") and not says_all("?", [], "A hat", "It is a bag.")


def test_a_judge_may_answer_with_numbers_of_numpy(rows_of):
    judge = lambda *row: np.bool_(row[3] == "a")  # noqa: E731
    assert evaluate(["a", "b"], rows_of([("?", "a", [])] * 2), judge=judge).scores["judge"] == share([True, False])


@pytest.mark.parametrize("verdict", [None, "yes", 1.5, -1, float("nan")])
def test_a_judge_that_gives_no_score_is_named_with_its_row(rows_of, verdict):
    with pytest.raises(ValueError, match=r"the judge gave .* for row 1 \(counted from 0\)"):
        evaluate(
            ["a", "b"], rows_of([("?", "a", []), ("?", "c", [])]), judge=lambda *row: 1 if row[3] == "a" else verdict
        )


def test_a_judge_that_fails_is_named_with_its_row(rows_of):
    with pytest.raises(
        RuntimeError, match=r"the judge failed on row 0 \(counted from 0\): ZeroDivisionError"
    ) as caught:
        evaluate(["a"], rows_of([("?", "a", [])]), judge=lambda *row: 1 / 0)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_no_rows_are_refused(rows_of):
    with pytest.raises(ValueError, match="no rows to score"):
        evaluate([], rows_of([("?", "a", [])]).select([]), metrics="all")


def test_a_missing_answer_is_refused(rows_of):
    with pytest.raises(ValueError, match="1 answers for 2 rows"):
        evaluate([GOOD], rows_of([("?", GOOD, []), ("?", GOOD, [])]))


def test_words_that_came_and_went_are_counted_once_per_answer():
    before = ["A red hat.", "A red bag.", "It is 20."]
    after = ["Aye aye. A red hat.", "Aye. A bag.", "AYE"]
    assert word_shift(before, after, top=2) == [("aye", 0, 1), ("is", pytest.approx(1 / 3), 0)]
    assert ("hat", pytest.approx(1 / 3), pytest.approx(1 / 3)) in word_shift(before, after)
    assert all(word.isalpha() for word, _, _ in word_shift(before, after))


@pytest.mark.parametrize("before, after", [(["a"], ["a", "b"]), ([], [])])
def test_words_of_different_prompts_are_not_compared(before, after):
    with pytest.raises(ValueError, match="answers to the same prompts"):
        word_shift(before, after)


def test_the_share_of_answers_that_parse(rows_of):
    dataset = rows_of([("?", GOOD, [])] * 4)
    answers = [GOOD, "Full Price: 1, Color: Red, Product: x", "Product: x, Color: Red", "A hat."]
    assert parsed(answers, dataset).value == 0.5


def test_price_errors_in_the_currency(rows_of):
    prices = ["$2,150.00", "100.0", "10", "1 USD"]
    dataset = rows_of([("?", f"Product: hat, Full Price: {price}", []) for price in prices])
    answers = ["Full Price: 2150", "Full Price: $90.50", "Product: hat", "Full Price: about a dollar"]
    error = price_error(answers, dataset)  # errors of 0, 9.5, 10 and 1
    assert (error.value, error.mean, error.n) == (5.25, 5.125, 4) and 0 <= error.low < error.value < error.high <= 10
    assert str(error).startswith("5.25")
    assert price_error(["Full Price: 50"] * 4, dataset).value == pytest.approx((49 + 50) / 2)
    thought = [f"<think>Full Price: 1</think>{answer}" for answer in answers]
    assert price_error(thought, dataset) == error  # the reasoning's price is not the answer's
    with pytest.raises(ValueError, match="no reference has a number under 'Weight'"):
        price_error(answers, dataset, field="Weight")


def test_prices_are_read_as_all_references_can_be(rows_of):
    dataset = rows_of([("?", f"Product: hat, Full Price: {price}", []) for price in ("1.299", "12,50", "1 299 €")])
    answers = [f"Full Price: {price}" for price in ("1.299", "$12.50", "1300")]
    assert price_error(answers, dataset).mean == pytest.approx(1 / 3)


def test_the_interval_of_the_price_error_covers_the_true_median(rows_of):
    """Of errors drawn with a known median, about 95 in 100 intervals hold it."""
    rng, inside = np.random.default_rng(0), 0
    dataset = rows_of([("?", "Full Price: 0", [])] * 41)
    for _ in range(60):
        answers = [f"Full Price: {value:.3f}" for value in rng.exponential(10, size=41)]
        error = price_error(answers, dataset)
        inside += error.low <= 10 * np.log(2) <= error.high
    assert inside >= 52


@pytest.mark.parametrize(
    "answers, message",
    [
        (None, "a NoneType is no list of texts"),
        ("ab", "a str is no list of texts"),
        ([None, "b"], "that of row 0 from 0, None"),
        ([1, 2], "2 answers are no texts"),
        (["a"], "1 answers for 2 rows"),
    ],
)
def test_answers_that_are_no_texts_are_refused(answers, message, rows_of):
    dataset = rows_of([("?", "a", []), ("?", "b", [])])
    for score in (evaluate, parsed, price_error):
        with pytest.raises(ValueError, match=message):
            score(answers, dataset)
    with pytest.raises(ValueError, match=message.replace("answers", "answers of 'tuned'")):
        browse(dataset, tuned=answers)


def test_rows_without_an_expected_answer_are_named(rows_of):
    rows = [*rows_of([("?", "a", [])] * 2)]
    for messages in (rows[1]["messages"][:1], [*rows[1]["messages"], user("And this?")], []):
        rows[1]["messages"] = messages
        for score in (evaluate, parsed, price_error):
            with pytest.raises(ValueError, match=r"row 1 \(counted from 0\): the row does not end with an assistant"):
                score(["a", "a"], rows)
    with pytest.raises(ValueError, match="the rows are prompts, and rows of messages are needed: vlm.data.to_rows"):
        evaluate(["a"], [make_prompt("?", "a")])


@pytest.mark.parametrize("content", [None, [], *([text_part(text)] for text in ("", " ", "<think>hm</think>", None))])
def test_an_empty_expected_answer_is_none(content):
    row = {"messages": [user("?"), {"role": "assistant", "content": content}], "images": []}
    with pytest.raises(ValueError, match=r"row 0 \(counted from 0\): the expected answer at its end is empty"):
        evaluate([""], [row])


def test_rows_in_any_form_are_scored_alike(rows_of, picture):
    dataset = rows_of([("?", "a", [picture]), ("?", "b", [picture])])
    undecoded = dataset.cast_column("images", List(Image(decode=False)))
    for rows in ([*dataset], dataset.with_format("torch"), dataset.with_format("pandas"), undecoded):
        seen = []
        evaluation = evaluate(np.array(["a", "x"]), rows, judge=lambda *given: seen.append(given[1][0].size) or 1)  # noqa: B023
        assert evaluation.hits == (True, False) and seen == [picture.size] * 2
        assert by_slice(rows, {"tuned": evaluation}, "image size")["rows"].tolist() == [2]


def test_what_are_no_evaluations_is_refused(rows_of):
    dataset = rows_of([("?", "a", [])])
    evaluation = evaluate(["a"], dataset)
    for wrong in (["a"], None, "a"):
        with pytest.raises(ValueError, match="is no evaluation: give what vlm.evaluate"):
            compare(evaluation, wrong)
    for wrong in ({}, evaluation, {"tuned": ["a"]}):
        with pytest.raises(ValueError, match="give evaluations by name"):
            by_slice(dataset, wrong, "answer length")
