"""Lesson 01 as a reader runs it: headless, offline, killed, untrained, on other models and data, and with bad input."""

import ast
import csv
import json
import math
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import random_models
from conftest import LESSON, ROOT
from transformers import TrainingArguments

from tools import notebooks
from utils import results

NOTEBOOK = ROOT / "notebooks" / f"{LESSON}.ipynb"
RECIPE = ROOT / "recipes" / "01_full_fine_tuning.py"
MARGIN = 0.08  # measured on three seeds: 0.12 to 0.15 above the baseline
TIMES = {"train_seconds", "rows_per_second", "real_tokens_per_second", "padded_tokens_per_second", "wall_seconds"}
SHORT = {"max_steps": 40, "eval_steps": 10, "compare_steps": 2}  # a run that is there to be compared
FEW = {"max_steps": 3, "eval_steps": 3, "compare_steps": 1}  # a run that is there to reach its end


def learned(record):
    return record["after"] >= max(record["baseline"], record["before"]) + MARGIN


@pytest.fixture(scope="session")
def untrained(run_cells):
    """The negative control: the same run with learning rate 0."""
    return run_cells(NOTEBOOK, {"learning_rate": 0, **SHORT})


@pytest.fixture(scope="session")
def short(run_notebook):
    """A short run in a kernel."""
    return run_notebook("01", "--overrides", json.dumps(SHORT))


@pytest.fixture(scope="session")
def own_data(run_cells, tmp_path_factory):
    """A CSV file of a reader's own: three string classes, one file, words that the tiny world does not know."""
    patterns = {
        "billing": ["why was i charged {} for the {}", "the invoice for {1} is wrong", "refund {} for the {}"],
        "shipping": ["where is my {1}", "the {1} has not arrived after {0}", "track the parcel with my {1}"],
        "NA": ["i want to send back the {1}", "how do i return a {1} within {0}", "the {1} does not fit"],
    }
    rng, rows = random.Random(0), set()
    for label, texts in patterns.items():
        while sum(row[1] == label for row in rows) < 40:
            when = rng.choice(["twice", "two weeks", "a month", "9 days", "a year"])
            what = rng.choice(["jacket", "phone", "lamp", "book", "helmet", "keyboard", "coat", "kettle", "tent"])
            rows.add((rng.choice(texts).format(when, what), label))
    path = tmp_path_factory.mktemp("own") / "tickets.csv"
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("text", "label"), *sorted(rows)])
    return run_cells(NOTEBOOK, {"dataset_id": str(path), "max_steps": 100, "compare_steps": 1})


def test_it_learns(lesson):
    record = lesson.results
    assert learned(record), record
    assert 0.60 <= record["baseline"] <= 0.90
    assert record["n_eval"] == 200
    assert record["metrics"]["random_weights"] <= record["baseline"], "the control of what pre-training brings"


def test_without_learning_it_does_not(untrained):
    assert untrained.code == 0, untrained.text
    assert not learned(untrained.results)
    assert untrained.results["after"] <= 1 / 5 + 0.10
    assert untrained.results["overrides"] == {"learning_rate": 0, **SHORT}
    assert untrained.results["settings"]["learning_rate"] == 0


def test_killed_and_run_again_it_ends_as_if_nothing_had_happened(short, run_cells, tmp_path, monkeypatch):
    """kill -9 between two evaluations, then the same notebook to go on; compared with a run that nobody killed.

    From elsewhere: nothing depends on the folder in which it is started, and nothing is left there. And the proof that
    run_cells, which other tests take, gives what a kernel gives.
    """
    assert short.code == 0, short.text
    monkeypatch.chdir(tmp_path)
    out = tmp_path.parent / "killed"
    killed = run_cells(NOTEBOOK, SHORT, out, kill_when="checkpoints/checkpoint-20/trainer_state.json")
    assert killed.code == -9, killed.text
    assert not (killed.folder / "model").exists()
    done = run_cells(NOTEBOOK, {**SHORT, "resume_from_checkpoint": True}, out)
    assert done.code == 0, done.text
    assert re.search("Going on from checkpoint-[23]0", done.text), done.text
    for key in set(short.results) - TIMES - {"settings", "overrides"}:
        assert done.results[key] == short.results[key], key
    for name in ("model/model.safetensors", "test_logits.npy"):
        assert (done.folder / name).read_bytes() == (short.folder / name).read_bytes(), name
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="session")
def few_rows(tmp_path_factory):
    """A folder with the first rows of each split."""
    folder = tmp_path_factory.mktemp("few")
    for split, rows in {"train": 48, "validation": 16, "test": 16}.items():
        lines = (ROOT / "data" / "driver_intent" / f"{split}.jsonl").read_text().splitlines(keepends=True)
        (folder / f"{split}.jsonl").write_text("".join(lines[:rows]))
    return folder


