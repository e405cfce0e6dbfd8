"""Measures of how close an answer comes to its reference.

Measures of a row take (answer, reference) and give a bool or a number in 0..1. Measures of a corpus take the answers
and the references of all rows. BLEU, chrF, CIDEr and ANLS also take a list of references in place of one. Libraries
are loaded when a measure that needs one is used. None of them downloads anything.
"""

import re
import string
import unicodedata
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import zip_longest

import numpy as np

from vlmhelpers.evaluation.cider import cider
from vlmhelpers.evaluation.intervals import bootstrap, mean

_ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_OPENING = " \"'`“”‘’«»([{*_"  # signs that belong to a value stay: $20, -5, .5, 20%
_CLOSING = " \"'`“”‘’«»)]}*_.,;:!?。、"
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?", re.IGNORECASE)
_TOLERANCE = 0.05


def normalised_match(answer, reference):
    """Whether both are the same text but for case, Unicode form, spaces, articles and punctuation at the ends.

    The Unicode form is NFKC. The articles are SQuAD's (a, an, the), unless nothing else is left: an "A" that names a
    choice stays. Signs that belong to a value stay as well: -5 is not 5, and $20, 20% and 20 are three answers.
    """
    return _normalised(answer) == _normalised(reference)


def _normalised(text):
    text = unicodedata.normalize("NFKC", text).casefold()
    return _trimmed(_ARTICLES.sub(" ", text)) or _trimmed(text)


def _trimmed(text):
    return " ".join(text.split()).lstrip(_OPENING).rstrip(_CLOSING)


def anls(answer, references):
    """ANLS, here of one row: 1 minus the edit distance over the longer text's length, or 0 where half of it is wrong.

    Case and runs of spaces do not count. Of several references the nearest does. Source: Biten et al., Scene Text
    Visual Question Answering (ICCV 2019), with their threshold of 0.5.
    """
    from rapidfuzz.distance import Levenshtein

    answer, *references = (" ".join(text.lower().split()) for text in (answer, *_several(references)))
    distance = min(Levenshtein.normalized_distance(answer, reference) for reference in references)
    return 1.0 - distance if distance < 0.5 else 0.0


def relaxed_match(answer, reference):
    """Whether a number is within 5% of the reference, and any other answer equal to it but for case.

    `20%` is 0.2, as in the published scorers; currency signs and thousands commas (`$2,150`) are left out. Source:
    Masry et al., ChartQA (Findings of ACL 2022), section 5.1, after Methani et al., PlotQA (WACV 2020).
    """
    found, wanted = _number(answer), _number(reference)
    if found is None or wanted is None:
        return answer.strip().lower() == reference.strip().lower()
    if wanted == 0:
        return found == 0
    return abs(found - wanted) / abs(wanted) <= _TOLERANCE


def _number(text):
    """The number that a whole text is, or None."""
    text = re.sub(r"[$€£¥₹\s]", "", text)
    text = re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text)
    digits = text.removesuffix("%")
    if not _NUMBER.fullmatch(digits):
        return None
    return float(digits) / (100 if text.endswith("%") else 1)


def token_f1(answer, reference):
    """The F1 of the words that answer and reference share, without case, ASCII punctuation and English articles.

    Two answers without words agree. Source: Rajpurkar et al., SQuAD (EMNLP 2016), section 6.1, and the scorer of
    SQuAD 2.0. For languages that write spaces between words.
    """
    found, wanted = _squad_words(answer), _squad_words(reference)
    if not found or not wanted:
        return float(found == wanted)
    return 2 * (Counter(found) & Counter(wanted)).total() / (len(found) + len(wanted))


def _squad_words(text):
    text = text.lower().translate(str.maketrans("", "", string.punctuation))
    return _ARTICLES.sub(" ", text).split()


def rouge_l(answer, reference):
    """ROUGE-L: the F1 of the longest common subsequence of words, by rouge-score, without stemming.

    Words are runs of a-z and 0-9, so that text in another script scores 0. Source: Lin, ROUGE: A Package for Automatic
    Evaluation of Summaries (2004), section 3.
    """
    return float(_rouge_scorer().score(reference, answer)["rougeL"].fmeasure)


@cache
def _rouge_scorer():
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"])


def bleu(answers, references):
    """The `Score` of a corpus by BLEU, as sacreBLEU gives it with its defaults, but in 0..1 instead of 0..100.

    It counts runs of up to four words, so that a corpus of shorter answers scores 0: chrF suits those better. Sources:
    Papineni et al., BLEU (ACL 2002); Post, A Call for Clarity in Reporting BLEU Scores (WMT 2018).
    """
    from sacrebleu.metrics import BLEU

    return _by_sacrebleu(BLEU(), answers, references)


def chrf(answers, references):
    """The `Score` of a corpus by chrF2, as sacreBLEU gives it with its defaults, but in 0..1 instead of 0..100.

    Source: Popović, chrF: character n-gram F-score for automatic MT evaluation (WMT 2015).
    """
    from sacrebleu.metrics import CHRF

    return _by_sacrebleu(CHRF(), answers, references)


def _by_sacrebleu(metric, answers, references):
    streams = list(zip_longest(*map(_several, references)))  # the first reference of every row, the second, ...
    # sacreBLEU's own significance tests resample these counts of n-grams as well, rather than the texts.
    rows = metric._extract_corpus_statistics(answers, streams)

    def score(draws):
        return np.array([metric._compute_score_from_stats(sums.tolist()).score / 100 for sums in draws.sum(axis=1)])

    return bootstrap(rows, score)


def cer(answers, references):
    """The `Score` of a corpus by its character error rate: edits over the references' characters; lower is better.

    The edits are jiwer's, which leaves spaces at the ends out. The rate can exceed 1.
    """
    from jiwer import process_characters

    found = [process_characters(reference, answer) for answer, reference in zip(answers, references, strict=True)]
    rows = [(one.substitutions + one.deletions + one.insertions, len(one.references[0])) for one in found]

    def score(draws):
        edits, characters = draws.sum(axis=1).T
        return edits / np.maximum(characters, 1)  # as jiwer does where the references are empty

    return bootstrap(rows, score)


def _several(references):
    return [references] if isinstance(references, str) else list(references)


_OF_ROWS = {
    "normalised match": normalised_match,
    "ANLS": anls,
    "relaxed accuracy": relaxed_match,
    "token F1": token_f1,
    "ROUGE-L": rouge_l,
}
_OF_CORPORA = {"BLEU": bleu, "chrF": chrf, "CER": cer}
METRICS = (*_OF_ROWS, "CIDEr", *_OF_CORPORA)


def measure(name, answers, references):
    """The `Score` by the measure of that name, and its value for each row; None for the measures of a whole corpus."""
    if name in _OF_CORPORA:
        return _OF_CORPORA[name](answers, references), None
    if name == "CIDEr":
        values = cider(answers, references)
        return replace(mean(values), percent=False), tuple(values)
    values = [_OF_ROWS[name](*pair) for pair in zip(answers, references, strict=True)]
    return mean(values), tuple(values)
