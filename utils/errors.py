"""The one error that the course raises, and the words of its messages."""

import difflib


class CourseError(ValueError):
    """A mistake that the reader can put right. The message is one sentence: where, what, and the remedy."""


def closest(name, names):
    """The one of `names` that is spelt most like `name`; an empty string if there are none."""
    matches = difflib.get_close_matches(str(name), list(names), n=1, cutoff=0)
    return matches[0] if matches else ""


def alike(name, names):
    """The one of `names` that is spelt like `name`, whatever case and spaces; an empty string if none is alike."""
    by_spelling = {str(other).casefold().strip(): other for other in names}
    matches = difflib.get_close_matches(str(name).casefold().strip(), list(by_spelling), n=1, cutoff=0.7)
    return by_spelling[matches[0]] if matches else ""


def first_ten(items):
    """The first ten of `items` in words, and how many there are if there are more."""
    items = list(items)
    text = ", ".join(str(item) for item in items[:10])
    if len(items) > 10:
        text += f", … ({len(items)} in all)"
    return text
