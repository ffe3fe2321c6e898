"""Predictions for a table of comparisons that survive an interruption."""

import csv
import hashlib
import json
import math
import os
from collections import Counter
from pathlib import Path

from utils.data.preferences import WINNERS
from utils.errors import CourseError, first_ten


def write_probabilities(path, ids, lengths, predict, batch_size, made_by=()):
    """Writes a CSV of id and WINNERS for n comparisons, in the order of ids, and returns its Path.

    predict(rows): probabilities of shape (len(rows), 3) for row numbers, whose order is by length, longest first.
    After each batch its rows go to `path`.partial: a run that was interrupted goes on behind the last whole batch, and
    ends with the same file. made_by: files that decide what is predicted, such as an adapter; what was written with
    other contents is not taken. Raises CourseError if ids repeat, if the partial file is of other ids or damaged, or if
    a row is not three probabilities whose sum is 1 within 1e-6.
    """
    path = Path(path)
    ids = [str(name) for name in ids]
    _check_ids(path, ids)
    partial = _partial_file(path, made_by)
    batches = _batches_by_length(lengths, batch_size)
    done = _finished_rows(partial, ids, batches)
    with partial.open("a", encoding="utf-8") as file:
        for number, batch in enumerate(batches, 1):
            if batch[0] in done:
                continue
            rows = [[float(value) for value in row] for row in predict(batch)]
            _check_probabilities(path, number, rows, batch)
            done.update(zip(batch, rows, strict=True))
            file.writelines(_line(ids[row], done[row]) for row in batch)
            file.flush()
            print(f"\r{len(done)} of {len(ids)} comparisons", end="", flush=True)
    print()
    _write_table(path, ids, done)
    partial.unlink()
    return path


def _check_ids(path, ids):
    """Raises CourseError for ids that stand twice."""
    doubled = sorted(name for name, count in Counter(ids).items() if count > 1)
    if doubled:
        raise CourseError(f"{path}: {first_ten(doubled)} twice; ids must differ.")


def _partial_file(path, made_by):
    """The Path of what is done so far; a checksum of the files `made_by` is part of its name."""
    if not made_by:
        return path.with_name(f"{path.name}.partial")
    digest = hashlib.sha256()
    for file in made_by:
        digest.update(Path(file).read_bytes())
    return path.with_name(f"{path.name}.{digest.hexdigest()[:12]}.partial")


def _batches_by_length(lengths, batch_size):
    """Row numbers in batches, the longest rows first."""
    order = sorted(range(len(lengths)), key=lambda row: -lengths[row])
    return [order[first : first + batch_size] for first in range(0, len(order), batch_size)]


def _line(name, probabilities):
    """A line of the partial file: id and three probabilities, as a JSON list."""
    return json.dumps([name, *probabilities]) + "\n"


def _finished_rows(partial, ids, batches):
    """{row number: probabilities} of the batches that stand whole in the partial file; cuts off what stands behind.

    Raises CourseError for a line that is not the one which an earlier run of these comparisons has written.
    """
    lines = []
    if partial.exists():
        text = partial.read_text("utf-8", "replace")
        lines = text.split("\n")[:-1]  # what stands behind the last line break was torn off
    done = {}
    for batch in batches:
        lines_of_batch = lines[len(done) : len(done) + len(batch)]
        if len(lines_of_batch) < len(batch):
            break
        for row, line in zip(batch, lines_of_batch, strict=True):
            done[row] = _probabilities_of(line, ids[row])
            if done[row] is None:
                raise CourseError(f"{partial}: it is of other comparisons, or damaged; delete it to begin anew.")
    partial.write_text("".join(f"{line}\n" for line in lines[: len(done)]), encoding="utf-8")
    return done


def _probabilities_of(line, name):
    """The probabilities in a line of the partial file; None if it is not a whole one of the comparison `name`."""
    try:
        written_name, *probabilities = json.loads(line)
        if written_name == name and _are_probabilities(probabilities):
            return probabilities
    except (ValueError, TypeError):
        pass
    return None


def _are_probabilities(row):
    return len(row) == len(WINNERS) and min(row) >= 0 and math.isclose(sum(row), 1, abs_tol=1e-6)


def _check_probabilities(path, number, rows, batch):
    """Raises CourseError if `rows` are not three probabilities for each row of the batch with this number."""
    if len(rows) != len(batch) or not all(map(_are_probabilities, rows)):
        remedy = "predict must return a row of three for each number, each row with the sum 1"
        raise CourseError(f"{path}: the probabilities of batch {number} are not whole; {remedy}.")


def _write_table(path, ids, done):
    """Writes id and probabilities in the order of ids; the file gets its name when it is complete."""
    whole = path.with_name(f"{path.name}.whole")
    with whole.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["id", *WINNERS])
        for row, name in enumerate(ids):
            writer.writerow([name, *done[row]])
    os.replace(whole, path)
