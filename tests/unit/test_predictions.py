"""Predictions that survive interruptions: whatever stops the run, it ends with the same file."""

import csv
import json
import signal
import subprocess
import sys
import time

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, refusal

from utils import predictions
from utils.data import preferences

IDS = [f"n{number}" for number in (5, 3, 11, 2, 7, 19, 13, 17, 23, 29)]
LENGTHS = [4, 9, 2, 7, 7, 1, 8, 3, 6, 5]
SCRIPT = """
import os, signal, sys
from test_predictions import IDS, LENGTHS, predict
from utils import predictions

def batches(numbers, seen=[]):
    seen.append(numbers)
    if len(seen) == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)
    return predict(numbers)

predictions.write_probabilities(sys.argv[1], IDS, LENGTHS, batches, 3)
"""


def predict(numbers):
    """Three probabilities with many digits for each row number."""
    return [np.random.default_rng(number).dirichlet([1, 1, 1]) for number in numbers]


def interrupted(at):
    """predict, which raises in its call number `at` (from 1), and the list of the rows asked for."""
    calls = []

    def some_of(numbers):
        calls.append(list(numbers))
        if len(calls) == at:
            raise KeyboardInterrupt
        return predict(numbers)

    return some_of, calls


@pytest.fixture
def whole(tmp_path):
    """The bytes that an uninterrupted run writes."""
    return predictions.write_probabilities(tmp_path / "whole.csv", IDS, LENGTHS, predict, 3).read_bytes()


def test_each_id_has_its_probabilities_in_the_order_of_the_ids(tmp_path, whole):
    found = pd.read_csv(tmp_path / "whole.csv")
    assert [*found] == ["id", *preferences.WINNERS]
    assert found["id"].tolist() == IDS
    assert found[[*preferences.WINNERS]].to_numpy().tolist() == [row.tolist() for row in predict(range(10))]
    assert found[[*preferences.WINNERS]].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-6)
    assert [path.name for path in tmp_path.iterdir()] == ["whole.csv"]
    watched, calls = interrupted(at=None)
    predictions.write_probabilities(tmp_path / "again.csv", pd.Series(IDS), LENGTHS, watched, 3)
    assert calls == [[1, 6, 3], [4, 8, 9], [0, 7, 2], [5]], "longest first"
    assert (tmp_path / "again.csv").read_bytes() == whole


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_run_that_is_broken_off_goes_on_and_ends_with_the_same_file(tmp_path, whole, at):
    path = tmp_path / "found.csv"
    broken, asked = interrupted(at)
    with pytest.raises(KeyboardInterrupt):
        predictions.write_probabilities(path, IDS, LENGTHS, broken, 3)
    assert not path.exists(), "half a table must not stand under the final name"
    rest, asked_again = interrupted(at=None)
    predictions.write_probabilities(path, IDS, LENGTHS, rest, 3)
    assert path.read_bytes() == whole
    assert asked[: at - 1] + asked_again == [[1, 6, 3], [4, 8, 9], [0, 7, 2], [5]]
    assert not path.with_name("found.csv.partial").exists()


