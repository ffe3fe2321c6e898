"""Where a data set lies, and its rows with their numbers.

Local .csv, .tsv and .jsonl files are read here, line by line: a message can then name file and line, and the rows that
were checked are the rows that become the data set.
"""

import csv
import io
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from utils.data.table import Table
from utils.errors import CourseError, first_ten

SPLITS = ("train", "validation", "test")  # what a lesson uses; other splits are left out
BUILDERS = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}  # what load_dataset calls a single file
DELIMITERS = {".csv": ",", ".tsv": "\t"}
READ_HERE = {*DELIMITERS, ".jsonl"}
LARGEST = 2 * 2**30  # bytes of all text files together: an Arrow column of texts holds no more, and all lie in memory
NAME_ON_THE_HUB = r"[\w-]+([\w.-]*/[\w.-]+)?"


@dataclass
class Source:
    """Where a data set lies, as `source` has found it."""

    arguments: dict
    """What `load_dataset` is called with: `path`, and for local files more."""

    files: dict = field(default_factory=dict)
    """Of a local data set: {split: [path of a file, ...]}. Empty for a name on the hub."""

    features: dict = field(default_factory=dict)
    """The `datasets.Features` that README.md of a local folder declares; empty if it declares none."""


def read(dataset_id, load_dataset, text_columns):
    """The rows of a data set, a list of `Table`: one for each local text file, else one for each split.

    dataset_id: a folder, a .csv, .jsonl or .parquet file, or a name on the hub. load_dataset: the function that reads
    what is not text, called as load_dataset(name) for a name on the hub, and with data_files for local Parquet.
    text_columns: those which a CSV file holds as text, also where they look like numbers. Prints which splits are left
    out. Raises CourseError for a wrong path, a file that is broken, a set that cannot be read, or one without 'train'.
    """
    place = source(dataset_id, text_columns)
    suffixes = {Path(file).suffix for files in place.files.values() for file in files}
    if not suffixes & READ_HERE:
        return _read_splits(dataset_id, load_dataset, place)
    if suffixes - READ_HERE:
        kinds = first_ten(sorted(suffixes))
        raise CourseError(f"{dataset_id}: it has files of several kinds ({kinds}); save all of them as one kind.")
    used = [(split, file) for split in _used_splits(place.files) for file in place.files[split]]
    size = sum(Path(file).stat().st_size for _, file in used)
    if size > LARGEST:
        remedy = "save the rows as .parquet"
        raise CourseError(f"{dataset_id}: {size / 2**30:.1f} GiB of text are too much to read at once; {remedy}.")
    return [read_file(file, split, place.features) for split, file in used]


def source(dataset_id, text_columns=()):
    """Finds a data set as `load_dataset` does, without reading its rows; returns a `Source`.

    Raises CourseError for a path that does not exist, a file of another kind, and a folder without data.
    """
    from datasets import load_dataset_builder  # not above: importing this module stays cheap

    path = _local_path(str(dataset_id))
    if path is None:
        return Source({"path": str(dataset_id)})
    arguments = {"path": str(path)}
    if path.is_file():
        arguments = {"path": BUILDERS[path.suffix], "data_files": str(path)}
    try:
        builder = load_dataset_builder(**arguments)
    except Exception as error:
        remedy = "name the files train, validation and test, all .jsonl or all .csv, and check README.md"
        raise CourseError(f"{path}: {str(error).splitlines()[0]}; {remedy}.") from error
    features = builder.info.features or {}
    files = {}
    for split, names in builder.config.data_files.items():
        files[str(split)] = [str(file) for file in names]
    if path.is_dir():
        arguments["data_files"] = files  # else load_dataset takes its copy of an older file, if README.md names files
        if features:
            arguments["features"] = features
    if hasattr(builder.config, "sep"):  # a CSV file, perhaps a compressed one
        arguments["keep_default_na"] = False
        if not features:
            arguments["converters"] = dict.fromkeys(text_columns, str)
    return Source(arguments, files, features)


def _local_path(name):
    """The Path of a folder or a file that can be read; None for a name on the hub."""
    path = Path(name).expanduser().absolute()
    if not name.strip() or not path.exists():
        if path.suffix in BUILDERS or not re.fullmatch(NAME_ON_THE_HUB, name):
            raise CourseError(f"{name!r}: no such file or folder in {Path.cwd()}; correct dataset_id.")
        return None
    if "[" in str(path) or (path.is_file() and path.suffix not in BUILDERS):
        raise CourseError(f"{path}: give a folder or a {', '.join(BUILDERS)} file, without '[' in its path.")
    return path


