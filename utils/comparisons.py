"""Checks for comparisons of two answers, and predictions for a table of them that survive an interruption."""

import csv
import hashlib
import json
import math
import os
import re
import reprlib
from collections import Counter
from pathlib import Path

from utils import checks
from utils.checks import CourseError, some

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
        checks.check_columns(file, rows, required(split, rows), features)
        if bad_rows == "refuse":
            for row, fault in faults(rows.to_dict("index")).items():
                raise CourseError(f"{file}, row {row}, {fault}")

    return checks.read_source(dataset_id, TEXTS, check)


def clean(table, split, bad_rows="refuse"):
    """A DataFrame of comparisons without repeats, and its bad rows refused, or dropped and counted.

    A repeat has the texts of an earlier row. Prints what was dropped. Winners come back as whole numbers; a test that
    has none, or only nulls, comes back without these columns. Raises CourseError for a missing column, for an id that
    stands for two comparisons, for the first bad row if bad_rows is "refuse", and for more than 1 % of them.
    """
    where = f"split {split!r} (rows count from 0)"
    if split == "test" and {*WINNERS} <= {*table} and table[[*WINNERS]].isna().all(axis=None):
        table = table.drop(columns=[*WINNERS])  # load_dataset gave a test file without them the columns of train
    checks.check_columns(where, table, required(split, table), {})
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
        raise CourseError(f"{where}, column 'id': {some(twice)} stands for two comparisons; {remedy}.")
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


def write_probabilities(path, ids, lengths, predict, batch_size, made_by=()):
    """Writes a CSV of id and WINNERS for n comparisons, in the order of ids, and returns its Path.

    predict(rows): probabilities of shape (len(rows), 3) for row numbers, whose order is by length, longest first.
    After each batch its rows go to `path`.partial: a run that was interrupted goes on behind the last whole batch, and
    ends with the same file. made_by: files that decide what is predicted, such as an adapter; what was written with
    other contents is not taken. Raises CourseError if ids repeat, if the partial file is of other ids or damaged, or if
    a row is not three probabilities whose sum is 1 within 1e-6.
    """
    path, ids = Path(path), [str(name) for name in ids]
    if twice := sorted(name for name, count in Counter(ids).items() if count > 1):
        raise CourseError(f"{path}: {some(twice)} twice; ids must differ.")
    judge = hashlib.sha256(b"".join(Path(file).read_bytes() for file in made_by)).hexdigest()[:12] if made_by else ""
    partial = path.with_name(".".join([path.name, *filter(None, [judge]), "partial"]))
    order = sorted(range(len(ids)), key=lambda row: -lengths[row])
    batches = [order[at : at + batch_size] for at in range(0, len(order), batch_size)]
    text = partial.read_text("utf-8", "replace") if partial.exists() else ""
    lines = text.split("\n")[:-1]  # what stands behind the last line break was torn off
    done = {}
    for batch in batches:  # only batches that were written whole count
        own = lines[len(done) : len(done) + len(batch)]
        if len(own) < len(batch):
            break
        try:
            rows = [json.loads(line) for line in own]
            known = [row[0] for row in rows] == [ids[row] for row in batch] and all(_is_whole(row[1:]) for row in rows)
        except (ValueError, TypeError, LookupError):
            known = False
        if not known:
            raise CourseError(f"{partial}: it is of other comparisons, or damaged; delete it to begin anew.")
        done |= dict(zip(batch, (row[1:] for row in rows), strict=True))
    partial.write_text("".join(f"{line}\n" for line in lines[: len(done)]), encoding="utf-8")
    with partial.open("a", encoding="utf-8") as file:
        for number, batch in enumerate(batches):
            if batch[0] in done:
                continue
            values = [[float(value) for value in row] for row in predict(batch)]
            if len(values) != len(batch) or not all(map(_is_whole, values)):
                remedy = "predict must return a row of three for each number, each row with the sum 1"
                raise CourseError(f"{path}: the probabilities of batch {number + 1} are not whole; {remedy}.")
            done |= dict(zip(batch, values, strict=True))
            file.writelines(json.dumps([ids[row], *done[row]]) + "\n" for row in batch)
            file.flush()
            print(f"\r{len(done)} of {len(ids)} comparisons", end="", flush=True)
    print()
    whole = path.with_name(f"{path.name}.whole")
    with whole.open("w", encoding="utf-8", newline="") as file:
        table = [["id", *WINNERS], *([ids[r], *done[r]] for r in range(len(ids)))]
        csv.writer(file, lineterminator="\n").writerows(table)
    os.replace(whole, path)
    partial.unlink()
    return path


def _is_whole(row):
    return len(row) == len(WINNERS) and min(row) >= 0 and math.isclose(sum(row), 1, abs_tol=1e-6)
