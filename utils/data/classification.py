"""Data of lessons 01 and 02: a text and its class."""

import re

from utils.data import reading, rules, splitting
from utils.errors import CourseError, closest, first_ten


def load(dataset_id, load_dataset, text_column="text", label_column="label", seed=0):
    """Reads and checks texts with a class each; returns a `datasets.DatasetDict` of train, validation and test.

    Columns: text_column, a text that is not empty; label_column, a class name or a whole number from 0. Others may be
    there. label_column comes back as numbers, a `ClassLabel` whose `names` are the classes.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all .csv, all .jsonl or all .parquet; its README.md may declare
      the classes. Validation and test may be missing: they are cut out of train, with the same shares of each class;
    * a .csv, .jsonl or .parquet file, which is cut likewise;
    * a name on the hub, such as "fancyzhx/ag_news".

    load_dataset is the function of the `datasets` library, which reads a name on the hub or Parquet; or one with more
    settings: functools.partial(load_dataset, revision="..."). seed: of the cuts.

    In CSV, the words NA, null, None and nan are texts as any other. Prints a line for a split that repeats texts of
    train, and for splits that are not used. Each file is read once, and what was checked is what comes back.
    Raises CourseError for a wrong path, for rows that cannot be trained on (with file, row, column and remedy), for
    fewer than two classes, and for a class that train lacks.
    """
    tables = reading.read(dataset_id, load_dataset, (text_column, label_column))
    for table in tables:
        rules.check_columns(table, (text_column, label_column))
        rules.refuse_texts(table, text_column, table.column(text_column))
        check_labels(table, label_column)
    dataset = reading.to_datasets(tables, (text_column, label_column))
    names = class_names(dataset, label_column)
    rules.warn_of_repeats({split: part[text_column][:] for split, part in dataset.items()})
    dataset = as_classes(dataset, label_column, names)
    return splitting.add_missing_splits(dataset, seed, stratify_by_column=label_column)


def check_labels(table, column):
    """Raises CourseError for the first kind of bad label in a Table."""
    labels = table.column(column)
    if table.is_csv:
        labels = [_as_number(label) for label in labels]
    rules.refuse(table, column, labels, rules.is_empty, "is an empty label; write one, or delete the row")
    what = "is not a class; write a class name or a whole number from 0"
    rules.refuse(table, column, labels, _is_no_class, what)
    _refuse_two_kinds(table, column, labels)
    names = getattr(table.features.get(column), "names", None)
    if names:
        _refuse_undeclared(table, column, labels, names)


def _is_no_class(label):
    if isinstance(label, str):
        return False
    return isinstance(label, bool) or not isinstance(label, int) or label < 0


def _refuse_two_kinds(table, column, labels):
    """Raises CourseError if some labels are class names and others numbers."""
    pairs = list(zip(table.numbers, labels, strict=True))
    first_text = next(((row, label) for row, label in pairs if isinstance(label, str)), None)
    first_number = next(((row, label) for row, label in pairs if not isinstance(label, str)), None)
    if first_text and first_number:
        raise CourseError(
            f"{table.place}, column {column!r}: {first_text[1]!r} in row {first_text[0]}, but "
            f"{first_number[1]!r} in row {first_number[0]}; write class names only, or numbers only."
        )


def _refuse_undeclared(table, column, labels, names):
    """Raises CourseError for labels that are neither a declared name nor the number of one, also in quotes."""
    declared = {*names, *range(len(names))}
    undeclared = [label for label in labels if label not in declared and _as_number(label) not in declared]
    if undeclared:
        like = closest(undeclared[0], names)
        remedy = "correct it, or declare it in README.md"
        what = f"is not a declared class ({first_ten(names)}; closest: {like!r}); {remedy}"
        rules.refuse(table, column, labels, lambda label: label in undeclared, what)


def _as_number(label):
    """A text of digits as the whole number that it stands for; anything else as it is."""
    if isinstance(label, str) and re.fullmatch(r"[-+]?\d{1,18}", label):
        return int(label)
    return label


def class_names(dataset, column):
    """The class names of a DatasetDict, in the order of their numbers: the declared ones, else the labels of train.

    Raises CourseError if there is one class only, or if train has no row of a class that is declared or stands
    elsewhere.
    """
    declared = getattr(dataset["train"].features[column], "names", None)
    classes = {}
    for split, part in dataset.items():
        labels = set(part[column][:])
        classes[split] = {declared[label] if declared else str(label) for label in labels}
    where = f"split 'train', column {column!r}"
    if len(set().union(*classes.values())) < 2:
        raise CourseError(f"{where}: one class only, {first_ten(classes['train'])}; add rows of another class.")
    to_learn = dict(classes)
    to_learn["the declaration in README.md"] = set(declared or ())
    for place, names in to_learn.items():
        absent = sorted(names - classes["train"])
        if absent:
            remedy = f"add rows of it to 'train', or take it out of {place}"
            raise CourseError(f"{where}: no row has class {first_ten(absent)} of {place}; {remedy}.")
    return declared or sorted(classes["train"], key=_order_of_classes)


def _order_of_classes(name):
    """Names by the alphabet, before numbers by their size: 9 stands before 10."""
    if name.isdecimal():
        return len(name), name
    return 0, name


def as_classes(dataset, column, names):
    """The DatasetDict with the labels of `column` as numbers, a `ClassLabel` with these names."""
    from datasets import ClassLabel, Value  # not above: importing this module stays cheap

    if isinstance(dataset["train"].features[column], ClassLabel):
        return dataset
    dataset = dataset.cast_column(column, Value("string"))
    return dataset.cast_column(column, ClassLabel(names=names))
