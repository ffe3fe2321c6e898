"""Data of lessons 01 and 02: a text and its class."""

import re
import unicodedata

from utils.data import reading, repeats, rules, splitting
from utils.errors import CourseError, alike, first_ten

UNSPACED = "[\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff]"
LONGEST_NAME = 200  # characters of a class name; more is a text


def load(dataset_id, load_dataset, text_column="text", label_column="label", seed=0):
    """Reads and checks texts with a class each; returns a `datasets.DatasetDict` of train, validation and test.

    Columns: text_column, a text that is not empty, of a million characters at most; label_column, a class name or a
    whole number from 0. Others may be there. label_column comes back as numbers, a `ClassLabel` whose `names` are the
    classes. Classes are compared by their names, in all files: spaces around a name do not count.

    dataset_id says where the data is:
    * a folder with files train, validation and test, all of one kind (`files.KINDS`), those of texts perhaps
      compressed. Its README.md may declare the classes. Validation and test may be missing: they are cut
      out of train, with the same shares of each class, and so that texts which repeat each other stay together;
    * one such file, which is cut likewise;
    * a name on the hub, such as "fancyzhx/ag_news".

    load_dataset is the function of the `datasets` library, which reads a name on the hub; or one with more settings:
    functools.partial(load_dataset, revision="..."). seed: of the cuts.

    In CSV, the words NA, null, None and nan are texts as any other. Prints a line for a split that repeats texts of
    train, for texts with two classes, for a split without labels, and for splits and files that are not used. Each file
    is read once, and what was checked is what comes back.
    Raises CourseError for a wrong path, for rows that cannot be trained on (with file, row, column and remedy), for
    fewer than two classes, for a class that train lacks, and for two names of classes that are nearly the same.
    """
    columns = (text_column, label_column)
    if text_column == label_column:
        raise CourseError(f"text_column and label_column are both {text_column!r}; give two columns.")
    tables = _with_labels(reading.read(dataset_id, load_dataset), label_column)
    for table in tables:
        rules.check_columns(table, columns, settings=("text_column", "label_column"))
        rules.refuse_texts(table, text_column, table.column(text_column))
        rules.refuse_long_texts(table, text_column, table.column(text_column))
        check_labels(table, label_column)
    _refuse_names_here_numbers_there(tables, label_column)
    classes = [classes_of_rows(table, label_column) for table in tables]
    _refuse_nearly_equal_names(tables, classes, label_column)
    names = class_names(tables, classes, label_column)
    unlabelled = reading.to_datasets([table.without_column(label_column) for table in tables], (text_column,))
    dataset = _with_classes(unlabelled, tables, classes, label_column, names)
    texts = {split: part[text_column][:] for split, part in dataset.items()}
    rules.warn_of_repeats(texts)
    _warn_of_two_classes(texts["train"], dataset["train"][label_column][:])
    return splitting.add_missing_splits(dataset, seed, stratify_by_column=label_column, group_by=texts["train"])


def _with_labels(tables, column):
    """The tables of the splits that have labels: a test of a contest has none, or -1 in each row. Prints a line."""
    kept = []
    for split in dict.fromkeys(table.split for table in tables):
        of_split = [table for table in tables if table.split == split]
        labels = [label for table in of_split if column in table.columns for label in table.column(column)]
        has_labels = not all(rules.is_empty(label) or str(label) in ("-1", "-1.0") for label in labels)
        if split == "train" or not labels or has_labels:
            kept += of_split
        else:
            print(f"Not used: split {split!r}, which has no labels. It is cut out of 'train' instead.")
    return kept


# ---- the labels of one table


def check_labels(table, column):
    """Raises CourseError for the first kind of bad label in a Table."""
    labels = table.column(column)
    names = _declared(table, column)
    if table.is_csv:
        labels = [label if label in (names or ()) else _as_number(label) for label in labels]
    rules.refuse(table, column, labels, rules.is_empty, "is an empty label; write one, or delete the row")
    what = "is not a class; write a class name or a whole number from 0, one for each row"
    rules.refuse(table, column, labels, _is_no_class, what)
    what = f"is no class name: it has several lines, NUL, or more than {LONGEST_NAME} characters; write a short one"
    rules.refuse(table, column, labels, _is_no_name, what)
    _refuse_two_kinds(table, column, labels)
    if names:
        _refuse_undeclared(table, column, labels, names)


