"""Scores that need no network: of generated text, of probabilities, and a bootstrap interval for any of them."""

import re
import unicodedata
from collections import Counter

import numpy as np
import regex
from scipy import stats

MINUS = str.maketrans("\u2212\u2013\ufe63\uff0d\u2019\u02bc", "----''")  # signs that stand for - and for '
# Letters of scripts that put no spaces between words, each with the marks above and below it: a word of its own.
ALONE = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]\p{M}*"
LETTER = r"(?:(?![\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])[\p{L}\p{N}_])"
JOINED = r"[\p{M}\u200c\u200d]"  # marks and joiners inside a word, as in Hindi and in Persian
NUMBER = r"(?:(?<![\w%)])-)?[$€£¥₹₽]?\d+(?:[.,]\d+)*(?:\s?[%‰])?"
WORD = regex.compile(
    rf"{NUMBER}"  # -5, $1,500 and 12 % are one token each
    rf"|{ALONE}"
    rf"|{LETTER}(?:{LETTER}|{JOINED})*(?:'{LETTER}+)?\#?"  # also C#
    r"|\p{Sm}|\p{Sc}|\p{So}"  # <, +, €, and emoji
)


def words_of(text):
    """The words, numbers and signs of a text in any alphabet, lower case; punctuation is left out.

    A number keeps its sign, its currency and its per cent: "-5", "$1,500" and "12%" are one token each. Scripts without
    spaces, such as Chinese, Japanese and Thai, count by letters; an emoji is a token. A text of punctuation alone is
    one token. The same letter in two spellings of Unicode is the same.
    """
    text = unicodedata.normalize("NFC", str(text)).translate(MINUS)
    text = unicodedata.normalize("NFC", text.casefold()).strip()
    text = regex.sub(r"[\uff01-\uff5e]", lambda match: chr(ord(match[0]) - 0xFEE0), text)  # the wide forms of ASCII
    text = regex.sub(r"(?<=\d)\s?(?:percent|per cent)\b", "%", text)
    words = [regex.sub(r"\s(?=[%‰])", "", word) for word in WORD.findall(text)]
    if not words and text:
        return [text]
    return words


def exact_match(prediction, reference):
    """1.0 if the two texts are the same `words_of` in the same order, whatever their case and punctuation; else 0.0."""
    return float(words_of(prediction) == words_of(reference))


def token_f1(prediction, reference):
    """Harmonic mean of the shares of words that the two texts have in common, as SQuAD counts it; 0.0 to 1.0.

    Two texts without a word agree: 1.0.
    """
    predicted = Counter(words_of(prediction))
    expected = Counter(words_of(reference))
    if not predicted and not expected:
        return 1.0
    in_common = (predicted & expected).total()
    return 2 * in_common / (predicted.total() + expected.total())


def stated_facts(summary):
    """Amounts, percentages, dates and other numbers that a text states, as strings, each once, in order.

    The names of months are English; of other dates the numbers are found.
    """
    month = "January|February|March|April|May|June|July|August|September|October|November|December"
    number = r"(?<!\w)[-\u2212]?[$€£¥₹₽]?\d+(?:[.,]\d+)*(?:\s?[%‰])?"
    pattern = rf"(?:{month}) \d{{1,2}}, \d{{4}}|{number}"
    facts = re.findall(pattern, str(summary))
    return list(dict.fromkeys(facts))


def fact_hits(prediction, facts):
    """For each fact (a string) whether `prediction` states it in these words; a list of 0.0 and 1.0.

    Whole words count: "$25" is not stated by "$250".
    """
    text = f" {' '.join(words_of(prediction))} "
    hits = []
    for fact in facts:
        words = f" {' '.join(words_of(fact))} "
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