def to_datasets(tables, text_columns):
    """A `datasets.DatasetDict` of tables that were checked, with the features of README.md if there are any.

    All splits get the same columns and types, as `load_dataset` does it: a column that a split lacks is empty there.
    Without declared features, a CSV column that is not one of text_columns becomes numbers if all of its texts are.
    Raises CourseError if the values of a column do not fit together, or not what README.md declares.
    """
    from datasets import Dataset, DatasetDict, Features

    if tables[0].dataset is not None:
        return DatasetDict({table.split: table.dataset for table in tables})
    features = tables[0].features
    columns = _joined_columns(tables)
    if tables[0].is_csv and not features:
        for name in columns:
            if name not in text_columns:
                columns[name] = _numbers_if_all_are(columns[name])
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


def _read_splits(dataset_id, load_dataset, place):
    """A Table for each split of what `load_dataset` returns; its rows count from 0."""
    from datasets.exceptions import DatasetNotFoundError

    arguments = dict(place.arguments)
    name = arguments.pop("path")
    try:
        loaded = load_dataset(name, **arguments)
    except (DatasetNotFoundError, FileNotFoundError, PermissionError, ConnectionError) as problem:
        page = f"open https://huggingface.co/datasets/{dataset_id}, accept its terms, run `hf auth login`"
        raise CourseError(f"{dataset_id}: cannot be read; if it is gated, {page}.") from problem
    if not isinstance(loaded, dict):
        loaded = {}  # one split alone, which has no name here
    tables = []
    for split in _used_splits(loaded):
        part = loaded[split]
        columns = {column: part[column] for column in part.column_names}  # read when they are asked for
        where = f"split {split!r} (rows count from 0)"
        tables.append(Table(where, split, range(len(part)), columns, part.features, dataset=part))
    return tables


def _used_splits(names):
    """Those of train, validation and test that are among `names`, in their order; prints which others are left out."""
    used = [name for name in names if name in SPLITS]
    others = [name for name in names if name not in SPLITS]
    if "train" not in used:
        raise CourseError("the data has no split 'train'; name a file train.jsonl or train.csv.")
    if others:
        print(f"Not used: split {first_ten(map(repr, others))}. A lesson uses train, validation and test.")
    return used


# ---- text files


def read_file(path, split="train", features=()):
    """The Table of a .csv, .tsv or .jsonl file, its rows numbered by line as an editor shows it.

    A text of several lines counts from its first line. Raises CourseError for the first line that cannot be read.
    """
    delimiter = DELIMITERS.get(Path(path).suffix)
    text = io.StringIO(_decoded(path), newline="")
    if delimiter:
        names, rows = _read_csv(path, text, delimiter)
    else:
        names, rows = _read_jsonl(path, text)
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    return Table(str(path), split, list(rows), columns, features or {}, is_csv=bool(delimiter))


def _decoded(path):
    """The text of a file in UTF-8, without the byte order mark that Windows puts in front."""
    data = Path(path).read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        fault = f"byte {error.start} is not UTF-8; save the file as UTF-8"
        raise CourseError(f"{path}, row {line}: {fault}.") from None


def _read_csv(path, text, delimiter):
    """(names of the columns, {line number: row})."""
    csv.field_size_limit(2**31 - 1)  # the default, 131072 characters, is too small for a long text
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    rows = {}
    line = 1
    try:
        names = reader.fieldnames or []
        _refuse_doubled(path, line, names, "a column")
        for row in reader:
            lines_inside = "".join(map(str, row.values())).count("\n")  # a text may run over several lines
            line = reader.line_num - lines_inside
            if None in row or None in row.values():
                remedy = "put texts with ',' in double quotes, or add the missing fields"
                raise CourseError(f"{path}, row {line}: not as many fields as the header; {remedy}.")
            rows[line] = row
    except csv.Error:
        remedy = "close it, or write it twice inside a quoted text"
        raise CourseError(f"{path}, row {line + 1}: a double quote is not closed; {remedy}.") from None
    return names, rows


def _read_jsonl(path, text):
    """(names of the columns, {line number: row}); lines without a letter are passed over."""

    def as_dict(pairs):
        _refuse_doubled(path, line, [name for name, _ in pairs], "a key")
        return dict(pairs)

    names, rows = {}, {}
    for line, written in enumerate(text, 1):
        if not written.strip():
            continue
        try:
            row = json.loads(written, object_pairs_hook=as_dict)
        except CourseError:
            raise
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            remedy = 'write one object a line, such as {"text": "...", "label": "..."}'
            raise CourseError(f"{path}, row {line}: this is not a JSON object; {remedy}.")
        rows[line] = row
        names.update(dict.fromkeys(row))
    return list(names), rows


def _refuse_doubled(path, line, names, what):
    """Raises CourseError for a name that stands twice: the last of two values would win, and nobody would know."""
    doubled = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if doubled:
        raise CourseError(f"{path}, row {line}: {doubled[0]!r} stands twice as {what}; rename or delete one of them.")
