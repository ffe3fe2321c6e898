"""Local .csv and .jsonl files, line by line, so that a fault has a line number."""

import contextlib
import csv
import io
import json
import re
from pathlib import Path

from utils.errors import CourseError

BUILDERS = {".csv": "csv", ".jsonl": "json", ".parquet": "parquet"}


@contextlib.contextmanager
def readable(dataset_id):
    """Turns what `load_dataset` raises inside the `with` block for a set that cannot be read into one sentence."""
    from datasets.exceptions import DatasetNotFoundError  # not above: importing this module stays cheap

    try:
        yield
    except (DatasetNotFoundError, FileNotFoundError, PermissionError, ConnectionError) as problem:
        page = f"open https://huggingface.co/datasets/{dataset_id}, accept its terms, run `hf auth login`"
        raise CourseError(f"{dataset_id}: cannot be read; if it is gated, {page}.") from problem


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
