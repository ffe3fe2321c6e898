"""The one error that the course raises, and the words of its messages."""

import difflib


class CourseError(ValueError):
    """A fault that the reader can cure. The message is one sentence: where, what, and the remedy."""


def closest(name, known):
    """The name in `known` that is spelt most like `name`; an empty string if `known` is empty."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0)), "")


def first_ten(items):
    """The first ten of `items` in words, and how many there are."""
    items = list(items)
    return ", ".join(map(str, items[:10])) + (f", … ({len(items)} in all)" if len(items) > 10 else "")
