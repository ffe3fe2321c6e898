"""Comparisons that strangers wrote: read, never run; bad ones get a sentence; predictions survive interruptions."""

import contextlib
import csv
import json
import random
import signal
import subprocess
import sys
import time

import datasets
import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, refusal
from datasets import load_dataset
from datasets.exceptions import DatasetNotFoundError

from utils import errors, metrics, predictions
from utils.data import preferences, reading

COLUMNS = ["id", *preferences.TEXTS, *preferences.WINNERS]
A, B, TIE = (1, 0, 0), (0, 1, 0), (0, 0, 1)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "hf_cache")


def row(number, prompt='["Where is it?"]', a='["Here."]', b='["There."]', winners=A):
    """A row as a dict; its prompt tells its number, so that no two rows are repeats."""
    texts = (prompt.replace("?", f" {number}?"), a, b)
    return dict(zip(COLUMNS, (number, *texts, *winners), strict=True))


def rows(count):
    return [row(number, winners=(A, B, TIE)[number % 3]) for number in range(count)]


def table(*found):
    return pd.DataFrame(list(found), dtype=object)


def write(folder, name="train.csv", found=(), columns=COLUMNS):
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(found)
    return folder


# ---- turns: text that looks like a list, and nothing else


def test_turns_are_texts_and_null_is_an_empty_one():
    assert preferences.turns('["Where?", null, "NA", "null", ""]') == ["Where?", "", "NA", "null", ""]
    assert preferences.turns(" [] ") == []
    assert preferences.turns(r'["a\ud800b", "\udc00", "\ud83d\ude00"]') == ["a\ufffdb", "\ufffd", "😀"]
    assert preferences.turns('["\ud800"]') == ["\ufffd"]


@pytest.mark.parametrize(
    ("cell", "fault"),
    [
        ("Where is the horn?", "is not JSON"),
        ("", "is not JSON"),
        ("['Where?', None]", "is not JSON"),
        ('["Where?"', "is not JSON"),
        ('["Where?",\n]', "is not JSON"),
        ('["Where?"] ["there"]', "is not JSON"),
        (f"[{'9' * 5000}]", "is not JSON"),
        ("[" * 100_000, "nested too deep"),
        ('{"a":' * 100_000, "nested too deep"),
        ('["Where?", 7]', "is not a list of texts"),
        ('["Where?", ["there"]]', "is not a list of texts"),
        ("[NaN]", "is not a list of texts"),
        ('{"Where": "there"}', "is not a list of texts"),
        ('"Where?"', "is not a list of texts"),
        ("null", "is not a list of texts"),
        (r'["nul\u0000"]', "holds a NUL"),
        (json.dumps(["x" * 10 * 2**20]), "10,485,764 characters long"),
        (None, "None is not text"),
        (float("nan"), "nan is not text"),
        (["Where?"], "is not text"),
    ],
)
def test_what_is_no_list_of_texts_gets_one_short_sentence(cell, fault):
    started = time.process_time()
    message = refusal(preferences.turns, cell)
    assert fault in message
    assert len(message) < 250
    assert time.process_time() - started < 1


def test_any_text_comes_back_or_is_refused():
    rng = random.Random(0)
    alphabet = [*'"\\[],aé😀\n\r\0\x85\u2028\ud800\udfff', "null"]
    refused = 0
    for _ in range(3000):
        texts = ["".join(rng.choices(alphabet, k=rng.randrange(8))) for _ in range(rng.randrange(4))]
        texts += [chr(rng.randrange(0x110000))]
        cell = json.dumps(texts, ensure_ascii=rng.random() < 0.5)
        if "\0" in "".join(texts):
            assert "holds a NUL" in refusal(preferences.turns, cell)
            refused += 1
            continue
        found = preferences.turns(cell)
        for text, turn in zip(json.loads(cell), found, strict=True):
            assert turn == "".join("\ufffd" if "\ud800" <= letter <= "\udfff" else letter for letter in text)
        "".join(found).encode()
    assert 100 < refused < 2900
    for _ in range(3000):  # no list at all, mostly: nothing but a CourseError may come out
        with contextlib.suppress(errors.CourseError):
            assert preferences.turns("".join(rng.choices(alphabet, k=rng.randrange(12)))) is not None


