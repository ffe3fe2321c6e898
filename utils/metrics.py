"""Scores that need no network: of generated text, of probabilities, and a bootstrap interval for any of them."""

import re
from collections import Counter

import numpy as np


def _tokens(text):
    """Words and numbers of `text`, lower case; "$1,500" stays one token, other punctuation is dropped."""
    return re.findall(r"\$?\d+(?:[.,]\d+)*|\w+(?:'\w+)?", str(text).casefold())


def exact_match(prediction, reference):
    """1.0 if the two texts are the same words in the same order, whatever their case and punctuation; else 0.0."""
    return float(_tokens(prediction) == _tokens(reference))


def token_f1(prediction, reference):
    """Harmonic mean of the shares of words that the two texts have in common, as SQuAD counts it; 0.0 to 1.0."""
    predicted, wanted = Counter(_tokens(prediction)), Counter(_tokens(reference))
    common = (predicted & wanted).total()
    return 2 * common / (predicted.total() + wanted.total()) if common else float(predicted == wanted)


def stated_facts(summary):
    """Amounts, percentages, dates and other numbers that a text states, as strings, each once, in order."""
    month = "January|February|March|April|May|June|July|August|September|October|November|December"
    pattern = rf"(?:{month}) \d{{1,2}}, \d{{4}}|\$\d+(?:[.,]\d+)*|\b\d+(?:[.,]\d+)*%?"
    return list(dict.fromkeys(re.findall(pattern, str(summary))))


def fact_hits(prediction, facts):
    """For each fact (a string) whether `prediction` states it in these words; a list of 0.0 and 1.0.

    Whole words count: "$25" is not stated by "$250".
    """
    said = f" {' '.join(_tokens(prediction))} "
    return [float(f" {' '.join(_tokens(fact))} " in said) for fact in facts]


def bootstrap_interval(values, seed=0, resamples=1000, share=0.95):
    """(low, high) between which the mean of `values` lies in `share` of resamples of the rows, drawn with replacement.

    values: one score a row (n). Source: Efron, Bootstrap Methods, 1979 (percentile interval).
    """
    values = np.asarray(values, dtype=float)
    rows = np.random.default_rng(seed).integers(0, len(values), (resamples, len(values)))
    low, high = np.quantile(values[rows].mean(axis=1), [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def calibration_error(probabilities, labels, bins=10):
    """(error, points): how far stated probabilities lie from what happened, weighted by how often they were stated.

    probabilities: (n, classes); labels: (n,) class numbers. All n x classes statements "this class, with probability p"
    count; they are cut into `bins` groups of equal size by p. points: (mean p, share that came true, statements) of
    each group. Source: Nixon et al., Measuring Calibration in Deep Learning, 2019 (adaptive, over all classes).
    """
    probabilities = np.asarray(probabilities, dtype=float)
    true = (np.arange(probabilities.shape[1]) == np.asarray(labels)[:, None]).ravel()
    stated = probabilities.ravel()
    order = np.argsort(stated, kind="stable")
    points = [(stated[part].mean(), true[part].mean(), len(part)) for part in np.array_split(order, bins) if len(part)]
    return float(sum(abs(p - share) * size for p, share, size in points) / len(stated)), points


def flip_rate(straight, swapped):
    """Share of comparisons whose winner changes if the answers change places; (n, 3) probabilities of A, B and tie.

    swapped: what the model says of the swapped pairs, its own A being what stands second in `straight`.
    """
    return float(np.mean(np.argmax(straight, 1) != np.argmax(np.asarray(swapped)[:, [1, 0, 2]], 1)))