def _declared(table, column):
    """The class names that README.md or the file declares for a column, texts in their order; or None."""
    names = getattr(table.features.get(column), "names", None)
    return [str(name) for name in names] if names else None


def _is_no_class(label):
    if isinstance(label, str):
        return False
    return isinstance(label, bool) or not isinstance(label, int) or label < 0


def _is_no_name(label):
    if not isinstance(label, str):
        return False
    return len(label) > LONGEST_NAME or "\n" in label.strip() or rules.is_broken(label)


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

    def is_undeclared(label):
        label = label.strip() if isinstance(label, str) else label
        return label not in declared and _as_number(label) not in declared

    first = next(filter(is_undeclared, labels), None)
    if first is not None:
        like = alike(first, names)
        closest = f"; closest: {like!r}" if like else ""
        remedy = "correct it, or declare it in README.md"
        what = f"is not a declared class ({first_ten(names)}{closest}); {remedy}"
        rules.refuse(table, column, labels, is_undeclared, what)


def _as_number(label):
    """A text of digits as the number that it stands for, "1.0" as the whole number; anything else as it is."""
    if isinstance(label, str) and re.fullmatch(r"\s*[-+]?[0-9]{1,18}(\.0*)?\s*", label):
        return int(label.split(".")[0])
    if isinstance(label, str) and re.fullmatch(r"\s*[-+]?[0-9]*\.[0-9]+\s*", label):
        return float(label)
    return label


def classes_of_rows(table, column):
    """The class name of each row of a Table that `check_labels` has passed, a list.

    A text that is a declared name is that class; another number, also in quotes, is the place of a declared name.
    Without declared names, a number is a name itself, and "1.0" in a CSV file is "1". Spaces around do not count.
    """
    declared = _declared(table, column)
    labels = table.column(column)
    names = {label: _class_of(label, declared, table.is_csv) for label in set(labels)}
    spaced = sum(isinstance(label, str) and label != label.strip() for label in labels)
    if spaced:
        print(f"{table.place}, column {column!r}: the spaces around {spaced} labels do not count.")
    return [names[label] for label in labels]


def _class_of(label, declared, is_csv):
    """The name of the class of one label."""
    text = label.strip() if isinstance(label, str) else str(label)
    if declared:
        return text if isinstance(label, str) and text in declared else declared[_as_number(label)]
    if is_csv and "." in text:
        return str(_as_number(text))
    return text


# ---- the labels of all tables


def _refuse_names_here_numbers_there(tables, column):
    """Raises CourseError if the labels of one file are names of classes and those of another are numbers."""
    examples = {}
    for table in tables:
        declared = _declared(table, column)
        label = table.column(column)[0]
        if declared or (isinstance(label, str) and _as_number(label) is label):
            examples.setdefault("names", (table, declared[0] if declared else label))
        elif not isinstance(label, str) or table.is_csv:
            examples.setdefault("numbers", (table, label))
    if len(examples) == 2:
        (named, name), (numbered, number) = examples["names"], examples["numbers"]
        raise CourseError(
            f"{numbered.place}, column {column!r}: its labels are numbers ({number}), and those of {named.place} are "
            f"names ({name!r}); write the same in both."
        )


def _refuse_nearly_equal_names(tables, classes, column):
    """Raises CourseError for two classes whose names differ in nothing that a reader would see as a difference."""
    known = {}
    for table, names in zip(tables, classes, strict=True):
        if _declared(table, column):
            continue
        for name in dict.fromkeys(names):
            number = table.numbers[names.index(name)]
            first_name, first_where = known.setdefault(_as_seen(name), (name, f"{table.place}, row {number}"))
            if first_name != name:
                what = "differ only in case, spaces, zeros, or the form of their characters"
                raise CourseError(
                    f"{table.place}, row {number}, column {column!r}: class {name!a} and class "
                    f"{first_name!a} ({first_where}) {what}; write one of them everywhere."
                )