@pytest.mark.parametrize("family", random_models.ENCODERS)
def test_another_encoder_is_one_id(family, few_rows, run_cells, tmp_path):
    """Random weights, a few steps: each family of encoders gets to the end, and the lesson saves one of its kind."""
    texts = [json.loads(line)["text"] for line in (ROOT / "data/driver_intent/train.jsonl").read_text().splitlines()]
    folder = random_models.encoder(family, tmp_path / family, texts)
    done = run_cells(NOTEBOOK, {"model_id": str(folder), "dataset_id": str(few_rows), **FEW})
    assert done.code == 0, done.text
    assert "parameters without a gradient: none" in done.text
    assert "Lesson complete." in done.text
    assert json.loads((done.folder / "model/config.json").read_text())["model_type"] == family


def test_the_table_of_arguments_says_what_the_library_does(tmp_path):
    """The third column of the table in section 6 holds the defaults, in the order of the arguments in the second."""
    table = next("".join(cell["source"]) for cell in notebooks.read(NOTEBOOK)["cells"] if cell["id"] == "loop")
    args = TrainingArguments(tmp_path)
    compared = 0
    for _, _, names, defaults, _ in (line.split("|") for line in table.splitlines() if line.startswith("| `")):
        names = re.findall("`([a-z0-9_]+)`", names)
        written = re.findall("`([^`]+)`", defaults)
        for name, default in zip(names, written, strict=True):
            actual = getattr(args, name)
            expected = ast.literal_eval(default)
            if name == "report_to":
                actual = actual or "none"
            assert getattr(actual, "value", actual) == expected, name
            compared += 1
    assert compared >= 18


@pytest.mark.parametrize("profile", ["colab", "full"])
def test_bert_is_trained_as_its_paper_recommends(profile):
    """Devlin et al., Appendix A.3: the lesson says so."""
    cells = [cell.source for cell in notebooks.code_cells(notebooks.read(NOTEBOOK))]
    space = {"PROFILE": profile, "OVERRIDES": {}}
    exec(next(source for source in cells if "SETTINGS = {" in source), space)  # the lesson's own code
    assert space["run"].per_device_train_batch_size in (16, 32)
    assert space["run"].learning_rate in (2e-5, 3e-5, 5e-5)