def test_a_killed_process_goes_on_also_behind_a_torn_line(tmp_path, whole):
    path, partial = tmp_path / "found.csv", tmp_path / "found.csv.partial"
    command = [sys.executable, "-c", SCRIPT, str(path), "3"]
    folders = f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'unit'}"
    killed = subprocess.run(command, env={"PYTHONPATH": folders, "PATH": ""}, capture_output=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    two_batches = partial.read_bytes()
    assert two_batches.count(b"\n") == 6
    assert not path.exists()
    torn = [(two_batches, 2), (two_batches + b'["n5", 0.2', 2), (two_batches[:-1], 1), (two_batches[:-30], 1)]
    third = b"".join(json.dumps([IDS[n], *predict([n])[0]]).encode() + b"\n" for n in (0, 7, 2))
    torn += [(two_batches + third[:-80], 2), (two_batches + third, 3), (b"", 0), (two_batches[:5], 0)]
    for left, done in torn:
        partial.write_bytes(left)
        rest, asked = interrupted(at=None)
        predictions.write_probabilities(path, IDS, LENGTHS, rest, 3)
        assert path.read_bytes() == whole
        assert len(asked) == 4 - done
        path.unlink()
    partial.write_bytes(two_batches + third[:-80])
    with pytest.raises(KeyboardInterrupt):  # broken off once more, one batch later
        predictions.write_probabilities(path, IDS, LENGTHS, interrupted(2)[0], 3)
    rest, asked = interrupted(at=None)
    assert predictions.write_probabilities(path, IDS, LENGTHS, rest, 3).read_bytes() == whole
    assert asked == [[5]]


def test_ids_may_hold_any_character(tmp_path):
    ids = ["a,b", 'a"b', "a\nb", "a\r\nb", "é\u2028", "\x0c", " 1", "1", "😀", "-"]
    expected = predictions.write_probabilities(tmp_path / "whole.csv", ids, LENGTHS, predict, 3).read_bytes()
    with (tmp_path / "whole.csv").open(encoding="utf-8", newline="") as file:
        assert [found["id"] for found in csv.DictReader(file)] == ids
    with pytest.raises(KeyboardInterrupt):
        predictions.write_probabilities(tmp_path / "b.csv", ids, LENGTHS, interrupted(4)[0], 3)
    rest, asked = interrupted(at=None)
    assert predictions.write_probabilities(tmp_path / "b.csv", ids, LENGTHS, rest, 3).read_bytes() == expected
    assert asked == [[5]]


def test_a_partial_file_of_other_comparisons_or_a_damaged_one_is_refused_and_kept(tmp_path):
    path, partial = tmp_path / "found.csv", tmp_path / "found.csv.partial"
    good = [json.dumps([IDS[number], *predict([number])[0]]) for number in (1, 6, 3)]
    others = [good[0].replace("n3", "n4"), '["n3", 1.0, 0.0]', '["n3", "1", "0", "0"]', "n3,1,0,0", "[]", "7", "", "\0"]
    for other in [*others, '["n3", 0.9, 0.0, 0.0]', "\udcff"]:
        left = "".join(f"{line}\n" for line in (other, *good[1:])).encode("utf-8", "surrogateescape")
        partial.write_bytes(left)
        message = refusal(predictions.write_probabilities, path, IDS, LENGTHS, predict, 3)
        assert "found.csv.partial: it is of other comparisons, or damaged; delete it" in message
        assert partial.read_bytes() == left
    partial.write_text("".join(f"{line}\n" for line in good))
    rest, asked = interrupted(at=None)
    predictions.write_probabilities(path, IDS, LENGTHS, rest, 3)
    assert len(asked) == 3, "the good one is taken"


def test_ids_twice_are_refused_at_once(tmp_path):
    message = refusal(predictions.write_probabilities, tmp_path / "x.csv", ["1", 1, "2"], [1, 1, 1], predict, 2)
    assert "1 twice; ids must differ" in message
    started = time.process_time()
    ids = [*range(20_000)] * 2
    assert "20000 in all" in refusal(predictions.write_probabilities, tmp_path / "x.csv", ids, ids, predict, 2)
    assert time.process_time() - started < 5
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "rows_of",
    [
        lambda numbers: [[0.5, 0.3, 0.2001]] * len(numbers),
        lambda numbers: [[0.5, 0.5]] * len(numbers),
        lambda numbers: [[-0.5, 1.0, 0.5]] * len(numbers),
        lambda numbers: [[float("nan"), 0.5, 0.5]] * len(numbers),
        lambda numbers: [[0.5, 0.3, 0.2]] * (len(numbers) - 1),
    ],
    ids=["sum", "two", "negative", "nan", "too few rows"],
)
def test_what_is_no_probability_is_refused(tmp_path, rows_of):
    message = refusal(predictions.write_probabilities, tmp_path / "x.csv", IDS, LENGTHS, rows_of, 3)
    assert "the probabilities of batch 1 are not whole" in message
    assert not (tmp_path / "x.csv").exists()
    predictions.write_probabilities(tmp_path / "x.csv", IDS, LENGTHS, lambda n: [[0.5, 0.3, 0.2000001]] * len(n), 3)


def test_what_another_model_had_begun_is_not_taken(tmp_path):
    adapter, path = tmp_path / "adapter", tmp_path / "x.csv"
    for content in ("first model", "second model"):
        adapter.write_text(content)
        with pytest.raises(KeyboardInterrupt):
            predictions.write_probabilities(path, IDS, LENGTHS, interrupted(2)[0], 3, made_by=[adapter])
    asked = []

    def watch(rows):
        asked.extend(rows)
        return [[0.5, 0.3, 0.2]] * len(rows)

    adapter.write_text("third model")
    predictions.write_probabilities(path, IDS, LENGTHS, watch, 3, made_by=[adapter])
    assert sorted(asked) == list(range(len(IDS)))
    asked.clear()
    adapter.write_text("second model")
    predictions.write_probabilities(path, IDS, LENGTHS, watch, 3, made_by=[adapter])
    assert 0 < len(asked) < len(IDS), "its own beginning is taken"