def _as_seen(name):
    """A name without case, spaces and characters that cannot be seen; a number without zeros in front."""
    name = unicodedata.normalize("NFKC", name).casefold()
    seen = [character for character in name if unicodedata.category(character) not in ("Cf", "Cc", "Zs")]
    name = "".join(seen).replace("\ufe0f", "")  # the mark that makes a sign an emoji
    return str(float(name)) if re.fullmatch(r"[-+]?[0-9]+(\.[0-9]+)?", name) else name


def class_names(tables, classes, column):
    """The class names in the order of their numbers: the declared ones, else the labels of train.

    classes: `classes_of_rows` of each Table. Raises CourseError if there is one class only, or if train has no row of a
    class that is declared or stands elsewhere.
    """
    declared = None
    of_splits = {}
    for table, names in zip(tables, classes, strict=True):
        of_splits.setdefault(table.split, set()).update(names)
        if table.split == "train":
            declared = declared or _declared(table, column)
    where = f"split 'train', column {column!r}"
    if len(set().union(*of_splits.values())) < 2:
        raise CourseError(f"{where}: one class only, {first_ten(of_splits['train'])}; add rows of another class.")
    to_learn = {repr(split): names for split, names in of_splits.items()}
    to_learn["the declared ones (in README.md or in the file)"] = set(declared or ())
    for place, names in to_learn.items():
        absent = sorted(names - of_splits["train"])
        if absent:
            remedy = f"add rows of it to 'train', or take it out of {place}"
            raise CourseError(f"{where}: no row has class {first_ten(absent)} of {place}; {remedy}.")
    return declared or sorted(of_splits["train"], key=_order_of_classes)


def _order_of_classes(name):
    """Names by the alphabet, before numbers by their size: 9 stands before 10."""
    if name.isdecimal():
        return len(name), name
    return 0, name


def _with_classes(dataset, tables, classes, column, names):
    """The DatasetDict with a column of classes, in the place that it has in the tables."""
    from datasets import ClassLabel  # not above: importing this module stays cheap

    place_of = {name: number for number, name in enumerate(names)}
    order = list(dict.fromkeys(name for table in tables for name in (*table.features, *table.columns)))
    for split, part in dataset.items():
        labels = []
        for table, of_rows in zip(tables, classes, strict=True):
            if table.split == split:
                labels += [place_of[name] for name in of_rows]
        part = part.add_column(column, labels, feature=ClassLabel(names=names))
        dataset[split] = part.select_columns([name for name in order if name in part.column_names])
    return dataset


def _warn_of_two_classes(texts, labels):
    """Prints a line if a text of train stands there with different classes."""
    of_texts = {}
    for text, label in zip(texts, labels, strict=True):
        of_texts.setdefault(hash(repeats.as_compared(text)), set()).add(label)
    torn = sum(len(classes) > 1 for classes in of_texts.values())
    if torn:
        remedy = "give each text one class, or no model can be right"
        print(f"Warning: {torn} of {len(of_texts)} different texts of 'train' have more than one class; {remedy}.")


# ---- what a baseline counts


def unit_to_count(texts):
    """What a word counter should count in these texts: "word", or "char" where they have no words between spaces.

    That is so for Chinese, Japanese, Thai, Lao, Khmer, Burmese and Tibetan, for emoji, and for single digits and signs.
    Either is an `analyzer` of scikit-learn's `TfidfVectorizer`, whose words have two letters or digits at least. The
    first thousand characters of the first thousand texts are looked at.
    """
    looked_at = [text[:1000] for text in texts[:1000]]
    with_words = sum(re.search(r"\b\w\w+\b", text) is not None for text in looked_at)
    letters = sum(character.isalpha() for text in looked_at for character in text)
    unspaced = sum(len(re.findall(UNSPACED, text)) for text in looked_at)
    return "char" if with_words < len(looked_at) / 2 or unspaced > letters / 3 else "word"
