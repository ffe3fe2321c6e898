"""Rules that rows of every kind keep: columns are there, texts are texts, splits do not repeat each other."""

import reprlib

from utils.errors import CourseError, closest, first_ten


def check_columns(where, table, columns, features):
    """Raises CourseError if `table` has no rows, lacks one of `columns`, or has one that `features` do not declare."""
    if table.empty:
        raise CourseError(f"{where}: it has no rows; add some, or remove it.")
    for column in columns:
        if column not in table:
            like = closest(column, set(table) - set(columns))
            remedy = f"rename the column {like!r} to {column!r}" if like else f"add a column {column!r}"
            joined = len(columns) > 1 and all(column in like for column in columns)
            remedy = "put a comma between the columns" if joined else remedy
            raise CourseError(f"{where}: no column {column!r} among {first_ten(map(repr, table))}; {remedy}.")
    if features and (extra := sorted(set(table) - set(features))):
        raise CourseError(f"{where}: {first_ten(map(repr, extra))} is not declared in README.md; declare or remove it.")


def refuse(where, values, is_bad, fault):
    """Raises CourseError if is_bad(value) for some of `values`, a named Series whose index numbers the rows."""
    bad = values[[bool(is_bad(value)) for value in values]]
    if len(bad):
        place = f"row{'s' * (len(bad) > 1)} {first_ten(bad.index)}, column {values.name!r}"
        raise CourseError(f"{where}, {place}: {reprlib.repr(bad.iloc[0])} {fault}.")


def refuse_texts(where, values):
    """Raises CourseError for the first kind of fault in `values`, a Series of what should be texts."""
    refuse(where, values, _is_empty, "is an empty text; write one, or delete the row")
    refuse(where, values, lambda value: not isinstance(value, str), "is not text; put it in double quotes")
    refuse(where, values, _is_broken, "holds a NUL or a broken character; retype it")


def warn_of_repeats(texts):
    """Prints a line for a split of `texts` ({split: texts}) that repeats some of train, whatever case and spaces."""
    plain = {split: [hash(" ".join(text.casefold().split())) for text in found] for split, found in texts.items()}
    known = set(plain.pop("train", ()))
    for split, found in plain.items():
        if twice := sum(text in known for text in found):
            remedy = "remove them there, or the score will look too good"
            print(f"Warning: {twice} of {len(found)} texts of {split!r} also stand in 'train'; {remedy}.")


def _is_empty(value):
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_broken(text):
    try:
        return "\0" in text or not text.encode()
    except UnicodeEncodeError:  # half of a character that JSON wrote in two, such as \ud800
        return True
