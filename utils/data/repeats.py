"""Texts that repeat each other, word for word or nearly, so that a split can keep them together."""

import functools
import unicodedata
import zlib

import numpy as np

FEWEST_WORDS = 12  # of a text that is looked at for near repeats: in a shorter one a single word may be the point
FEWEST_CHARACTERS = 60  # the same, for a script that puts no spaces between words
MOST_CHARACTERS = 20_000_000  # of all texts in which near repeats are looked for: seconds
LONGEST_LOOK = 500  # words of a text that are compared
ALIKE = 0.8  # of all words and word pairs of two texts, the share that both have at least
N_HASHES = 96
HASHES_IN_A_BAND = 3  # two texts are compared if they agree in all hashes of one of the first BANDS bands
BANDS = 8
COMPARED_IN_A_BUCKET = 20


def as_compared(text):
    """A text without what makes no other text of it: case, spaces, punctuation, and the Unicode form of letters."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(text.translate(_spaces_for_punctuation()).split()) or " ".join(text.split())


@functools.cache
def _spaces_for_punctuation():
    """{code point: " "} of punctuation, of separators and of characters that cannot be seen. Emoji and signs stay."""
    table = {}
    for number in range(0x20000):
        category = unicodedata.category(chr(number))
        if category[0] in "PZ" or category in ("Cc", "Cf"):
            table[number] = " "
    return table


def groups(texts, near=True, alike=ALIKE):
    """The number of the group of each text, a list: texts of one group repeat each other.

    near: whether long texts that share so much of their words and word pairs (alike) are one group, too, unless
    all texts have more than MOST_CHARACTERS; if not, only texts that are the same `as_compared`. Near repeats are found
    by MinHash, which looks at the first 500 words; of two texts at the border, the fixed random numbers decide.
    """
    numbers = {}
    exact = [numbers.setdefault(as_compared(text), len(numbers)) for text in texts]
    if not near or sum(map(len, numbers)) > MOST_CHARACTERS:
        return exact
    leaders = _near_repeats(list(numbers), alike)
    return [leaders[number] for number in exact]


def _near_repeats(texts, alike):
    """For each of these different texts, the number of the first text that it repeats, perhaps over others."""
    leaders = list(range(len(texts)))

    def leader_of(number):
        while leaders[number] != number:
            number = leaders[number]
        return number

    buckets = {}
    signatures = {}
    words = {}
    for number, text in enumerate(texts):
        signature = _signature(text, words)
        if signature is None:
            continue
        signatures[number] = signature
        for band in range(BANDS):
            first = band * HASHES_IN_A_BAND
            key = (band, *signature[first : first + HASHES_IN_A_BAND].tolist())
            bucket = buckets.setdefault(key, [])
            for other in bucket[-COMPARED_IN_A_BUCKET:]:
                if leader_of(other) == leader_of(number):
                    continue
                if np.count_nonzero(signatures[other] == signature) >= alike * N_HASHES:
                    leaders[leader_of(number)] = leader_of(other)
            bucket.append(number)
    return [leader_of(number) for number in range(len(texts))]


@functools.cache
def _multipliers():
    random = np.random.default_rng(0)
    return random.integers(1, 2**63, size=(N_HASHES, 1), dtype=np.uint64) | np.uint64(1)


def _signature(text, words):
    """MinHash of a text as `as_compared` gives it: N_HASHES integers; None if the text is too short.

    words: {word: its hash} of all texts so far, to which those of this text are added.
    """
    pieces = text.split(maxsplit=LONGEST_LOOK)[:LONGEST_LOOK]
    if len(pieces) < FEWEST_WORDS:
        if len(text) < FEWEST_CHARACTERS:
            return None
        text = text[: 4 * LONGEST_LOOK]
        pieces = [text[start : start + 3] for start in range(len(text) - 2)]
    for piece in pieces:
        if piece not in words:
            words[piece] = _hash(piece)
    single = np.array([words[piece] for piece in pieces], dtype=np.uint64)
    pairs = single[:-1] * np.uint64(0x9E3779B97F4A7C15) + single[1:]  # wraps at 64 bits, as it should
    features = np.unique(np.concatenate([single, pairs]))
    mixed = features * _multipliers()
    return (mixed >> np.uint64(32)).min(axis=1).astype(np.uint32)


def _hash(word):
    """64 bits that are the same on every machine."""
    data = word.encode("utf-8", "replace")
    return zlib.crc32(data) << 32 | zlib.crc32(data[::-1], 1) | 1
