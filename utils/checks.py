"""Checks before training: bad data or a bad folder gets one sentence that says where, what and the remedy."""

import contextlib
import csv
import difflib
import io
import json
import re
import reprlib
import tempfile
from pathlib import Path

BUILDERS = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}


class CourseError(ValueError):
    """A fault that the reader can cure. The message is one sentence: where, what, and the remedy."""


def closest(name, known):
    """The name in `known` that is spelt most like `name`; an empty string if `known` is empty."""
    return next(iter(difflib.get_close_matches(str(name), list(known), n=1, cutoff=0)), "")


def writable_folder(path):
    """Creates the folder if need be, proves that a file can be written in it, and returns it as a Path."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = "set OUTPUT_DIR to another folder"
        raise CourseError(f"{folder}: cannot write here ({error.strerror}); {remedy}.") from error
    return folder


@contextlib.contextmanager
def readable(dataset_id):
    """Turns what `load_dataset` raises inside the `with` block for a set that cannot be read into one sentence."""
    from datasets.exceptions import DatasetNotFoundError  # not above: importing this module stays cheap

    try:
        yield
    except (DatasetNotFoundError, FileNotFoundError, PermissionError, ConnectionError) as problem:
        page = f"open https://huggingface.co/datasets/{dataset_id}, accept its terms, run `hf auth login`"
        raise CourseError(f"{dataset_id}: cannot be read; if it is gated, {page}.") from problem


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


def read_source(dataset_id, columns, check):
    """The arguments for `load_dataset`, after check(file, split, rows, features) has seen each local .csv and .jsonl.

    rows: a DataFrame of objects, numbered by line as an editor shows it. features: what README.md declares, or {}.
    columns: those which a CSV holds as text. Raises CourseError for a wrong path and for a line that cannot be read.
    """
    import pandas as pd  # neither above: importing this module stays cheap
    from datasets import load_dataset_builder

    name, path = str(dataset_id), Path(str(dataset_id)).expanduser().absolute()
    if not name.strip() or not path.exists():
        if path.suffix in BUILDERS or not re.fullmatch(r"[\w-]+([\w.-]*/[\w.-]+)?", name):
            raise CourseError(f"{name!r}: no such file or folder in {Path.cwd()}; correct dataset_id.")
        return {"path": name}
    if "[" in str(path) or (path.is_file() and path.suffix not in BUILDERS):
        raise CourseError(f"{path}: give a folder or a {', '.join(BUILDERS)} file, without '[' in its path.")
    source = {"path": str(path)} if path.is_dir() else {"path": BUILDERS[path.suffix], "data_files": str(path)}
    try:
        builder = load_dataset_builder(**source)
    except Exception as error:
        remedy = "name the files train, validation and test, all .jsonl or all .csv, and check README.md"
        raise CourseError(f"{path}: {str(error).splitlines()[0]}; {remedy}.") from error
    features, is_csv = builder.info.features or {}, hasattr(builder.config, "sep")
    if path.is_dir():  # else load_dataset takes its copy of an older file, if README.md declares the files
        source["data_files"] = {str(split): [*map(str, files)] for split, files in builder.config.data_files.items()}
        source |= {"features": features} if features else {}
    if is_csv:
        source |= {"keep_default_na": False}
        source |= {} if features else {"converters": dict.fromkeys(columns, str)}
    for split, files in builder.config.data_files.items():
        for file in (file for file in files if Path(file).suffix in (".csv", ".jsonl")):
            rows = pd.DataFrame.from_dict(_read_rows(file, is_csv), orient="index", dtype=object)
            check(file, str(split), rows, features)
    return source


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
        raise CourseError(f"{where}: one class only, {some(classes['train'])}; add rows of another class.")
    for other, found in [*classes.items(), ("the declaration in README.md", set(names or ()))]:
        if absent := some(sorted(found - classes["train"])):
            remedy = f"add rows of it to 'train', or take it out of {other}"
            raise CourseError(f"{where}: no row has class {absent} of {other}; {remedy}.")
    warn_of_repeats(texts)
    return names or sorted(classes["train"], key=lambda name: (name.isdecimal() * len(name), name))


def warn_of_repeats(texts):
    """Prints a line for a split of `texts` ({split: texts}) that repeats some of train, whatever case and spaces."""
    plain = {split: [hash(" ".join(text.casefold().split())) for text in found] for split, found in texts.items()}
    known = set(plain.pop("train", ()))
    for split, found in plain.items():
        if twice := sum(text in known for text in found):
            remedy = "remove them there, or the score will look too good"
            print(f"Warning: {twice} of {len(found)} texts of {split!r} also stand in 'train'; {remedy}.")


def some(items):
    """The first ten of `items` in words, and how many there are."""
    items = list(items)
    return ", ".join(map(str, items[:10])) + (f", … ({len(items)} in all)" if len(items) > 10 else "")


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
            raise CourseError(f"{where}: no column {column!r} among {some(map(repr, table))}; {remedy}.")
    if features and (extra := sorted(set(table) - set(features))):
        raise CourseError(f"{where}: {some(map(repr, extra))} is not declared in README.md; declare or remove it.")


def refuse(where, values, is_bad, fault):
    """Raises CourseError if is_bad(value) for some of `values`, a named Series whose index numbers the rows."""
    bad = values[[bool(is_bad(value)) for value in values]]
    if len(bad):
        place = f"row{'s' * (len(bad) > 1)} {some(bad.index)}, column {values.name!r}"
        raise CourseError(f"{where}, {place}: {reprlib.repr(bad.iloc[0])} {fault}.")


def refuse_texts(where, values):
    """Raises CourseError for the first kind of fault in `values`, a Series of what should be texts."""
    refuse(where, values, _is_empty, "is an empty text; write one, or delete the row")
    refuse(where, values, lambda value: not isinstance(value, str), "is not text; put it in double quotes")
    refuse(where, values, _is_broken, "holds a NUL or a broken character; retype it")


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
        fault = f"is not a declared class ({some(names)}; closest: {like!r}); correct it, or declare it in README.md"
        refuse(where, label, lambda value: value not in known and _as_number(value) not in known, fault)
    return set(label)


def _as_number(value):
    return int(value) if isinstance(value, str) and re.fullmatch(r"[-+]?\d+", value) else value


def _is_empty(value):
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _is_broken(text):
    try:
        return "\0" in text or not text.encode()
    except UnicodeEncodeError:  # half of a character that JSON wrote in two, such as \ud800
        return True


def _read_rows(path, is_csv):
    """{line number as an editor shows it: row} of a .csv or .jsonl file; raises CourseError for a broken line."""

    def once(pairs, what="a key"):
        """A dict of pairs; the last of two values under one name would win, and nobody would know."""
        names = [name for name, _ in pairs]
        doubled = [name for name in dict.fromkeys(names) if names.count(name) > 1]
        if doubled:
            raise CourseError(
                f"{path}, row {line}: {doubled[0]!r} stands twice as {what}; rename or delete one of them."
            )
        return dict(pairs)

    data, rows, line = Path(path).read_bytes(), {}, 1
    csv.field_size_limit(2**31 - 1)  # the default, 131072 characters, is too small for a long text
    try:
        text = io.StringIO(data.decode("utf-8-sig"), newline="")
        reader = csv.DictReader(text, strict=True)
        once([(name, None) for name in (is_csv and reader.fieldnames) or ()], "a column")
        for row in reader if is_csv else ():
            line = reader.line_num - "".join(map(str, row.values())).count("\n")  # a text may run over several lines
            if None in row or None in row.values():
                remedy = "put texts with ',' in double quotes, or add the missing fields"
                raise CourseError(f"{path}, row {line}: not as many fields as the header; {remedy}.")
            rows[line] = row
        for line, row in () if is_csv else enumerate(text, 1):
            if row.strip():
                rows[line] = dict(json.loads(row, object_pairs_hook=once).items())
    except UnicodeDecodeError as error:
        place = f"row {data[: error.start].count(10) + 1}: byte {error.start}"
        raise CourseError(f"{path}, {place} is not UTF-8; save the file as UTF-8.") from None
    except csv.Error:
        remedy = "close it, or write it twice inside a quoted text"
        raise CourseError(f"{path}, row {line + 1}: a double quote is not closed; {remedy}.") from None
    except (ValueError, RecursionError, AttributeError) as error:
        if isinstance(error, CourseError):
            raise
        remedy = 'write one object a line, such as {"text": "...", "label": "..."}'
        raise CourseError(f"{path}, row {line}: this is not a JSON object; {remedy}.") from None
    return rows
