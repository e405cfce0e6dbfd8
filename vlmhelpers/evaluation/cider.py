"""CIDEr-D: the consensus of an answer with captions that people wrote."""

import math
import re
from collections import Counter

import numpy as np

_WORD = re.compile(r"\w+(?:[.,'’-]\w+)*")


def cider(answers, references, sigma=6.0):
    """CIDEr-D of each answer, as a list of floats in 0..10: how it shares n-grams that are rare in the references.

    Source: Vedantam et al., CIDEr (CVPR 2015), sections 3 and 4, with up to four words and `sigma` words as the scale
    of its penalty on length. For captions: an answer of one word gets 2.5 at most, and every answer 0 where all rows
    have the same reference. The COCO toolkit's scores up to how words are cut: here they are lower-cased runs of
    letters and digits, joined by signs within (t-shirt, 20.00), there what a Java program makes of them.
    """
    found = [_ngrams(answer) for answer in answers]
    wanted = [[_ngrams(text) for text in ([texts] if isinstance(texts, str) else texts)] for texts in references]
    rows_with = Counter(ngram for row in wanted for ngram in set().union(*(text[0] for text in row)))
    weights = {ngram: math.log(len(wanted) / rows) for ngram, rows in rows_with.items()}
    unseen = math.log(len(wanted)) if wanted else 0.0

    def tf_idf(text):
        return {ngram: count * weights.get(ngram, unseen) for ngram, count in text[0].items()}, text[1]

    found = [tf_idf(text) for text in found]
    wanted = [[tf_idf(text) for text in row] for row in wanted]
    return [
        10 * float(np.mean([_likeness(answer, reference, sigma) for reference in row]))
        for answer, row in zip(found, wanted, strict=True)
    ]


def _ngrams(text):
    """How often a text has each run of one to four words, and its number of words."""
    words = _WORD.findall(text.lower())
    runs = (tuple(words[i : i + n]) for n in range(1, 5) for i in range(len(words) - n + 1))
    return Counter(runs), len(words)


def _likeness(answer, reference, sigma):
    """The clipped cosine of two weighted texts, as the mean over n, times the penalty on their difference in length."""
    (answer, words), (reference, words_wanted) = answer, reference
    cosines = []
    for n in range(1, 5):
        a, r = ({ngram: weight for ngram, weight in text.items() if len(ngram) == n} for text in (answer, reference))
        product = sum(min(weight, r[ngram]) * r[ngram] for ngram, weight in a.items() if ngram in r)
        norm = math.hypot(*a.values()) * math.hypot(*r.values())
        cosines.append(product / norm if norm else 0.0)
    return sum(cosines) / 4 * math.exp(-((words - words_wanted) ** 2) / (2 * sigma**2))
