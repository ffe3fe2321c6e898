"""The rows of one file, each with the number that a message names.

A text file is read line by line, a Parquet file by its own schema, and neither through a cache: the rows that were
checked are the rows that become the data set.
"""

import bz2
import csv
import gzip
import io
import json
import lzma
import re
import zipfile
from pathlib import Path, PurePath

from utils.data.table import Table
from utils.errors import CourseError, first_ten

DELIMITERS = {".csv": ",", ".tsv": "\t"}
KINDS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
COMPRESSIONS = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}  # and .zip, which is a folder of files
LARGEST = 2 * 2**30  # bytes of all text files together: an Arrow column of texts holds no more, and all lie in memory
OTHER_FORMATS = {  # the first bytes of files that somebody may have named .csv or .jsonl
    b"PK\x03\x04": "a zip archive or an Excel table",
    b"\x1f\x8b": "compressed with gzip, and its name does not end in .gz",
    b"BZh": "compressed with bzip2, and its name does not end in .bz2",
    b"\xfd7zXZ": "compressed with xz, and its name does not end in .xz",
    b"(\xb5/\xfd": "compressed with zstandard",
    b"PAR1": "a Parquet file",
    b"ARROW1": "an Arrow file",
    b"\xd0\xcf\x11\xe0": "an Excel table",
    b"%PDF": "a PDF file",
    b"SQLite format": "a database",
}


def kind_of(path):
    """The suffix that says how the rows of a file are written, such as ".csv"; "" if none in KINDS does.

    Upper and lower case are the same. The suffix of a compression does not count: "a.csv.gz" is of the kind ".csv".
    """
    path = Path(path)
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in (*COMPRESSIONS, ".zip"):
        compression = suffixes.pop()
        if compression == ".zip" and (not suffixes or suffixes[-1] not in KINDS):
            return _kind_in_zip(path)
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""


def _kind_in_zip(path):
    try:
        with zipfile.ZipFile(path) as archive:
            kinds = {PurePath(name).suffix.lower() for name in _members(archive)}
    except (OSError, zipfile.BadZipFile):
        return ""
    kind = kinds.pop() if len(kinds) == 1 else ""
    return kind if kind in KINDS else ""


def _members(archive):
    """The names of what a zip archive holds, without folders and without what macOS adds."""
    names = [name for name in archive.namelist() if not name.endswith("/")]
    return [name for name in names if not name.startswith("__MACOSX/") and not PurePath(name).name.startswith(".")]


def read_file(path, split="train", features=None):
    """The Table of a .csv, .tsv, .jsonl, .json or .parquet file; those of texts may be compressed.

    Rows are numbered by line as an editor shows it, those of a list in a .json file from 1, those of Parquet from 0; a
    text of several lines counts from its first line. Raises CourseError for what cannot be read.
    """
    kind = kind_of(path)
    if kind == ".parquet":
        return _read_parquet(path, split, features or {})
    delimiter = DELIMITERS.get(kind)
    text = _decoded(path, _content(path))
    place = str(path)
    if delimiter:
        names, rows = _read_csv(path, io.StringIO(text, newline=""), delimiter)
    else:
        names, rows = _read_list(path, text)
        if rows:
            place = f"{path} (rows count from 1)"
        else:
            names, rows = _read_jsonl(path, io.StringIO(text, newline=""))
    columns = {name: [row.get(name) for row in rows.values()] for name in names}
    return Table(place, split, list(rows), columns, features or {}, is_csv=bool(delimiter))


# ---- bytes and characters


def _content(path):
    """The bytes of a file, uncompressed."""
    suffix = Path(path).suffix.lower()
    try:
        data = Path(path).read_bytes()
        if suffix in COMPRESSIONS:
            with COMPRESSIONS[suffix](io.BytesIO(data)) as file:
                data = file.read(LARGEST + 1)
        elif suffix == ".zip":
            data = _only_member(path, data)
    except PermissionError:
        remedy = f"allow it, for example with chmod +r {Path(path).name}"
        raise CourseError(f"{path}: you may not read this file; {remedy}.") from None
    except (OSError, EOFError, lzma.LZMAError, zipfile.BadZipFile) as error:
        what = "cannot be read, or is no longer whole"
        raise CourseError(f"{path}: the file {what} ({_first_line(error)}); fetch it again.") from error
    if len(data) > LARGEST:
        raise CourseError(f"{path}: more than {LARGEST / 2**30:.0f} GiB of text; save the rows as .parquet.")
    return data


