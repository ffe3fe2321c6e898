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
OF_THE_MACHINE = ("HF_", "PYTEST", "TRANSFORMERS_")  # how variables begin that no test shall see


def notebooks(pattern="*.ipynb"):
    """The source notebooks: lessons, template and solutions."""
    folder = ROOT / "notebooks"
    return sorted([*folder.glob(pattern), *(folder / "solutions").glob(pattern)])


def refusal(call, *args):
    """The message of the CourseError that the call must raise."""
    with pytest.raises(CourseError) as error:
        call(*args)
    message = str(error.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def read_results(folder):
    """The results.json of a run; None if there is none."""
    path = folder / "results.json"
    return json.loads(path.read_text()) if path.exists() else None


def runner_command(notebook, *options):
    """The command that runs a notebook with tools.run_notebooks."""
    return [sys.executable, "-m", "tools.run_notebooks", "--nb", str(notebook), *options]


@pytest.fixture(scope="session")
def offline(tmp_path_factory):
    """Environment of a machine without network and without caches of earlier runs."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(OF_THE_MACHINE)}
    home = tmp_path_factory.mktemp("home")
    environment["HOME"] = str(home)
    environment["HF_HOME"] = str(home / "hf")
    environment["HF_HUB_OFFLINE"] = "1"
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests" / "no_network"), str(ROOT)])
    return environment


@pytest.fixture(scope="session")
def run_notebook(offline, tmp_path_factory):
    """A function that runs a notebook with tools.run_notebooks and returns exit code, output, folder and results."""

    def run(notebook, *options, cwd=ROOT):
        if "--out" in options:
            out = Path(options[options.index("--out") + 1])
        else:
            out = tmp_path_factory.mktemp("out")
            options = ("--out", str(out), *options)
        done = subprocess.run(runner_command(notebook, *options), cwd=cwd, env=offline, capture_output=True, text=True)
        name = LESSON if notebook == "01" else Path(notebook).stem
        folder = out / "tiny" / name
        text = done.stdout + done.stderr
        return SimpleNamespace(code=done.returncode, text=text, folder=folder, name=name, results=read_results(folder))

    return run


@pytest.fixture(scope="session")
def run_cells(offline, tmp_path_factory):
    """A function that runs a notebook with overrides, but without runner and kernel: sooner, the same values.

    out: the folder of an earlier run, to go on there. kill_when: see forked.run.
    """

    import forked  # here: the runner sets two threads, unless the line at the top has set one

    def run(notebook, overrides=None, out=None, kill_when=None):
        out = out or tmp_path_factory.mktemp("out")
        return forked.run(notebook, out, offline, {"OVERRIDES": overrides or {}}, kill_when)

    return run


@pytest.fixture(scope="session")
def run_script(offline):
    """A function that runs a script, or code, in a fresh process that has imported the libraries: sooner.

    Returns an object with returncode, stdout and stderr.
    """
    import forked  # as above

    def run(script, *options, cwd):
        if not isinstance(script, Path):
            code, script = script, cwd / "script.py"
            script.write_text(code)
        return forked.run_script(script, [str(option) for option in options], cwd, offline)

    return run


def kill_kernel(runner):
    """Kill the kernel of a runner, as a full memory does."""
    for process in psutil.Process(runner.pid).children(recursive=True):
        if "ipykernel_launcher" in process.cmdline():
            process.kill()


@pytest.fixture(scope="session")
def run_killed_and_resumed(offline, run_notebook, tmp_path_factory):
    """A function that runs a notebook, kills its kernel when a checkpoint is there, and runs it again to go on."""

    def run(notebook, step, overrides, cwd=ROOT):
        out = tmp_path_factory.mktemp("killed")
        command = runner_command(notebook, "--out", str(out), "--overrides", json.dumps(overrides))
        runner = subprocess.Popen(
            command, cwd=cwd, env=offline, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        checkpoint = out / "tiny" / Path(notebook).stem / "checkpoints" / f"checkpoint-{step}"
        while not (checkpoint / "trainer_state.json").exists() and runner.poll() is None:
            time.sleep(0.02)
        kill_kernel(runner)
        text = runner.communicate()[0]
        assert runner.returncode == 1, text
        assert "the kernel died" in text
        again = json.dumps({**overrides, "resume_from_checkpoint": True})
        return run_notebook(notebook, "--out", str(out), "--overrides", again, cwd=cwd)

    return run


@pytest.fixture(scope="session")
def lesson(run_notebook):
    """Lesson 01, tiny, run once from the repository."""
    done = run_notebook("01")
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{LESSON}.ipynb", as_version=4)
    return done
