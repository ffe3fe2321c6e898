"""Shared fixtures: an environment without network and caches, and the runs of lesson 01 that several tests read."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import nbformat
import pytest

from utils.checks import CourseError

os.environ.setdefault("OMP_NUM_THREADS", "1")  # as utils.environment does, before torch
ROOT = Path(__file__).resolve().parents[1]
LESSON = "01_bert_full_fine_tuning"


def notebooks(pattern="*.ipynb"):
    """The source notebooks: lessons, template and solutions."""
    return sorted(p for folder in ("notebooks", "notebooks/solutions") for p in (ROOT / folder).glob(pattern))


def refusal(call, *args):
    """The message of the CourseError that the call must raise."""
    with pytest.raises(CourseError) as error:
        call(*args)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


@pytest.fixture(scope="session")
def offline(tmp_path_factory):
    """Environment of a machine without network and without caches of earlier runs."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("HF_", "PYTEST", "TRANSFORMERS_"))
    }
    home = tmp_path_factory.mktemp("home")
    guard = os.pathsep.join([str(ROOT / "tests" / "no_network"), str(ROOT)])
    return kept | {"HOME": str(home), "HF_HOME": str(home / "hf"), "HF_HUB_OFFLINE": "1", "PYTHONPATH": guard}


@pytest.fixture(scope="session")
def run_notebook(offline, tmp_path_factory):
    """A function that runs a notebook with utils.runner and returns exit code, output, folder and results."""

    def run(notebook, *options, cwd=ROOT):
        out = tmp_path_factory.mktemp("out")
        command = [sys.executable, "-m", "utils.runner", "--nb", str(notebook), "--out", str(out), *options]
        done = subprocess.run(command, cwd=cwd, env=offline, capture_output=True, text=True)
        name = LESSON if notebook == "01" else Path(notebook).stem
        folder = out / "tiny" / name
        path = folder / "results.json"
        results = json.loads(path.read_text()) if path.exists() else None
        return SimpleNamespace(
            code=done.returncode, text=done.stdout + done.stderr, folder=folder, name=name, results=results
        )

    return run


@pytest.fixture(scope="session")
def lesson(run_notebook):
    """Lesson 01, tiny, run once from the repository."""
    done = run_notebook("01")
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{LESSON}.ipynb", as_version=4)
    return done
