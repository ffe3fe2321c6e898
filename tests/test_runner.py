"""The runner: success only if every cell ran; a failure gets one sentence and leaves no process behind."""

import ast
import concurrent.futures
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import psutil
import pytest

from utils.runner import SENTINEL

ROOT = Path(__file__).resolve().parents[1]
PARAMETERS = "PROFILE = 'full'\nOVERRIDES = {}\nOUTPUT_DIR = 'unset'\nSEED = 0"
END = f"print('{SENTINEL}')"
HANG = """import os, pathlib, subprocess, time
subprocess.Popen(['sleep', '600'])
pathlib.Path(OUTPUT_DIR, 'pid').write_text(str(os.getpid()))
time.sleep(600)"""

# (code cells, options, signal to send while HANG hangs, exit code, words of the sentence)
FAILURES = {
    "notebook_time_limit": ([HANG, END], ["--timeout", "25"], None, 1, ["cell 2 of 3", "--timeout"]),
    "cell_time_limit": ([HANG, END], ["--cell-timeout", "3"], None, 1, ["cell 2 of 3", "--cell-timeout"]),
    "sigint": ([HANG, END], [], signal.SIGINT, 130, ["cell 2 of 3", "SIGINT"]),
    "sigterm": ([HANG, END], [], signal.SIGTERM, 143, ["cell 2 of 3", "SIGTERM"]),
    "exception": (
        ["x = 1", "{}['no such label']", END],
        [],
        None,
        1,
        ["3 of 4 (6 Training)", "KeyError: 'no"],
    ),
    "sys_exit": (["import sys\nsys.exit(0)", END], [], None, 1, ["cell 2 of 3", "sys.exit"]),
    "os_exit": (["import os\nos._exit(0)", END], [], None, 1, ["cell 2 of 3", "memory"]),
    "papermill_killed": (["import os\nos.kill(os.getppid(), 9)", END], [], None, 1, ["cell 2 of 3", "code -9"]),
    # the last cell has its number and has printed the sentinel when its kernel dies
    "killed_at_the_end": (
        [f"import os, time\n{END}\ntime.sleep(0.5)\nos.kill(os.getpid(), 9)"],
        [],
        None,
        1,
        ["cell 2 of 2", "memory"],
    ),
    # only what the last cell prints counts, not what it shows
    "no_sentinel": ([END, f"'{SENTINEL}'"], [], None, 1, ["cell 3 of 3", SENTINEL]),
}


