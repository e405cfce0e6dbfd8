"""Each measure against an example that was published with its number, else against its library or by hand."""

import os
import random
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest

from vlmhelpers.evaluation.metrics import (
    METRICS,
    anls,
    bleu,
    cer,
    chrf,
    measure,
    normalized_match,
    relaxed_match,
    rouge_l,
    token_f1,
)

# The example of the card of the metric chrF in Hugging Face's evaluate 0.4.
CATS = [
    "The relationship between cats and dogs is not exactly friendly.",
    "a good bookshop is just a genteel black hole that knows how to read.",
]
CATS_REFERENCES = [
    "The relationship between dogs and cats is not exactly friendly.",
    "A good bookshop is just a genteel Black Hole that knows how to read.",
]
# The example of the card of the metric CER in Hugging Face's evaluate 0.4.
SAMPLES = ["this is the prediction", "there is an other sample"]
SAMPLES_REFERENCES = ["this is the reference", "there is another one"]


@pytest.mark.parametrize(
    "answer, reference, same",  # by hand
    [
        ("The red  hat.", "red hat", True),
        ("“RED HAT!”", "a red hat", True),
        ("２０ ﬁsh", "20 fish", True),  # full-width digits and a ligature
        ("**Navy**", "navy", True),
        ("STRASSE", "straße", True),
        ("A", "the", False),  # a choice that is named like an article
        ("A", "a.", True),
        ("A", "", False),
        ("-5", "5", False),
        (".5", "5", False),
        ("$20", "20", False),
        ("20%", "20", False),
        ("2.50", "250", False),
        ("than", "n", False),
    ],
)
def test_normalized_match(answer, reference, same):
    assert normalized_match(answer, reference) is normalized_match(reference, answer) is same


@pytest.mark.parametrize(
    "answer, reference, score",  # by hand, from equation 1 of Biten et al. 2019
    [
        ("Coca Cola", "coca cola", 1),  # case does not count
        ("12/15/89", "12/15/88", 7 / 8),
        ("Dear dr. Lobo", "Dear Dr. Lobo", 1),
        ("abcd", "abxx", 0),  # half of it wrong is too much
        ("abcde", "abcxx", 3 / 5),
        ("", "yes", 0),
        ("", "", 1),
        ("two  words ", "two words", 1),
    ],
)
def test_anls(answer, reference, score):
    assert anls(answer, reference) == pytest.approx(score)


@pytest.mark.parametrize(
    "answer, reference, right",  # by hand, from the rule of Masry et al. 2022, section 5.1: within 5%, else equal
    [
        ("105", "100", True),
        ("95", "100", True),
        ("105.1", "100", False),
        ("94.9", "100", False),
        ("-98", "-100", True),
        ("98", "-100", False),
        ("0", "0.0", True),
        ("0.01", "0", False),
        ("20%", "0.2", True),  # a percentage is its share, as in the published scorers
        ("20%", "20", False),
        ("20.5%", "20%", True),
        ("$2,150.00", "2200", True),
        ("1,234,567", "1.2e6", True),
        ("1,2345", "12345", False),  # no comma of thousands
        ("€ 5", "5", True),
        ("Blue", "blue ", True),
        ("blue", "light blue", False),
        ("3 apples", "3", False),  # no number as a whole
        ("nan", "nan", True),
        ("2019", "2019-20", False),
        ("1e400", "1e500", False),  # too large for a float: compared as texts
        ("1" * 400, "2" * 400, False),
        ("1" * 400, "1" * 400, True),
    ],
)
def test_relaxed_accuracy(answer, reference, right):
    assert relaxed_match(answer, reference) is right


def test_token_f1_of_the_published_example():
    """The partial match on the cards of squad and squad_v2 in Hugging Face's evaluate 0.4: an F1 of 66.67."""
    pairs = [("1976", "1976"), ("Beyonce", "Beyoncé and Bruno Mars"), ("climate change", "climate change")]
    assert np.mean([token_f1(*pair) for pair in pairs]) == pytest.approx(0.6666666666666667)


def test_token_f1_is_that_of_the_squad_scorer():
    from transformers.data.metrics.squad_metrics import compute_f1  # the scorer of SQuAD 2.0 as transformers keeps it

    texts = ["the red hat", "A red, red hat!", "hat", "The", "", "blue-green bag, $20", "an apple a day", "red hat red"]
    for answer in texts:
        for reference in texts:
            assert token_f1(answer, reference) == pytest.approx(compute_f1(reference, answer)), (answer, reference)


def test_rouge_l_of_the_published_example():
    """Lin 2004, section 3.1: S2 and S3 against S1, with beta = 1."""
    assert rouge_l("police kill the gunman", "police killed the gunman") == pytest.approx(0.75)
    assert rouge_l("the gunman kill police", "police killed the gunman") == pytest.approx(0.5)
    assert rouge_l("Testing, one.", "testing") == pytest.approx(2 / 3)  # by hand: precision 1/2, recall 1
    assert rouge_l("", "police") == rouge_l("警察", "警察") == 0.0