def _only_member(path, data):
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = _members(archive)
        if len(names) != 1:
            raise CourseError(f"{path}: it holds {len(names)} files ({first_ten(names)}); unpack it.")
        try:
            with archive.open(names[0]) as file:
                return file.read(LARGEST + 1)
        except (RuntimeError, NotImplementedError) as error:  # a password, or a method that Python does not know
            raise CourseError(f"{path}: it cannot be unpacked here ({_first_line(error)}); unpack it.") from error


def _first_line(error):
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _decoded(path, data):
    """The text of a file in UTF-8, without the byte order mark that Windows puts in front."""
    _refuse_other_formats(path, data)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        fault = f"byte {error.start} is not UTF-8; save the file as UTF-8"
        raise CourseError(f"{path}, row {line}: {fault}.") from None


def _refuse_other_formats(path, data):
    """Raises CourseError for bytes that are not the text that the file's name promises."""
    start = data[:200].lstrip()
    for first_bytes, what in OTHER_FORMATS.items():
        if data.startswith(first_bytes):
            raise CourseError(f"{path}: this is {what}; save the rows as .csv or .jsonl, in UTF-8.")
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or data[1:4:2] == b"\0\0":
        raise CourseError(f"{path}, row 1: byte 0 is not UTF-8, the file is in UTF-16; save the file as UTF-8.")
    if start.startswith(b"version https://git-lfs"):
        raise CourseError(f"{path}: this is a pointer of Git LFS, and not the data; fetch it with `git lfs pull`.")
    if start[:15].lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        raise CourseError(f"{path}: this is a web page or XML, and not a table; fetch the file itself.")


# ---- tables


def _read_csv(path, text, delimiter):
    """(names of the columns, {line number: row}); a column without a name, such as an index, is left out."""
    csv.field_size_limit(2**31 - 1)  # the default, 131072 characters, is too small for a long text
    reader = csv.DictReader(text, delimiter=delimiter, strict=True)
    separator = "','" if delimiter == "," else "a tab"
    rows = {}
    line = 1
    try:
        reader.fieldnames = names = _header(path, reader.fieldnames or [], delimiter)
        for row in reader:
            beyond_the_header = row.pop(None, [])
            lines_inside = "".join(map(str, row.values())).count("\n")  # a text may run over several lines
            line = reader.line_num - lines_inside
            if any(beyond_the_header) or None in row.values():
                remedy = f"put texts with {separator} in double quotes, or add the missing fields"
                raise CourseError(f"{path}, row {line}: not as many fields as the header; {remedy}.")
            rows[line] = row
    except csv.Error:
        remedy = "close it, or write it twice inside a quoted text"
        raise CourseError(f"{path}, row {line + 1}: a double quote is not closed; {remedy}.") from None
    _refuse_swallowed_rows(path, names, rows, delimiter)
    return [name for name in names if name], rows


def _header(path, names, delimiter):
    """The names of the columns, without spaces around them; raises CourseError for what is no header."""
    names = [name.strip().strip("\ufeff") for name in names]
    if names and names[0].startswith("sep="):
        raise CourseError(f"{path}, row 1: {names[0]!r} is a note for Excel, and not a header; delete this line.")
    if len(names) == 1 and re.search("[,;\t|]", names[0]):
        remedy = "put a tab between the columns" if delimiter == "\t" else "put a comma between the columns"
        raise CourseError(f"{path}, row 1: the only column is {names[0]!r}; {remedy}.")
    _refuse_doubled(path, 1, [name for name in names if name], "a column")
    return names


