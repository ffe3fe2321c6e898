"""Shared fixtures: an environment without network and caches, and the runs of lesson 01 that several tests read."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import nbformat
import psutil
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch, and before utils sets two: two tests run side by side

from utils.errors import CourseError

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
    """A function that runs a notebook with tools.run_notebooks and returns exit code, output, folder and results."""

    def run(notebook, *options, cwd=ROOT):
        out = Path(options[options.index("--out") + 1]) if "--out" in options else tmp_path_factory.mktemp("out")
        command = [sys.executable, "-m", "tools.run_notebooks", "--nb", str(notebook), "--out", str(out), *options]
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
def run_cells(offline, tmp_path_factory):
    """A function that runs a notebook with overrides, but without runner and kernel: sooner, the same values."""

    import forked  # here: the runner sets two threads, unless the line at the top has set one

    def run(notebook, overrides=None):
        return forked.run(notebook, tmp_path_factory.mktemp("out"), offline, {"OVERRIDES": overrides or {}})

    return run


@pytest.fixture(scope="session")
def run_killed_and_resumed(offline, run_notebook, tmp_path_factory):
    """A function that runs a notebook, kills its kernel when a checkpoint is there, and runs it again to go on."""

    def run(notebook, step, overrides, cwd=ROOT):
        out = tmp_path_factory.mktemp("killed")
        options = ["--out", str(out), "--overrides"]
        command = [sys.executable, "-m", "tools.run_notebooks", "--nb", str(notebook), *options, json.dumps(overrides)]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        runner = subprocess.Popen(command, cwd=cwd, env=offline, **pipes)
        state = out / "tiny" / Path(notebook).stem / "checkpoints" / f"checkpoint-{step}" / "trainer_state.json"
        while not state.exists() and runner.poll() is None:
            time.sleep(0.02)
        for process in psutil.Process(runner.pid).children(recursive=True):
            if "ipykernel_launcher" in process.cmdline():
                process.kill()
        text = runner.communicate()[0]
        assert runner.returncode == 1, text
        assert "the kernel died" in text
        return run_notebook(notebook, *options, json.dumps(overrides | {"resume_from_checkpoint": True}), cwd=cwd)

    return run


@pytest.fixture(scope="session")
def lesson(run_notebook):
    """Lesson 01, tiny, run once from the repository."""
    done = run_notebook("01")
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{LESSON}.ipynb", as_version=4)
    return done
