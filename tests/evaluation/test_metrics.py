"""Each measure against an example that was published with its number, else against its library or by hand."""

import os
import subprocess
import sys

import numpy as np
import pytest

from vlmhelpers.evaluation.cider import cider
from vlmhelpers.evaluation.metrics import (
    METRICS,
    anls,
    bleu,
    cer,
    chrf,
    measure,
    normalised_match,
    relaxed_match,
    rouge_l,
    token_f1,
)

# The example of sacreBLEU's README (2.6.0, "Using SacreBLEU from Python"), by row.
DOG = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
DOG_REFERENCES = [
    ["The dog bit the man.", "The dog had bit the man."],
    ["It was not unexpected.", "No one was surprised."],
    ["The man bit him first.", "The man had bitten the dog."],
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
def test_normalised_match(answer, reference, same):
    assert normalised_match(answer, reference) is normalised_match(reference, answer) is same


@pytest.mark.parametrize(
    "answer, references, score",  # by hand, from equation 1 of Biten et al. 2019
    [
        ("Coca Cola", "coca cola", 1),  # case does not count
        ("12/15/89", "12/15/88", 7 / 8),
        ("Dear dr. Lobo", ["Dr. Lobo", "Dear Dr. Lobo"], 1),  # the nearest of two
        ("abcd", "abxx", 0),  # half of it wrong is too much
        ("abcde", "abcxx", 3 / 5),
        ("", "yes", 0),
        ("", "", 1),
        ("two  words ", "two words", 1),
    ],
)
def test_anls(answer, references, score):
    assert anls(answer, references) == pytest.approx(score)


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


def test_bleu_and_chrf_of_the_published_example():
    """sacreBLEU's README: BLEU = 48.53 and chrF2 = 59.73."""
    assert round(100 * bleu(DOG, DOG_REFERENCES).value, 2) == 48.53
    assert round(100 * chrf(DOG, DOG_REFERENCES).value, 2) == 59.73


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


def test_rows_may_have_different_numbers_of_references():
    assert bleu(DOG, [DOG_REFERENCES[0], *(row[0] for row in DOG_REFERENCES[1:])]).value < 0.4853
    assert chrf(["red hat", "blue bag"], ["red hat", ["bag", "blue bag"]]).value == pytest.approx(1)


def test_cer_of_the_published_example():
    """The card of CER in Hugging Face's evaluate 0.4."""
    found = cer(SAMPLES, SAMPLES_REFERENCES)
    assert (found.value, found.n) == (pytest.approx(0.34146341463414637), 2)


def test_cer_counts_edits_over_characters_of_all_rows():
    assert cer(["abcd", "x"], ["abcdefgh", "y"]).value == pytest.approx(5 / 9)  # by hand
    assert cer(["abc"], ["x"]).value == 3 and cer(["ab"], [""]).value == 2 and cer([""], [""]).value == 0


def test_cider_of_the_reference_implementation():
    """The scores that pycocoevalcap 1.2, the COCO toolkit's, gives on the same words."""
    references = [
        ["a red hat with a brim", "a hat in red"],
        ["a blue bag on a table", "the blue bag"],
        ["a green and white striped scarf", "a striped scarf"],
    ]
    answers = ["a red hat on a table", "a blue bag on a table", "a striped scarf in green and white"]
    expected = [2.1201874425197453, 5.985724810359167, 3.67960358723197]
    assert cider(answers, references) == pytest.approx(expected)
    assert cider(["A red hat, on a table!"], references[:1]) == [0.0]  # of one row, every word is in all rows
    assert cider([answers[0].upper() + ".", *answers[1:]], references) == pytest.approx(expected)


def test_cider_by_hand():
    """Two words of two rows: of n = 1 the clipped cosine, of n = 2 to 4 nothing, and a penalty for one word more."""
    penalty = np.exp(-1 / 72)
    assert cider(["hat hat", "bag"], ["hat", "bag"]) == pytest.approx([10 / 4 * 0.5 * penalty, 10 / 4])
    assert cider(["b", "a b c d e"], ["x", "a b c d e"]) == pytest.approx([0, 10])
    assert cider(["", "bag"], ["hat", "bag"])[0] == 0


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


def test_libraries_are_loaded_by_the_measures_that_need_them():
    code = "import sys, vlmhelpers.evaluation; print([name for name in sys.argv[1:] if name in sys.modules])"
    names = ["sacrebleu", "rapidfuzz", "rouge_score", "jiwer", "nltk", "torch"]
    found = subprocess.run(
        [sys.executable, "-c", code, *names], capture_output=True, text=True, check=True, env={**os.environ}
    )
    assert found.stdout.strip() == "[]"
