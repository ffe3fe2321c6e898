"""Several lessons at once: each has its row and its sentence, a signal ends all of them, nothing is left behind."""

import os
import re
import signal
import subprocess
import sys
import time

import nbformat
import psutil
import pytest
from conftest import ROOT

from tools import side_by_side
from tools.run_notebooks import SENTINEL

PARAMETERS = "PROFILE = 'full'\nOVERRIDES = {}\nOUTPUT_DIR = ''\nSEED = 0"
GOOD = f"print('{SENTINEL}')"
BAD = "{}['no such label']"
HANG = "import time\nopen(OUTPUT_DIR + '/hangs', 'w').close()\ntime.sleep(600)"


@pytest.fixture
def start(tmp_path):
    """A function that starts a runner for two notebooks with these last cells; returns the process."""

    def run(*last_cells):
        names = []
        for number, code in enumerate(last_cells, start=1):
            parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
            cells = [parameters, nbformat.v4.new_code_cell(code)]
            names.append(f"0{number}_lesson.ipynb")
            nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / names[-1])
        command = [sys.executable, "-m", "tools.run_notebooks", "--nb", ",".join(names), "--out", "out", "--jobs", "2"]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        return subprocess.Popen(command, cwd=tmp_path, env=environment, **pipes)

    return run


def test_each_lesson_has_its_row_and_its_sentence(start, tmp_path):
    process = start(GOOD, BAD)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 1
    assert re.search(r"^01_lesson +tiny .*complete$", out, re.MULTILINE), out
    assert re.search(r"^02_lesson +tiny .*failed$", out, re.MULTILINE), out
    assert len(re.findall("verdict", out)) == 1, "one table"
    assert re.search(r"^01  \[ +\d+\.\d s\] code cell 2 \(start\) of 2$", out, re.MULTILINE), out
    assert err.startswith("02_lesson: code cell 2 (start) raised KeyError"), err
    assert len(err.splitlines()) == 1, err
    assert (tmp_path / "out/tiny/01_lesson/01_lesson.ipynb").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_signal_ends_all_lessons(start, tmp_path, number):
    process = start(HANG, HANG)
    places = [tmp_path / f"out/tiny/0{lesson}_lesson/hangs" for lesson in (1, 2)]
    while not all(place.exists() for place in places):
        assert process.poll() is None
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert len(family) >= 6, "two runners, two kernels and their watchers"
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert process.returncode == 128 + number
        assert len(re.findall("failed$", out, re.MULTILINE)) == 2, out
        for lesson in (1, 2):
            assert re.search(f"^0{lesson}_lesson: code cell 2 .*{number.name} stopped it", err, re.MULTILINE), err
    alive = psutil.wait_procs(family, timeout=20)[1]
    assert [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.mark.parametrize(
    ("profile", "cores", "gib", "jobs"), [("tiny", 2, 24, 2), ("tiny", 8, 7, 2), ("tiny", 1, 1, 1), ("full", 8, 99, 1)]
)
def test_cores_and_memory_decide_how_many_run_at_once(monkeypatch, profile, cores, gib, jobs):
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    memory = psutil.virtual_memory()._replace(available=gib * 2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    assert side_by_side.default_jobs(profile) == jobs
