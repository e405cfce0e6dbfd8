"""Measures of how close answers come to their references, in 0..1 for a row; none downloads anything."""

import re
import string
import unicodedata
from collections import Counter

import numpy as np

from vlmhelpers.common.numbers import parse_number
from vlmhelpers.evaluation.statistics import Score, bootstrap, mean

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_OPENING = " \"'`“”‘’«»([{*_"  # signs that belong to a value stay: $20, -5, .5, 20%
_CLOSING = " \"'`“”‘’«»)]}*_.,;:!?。、"
_NO_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalized_match(answer: str, reference: str) -> bool:
    """Whether both are the same text but for case, Unicode form (NFKC), spaces, articles and punctuation at the ends.

    An article alone stays, as an "A" may name a choice, and so do signs of a value: $20, 20%, 20 and -20 all differ.
    """
    return _normalized(answer) == _normalized(reference)


def _normalized(text):
    text = unicodedata.normalize("NFKC", text).casefold()
    forms = (" ".join(form.split()).lstrip(_OPENING).rstrip(_CLOSING) for form in (_ARTICLES.sub(" ", text), text))
    return next(filter(None, forms), "")


def anls(answer: str, reference: str) -> float:
    """ANLS: 1 - edit distance / longer length, 0 from a half on, case and spaces aside. Biten et al. (ICCV 2019)."""
    from rapidfuzz.distance import Levenshtein

    texts = (" ".join(text.lower().split()) for text in (answer, reference))
    distance = Levenshtein.normalized_distance(*texts, score_cutoff=0.5)  # which ends the search early
    return 1.0 - distance if distance < 0.5 else 0.0


def relaxed_match(answer: str, reference: str) -> bool:
    """Whether a number is within 5% of the reference (20% is 0.2, $2,150 is 2150), or a text equal but for case.

    Numbers are written in any of `common.numbers.CONVENTIONS`. Source: Masry et al., ChartQA (Findings of ACL 2022),
    section 5.1, after Methani et al., PlotQA (WACV 2020).
    """
    found, expected = _number(answer), _number(reference)
    if found is None or expected is None:
        return answer.strip().lower() == reference.strip().lower()
    return found == expected or (expected != 0 and abs(found - expected) / abs(expected) <= 0.05)


def _number(text):
    text = text.strip().removesuffix(".")
    number = parse_number(text.removesuffix("%"))  # what no float can hold is compared as text
    return number / 100 if number is not None and text.endswith("%") else number


def token_f1(answer: str, reference: str) -> float:
    """F1 of the shared words, without case, punctuation and articles. Rajpurkar et al., SQuAD (2016), section 6.1."""
    plain = (text.lower().translate(_NO_PUNCTUATION) for text in (answer, reference))
    found, expected = (_ARTICLES.sub(" ", text).split() for text in plain)
    if not found or not expected:
        return float(found == expected)
    return 2 * (Counter(found) & Counter(expected)).total() / (len(found) + len(expected))


def rouge_l(answer: str, reference: str) -> float:
    """ROUGE-L: F1 of the longest common subsequence of unstemmed words (a-z, 0-9). Lin, ROUGE (2004), section 3."""
    from rapidfuzz.distance import LCSseq

    found, expected = (re.findall("[a-z0-9]+", text.lower()) for text in (answer, reference))
    # Twice the shared words over all words: F1 written out.
    return 2 * LCSseq.similarity(found, expected) / max(len(found) + len(expected), 1)


def bleu(answers: list[str], references: list[str]) -> Score:
    """BLEU of a corpus by sacreBLEU, 0..1; answers under four words score 0. Papineni et al. (2002), Post (2018)."""
    return _sacrebleu("BLEU", answers, references)


def chrf(answers: list[str], references: list[str]) -> Score:
    """chrF2 of a corpus by sacreBLEU with its defaults, in 0..1. Popović (WMT 2015)."""
    return _sacrebleu("CHRF", answers, references)


def _sacrebleu(name, answers, references):
    from sacrebleu import metrics

    metric = getattr(metrics, name)()
    # sacreBLEU's own significance tests resample these counts of n-grams as well, rather than the texts.
    rows, score = metric._extract_corpus_statistics(answers, [references]), metric._compute_score_from_stats
    return bootstrap(rows, lambda draws: np.array([score(sums.tolist()).score / 100 for sums in draws.sum(axis=1)]))


def cer(answers: list[str], references: list[str]) -> Score:
    """The character error rate of a corpus as jiwer counts it: edits over the references' characters; can exceed 1."""
    from rapidfuzz.distance import Levenshtein

    pairs = [(answer.strip(), reference.strip()) for answer, reference in zip(answers, references, strict=True)]
    rows = [(Levenshtein.distance(*pair), len(pair[1])) for pair in pairs]

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
    """The `Score` by the measure of that name, and its values of the rows or, for a measure of a corpus, None."""
    if name not in METRICS:
        raise ValueError(f'unknown metric {name!r}: choose "all" or some of {", ".join(METRICS)}')
    if name in _OF_CORPORA:
        return _OF_CORPORA[name](answers, references), None
    values = tuple(map(_OF_ROWS[name], answers, references))
    return mean(values), values
