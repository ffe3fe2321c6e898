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
    path, ids = Path(path), [str(name) for name in ids]
    if twice := sorted(name for name, count in Counter(ids).items() if count > 1):
        raise CourseError(f"{path}: {first_ten(twice)} twice; ids must differ.")
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
