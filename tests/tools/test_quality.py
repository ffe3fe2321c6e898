"""Scores of real models: receipts of several seeds, tables, and what happens where no model was named."""

import json

import pytest
from conftest import ROOT

from benchmarks import quality
from utils.errors import CourseError

RECORD = {
    "lesson": "01_bert_full_fine_tuning",
    "profile": "tiny",
    "model_id": "/somewhere/my-model/",
    "metric": "accuracy",
    "higher_is_better": True,
    "n_eval": 400,
    "total_parameters": 22_700_000,
    "overrides": {"model_id": "/somewhere/my-model/", "learning_rate": 1e-4},
    "device": "CPU, threads: 2",
    "versions": {"torch": "2"},
    "commit": "abc",
    "baseline": 0.7,
    "before": 0.2,
}


@pytest.fixture
def receipts(tmp_path, monkeypatch):
    """An empty folder of receipts and a copy of the page in place of the committed ones."""
    monkeypatch.setattr(quality, "FOLDER", tmp_path / "receipts")
    (tmp_path / "docs").mkdir()
    page = tmp_path / quality.PAGE
    page.write_text((ROOT / quality.PAGE).read_text())
    monkeypatch.setattr(quality.paths, "ROOT", tmp_path)
    return page


@pytest.fixture
def asked(monkeypatch):
    """The runs that were asked for; each scores 0.8 and a hundredth more a seed."""
    runs = []

    def run_lesson(number, profile, overrides, seed):
        runs.append((number, profile, overrides.get("learning_rate"), seed))
        record = RECORD | {"seed": seed, "profile": profile, "after": 0.8 + seed / 100, "overrides": overrides}
        if "model_id" not in overrides:
            record["model_id"] = "./data/models/tiny-bert"
        return record

    monkeypatch.setattr(quality, "run_lesson", run_lesson)
    return runs


def test_the_page_is_that_of_the_committed_receipts():
    page = (ROOT / quality.PAGE).read_text()
    assert quality.small_table() in page
    assert quality.large_table() in page


def test_a_real_model_is_scored_with_three_seeds_beside_the_tiny_one(receipts, asked, monkeypatch, tmp_path):
    monkeypatch.setenv("REAL_ENCODER", str(tmp_path / "my-model"))
    assert quality.main(["real", "--nb", "01"]) == 0
    assert asked == [("01", "tiny", 1e-4, seed) for seed in (0, 1, 2)] + [("01", "tiny", None, s) for s in (0, 1, 2)]
    line = next(line for line in receipts.read_text().splitlines() if line.startswith("| 01 "))
    assert "| 0.810 (0.800, 0.810, 0.820) | my-model, 22.7 million parameters | 400 |" in line
    kept = json.loads((tmp_path / "receipts" / "01_real.json").read_text())
    assert kept["overrides"] == {"learning_rate": 1e-4}, "the folder of the machine is not kept"
    assert str(tmp_path) not in json.dumps(kept)


def test_a_lesson_without_a_model_is_named_and_is_no_success(receipts, asked, monkeypatch, capsys):
    for model in quality.REAL.values():
        monkeypatch.delenv(model.variable, raising=False)
    assert quality.main(["real", "--nb", "04"]) == 2
    assert asked == []
    assert "Not run: lesson 04. Set REAL_DECODER to a folder with a decoder" in capsys.readouterr().err
    assert "| 04 |  |  |  | not measured yet |  |  |" in receipts.read_text()


def test_a_receipt_of_full_size_gets_a_line(receipts, asked):
    assert "No receipt has come in yet." in receipts.read_text()
    assert quality.main(["receipt", "--nb", "1", "--profile", "full"]) == 0
    assert asked == [("01", "full", None, 0)]
    text = receipts.read_text()
    assert "| 01 | full | tiny-bert | accuracy | 0.700 | 0.200 | 0.800 | 400 | CPU, threads: 2 |" in text
    assert "No receipt has come in yet." not in text


@pytest.mark.parametrize("options", [["receipt"], ["real", "--nb", "00"], ["receipt", "--nb", "01,02"]])
def test_what_cannot_be_scored_is_refused(receipts, asked, options, capsys):
    with pytest.raises(SystemExit) as stopped:
        quality.main(options)
    assert stopped.value.code == 2
    assert asked == []


def test_a_lesson_that_fails_is_no_receipt(receipts, monkeypatch, capsys):
    def fails(number, profile, overrides, seed):
        raise CourseError("it did not run to its end.")

    monkeypatch.setattr(quality, "run_lesson", fails)
    assert quality.main(["receipt", "--nb", "01"]) == 1
    assert "it did not run to its end." in capsys.readouterr().err
    assert quality.read("full") == {}
