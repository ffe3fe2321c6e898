"""Rules that rows of every kind keep: columns are there, texts are texts, splits do not repeat each other."""

import re
import reprlib

from utils.data import repeats
from utils.errors import CourseError, alike, first_ten

LONGEST = 1_000_000  # characters; more takes long to tokenize, and nearly all of it is cut off afterwards
MOST_COMPARED = 20_000  # texts in which near repeats are looked for: seconds

INVISIBLE = r"[\s\u00ad\u180e\u200b-\u200f\u2060\ufeff]*"  # spaces, also those without a width


def check_columns(table, columns, settings=()):
    """Raises CourseError if a Table has no rows, lacks one of `columns`, or has one that README.md does not declare.

    settings: the names of the settings that name these columns, in their order; none if nothing does.
    """
    if not len(table):
        raise CourseError(f"{table.place}: it has no rows; add some, or remove it.")
    settings = dict(zip(columns, settings, strict=False))
    for column in columns:
        if column not in table.columns:
            names = first_ten(map(repr, table.columns)) or "none"
            remedy = _remedy_for_a_missing_column(column, columns, table.columns, settings.get(column))
            raise CourseError(f"{table.place}: no column {column!r} among {names}; {remedy}.")
    undeclared = sorted(set(table.columns) - set(table.features))
    if table.features and undeclared:
        names = first_ten(map(repr, undeclared))
        raise CourseError(f"{table.place}: {names} is not declared in README.md; declare or remove it.")


def _remedy_for_a_missing_column(column, columns, names, setting):
    like = alike(column, set(names) - set(columns))
    others = [name for name in names if name not in columns]
    if like and setting:
        return f"rename the column {like!r} to {column!r}, or set {setting} to {like!r}"
    if like:
        return f"rename the column {like!r} to {column!r}"
    if not others:
        return f"add a column {column!r}"
    if setting:
        return (
            f"rename the column that holds it, or set {setting} to its name; if there is none, add a column {column!r}"
        )
    return f"add a column {column!r}, or rename the one that holds it"


def refuse(table, column, values, is_bad, what):
    """Raises CourseError with the numbers of all rows whose value is_bad(value); `what` says why, and the remedy.

    values: one a row, the column of the table or what was made of it.
    """
    bad = [(number, value) for number, value in zip(table.numbers, values, strict=True) if is_bad(value)]
    if bad:
        rows = rows_in_words(number for number, _ in bad)
        first_value = reprlib.repr(bad[0][1])
        raise CourseError(f"{table.place}, {rows}, column {column!r}: {first_value} {what}.")


def rows_in_words(numbers):
    """ "row 3", or "rows 3, 5, 8"; of many the first ten."""
    numbers = list(numbers)
    return f"row {numbers[0]}" if len(numbers) == 1 else f"rows {first_ten(numbers)}"


def refuse_texts(table, column, values):
    """Raises CourseError for the first kind of fault in `values`, one a row, all of which should be texts."""
    refuse(table, column, values, is_empty, "is an empty text; write one, or delete the row")
    refuse(
        table,
        column,
        values,
        lambda value: not isinstance(value, str),
        "is not text; write it as text, in double quotes",
    )
    refuse(table, column, values, is_broken, "holds a NUL or a broken character; retype it")


def refuse_long_texts(table, column, values):
    """Raises CourseError if one of `values`, which are texts, has more than LONGEST characters."""
    longest = max(map(len, values))
    if longest > LONGEST:
        what = f"is too long (up to {longest:,} characters; {LONGEST:,} may be); shorten it, or delete the row"
        refuse(table, column, values, lambda text: len(text) > LONGEST, what)


def warn_of_repeats(texts):
    """Prints a line for a split of `texts` ({split: texts}) that repeats some of train, whatever case, spaces and
    punctuation. Near repeats count too, unless there are more than MOST_COMPARED texts."""
    everything = [text for values in texts.values() for text in values]
    exact = repeats.groups(everything, near=False)
    near = repeats.groups(everything) if len(everything) <= MOST_COMPARED else exact
    of_splits = {}
    first = 0
    for split, values in texts.items():
        of_splits[split] = range(first, first + len(values))
        first += len(values)
    trained_on = {exact[row] for row in of_splits["train"]}
    nearly_trained_on = {near[row] for row in of_splits["train"]}
    for split, rows in of_splits.items():
        repeated = sum(exact[row] in trained_on for row in rows)
        nearly = sum(near[row] in nearly_trained_on for row in rows) - repeated
        if split != "train" and (repeated or nearly):
            also = f", and {nearly} nearly do" if nearly else ""
            remedy = "remove them there, or the score will look too good"
            print(f"Warning: {repeated} of {len(rows)} texts of {split!r} also stand in 'train'{also}; {remedy}.")


def is_empty(value):
    """Whether a value is missing (None, or not a number), or a text of nothing but what cannot be seen."""
    if isinstance(value, str):
        return re.fullmatch(INVISIBLE, value) is not None
    return value is None or value != value


def is_broken(text):
    """Whether a text holds a NUL, or half of a character, which no file can hold."""
    if "\0" in text:
        return True
    try:
        text.encode()
    except UnicodeEncodeError:  # half of a character that JSON wrote in two, such as \ud800
        return True
    return False
