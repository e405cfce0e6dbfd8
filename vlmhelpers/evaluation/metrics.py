"""Measures of how close an answer comes to its reference. None downloads anything.

Those of a row take (answer, reference) and give a bool or a number in 0..1; those of a corpus take the answers and the
references of all rows. Libraries are loaded by the measures that need them.
"""

import re
import string
import unicodedata
from collections import Counter

import numpy as np

from vlmhelpers.evaluation.statistics import Score, bootstrap, mean

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_OPENING = " \"'`“”‘’«»([{*_"  # signs that belong to a value stay: $20, -5, .5, 20%
_CLOSING = " \"'`“”‘’«»)]}*_.,;:!?。、"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)


def normalized_match(answer: str, reference: str) -> bool:
    """Whether both are the same text but for case, Unicode form (NFKC), spaces, articles and punctuation at the ends.

    Where only an article (a, an, the) is left, it stays: an "A" may name a choice. So do signs that belong to a value:
    -5 is not 5, and $20, 20% and 20 are three answers.
    """
    return _normalized(answer) == _normalized(reference)


def _normalized(text):
    text = unicodedata.normalize("NFKC", text).casefold()
    forms = (" ".join(form.split()).lstrip(_OPENING).rstrip(_CLOSING) for form in (_ARTICLES.sub(" ", text), text))
    return next(filter(None, forms), "")


def anls(answer: str, reference: str) -> float:
    """ANLS of one row: 1 minus the edit distance over the longer text's length, or 0 where half of it is wrong.

    Case and runs of spaces do not count. Source: Biten et al., Scene Text Visual Question Answering (ICCV 2019).
    """
    from rapidfuzz.distance import Levenshtein

    distance = Levenshtein.normalized_distance(*(" ".join(text.lower().split()) for text in (answer, reference)))
    return 1.0 - distance if distance < 0.5 else 0.0


def relaxed_match(answer: str, reference: str) -> bool:
    """Whether a number is within 5% of the reference, and any other answer equal to it but for case.

    `20%` is 0.2, as in the published scorers; currency signs and thousands commas (`$2,150`) are left out. Source:
    Masry et al., ChartQA (Findings of ACL 2022), section 5.1, after Methani et al., PlotQA (WACV 2020).
    """
    found, expected = _number(answer), _number(reference)
    if found is None or expected is None:
        return answer.strip().lower() == reference.strip().lower()
    return found == expected or (expected != 0 and abs(found - expected) / abs(expected) <= 0.05)


def _number(text):
    """The number that a whole text is, or None."""
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", re.sub(r"[$€£¥₹\s]", "", text))
    digits = text.removesuffix("%")
    return float(digits) / (100 if text.endswith("%") else 1) if _NUMBER.fullmatch(digits) else None


def token_f1(answer: str, reference: str) -> float:
    """The F1 of the words that both share, without case, ASCII punctuation and English articles, as for SQuAD 2.0.

    For languages that write spaces between words. Source: Rajpurkar et al., SQuAD (EMNLP 2016), section 6.1.
    """
    plain = (text.lower().translate(_NO_PUNCTUATION) for text in (answer, reference))
    found, expected = (_ARTICLES.sub(" ", text).split() for text in plain)
    if not found or not expected:
        return float(found == expected)
    return 2 * (Counter(found) & Counter(expected)).total() / (len(found) + len(expected))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: the F1 of the longest common subsequence of words, by rouge-score, without stemming.

    Words are runs of a-z and 0-9: text in another script scores 0. Source: Lin, ROUGE (ACL workshop 2004), section 3.
    """
    from rouge_score.rouge_scorer import RougeScorer

    return float(RougeScorer(["rougeL"]).score(reference, answer)["rougeL"].fmeasure)


def bleu(answers: list[str], references: list[str]) -> Score:
    """BLEU of a corpus by sacreBLEU with its defaults, in 0..1. Runs of up to four words: shorter answers score 0.

    Sources: Papineni et al., BLEU (ACL 2002); Post, A Call for Clarity in Reporting BLEU Scores (WMT 2018).
    """
    return _sacrebleu("BLEU", answers, references)


def chrf(answers: list[str], references: list[str]) -> Score:
    """chrF2 of a corpus by sacreBLEU with its defaults, in 0..1. Source: Popović, chrF (WMT 2015)."""
    return _sacrebleu("CHRF", answers, references)


def _sacrebleu(name, answers, references):
    from sacrebleu import metrics

    metric = getattr(metrics, name)()
    # sacreBLEU's own significance tests resample these counts of n-grams as well, rather than the texts.
    rows, score = metric._extract_corpus_statistics(answers, [references]), metric._compute_score_from_stats
    return bootstrap(rows, lambda draws: np.array([score(sums.tolist()).score / 100 for sums in draws.sum(axis=1)]))


def cer(answers: list[str], references: list[str]) -> Score:
    """The character error rate of a corpus by jiwer: edits over the references' characters, spaces at the ends aside.

    Lower is better; the rate can exceed 1.
    """
    from jiwer import process_characters

    found = map(process_characters, references, answers)
    rows = [(one.substitutions + one.deletions + one.insertions, len(one.references[0])) for one in found]

    def score(draws):
        edits, characters = draws.sum(axis=1).T
        return edits / np.maximum(characters, 1)  # as jiwer does where the references are empty

    return bootstrap(rows, score)


_OF_ROWS = {
    "normalized match": normalized_match,
    "ANLS": anls,
    "relaxed accuracy": relaxed_match,
    "token F1": token_f1,
    "ROUGE-L": rouge_l,
}
_OF_CORPORA = {"BLEU": bleu, "chrF": chrf, "CER": cer}
METRICS = (*_OF_ROWS, *_OF_CORPORA)


def measure(name: str, answers: list[str], references: list[str]) -> tuple[Score, tuple | None]:
    """The `Score` by the measure of that name, and its value for each row; None for the measures of a whole corpus."""
    if name not in METRICS:
        raise ValueError(f'unknown metric {name!r}: choose "all" or some of {", ".join(METRICS)}')
    if name in _OF_CORPORA:
        return _OF_CORPORA[name](answers, references), None
    values = tuple(map(_OF_ROWS[name], answers, references))
    return mean(values), values
