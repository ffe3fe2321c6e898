"""An output folder holds one run: a failed, refused or killed one leaves the complete run before it as it was."""

import re
import subprocess
import sys

import pytest
from conftest import ROOT, notebooks

from utils import run_folder, session

FIRST, SECOND = "of the first run", "of the second run"


def files(folder):
    """{path below a folder: text} of all files in it."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(folder, text, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture
def folder(tmp_path):
    """The folder of a complete run, with a file of somebody else and checkpoints."""
    folder = tmp_path / "01_lesson"
    of_a_run = ("results.json", "01_lesson.ipynb", "01_lesson.log", "lengths.png", "model/model.safetensors")
    write(folder, FIRST, *of_a_run, "mine.csv", "checkpoints/checkpoint-5/x")
    return folder


def test_every_name_that_a_lesson_writes_is_known():
    written = set()
    for path in notebooks("0*.ipynb"):
        if path.parent.name == "notebooks":
            written |= set(re.findall(r'output_dir / \\?"([\w.]+)\\?"', path.read_text("utf-8")))
    assert len(written) > 20
    assert written - set(run_folder.NAMES) == {"checkpoints"}


def test_a_failed_run_leaves_the_one_before_as_it_was(folder):
    before = files(folder)
    assert run_folder.set_aside(folder)
    kept = {"mine.csv", "checkpoints/checkpoint-5/x"}
    assert {name for name in files(folder) if not name.startswith("earlier/")} == kept
    write(folder, SECOND, "lengths.png", "model/model.safetensors")
    assert run_folder.put_back(folder)
    new = {"unfinished/lengths.png": SECOND, "unfinished/model/model.safetensors": SECOND}
    assert files(folder) == before | new


def test_a_failed_run_that_wrote_nothing_leaves_no_trace(folder):
    before = files(folder)
    run_folder.set_aside(folder)
    run_folder.put_back(folder)
    assert files(folder) == before


def test_the_weights_of_a_failed_run_are_not_lost_to_the_next_failed_run(folder):
    for name in ("model/model.safetensors", "lengths.png", "scores.png"):
        run_folder.set_aside(folder)
        write(folder, name, name)
        run_folder.put_back(folder)
    found = files(folder)
    assert found["unfinished/model/model.safetensors"] == "model/model.safetensors"
    assert found["unfinished-2/scores.png"] == "scores.png"
    assert "unfinished-2/lengths.png" not in found


def test_a_complete_run_replaces_the_one_before(folder):
    run_folder.set_aside(folder)
    write(folder, SECOND, "results.json")
    run_folder.complete(folder)
    assert files(folder) == {"results.json": SECOND, "mine.csv": FIRST, "checkpoints/checkpoint-5/x": FIRST}


@pytest.mark.parametrize("name", ["lengths.png", "results.json"])
def test_after_a_kill_the_next_run_puts_the_folder_in_order(folder, name):
    before = files(folder)
    run_folder.set_aside(folder)
    write(folder, SECOND, name)  # killed here
    run_folder.recover(folder)
    if name == "results.json":  # all that a lesson does was done
        assert "earlier/results.json" not in files(folder)
        assert files(folder)[name] == SECOND
    else:
        assert files(folder) == before | {f"unfinished/{name}": SECOND}


@pytest.mark.parametrize("after", range(5))
@pytest.mark.parametrize("call", [run_folder.set_aside, run_folder.put_back])
def test_a_kill_between_two_moves_loses_nothing(folder, monkeypatch, call, after):
    before = files(folder)
    if call is run_folder.put_back:
        run_folder.set_aside(folder)
        write(folder, SECOND, "lengths.png", "scores.png")
    moves = []
    rename = run_folder.Path.rename

    def killed(path, target):
        if len(moves) == after:
            raise KeyboardInterrupt
        moves.append(path)
        return rename(path, target)

    monkeypatch.setattr(run_folder.Path, "rename", killed)
    with pytest.raises(KeyboardInterrupt):
        call(folder)
    monkeypatch.undo()
    run_folder.recover(folder)
    found = {name: text for name, text in files(folder).items() if not name.startswith("unfinished")}
    assert found == before


def test_what_the_new_run_reads_stays_in_its_place(folder):
    run_folder.set_aside(folder, needed=[folder / "model", "no/path", "\0"])
    assert (folder / "model" / "model.safetensors").exists()
    assert not (folder / "results.json").exists()


def test_an_unfinished_run_is_left_where_it_is(folder):
    (folder / "results.json").unlink()
    before = files(folder)
    assert not run_folder.set_aside(folder)
    assert not run_folder.put_back(folder)
    assert files(folder) == before


LESSON = """
import os, sys
from pathlib import Path
from utils import run_folder, session
folder = session.own_folder(sys.argv[1])
Path(folder, "lengths.png").write_text("of the second run")
if sys.argv[2] == "complete":
    Path(folder, "results.json").write_text("of the second run")
    run_folder.complete(folder)
if sys.argv[2] == "again":
    Path(folder, "results.json").write_text("of the second run")
    run_folder.complete(folder)
    session.own_folder(sys.argv[1])
    assert not Path(folder, "results.json").exists()
"""


@pytest.mark.parametrize(("end", "results"), [("early", FIRST), ("complete", SECOND), ("again", SECOND)])
def test_a_notebook_without_the_runner_does_the_same(folder, end, results, monkeypatch):
    monkeypatch.delenv(session.CLAIMS, raising=False)
    command = [sys.executable, "-c", LESSON, str(folder), end]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"What the run before left is in {folder / 'earlier'} until this one is complete." in done.stdout
    found = files(folder)
    assert found["results.json"] == results
    assert found["lengths.png"] == results
    assert not (folder / "earlier").exists()
    assert ("01_lesson.ipynb" in found) == (end == "early")
