"""Experiment trackers: one setting, offline, no login; each is tried where its package is installed."""

import json
import os
import re
import subprocess
import sys

import pytest
from conftest import ROOT, refusal

from utils import trackers

RUN = """
import json, sys
import torch
from transformers import BertForSequenceClassification, Trainer, TrainingArguments
from utils import session

sys.path.insert(0, "tests/support")
import small_models

session.report()
model = BertForSequenceClassification(small_models.BERT)
batch = small_models.bert_batch(rows=4)
rows = [{name: tensor[row] for name, tensor in batch.items()} for row in range(4)]
args = TrainingArguments(
    sys.argv[1],
    max_steps=4,
    logging_steps=1,
    eval_strategy="steps",
    eval_steps=2,
    report_to=sys.argv[2],
    run_name="tracked",
    use_cpu=True,
)
trainer = Trainer(model=model, args=args, train_dataset=rows, eval_dataset=rows)
trainer.train()
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
with open(sys.argv[3], "w") as file:
    json.dump(losses, file)
"""


def losses_in_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    [log] = folder.rglob("events.out.*")
    events = EventAccumulator(str(log))
    events.Reload()
    return [event.value for event in events.Scalars("train/loss")]


def losses_in_wandb(folder):
    """Out of the bytes of its log, where each value stands as text behind its name, once or more often."""
    [log] = folder.rglob("*.wandb")
    losses = []
    for text in re.findall(rb"train/loss\x82\x01.([0-9.]+)", log.read_bytes(), re.DOTALL):
        loss = float(text)
        if loss not in losses:
            losses.append(loss)
    return losses


def losses_in_trackio(folder):
    import sqlite3

    losses = []
    for file in folder.rglob("*.db"):
        with sqlite3.connect(file) as connection:
            for (metrics,) in connection.execute("SELECT metrics FROM metrics ORDER BY id"):
                losses += [value for name, value in json.loads(metrics).items() if name == "train/loss"]
    return losses


READERS = {
    "tensorboard": losses_in_tensorboard,
    "wandb": losses_in_wandb,
    "trackio": losses_in_trackio,
}


def tracked_training(name, tmp_path, offline):
    """Runs a training of four steps in a fresh process, with nobody to answer a question; returns its losses."""
    environment = {**offline, "PYTHONPATH": f"{offline['PYTHONPATH']}:{ROOT}"}
    for variable in ("WANDB_DIR", "TRACKIO_DIR", "AIM_REPO", "TENSORBOARD_LOGGING_DIR"):
        folder = tmp_path / "tracked"
        folder.mkdir(exist_ok=True)
        environment[variable] = str(folder)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(tmp_path / "out"), name, str(tmp_path / "losses.json")],
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((tmp_path / "losses.json").read_text())


@pytest.mark.parametrize("name", READERS)
def test_it_writes_the_losses_without_a_login(name, tmp_path, offline):
    pytest.importorskip(name)
    expected = tracked_training(name, tmp_path, offline)
    assert len(expected) == 4
    assert READERS[name](tmp_path) == pytest.approx(expected, rel=1e-4)


def test_aim_has_the_run_without_a_login(tmp_path, offline):
    aim = pytest.importorskip("aim")
    assert len(tracked_training("aim", tmp_path, offline)) == 4
    assert len(aim.Repo(str(tmp_path / "tracked")).list_all_runs()) == 1


def test_a_choice_of_the_reader_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path))
    trackers.keep_offline()
    assert (os.environ["WANDB_MODE"], os.environ["WANDB_DIR"]) == ("online", str(tmp_path))


def test_without_the_package_of_aim_a_sentence_says_so(monkeypatch):
    monkeypatch.setattr(trackers.importlib.util, "find_spec", lambda name: None)
    assert "the package aim is not installed" in refusal(trackers._aim_callback())