def random_texts(count):
    """Pairs of texts of few different pieces, some of which lower-case, split or fold in an odd way."""
    rng = random.Random(0)
    pieces = [*"a The hat red. é x1 _ ſ \u212a 日本 İ".split(), "\n", "\xa0", *"   "]
    return [["".join(rng.choices(pieces, k=rng.randrange(40))) for _ in range(2)] for _ in range(count)]


@pytest.mark.slow
def test_rouge_l_is_that_of_rouge_score():
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rougeL"])
    for answer, reference in random_texts(100):
        expected = scorer.score(reference, answer)["rougeL"].fmeasure
        assert rouge_l(answer, reference) == pytest.approx(expected), (answer, reference)


def test_chrf_of_the_published_example():
    """The card of chrF in Hugging Face's evaluate 0.4: 84.64."""
    assert 100 * chrf(CATS, CATS_REFERENCES).value == pytest.approx(84.64214891738334)


def test_bleu_is_that_of_sacrebleu():
    from sacrebleu.metrics import BLEU

    expected = BLEU().corpus_score(CATS, [CATS_REFERENCES]).score
    assert 100 * bleu(CATS, CATS_REFERENCES).value == pytest.approx(expected) and 0 < expected < 100


def test_bleu_of_answers_below_four_words_is_0():
    assert bleu(["red hat", "bag"], ["red hat", "bag"]).value == 0
    assert chrf(["red hat", "bag"], ["red hat", "bag"]).value == pytest.approx(1)


def test_bleu_resamples_rows_as_sacrebleu_does_from_the_texts():
    from sacrebleu.metrics import BLEU

    rng = np.random.default_rng(0)
    answers, references = ([" ".join(rng.choice(list("abcdef"), 9)) for _ in range(40)] for _ in range(2))
    rng, scores = np.random.default_rng(0), []
    for places in rng.integers(40, size=(1000, 40))[:100]:  # the draws of the seed 0
        scores.append(BLEU().corpus_score([answers[i] for i in places], [[references[i] for i in places]]).score / 100)
    ours = bleu(answers, references)
    assert (ours.low, ours.high) == pytest.approx(np.quantile(scores, [0.025, 0.975]), abs=0.03)
    assert ours.low < ours.value < ours.high and ours.n == 40


def test_cer_of_the_published_example():
    """The card of CER in Hugging Face's evaluate 0.4."""
    found = cer(SAMPLES, SAMPLES_REFERENCES)
    assert (found.value, found.n) == (pytest.approx(0.34146341463414637), 2)


def test_cer_is_that_of_jiwer():
    from jiwer import process_characters

    for answer, reference in random_texts(100):
        found = process_characters(reference, answer)
        edits, length = found.substitutions + found.deletions + found.insertions, len(found.references[0])
        assert cer([answer], [reference]).value == pytest.approx(edits / max(length, 1)), (answer, reference)


def test_cer_counts_edits_over_characters_of_all_rows():
    assert cer(["abcd", "x"], ["abcdefgh", "y"]).value == pytest.approx(5 / 9)  # by hand
    assert cer(["abc"], ["x"]).value == 3 and cer(["ab"], [""]).value == 2 and cer([""], [""]).value == 0


@pytest.mark.parametrize("name", METRICS)
def test_every_measure_tells_a_good_answer_from_a_bad_one(name):
    references = ["a red wool hat with dots", "two blue leather bags here", "20"] * 4
    good, values = measure(name, references, references)
    bad, worse = measure(name, ["nothing of it at all"] * 12, references)
    assert (good.value < bad.value) if name == "CER" else (good.value > bad.value)
    assert good.n == bad.n == 12
    for score in (good, bad):
        assert score.low <= score.value <= score.high
    if name in ("BLEU", "chrF", "CER"):
        assert values is worse is None
    else:
        assert len(values) == 12 and np.mean(worse) == pytest.approx(bad.value)


RUNAWAY = {
    "one word again and again": "x " * 20_000,
    "many words": " ".join(f"w{i}" for i in range(20_000)),
    "one token": "ab" * 50_000,
    "one number": "1" * 100_000,
    "nearly a number": "1" * 100_000 + "x",
}


@pytest.mark.slow
@pytest.mark.parametrize("answer", RUNAWAY.values(), ids=RUNAWAY)
def test_a_runaway_answer_costs_no_more_than_its_length(answer):
    """A table of answer x reference would take hundreds of megabytes; a search anew from each digit, minutes."""
    reference = " ".join(f"w{i}" for i in range(2000))
    tracemalloc.start()
    try:
        scores = [measure(name, [answer], [reference])[0] for name in METRICS]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert all(score.value >= 0 for score in scores) and peak < 50e6


@pytest.mark.slow
def test_libraries_are_loaded_by_the_measures_that_need_them():
    code = "import sys, vlmhelpers; vlmhelpers.evaluate; print([name for name in sys.argv[1:] if name in sys.modules])"
    names = ["sacrebleu", "rapidfuzz", "torch"]
    found = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert found.stdout.strip() == "[]"