def _refuse_swallowed_rows(path, names, rows, delimiter):
    """Raises CourseError for a quoted text that holds whole rows: its quote was meant as a character of the text."""
    values = set()  # of the last column, where a row is one line
    for row in rows.values():
        if "\n" not in "".join(row.values()):
            values.add(row[names[-1]].strip())
    for line, row in rows.items():
        for place, name in enumerate(names):
            first_line, line_end, _ = row[name].partition("\n")
            fields = first_line.split(delimiter)
            ends_a_row = len(fields) == len(names) - place > 1 and fields[-1].strip() in values
            if line_end and (ends_a_row or (delimiter == "\t" and "\t" in row[name])):
                lines = row[name].count("\n") + 1
                fault = f"a double quote opens a text of {lines} lines, which are rows of the table"
                raise CourseError(f"{path}, row {line}, column {name!r}: {fault}; write the quote twice, in quotes.")


def _read_list(path, text):
    """(names of the columns, {number from 1: row}) of a list of JSON objects; ([], {}) if the text is none."""
    if not text.lstrip().startswith("["):
        return [], {}
    number = 0

    def as_dict(pairs):
        _refuse_doubled(path, number + 1, [name for name, _ in pairs], "a key")
        return dict(pairs)

    decoder = json.JSONDecoder(object_pairs_hook=as_dict)
    names, rows = {}, {}
    end = text.index("[") + 1
    separator = re.compile(r"\s*(,?)\s*")
    try:
        while True:
            comma = separator.match(text, end)
            if text.startswith("]", comma.end()) and not text[comma.end() + 1 :].strip():
                return list(names), rows
            if bool(comma[1]) != bool(rows):
                return [], {}
            row, end = decoder.raw_decode(text, comma.end())
            number += 1
            if not isinstance(row, dict):
                return [], {}
            rows[number] = row
            names.update(dict.fromkeys(row))
    except CourseError:
        raise
    except (ValueError, RecursionError):
        if not rows:
            return [], {}
        remedy = "correct it there, or write one object a line in a .jsonl file"
        raise CourseError(f"{path}: the list of objects breaks off after object {number}; {remedy}.") from None


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


# ---- Parquet


def _read_parquet(path, split, declared):
    """The Table of a Parquet file; the class names that it states itself come before those of README.md."""
    import pyarrow  # not above: importing this module stays cheap
    from datasets import ClassLabel, Dataset
    from datasets.table import InMemoryTable
    from pyarrow import parquet

    if Path(path).suffix.lower() != ".parquet":
        raise CourseError(f"{path}: a Parquet file is compressed inside; unpack it.")
    try:
        with Path(path).open("rb") as file:
            if file.read(4) != b"PAR1":
                file.seek(0)
                _refuse_other_formats(path, file.read(200))
        rows = parquet.ParquetFile(path).read()
        dataset = Dataset(InMemoryTable(_plain_types(rows)))
    except CourseError:
        raise
    except PermissionError:
        remedy = f"allow it, for example with chmod +r {Path(path).name}"
        raise CourseError(f"{path}: you may not read this file; {remedy}.") from None
    except (OSError, ValueError, TypeError, KeyError, NotImplementedError, pyarrow.ArrowException) as error:
        what = "this is not a whole Parquet file, or has columns that cannot be read"
        raise CourseError(f"{path}: {what} ({_first_line(error)}); fetch or write it again.") from error
    features = dict(dataset.features)
    for name, feature in declared.items():
        if isinstance(feature, ClassLabel) and name in features and not isinstance(features[name], ClassLabel):
            features[name] = feature
    columns = {name: dataset[name] for name in dataset.column_names}  # read when they are asked for
    place = f"{path} (rows count from 0)"
    return Table(place, split, range(len(dataset)), columns, features, dataset=dataset)


def _plain_types(rows):
    """The Arrow table with plain values in place of what pandas calls categories, periods and the like."""
    from pyarrow import BaseExtensionType, types

    for place, column in enumerate(rows.schema):
        if types.is_dictionary(column.type):
            rows = rows.set_column(place, column.name, rows[place].cast(column.type.value_type))
        elif isinstance(column.type, BaseExtensionType):
            rows = rows.set_column(place, column.name, rows[place].cast(column.type.storage_type))
    return rows
