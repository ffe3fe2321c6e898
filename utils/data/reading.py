"""Where a data set lies, and its rows with their numbers.

Local files are read by `files.read_file`, each once: a message can then name file and row, and the rows that were
checked are the rows that become the data set. `load_dataset` reads only what lies on the hub.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path

from utils.data import files as data_files
from utils.data import folders
from utils.data.files import read_file
from utils.data.folders import SPLITS
from utils.data.table import Table
from utils.errors import CourseError, first_ten

__all__ = ["read", "read_file", "source", "to_datasets"]

NAME_ON_THE_HUB = r"[\w-]+([\w.-]*/[\w.-]+)?"


@dataclass
class Source:
    """Where a data set lies, as `source` has found it."""

    files: dict = field(default_factory=dict)
    """Of a local data set: {split: [path of a file, ...]}. Empty for a name on the hub."""

    features: dict = field(default_factory=dict)
    """The `datasets.Features` that README.md of a local folder declares; empty if it declares none."""


def read(dataset_id, load_dataset):
    """The rows of a data set, a list of `Table`: one for each local file, else one for each split.

    dataset_id: a folder, a file of one of the kinds in `files.KINDS`, or a name on the hub. load_dataset: the function
    that reads the hub, called as load_dataset(name). Prints which splits and files are left out. Raises CourseError for
    a wrong path, a file that is broken, a set that cannot be read, or one without 'train'.
    """
    place = source(dataset_id)
    if not place.files:
        return _read_splits(str(dataset_id), load_dataset)
    used = _used_splits(place.files, dataset_id)
    paths = [Path(file) for names in used.values() for file in place.files[names]]
    kinds = {_written_as(path) for path in paths}
    if len(kinds) > 1:
        raise CourseError(
            f"{dataset_id}: it has files of several kinds ({', '.join(sorted(kinds))}); save all of them as one kind, "
            "and name the files train, validation and test."
        )
    size = sum(path.stat().st_size for path in paths)
    if size > data_files.LARGEST and ".parquet" not in kinds:
        remedy = "save the rows as .parquet"
        raise CourseError(f"{dataset_id}: {size / 2**30:.1f} GiB of text are too much to read at once; {remedy}.")
    tables = []
    for split, written in used.items():
        tables += [read_file(file, split, place.features) for file in place.files[written]]
    return tables


def _written_as(path):
    """The kind of a file, or the last suffix of one that README.md names and nobody can read."""
    return data_files.kind_of(path) or path.suffix


def source(dataset_id):
    """Finds a data set without reading its rows; returns a `Source`.

    Raises CourseError for a path that does not exist, a file of another kind, and a folder without data.
    """
    path = _local_path(str(dataset_id))
    if path is None:
        return Source()
    if path.is_file():
        return Source({"train": [str(path)]})
    try:
        if folders.declares_files(path):
            return Source(_declared_files(path), folders.declared_features(path))
        return Source(folders.files_of_splits(path), folders.declared_features(path))
    except PermissionError as error:
        raise CourseError(f"{error.filename or path}: you may not read this; allow it with chmod.") from None


def _declared_files(folder):
    """{split: [paths]} as README.md of a folder says it."""
    from datasets import load_dataset_builder  # not above: importing this module stays cheap

    try:
        builder = load_dataset_builder(str(folder))
    except Exception as error:
        remedy = "name the files train, validation and test, all .jsonl or all .csv, and check README.md"
        reason = str(error).splitlines()[0].partition(" with any supported")[0].rstrip(".")
        raise CourseError(f"{folder}: {reason}; {remedy}.") from error
    declared = builder.config.data_files or {}
    return {str(split): [str(file) for file in files] for split, files in declared.items()}


def _local_path(name):
    """The Path of a folder or a file that can be read; None for a name on the hub."""
    path = Path(name).expanduser().absolute()
    kinds = ", ".join(data_files.KINDS)
    if not name.strip() or not _exists(path):
        if "://" in name:
            raise CourseError(f"{name!r}: a web address is not read; fetch the file, and give its path as dataset_id.")
        if data_files.kind_of(path) or not re.fullmatch(NAME_ON_THE_HUB, name):
            raise CourseError(f"{name!r}: no such file or folder in {Path.cwd()}; correct dataset_id.")
        return None
    if "[" in str(path) or (path.is_file() and not data_files.kind_of(path)):
        compressed = ", also with .gz, .bz2, .xz or .zip at its end"
        raise CourseError(f"{path}: give a folder or a file {kinds}{compressed}, without '[' in its path.")
    return path


def _exists(path):
    try:
        return path.exists()
    except OSError:  # a name that is too long, or a link to itself
        return False


def to_datasets(tables, text_columns):
    """A `datasets.DatasetDict` of tables that were checked, with the features of README.md if there are any.

    All splits get the same columns and types, as `load_dataset` does it: a column that a split lacks is empty there.
    Without declared features, a CSV column that is not one of text_columns becomes numbers if all of its texts are.
    Raises CourseError if the values of a column do not fit together, or not what README.md declares.
    """
    from datasets import Dataset, DatasetDict, Features

    if tables[0].dataset is not None:
        return _joined_splits(tables, text_columns)
    features = tables[0].features
    columns = _joined_columns(tables)
    if tables[0].is_csv and not features:
        for name in columns:
            if name not in text_columns:
                columns[name] = _numbers_if_all_are(columns[name])
    if not features:
        columns = _without_strange_columns(columns, text_columns)
    try:
        rows = Dataset.from_dict(columns, on_mixed_types="use_json")
        if features:
            rows = rows.cast(Features(features))
    except (ValueError, TypeError, OverflowError) as error:  # Arrow's errors are of these kinds
        remedy = "write values of one kind in each column, and those that README.md declares if it does"
        raise CourseError(f"{tables[0].place}: {str(error).splitlines()[0].rstrip('.')}; {remedy}.") from error
    datasets = DatasetDict()
    first = 0
    for split in dict.fromkeys(table.split for table in tables):
        length = sum(len(table) for table in tables if table.split == split)
        datasets[split] = rows.select(range(first, first + length))
        first += length
    return datasets


def _without_strange_columns(columns, text_columns):
    """The columns without those that no data set can hold and nobody needs, such as of numbers with 30 digits."""
    from datasets import Dataset

    kept = {}
    for name, values in columns.items():
        if name not in text_columns and any(not isinstance(value, str) for value in values):
            try:
                Dataset.from_dict({name: values}, on_mixed_types="use_json")
            except (ValueError, TypeError, OverflowError) as error:
                print(f"Left out: column {name!r}, which cannot be stored ({str(error).splitlines()[0]}).")
                continue
        kept[name] = values
    return kept


def _joined_splits(tables, text_columns):
    """A `datasets.DatasetDict` of tables that have a `datasets.Dataset` each, several of a split joined."""
    from datasets import DatasetDict, concatenate_datasets

    parts = [table.dataset for table in tables]
    if any(part.features != parts[0].features for part in parts):
        parts = _with_equal_columns(parts, text_columns)
    splits = {}
    for table, part in zip(tables, parts, strict=True):
        splits.setdefault(table.split, []).append(part)
    datasets = DatasetDict()
    for split, of_split in splits.items():
        datasets[split] = of_split[0] if len(of_split) == 1 else concatenate_datasets(of_split)
    return datasets


def _with_equal_columns(parts, text_columns):
    """The Datasets with the same columns and types: a column that one lacks is empty there, classes become names.

    A column whose types do not go together, and which is not one of text_columns, is left out; a line says so.
    """
    names = dict.fromkeys(name for part in parts for name in part.column_names)
    for name in names:
        parts = [_classes_as_names(part, name, parts) for part in parts]
        kinds = [part.features[name] for part in parts if name in part.features]
        common = _common_type(kinds, name in text_columns)
        if common is None:
            print(f"Left out: column {name!r}, whose values are of other types in other files.")
            parts = [part.remove_columns(name) if name in part.features else part for part in parts]
            continue
        for place, part in enumerate(parts):
            if name not in part.features:
                parts[place] = part.add_column(name, [None] * len(part), feature=common)
            elif part.features[name] != common:
                parts[place] = part.cast_column(name, common)
    order = [name for name in names if name in parts[0].features]
    return [part.select_columns(order) for part in parts]


def _classes_as_names(part, name, parts):
    """The Dataset with the names of its classes in column `name`, if the Datasets `parts` do not number them alike."""
    from datasets import ClassLabel, Value

    kinds = [other.features[name] for other in parts if name in other.features]
    feature = part.features.get(name)
    if not isinstance(feature, ClassLabel) or all(kind == kinds[0] for kind in kinds):
        return part
    values = [feature.names[number] if number in range(len(feature.names)) else None for number in part[name][:]]
    return part.remove_columns(name).add_column(name, values, feature=Value("string"))


def _common_type(kinds, is_text):
    """The type that holds the values of all these types; None if there is none."""
    from datasets import Value

    if all(kind == kinds[0] for kind in kinds):
        return kinds[0]
    if not all(isinstance(kind, Value) for kind in kinds):
        return None
    dtypes = {kind.dtype for kind in kinds} - {"null"}
    if len(dtypes) == 1 and not is_text:
        return Value(dtypes.pop())
    if is_text or not all(dtype.startswith(("int", "uint", "float")) for dtype in dtypes):
        return Value("string")
    return Value("float64" if any(dtype.startswith("float") for dtype in dtypes) else "int64")


def _joined_columns(tables):
    """{name: values of all tables, None where a table lacks the column}, in the declared order if one is declared."""
    columns = {name: [] for name in tables[0].features}
    for table in tables:
        for name in table.columns:
            columns.setdefault(name, [])
    for name, values in columns.items():
        for table in tables:
            values.extend(table.columns.get(name, [None] * len(table)))
    return columns


def _numbers_if_all_are(texts):
    """The texts of a CSV column as whole numbers, numbers, or true and false, if all are such; else as they are."""
    written = [text for text in texts if text is not None]
    if all(re.fullmatch(r"[-+]?[0-9]{1,18}", text) for text in written):
        convert = int
    elif all(re.fullmatch(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", text) for text in written):
        convert = float
    elif all(text in ("True", "TRUE", "true", "False", "FALSE", "false") for text in written):
        convert = _is_true
    else:
        return texts
    return [None if text is None else convert(text) for text in texts]


def _is_true(text):
    return text.lower() == "true"


# ---- what load_dataset reads


def _read_splits(dataset_id, load_dataset):
    """A Table for each split of what `load_dataset` returns for a name on the hub; its rows count from 0."""
    try:
        loaded = load_dataset(dataset_id)
    except CourseError:
        raise
    except _errors_of_the_hub() as problem:
        raise CourseError(_in_words(dataset_id, problem)) from problem
    if not isinstance(loaded, dict):
        loaded = {}  # one split alone, which has no name here
    tables = []
    for split, written in _used_splits(loaded, dataset_id).items():
        part = loaded[written]
        columns = {column: part[column] for column in part.column_names}  # read when they are asked for
        where = f"split {written!r} (rows count from 0)"
        tables.append(Table(where, split, range(len(part)), columns, part.features, dataset=part))
    return tables


def _errors_of_the_hub():
    """What `load_dataset` raises for a set that it cannot find, fetch or understand, and not for a fault of ours."""
    from datasets.exceptions import DatasetsError
    from huggingface_hub.errors import HfHubHTTPError

    return (DatasetsError, HfHubHTTPError, OSError, ValueError, RuntimeError, NotImplementedError, ImportError)


def _in_words(dataset_id, problem):
    """One sentence for an error of `load_dataset`, with the remedy."""
    from huggingface_hub import constants

    while isinstance(problem.__cause__, Exception):
        problem = problem.__cause__
    text = str(problem).strip()
    reason = text.splitlines()[0].rstrip(".") if text else type(problem).__name__
    here = f"no file or folder of this name in {Path.cwd()}"
    page = f"https://huggingface.co/datasets/{dataset_id}"
    if "gated" in text.casefold() or "401" in text or "403" in text:
        return f"{dataset_id}: it is gated or private; open {page}, accept its terms, run `hf auth login`."
    if "Config name is missing" in text or "BuilderConfig" in text:
        choice = "choose one by load_dataset = functools.partial(load_dataset, name=...) before the cell that loads"
        options = re.search(r"\[.*?\]", text, re.DOTALL)
        return f"{dataset_id}: it has several configurations {options[0] if options else ''}; {choice}."
    if constants.HF_HUB_OFFLINE:
        remedy = "correct the path, or run with a profile that may use the network, such as PROFILE=colab"
        why = "the hub is switched off (HF_HUB_OFFLINE=1, which the profile tiny sets)"
        return f"{dataset_id}: cannot be read: {here}, and {why}; {remedy}."
    if "NotFound" in type(problem).__name__ or "doesn't exist" in text:
        remedy = f"correct dataset_id; if it is private, open {page}, accept its terms, run `hf auth login`"
        return f"{dataset_id}: cannot be read: {here}, and none on the hub that is open to you; {remedy}."
    if isinstance(problem, ConnectionError):
        return f"{dataset_id}: cannot be read: {here}, and the hub does not answer ({reason}); try again later."
    if isinstance(problem, PermissionError):
        remedy = "make the cache folder writable, or set HF_HOME to one that is"
        return f"{dataset_id}: cannot be read: {reason}; {remedy}."
    remedy = "look at its page on the hub, or save the rows as .parquet files of your own"
    return f"{dataset_id}: cannot be read: {reason}; {remedy}."


def _used_splits(names, dataset_id):
    """{train, validation or test: the name under which it is found among `names`}; prints which others are left out.

    Where there is no 'validation', a split 'dev', 'valid' or 'val' stands in for it, and likewise for the others.
    """
    used = {}
    for split, words in folders.WORDS.items():
        written = next((word for word in (split, *words) if word in names), None)
        if written is not None:
            used[split] = written
    if "train" not in used:
        there = f" among {first_ten(map(repr, names))}" if names else ""
        raise CourseError(f"{dataset_id}: the data has no split 'train'{there}; name a file train.jsonl or train.csv.")
    for split, written in used.items():
        if split != written:
            print(f"split {written!r} is used as {split!r}")
    others = [name for name in names if name not in used.values()]
    if others:
        print(f"Not used: split {first_ten(map(repr, others))}. A lesson uses train, validation and test.")
    return {split: used[split] for split in SPLITS if split in used}
