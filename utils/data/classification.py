"""Data of lessons 01 and 02: a text and its class."""

import re
from pathlib import Path

from utils.data.reading import read_source
from utils.data.rules import _is_empty, check_columns, refuse, refuse_texts, warn_of_repeats
from utils.errors import CourseError, closest, first_ten


def data_source(dataset_id, text_column="text", label_column="label"):
    """Checks local data files row by row and returns the arguments for `load_dataset`.

    dataset_id is a folder (train, validation, test files; a README.md may declare the classes), a data file, or a hub
    id, which is returned as it is. In CSV, NA, null, None and nan stay text, and labels without declared classes are
    read as strings. Raises CourseError for a wrong path and for the first kind of bad row.
    """

    def check(file, split, rows, features):
        if Path(file).suffix == ".csv" and label_column in rows:
            rows[label_column] = rows[label_column].map(_as_number).astype(object)
        _check_rows(file, rows, text_column, label_column, features)

    return read_source(dataset_id, (text_column, label_column), check)


def check_dataset(dataset, text_column="text", label_column="label"):
    """Checks the splits train, validation and test of a loaded DatasetDict and returns the class names.

    Only train must be there. The names are the declared ones, else the labels of train as strings, in order.
    Rows count from 0, as in dataset["train"][0]. Prints a line for a split that repeats texts of train.
    Raises CourseError for bad rows, an empty split, fewer than two classes, or a class that train lacks.
    """
    import pandas as pd

    if not isinstance(dataset, dict) or "train" not in dataset:
        raise CourseError("the data has no split 'train'; name a file train.jsonl or train.csv.")
    classes, texts = {}, {}
    names = getattr(dataset["train"].features.get(label_column), "names", None)
    for split in (split for split in ("train", "validation", "test") if split in dataset):
        part = dataset[split]
        rows = pd.DataFrame({column: part[column][:] for column in part.column_names}, dtype=object)
        labels = _check_rows(f"split {split!r} (rows count from 0)", rows, text_column, label_column, part.features)
        classes[split] = {names[label] if names else str(label) for label in labels}
        texts[split] = part[text_column]
    where = f"split 'train', column {label_column!r}"
    if len(set().union(*classes.values())) < 2:
        raise CourseError(f"{where}: one class only, {first_ten(classes['train'])}; add rows of another class.")
    for other, found in [*classes.items(), ("the declaration in README.md", set(names or ()))]:
        if absent := first_ten(sorted(found - classes["train"])):
            remedy = f"add rows of it to 'train', or take it out of {other}"
            raise CourseError(f"{where}: no row has class {absent} of {other}; {remedy}.")
    warn_of_repeats(texts)
    return names or sorted(classes["train"], key=lambda name: (name.isdecimal() * len(name), name))


def _check_rows(where, table, text_column, label_column, features):
    """Raises CourseError for the first kind of bad row; returns the labels, each once. The index numbers the rows."""
    check_columns(where, table, (text_column, label_column), features)
    label = table[label_column]
    refuse_texts(where, table[text_column])
    refuse(where, label, _is_empty, "is an empty label; write one, or delete the row")
    fault = "is not a class; write a class name or a whole number from 0"
    refuse(where, label, lambda v: not isinstance(v, str) and (not isinstance(v, int) or v is True or v < 0), fault)
    kinds = {isinstance(value, str): f"{value!r} in row {row}" for row, value in label[::-1].items()}
    if len(kinds) > 1:
        mixed = f"{kinds[True]}, but {kinds[False]}; write class names only, or numbers only"
        raise CourseError(f"{where}, column {label_column!r}: {mixed}.")
    if names := getattr(features.get(label_column), "names", None):
        known = {*names, *range(len(names))}  # load_dataset takes names and numbers, also numbers in quotes
        like = closest(next((value for value in label if value not in known), ""), names)
        fault = (
            f"is not a declared class ({first_ten(names)}; closest: {like!r}); correct it, or declare it in README.md"
        )
        refuse(where, label, lambda value: value not in known and _as_number(value) not in known, fault)
    return set(label)


def _as_number(value):
    return int(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+", value) else value
