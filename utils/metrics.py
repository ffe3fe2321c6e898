"""Scores that need no network: of generated text, of probabilities, and a bootstrap interval for any of them."""

import re
from collections import Counter

import numpy as np
from scipy import stats


def _tokens(text):
    """Words and numbers of `text`, lower case; "$1,500" stays one token, other punctuation is dropped."""
    return re.findall(r"\$?\d+(?:[.,]\d+)*|\w+(?:'\w+)?", str(text).casefold())


def exact_match(prediction, reference):
    """1.0 if the two texts are the same words in the same order, whatever their case and punctuation; else 0.0."""
    return float(_tokens(prediction) == _tokens(reference))


def token_f1(prediction, reference):
    """Harmonic mean of the shares of words that the two texts have in common, as SQuAD counts it; 0.0 to 1.0.

    Two texts without a word agree: 1.0.
    """
    predicted = Counter(_tokens(prediction))
    expected = Counter(_tokens(reference))
    if not predicted and not expected:
        return 1.0
    in_common = (predicted & expected).total()
    return 2 * in_common / (predicted.total() + expected.total())


def stated_facts(summary):
    """Amounts, percentages, dates and other numbers that a text states, as strings, each once, in order."""
    month = "January|February|March|April|May|June|July|August|September|October|November|December"
    pattern = rf"(?:{month}) \d{{1,2}}, \d{{4}}|\$\d+(?:[.,]\d+)*|\b\d+(?:[.,]\d+)*%?"
    facts = re.findall(pattern, str(summary))
    return list(dict.fromkeys(facts))


def fact_hits(prediction, facts):
    """For each fact (a string) whether `prediction` states it in these words; a list of 0.0 and 1.0.

    Whole words count: "$25" is not stated by "$250".
    """
    text = f" {' '.join(_tokens(prediction))} "
    hits = []
    for fact in facts:
        words = f" {' '.join(_tokens(fact))} "
        hits.append(float(words in text))
    return hits


def bootstrap_interval(values, seed=0, resamples=1000, share=0.95):
    """(low, high) between which the mean of `values` lies in `share` of resamples of the rows, drawn with replacement.

    values: one score a row (n). It is `scipy.stats.bootstrap` with the percentile method, always with the same random
    numbers; of a single row both ends are its value. Source: Efron, Bootstrap Methods, 1979.
    """
    values = np.asarray(values, dtype=float)
    if len(values) == 1:  # scipy wants two
        return float(values[0]), float(values[0])
    result = stats.bootstrap(
        (values,),
        np.mean,
        n_resamples=resamples,
        confidence_level=share,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def calibration_error(probabilities, labels, bins=10):
    """(error, points): how far stated probabilities lie from what happened, weighted by how often they were stated.

    probabilities: (n, classes); labels: (n,) class numbers. All n x classes statements "this class, with probability p"
    count; they are cut into `bins` groups of equal size by p. points: (mean p, share that came true, statements) of
    each group. Source: Nixon et al., Measuring Calibration in Deep Learning, 2019 (adaptive, over all classes).
    """
    probabilities = np.asarray(probabilities, dtype=float)
    labels = np.asarray(labels)
    classes = np.arange(probabilities.shape[1])
    came_true = (classes == labels[:, None]).ravel()
    stated = probabilities.ravel()
    by_probability = np.argsort(stated, kind="stable")
    points = []
    weighted_gaps = 0.0
    for group in np.array_split(by_probability, bins):
        if len(group) == 0:
            continue
        mean_stated = stated[group].mean()
        share_true = came_true[group].mean()
        points.append((mean_stated, share_true, len(group)))
        weighted_gaps += abs(mean_stated - share_true) * len(group)
    return float(weighted_gaps / len(stated)), points