@pytest.mark.parametrize("column", preferences.TEXTS)
def test_a_cell_is_never_executed(tmp_path, column):
    canary = tmp_path / "canary"
    hostile = f"__import__('os').system('touch {canary}')"
    found = [*rows(200), row(900) | {column: hostile}]
    with pytest.raises(errors.CourseError, match="is not JSON"):
        preferences.turns(hostile)
    folder = write(tmp_path / "set", found=found)
    message = refusal(preferences.source, folder)
    assert f"train.csv, row 202, column {column!r}" in message
    dataset = load_dataset(**preferences.source(folder, "drop"))
    assert dataset["train"][200][column] == hostile, "the row must have come as far as clean"
    assert f"row 200, column {column!r}" in refusal(preferences.clean, dataset["train"].to_pandas(), "train")
    assert len(preferences.clean(dataset["train"].to_pandas(), "train", "drop")) == 200
    assert not canary.exists()
    eval(hostile)  # noqa: S307  what it would have done
    assert canary.exists()


# ---- source and clean: rows


BAD = {
    "empty prompt": (dict(prompt='["  "]'), "'prompt'", "write a question"),
    "no prompt": (dict(prompt="[]", a="[]", b="[]"), "'prompt'", "write a question"),
    "both empty": (dict(a="[null]", b='[" "]'), "'response_a'", "are both empty"),
    "too few turns": (dict(prompt='["Where?", "Why?"]'), "'response_a'", "'prompt': 2"),
    "too many turns": (dict(b='["There.", "So."]'), "'response_a'", "'response_b': 2"),
    "no winner": (dict(winners=(0, 0, 0)), "'winner_model_a'", "are 0, 0, 0; write 1 in one"),
    "two winners": (dict(winners=(1, 0, 1)), "'winner_model_a'", "are 1, 0, 1; write 1 in one"),
    "a word": (dict(winners=("yes", 0, 0)), "'winner_model_a'", "are yes, 0, 0; write 1 in one"),
    "half a win": (dict(winners=(0.5, 0.5, 0)), "'winner_model_a'", "are 0.5, 0.5, 0; write 1 in one"),
    "nothing": (dict(winners=(None, 0, 1)), "'winner_model_a'", "; write 1 in one"),
    "a long cell": (dict(a=json.dumps(["x" * 10 * 2**20])), "'response_a'", "10,485,764 characters long"),
    "deep": (dict(a="[" * 100_000), "'response_a'", "nested too deep"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_row_is_named_refused_or_dropped_and_counted(tmp_path, capsys, name):
    changes, column, fault = BAD[name]
    found = [*rows(150), row(900, **changes)]
    folder = write(tmp_path / "set", found=found)
    message = refusal(preferences.source, folder)
    assert f"train.csv, row 152, column {column}" in message
    assert fault in message
    message = refusal(preferences.clean, table(*found), "train")
    assert f"split 'train' (rows count from 0), row 150, column {column}" in message
    assert fault in message
    kept = preferences.clean(load_dataset(**preferences.source(folder, "drop"))["train"].to_pandas(), "train", "drop")
    assert "150 comparisons, 0 repeats and 1 bad rows were dropped" in capsys.readouterr().out
    assert kept[[*preferences.WINNERS]].to_numpy().tolist() == [list((A, B, TIE)[n % 3]) for n in range(150)]
    assert {str(kind) for kind in kept[[*preferences.WINNERS]].dtypes} == {"int64"}


def test_good_rows_pass_as_they_are(tmp_path):
    found = [*rows(5), row(7, a="[null]"), row(8, a='["", null]', b='["x", "y"]', prompt='["NA", "null?"]')]
    folder = write(tmp_path / "set", found=found)
    dataset = load_dataset(**preferences.source(folder))["train"]
    assert dataset.to_pandas().to_dict("records") == found
    assert preferences.clean(dataset.to_pandas(), "train").to_dict("records") == found


@pytest.mark.parametrize("empty", [None, float("nan"), " "])
def test_an_id_must_be_there(empty):
    message = refusal(preferences.clean, table(*rows(3), row(5) | {"id": empty}), "train")
    assert "row 3, column 'id': is empty" in message


def test_at_most_one_percent_is_dropped_but_one_row_always_may_be(capsys):
    bad = [row(900 + number, winners=(0, 0, 0)) for number in range(3)]
    assert len(preferences.clean(table(*rows(198), *bad[:2]), "train", "drop")) == 198
    assert "and 2 bad rows" in capsys.readouterr().out
    message = refusal(preferences.clean, table(*rows(197), *bad), "train", "drop")
    assert "(3 of 200 rows are bad; at most 1 % may be dropped)" in message
    assert "row 197" in message
    assert len(preferences.clean(table(*rows(2), *bad[:1]), "train", "drop")) == 2
    assert "(2 of 4 rows are bad" in refusal(preferences.clean, table(*rows(2), *bad[:2]), "train", "drop")
    assert "(1 of 1 rows are bad" in refusal(preferences.clean, table(*bad[:1]), "train", "drop")


def test_repeats_are_dropped_and_counted_with_the_same_id_or_another(capsys):
    found = rows(20)
    renamed = found[3] | {"id": 5003}
    kept = preferences.clean(table(*found, found[2], found[2], renamed), "train")
    assert kept.to_dict("records") == found
    assert "20 comparisons, 3 repeats and 0 bad rows were dropped" in capsys.readouterr().out
    swapped = found[4] | {"id": 5004, "response_a": found[4]["response_b"], "response_b": found[4]["response_a"]}
    assert len(preferences.clean(table(*found, swapped), "train")) == 21, "the other order is no repeat"


def test_an_id_stands_for_one_comparison():
    message = refusal(preferences.clean, table(*rows(20), row(900) | {"id": 7}), "train")
    assert "column 'id': 7 stands for two comparisons; give each" in message


# ---- source and clean: columns and files


def test_a_missing_column_is_named_with_the_closest(tmp_path):
    found = rows(3)
    folder = write(tmp_path / "set", found=found, columns=["id", "prompt", "respons_a", *COLUMNS[3:]])
    assert "no column 'response_a'" in refusal(preferences.source, folder)
    assert "rename the column 'respons_a' to 'response_a'" in refusal(preferences.source, folder)
    renamed = table(*found).rename(columns={"winner_tie": "winner_ties"})
    assert "rename the column 'winner_ties' to 'winner_tie'" in refusal(preferences.clean, renamed, "train")
    message = refusal(preferences.source, write(tmp_path / "other", columns=["text", "label"], found=[{"text": "x"}]))
    assert "no column 'id' among 'text', 'label'" in message


@pytest.mark.parametrize("split", ["train", "validation"])
def test_only_a_test_may_lack_the_winners_and_then_all_three(tmp_path, split):
    bare = COLUMNS[:4]
    for name, columns in ((split, bare), ("test", COLUMNS[:5])):
        folder = write(tmp_path / name, f"{name}.csv", rows(3), columns)
        assert "no column 'winner_" in refusal(preferences.source, folder)
        assert "no column 'winner_" in refusal(preferences.clean, table(*rows(3))[columns], name)
    folder = write(tmp_path / "good", "test.csv", rows(3), bare)
    dataset = load_dataset(**preferences.source(folder))
    assert [*preferences.clean(dataset["test"].to_pandas(), "test")] == bare


def test_the_folder_of_the_competition_loads_its_test_has_no_winners(tmp_path):
    folder = write(tmp_path / "set", found=rows(6))
    write(folder, "test.csv", rows(3), COLUMNS[:4])
    write(folder, "sample_submission.csv", rows(3), ["id", *preferences.WINNERS])
    dataset = load_dataset(**preferences.source(folder))
    assert {split: len(part) for split, part in dataset.items()} == {"train": 6, "test": 3}
    assert len(preferences.clean(dataset["train"].to_pandas(), "train")) == 6
    assert [*preferences.clean(dataset["test"].to_pandas(), "test")] == COLUMNS[:4]
    assert "are nan, nan, nan" in refusal(preferences.clean, dataset["test"].to_pandas(), "validation")


def test_rows_of_jsonl_are_numbered_by_line(tmp_path):
    lines = [json.dumps(found) for found in [*rows(2), row(9, winners=(1, True, 0))]]
    (tmp_path / "train.jsonl").write_text("\n".join(lines))
    assert "train.jsonl, row 3, column 'winner_model_a'" in refusal(preferences.source, tmp_path)
    assert "correct dataset_id" in refusal(preferences.source, tmp_path / "nothing.csv")
    assert preferences.source("lmsys/lmsys-arena-human-preference-55k") == {
        "path": "lmsys/lmsys-arena-human-preference-55k"
    }


@pytest.mark.parametrize("problem", [DatasetNotFoundError, FileNotFoundError, PermissionError, ConnectionError])
def test_a_set_that_cannot_be_read_gets_one_sentence(problem):
    def read(problem):
        with reading.readable("some/set"):
            raise problem

    page = "some/set: cannot be read; if it is gated, open https://huggingface.co/datasets/some/set, accept its terms"
    assert refusal(read, problem("line\nline")).startswith(page)
    assert refusal(read, errors.CourseError("Mine stays.")) == "Mine stays."
    with pytest.raises(KeyError):
        read(KeyError("a fault of the program is not hidden"))
    with reading.readable("some/set"):
        pass


# ---- write_probabilities

IDS = [f"n{number}" for number in (5, 3, 11, 2, 7, 19, 13, 17, 23, 29)]
LENGTHS = [4, 9, 2, 7, 7, 1, 8, 3, 6, 5]
SCRIPT = """
import os, signal, sys
from test_comparisons import IDS, LENGTHS, predict
from utils import predictions
from utils.data import preferences

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
    folders = f"{ROOT}:{ROOT / 'tests'}"
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


# ---- metrics


def test_the_calibration_error_is_that_of_a_computation_by_hand():
    # statements in order: .1 false, .1 true, .2 false | .2 false, .7 true, .7 false
    error, points = metrics.calibration_error([[0.7, 0.2, 0.1], [0.7, 0.1, 0.2]], [0, 1], bins=2)
    assert [size for *_, size in points] == [3, 3]
    assert [stated for stated, *_ in points] == pytest.approx([0.4 / 3, 1.6 / 3])
    assert [share for _, share, _ in points] == pytest.approx([1 / 3, 1 / 3])
    assert error == pytest.approx((0.2 + 0.2) / 2)
    assert metrics.calibration_error([[1, 0, 0], [0, 1, 0]], [0, 1])[0] == 0
    assert metrics.calibration_error([[1, 0, 0], [0, 1, 0]], [1, 0])[0] == pytest.approx(2 / 3)
    assert len(metrics.calibration_error(np.full((40, 3), 1 / 3), [0] * 40, bins=10)[1]) == 10


def test_who_means_what_he_says_has_a_small_calibration_error_and_a_boaster_a_large_one():
    rng = np.random.default_rng(0)
    said = rng.dirichlet([1, 1, 1], size=4000)
    happened = (said.cumsum(axis=1) > rng.random((4000, 1))).argmax(axis=1)
    boast, modest = (said**power / (said**power).sum(axis=1, keepdims=True) for power in (3, 0.3))
    assert metrics.calibration_error(said, happened)[0] < 0.02
    assert metrics.calibration_error(boast, happened)[0] > 0.1
    assert metrics.calibration_error(modest, happened)[0] > 0.1


def test_flips_are_counted_against_the_answer_not_the_place():
    straight = np.random.default_rng(0).dirichlet([1, 1, 1], size=50)
    assert metrics.flip_rate(straight, straight[:, [1, 0, 2]]) == 0, "the same answer wins in either place"
    says_a = np.tile([0.8, 0.1, 0.1], (50, 1))
    assert metrics.flip_rate(says_a, says_a) == 1
    assert metrics.flip_rate(np.tile([0.1, 0.1, 0.8], (50, 1)), np.tile([0.1, 0.1, 0.8], (50, 1))) == 0
    half = np.concatenate([says_a[:25], says_a[:25, [1, 0, 2]]])
    assert metrics.flip_rate(says_a, half) == 0.5


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