def run_recipe(run_script, folder, *options):
    """The accuracy on the test split that the recipe prints."""
    done = run_script(RECIPE, "--output", folder / "outputs", *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return float(re.search(r"'test_accuracy': '?([0-9.]+)", done.stdout)[1]), done.stdout


def test_the_recipe_reaches_the_score_of_the_lesson(lesson, run_script, tmp_path):
    """Within 0.06: it begins at another point of the random numbers, and two seeds can differ by so much."""
    accuracy, text = run_recipe(run_script, tmp_path)
    assert accuracy == pytest.approx(lesson.results["after"], abs=0.06)
    assert accuracy >= lesson.results["baseline"] + MARGIN
    assert "driver_window_down" in text.splitlines()[-1], "it predicts a class by its name"
    assert (tmp_path / "outputs/model/model.safetensors").exists()


def test_the_recipe_without_learning_does_not(run_script, tmp_path):
    accuracy, _ = run_recipe(run_script, tmp_path, "--learning-rate", "0", "--epochs", "0.1")
    assert accuracy <= 1 / 5 + 0.10


def test_the_network_guard_blocks(offline):
    code = "import urllib.request; urllib.request.urlopen('http://192.0.2.1', timeout=1)"
    done = subprocess.run([sys.executable, "-c", code], env=offline, capture_output=True, text=True)
    assert "the tests allow no network" in done.stderr


def test_results_follow_the_contract(lesson):
    record = lesson.results
    assert list(record) == results.KEYS
    assert record["lesson"] == LESSON
    assert record["trainable_parameters"] == record["total_parameters"] == 1_694_981
    assert record["weights_bytes"] == 4 * record["total_parameters"]
    assert record["planned_peak_bytes"] > 16 * record["total_parameters"]
    assert record["rows_per_second"] * record["train_seconds"] == pytest.approx(record["metrics"]["steps"] * 16)
    assert record["padded_tokens_per_second"] > record["real_tokens_per_second"]
    assert record["metrics"]["padding"]["every row to 512"] > 0.95
    assert record["settings"]["model_id"] == record["model_id"] == "./data/models/tiny-bert"
    assert (record["settings"]["learning_rate"], record["overrides"]) == (3e-4, {})
    assert record["train_seconds"] < record["wall_seconds"] < 3600
    assert str(ROOT) not in json.dumps(record)


def test_what_a_run_leaves_behind(lesson):
    for name in (
        f"{LESSON}.ipynb",
        "lengths.png",
        "learning_curve.png",
        "scores.png",
        "confusion_matrix.png",
        "model/model.safetensors",
    ):
        assert (lesson.folder / name).stat().st_size > 1000, name
    assert list((lesson.folder / "checkpoints").rglob("events.out.tfevents*")), "no TensorBoard log"
    assert not list((ROOT / "notebooks").glob("*.partial*"))


def test_every_cell_ran_and_few_lines_are_noise(lesson):
    code = [cell for cell in lesson.notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    errors = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert len(errors) == 1, errors  # the load report, which the lesson reads
    assert "classifier.weight" in errors[0]


def test_the_saved_model_answers_the_same_in_a_fresh_process(lesson, run_script, tmp_path):
    code = f"""
import numpy as np, torch
from datasets import load_dataset
from transformers import AutoModelForSequenceClassification, AutoTokenizer
folder = {str(lesson.folder)!r}
model = AutoModelForSequenceClassification.from_pretrained(folder + "/model").eval()
tokenizer = AutoTokenizer.from_pretrained(folder + "/model")
texts = load_dataset({str(ROOT / "data" / "driver_intent")!r}, split="test")["text"][:]
with torch.no_grad():
    logits = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.numpy()
np.save("logits.npy", logits)
"""
    done = run_script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = np.load(lesson.folder / "test_logits.npy")
    np.testing.assert_allclose(np.load(tmp_path / "logits.npy"), expected, atol=1e-4)
    assert np.abs(expected).max() > 1, "a model that says nothing would pass"


def test_own_csv_trains_and_reaches_its_baseline(own_data):
    assert own_data.code == 0, own_data.text
    record = own_data.results
    assert record["after"] >= record["baseline"] > record["before"]
    assert set(record["metrics"]["report"]) >= {"billing", "shipping", "NA"}
    assert record["n_train"] + record["n_eval"] < 120, "the validation split takes its share"


@pytest.mark.parametrize(
    ("overrides", "parts"),
    [
        ({"dataset_id": "BAD.csv"}, ["BAD.csv, row 3, column 'label'", "empty label", "delete the row"]),
        ({"learning_rat": 1}, ["learning_rat", "closest: 'learning_rate'"]),
    ],
)
def test_bad_input_stops_before_training(run_cells, tmp_path, monkeypatch, overrides, parts):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "BAD.csv").write_text("text,label\nopen it,a\nclose it,\n")
    done = run_cells(NOTEBOOK, overrides)
    assert done.code != 0
    assert not [part for part in parts if part not in done.text], done.text
    assert not (done.folder / "checkpoints").exists()


@pytest.mark.parametrize("name", ["_template", f"solutions/{LESSON}"])
def test_template_and_solutions_run(run_cells, name):
    done = run_cells(ROOT / "notebooks" / f"{name}.ipynb", {} if name == "_template" else {"epochs": 1})
    assert done.code == 0, done.text
    if name == "_template":
        assert done.results["after"] > done.results["baseline"]
        assert done.results["metrics"]["start_loss"] == pytest.approx(math.log(5), abs=0.5)
