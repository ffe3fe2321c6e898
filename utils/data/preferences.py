"""Data of lesson 05: comparisons of two answers."""

import json
import re
import reprlib

from utils.data import reading, rules
from utils.errors import CourseError, first_ten

TEXTS = ("prompt", "response_a", "response_b")
WINNERS = ("winner_model_a", "winner_model_b", "winner_tie")  # the classes 0, 1 and 2
LONGEST = 1_000_000  # characters of a cell


def turns(cell):
    """The turns of a cell, a JSON-encoded list of texts, as a list of strings; null (no answer) becomes "".

    Half characters, which JSON can spell and no file can hold (a lone surrogate such as \\ud800), become "\ufffd".
    Nothing in the cell is executed. Raises CourseError that says what is wrong, but not where.
    """
    remedy = 'write a JSON list of texts, such as ["one turn", "the next"], with null for no answer'
    if not isinstance(cell, str):
        raise CourseError(f"{reprlib.repr(cell)} is not text; {remedy}.")
    if len(cell) > LONGEST:
        raise CourseError(f"is {len(cell):,} characters long ({LONGEST:,} may be); shorten it, or delete the row.")
    try:
        found = json.loads(cell)
    except RecursionError:
        raise CourseError(f"{reprlib.repr(cell)} is nested too deep; {remedy}.") from None
    except ValueError:
        raise CourseError(f"{reprlib.repr(cell)} is not JSON; {remedy}.") from None
    if not isinstance(found, list) or not all(turn is None or isinstance(turn, str) for turn in found):
        raise CourseError(f"{reprlib.repr(cell)} is not a list of texts; {remedy}.")
    if any("\0" in (turn or "") for turn in found):
        raise CourseError(f"{reprlib.repr(cell)} holds a NUL; retype it.")
    return [re.sub("[\ud800-\udfff]", "\ufffd", turn or "") for turn in found]


def required(split, columns):
    """The columns that a split must have. A test may lack the winners, all three of them."""
    return ("id", *TEXTS, *(WINNERS if split != "test" or {*WINNERS} & {*columns} else ()))


def source(dataset_id, bad_rows="refuse"):
    """Checks local data files and returns the arguments for `load_dataset`, as `checks.data_source` does.

    The files need the columns of `required`. bad_rows: "refuse", or "drop", which
    leaves it to `clean`. Raises CourseError for a wrong path and for the first kind of bad row.
    """

    def check(file, split, rows, features):
        rules.check_columns(file, rows, required(split, rows), features)
        if bad_rows == "refuse":
            for row, fault in faults(rows.to_dict("index")).items():
                raise CourseError(f"{file}, row {row}, {fault}")

    return reading.read_source(dataset_id, TEXTS, check)


def clean(table, split, bad_rows="refuse"):
    """A DataFrame of comparisons without repeats, and its bad rows refused, or dropped and counted.

    A repeat has the texts of an earlier row. Prints what was dropped. Winners come back as whole numbers; a test that
    has none, or only nulls, comes back without these columns. Raises CourseError for a missing column, for an id that
    stands for two comparisons, for the first bad row if bad_rows is "refuse", and for more than 1 % of them.
    """
    where = f"split {split!r} (rows count from 0)"
    if split == "test" and {*WINNERS} <= {*table} and table[[*WINNERS]].isna().all(axis=None):
        table = table.drop(columns=[*WINNERS])  # load_dataset gave a test file without them the columns of train
    rules.check_columns(where, table, required(split, table), {})
    table = table.reset_index(drop=True)
    bad = faults(table.to_dict("index"))
    if bad and (bad_rows != "drop" or len(bad) > max(1, len(table) // 100) or len(bad) == len(table)):
        row, fault = next(iter(bad.items()))
        more = f" ({len(bad)} of {len(table)} rows are bad; at most 1 % may be dropped)" * (bad_rows == "drop")
        raise CourseError(f"{where}, row {row}, {fault.rstrip('.')}{more}.")
    kept = table.drop(index=list(bad)).drop_duplicates([*TEXTS])
    winners = {*WINNERS} & {*kept}  # one bad row turns a column of numbers into texts
    kept = kept.astype(dict.fromkeys(winners, float)).astype(dict.fromkeys(winners, int))
    if twice := sorted(kept["id"][kept["id"].duplicated()].astype(str)):
        remedy = "give each comparison an id of its own, or delete one"
        raise CourseError(f"{where}, column 'id': {first_ten(twice)} stands for two comparisons; {remedy}.")
    repeats = len(table) - len(bad) - len(kept)
    print(f"split {split!r}: {len(kept)} comparisons, {repeats} repeats and {len(bad)} bad rows were dropped")
    return kept.reset_index(drop=True)


def faults(rows):
    """{row number: what is wrong with it, with its column and the remedy}, for {row number: row as a dict}."""
    found = {}
    for number, row in rows.items():
        try:
            columns, column = {}, "id"
            if row["id"] is None or row["id"] != row["id"] or not str(row["id"]).strip():
                raise CourseError("is empty; give each comparison an id of its own.")
            for column in TEXTS:
                columns[column] = turns(row[column])
            column = "prompt"
            if not columns[column] or not "".join(columns[column]).strip():
                raise CourseError("is empty; write a question, or delete the row.")
            column = "response_a"
            if not "".join(columns["response_a"] + columns["response_b"]).strip():
                raise CourseError("and 'response_b' are both empty; delete the row.")
            lengths = {name: len(texts) for name, texts in columns.items()}
            if len({*lengths.values()}) > 1:
                raise CourseError(f"and the others differ in turns ({lengths}); give each as many as the prompt has.")
            column = WINNERS[0]
            if {*WINNERS} & {*row}:
                values = [str(row.get(winner)).removesuffix(".0") for winner in WINNERS]
                if sorted(values) != ["0", "0", "1"]:
                    said = ", ".join(values)
                    raise CourseError(f"to {WINNERS[-1]!r} are {said}; write 1 in one of the three, 0 in the others.")
        except CourseError as error:
            found[number] = f"column {column!r}: {error}"
    return found