class Course:
    """A folder with a notebook, lesson.ipynb, and its runs into the folder out, started from the folder."""

    def __init__(self, folder, *codes, parameters=PARAMETERS):
        new = nbformat.v4
        first = new.new_code_cell(parameters, metadata={"tags": ["parameters"]})
        cells = [new.new_markdown_cell("# A lesson"), first, new.new_markdown_cell("## 6 Training")]
        self.notebook = new.new_notebook(cells=cells + [new.new_code_cell(code) for code in codes])
        self.folder, self.output = folder, folder / "out" / "tiny" / "lesson"
        self.final, self.partial = self.output / "lesson.ipynb", self.output / "lesson.partial.ipynb"

    def start(self, *options):
        """Start the runner; return the process."""
        nbformat.write(self.notebook, self.folder / "lesson.ipynb")
        command = [sys.executable, "-m", "utils.runner", "--nb", "lesson.ipynb", "--out", "out", *options]
        (self.folder / "tmp").mkdir(exist_ok=True)  # a killed papermill leaves a small file of its kernel there
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(self.folder / "tmp")}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **pipes)

    def run(self, *options):
        """Return (exit code, stdout, stderr) of a run."""
        return self.finish(self.start(*options))

    def finish(self, process):
        """Wait for the runner; return (exit code, stdout, stderr). One that does not end is stopped."""
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            raise
        return process.returncode, out, err

    def run_hanging(self, number, *options):
        """Run, send the signal once the kernel hangs; return the result and the processes left over."""
        process = self.start(*options)
        file, limit = self.output / "pid", time.monotonic() + 120
        while not (file.exists() and file.read_text()) and time.monotonic() < limit:
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        assert int(file.read_text()) in [member.pid for member in family]
        assert len(family) == 3  # papermill, the kernel, and the process that the kernel started
        if number:
            process.send_signal(number)
        result = self.finish(process)
        # a killed process that its new parent has not waited for yet is a zombie
        alive = [p for p in family if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return result, alive


@pytest.fixture(scope="module")
def failures(tmp_path_factory):
    """The failing runs, three at a time as they mostly wait: name -> future (course, result, left over)."""

    def fail(folder, codes, options, number):
        course = Course(folder, *codes)
        if HANG in codes:
            return course, *course.run_hanging(number, *options)
        return course, course.run(*options), []

    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        yield {name: pool.submit(fail, tmp_path_factory.mktemp(name), *case[:3]) for name, case in FAILURES.items()}
        pool.shutdown(cancel_futures=True)


def code_cells(path):
    """Return the code cells of a notebook file."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


def assert_failed(course, result, exit_code, *words):
    """Check for one line on stderr with the place and the words, and that nothing looks complete."""
    code, out, err = result
    assert code == exit_code, out + err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("lesson: code cell ")
    for word in words:
        assert word in err
    assert course.partial.exists()
    assert not course.final.exists()
    assert re.search(r"^lesson +tiny .*failed$", out, re.MULTILINE), out


@pytest.mark.parametrize("name", FAILURES)
def test_failure(failures, name):
    course, result, left_over = failures[name].result()
    *_, exit_code, words = FAILURES[name]
    assert_failed(course, result, exit_code, *words)
    assert left_over == []


def test_complete_run(tmp_path):
    results = {"metric": "accuracy", "baseline": 0.5, "before": 0.1, "after": 0.875, "n_eval": 200}
    write = f"import json, pathlib\npathlib.Path(OUTPUT_DIR, 'results.json').write_text(json.dumps({results}))"
    course = Course(tmp_path, write, "print(PROFILE, SEED)\nprint(repr(OVERRIDES))", END, "")
    overrides = {"learning_rate": 1e-05, "text": 'it\'s "é" {x} \\ \n', "on": True, "none": None}
    code, out, err = course.run("--overrides", json.dumps(overrides), "--seed", "7")
    assert (code, err) == (0, "")
    assert course.final.exists()
    assert not course.partial.exists()
    printed = code_cells(course.final)[3].outputs[0].text.splitlines()
    assert printed[0] == "tiny 7"
    assert ast.literal_eval(printed[1]) == overrides  # types too: YAML reads a bare 1e-05 as a text
    assert "code cell 3 of 4 (6 Training)" in out
    row = r"^lesson +tiny +accuracy +0\.500 +0\.100 +0\.875 +200 +\d+\.\d +complete$"
    assert re.search(row, out, re.MULTILINE), out


def test_skipped_cell_and_earlier_results(tmp_path):
    """A cell tagged skip-execution counts as missing; the files of an earlier run are gone."""
    course = Course(tmp_path, "x = 1", END)
    course.notebook.cells[3].metadata["tags"] = ["skip-execution"]
    course.output.mkdir(parents=True)
    course.final.write_text("{}")
    (course.output / "results.json").write_text('{"metric": "stale"}')
    result = course.run()
    assert_failed(course, result, 1, "code cell 2 of 3", "did not run")
    assert "stale" not in result[1]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--parameters", '{"SEDE": 1}'], ["SEDE", "Did you mean SEED?"]),
        (["--parameters", '{"SEED = 1; import os; x": 1}'], ["no parameter"]),
        (["--overrides", "{learning_rate: 0}"], ["--overrides", "not a JSON object", "column 2"]),
        (["--overrides", "[1]"], ["--overrides", "not a JSON object"]),
        (["--nb", "98"], ["no notebook 98"]),
        (["--nb", "missing.ipynb"], ["no notebook missing.ipynb"]),
        (["--out", "lesson.ipynb"], ["Cannot write to", "--out"]),
        (["--profile", "tinny"], ["tinny", "tiny"]),
        (["--nb", "lesson.ipynb,other.ipynb", "--seed", "1"], ["other has no parameter 'SEED'"]),
    ],
)
def test_refused_before_anything_runs(tmp_path, options, words):
    course = Course(tmp_path, END)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(END)]), tmp_path / "other.ipynb")
    course.output.mkdir(parents=True)
    course.final.write_text("earlier")
    code, out, err = course.run(*options)
    assert code == 2
    assert out == ""  # a run prints its name first
    for word in words:
        assert word in err
    assert "Traceback" not in err
    assert list(course.output.iterdir()) == [course.final]
    assert course.final.read_text() == "earlier"


def test_render_and_run_again(tmp_path):
    """The rendered copy is stamped and holds no trace of the machine; the executed one is no source."""
    show = f"import warnings\nwarnings.warn('look')\nprint({str(ROOT)!r}, {str(Path.home())!r}, OUTPUT_DIR)"
    course = Course(tmp_path, show, END)
    code, _, err = course.run("--render", "rendered")
    assert (code, err) == (0, "")
    rendered = tmp_path / "rendered" / "lesson.ipynb"
    text, notebook = rendered.read_text(), nbformat.read(rendered, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("> Executed: profile tiny")
    assert notebook.cells[0].source.endswith("# A lesson")
    assert len(code_cells(rendered)) == 3
    printed = [output.text for output in code_cells(rendered)[1].outputs if output.name == "stdout"]
    assert printed == [". ~ outputs/tiny/lesson\n"]
    for trace in ("papermill", "injected-parameters", "/ipykernel_", str(tmp_path)):
        assert trace not in text

    before = course.final.read_text()
    code, _, err = course.run("--nb", str(course.final))
    assert code == 2
    assert "output of a run" in err
    assert course.final.read_text() == before


def test_parent_loads_nothing_large():
    """The runner prints its first line before anything that takes seconds to import."""
    code = "import sys, utils.runner\nprint([m for m in ('torch', 'papermill', 'yaml') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
