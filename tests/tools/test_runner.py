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
from types import SimpleNamespace

import nbformat
import psutil
import pytest
from ipykernel.kernelspec import get_kernel_dict

from tools import render, run_notebooks
from tools.run_notebooks import SENTINEL, Timeouts

ROOT = Path(__file__).resolve().parents[2]
PARAMETERS = "PROFILE = 'full'\nOVERRIDES = {}\nOUTPUT_DIR = 'unset'\nSEED: int = 0"
OVERRIDES = {"learning_rate": 1e-05, "text": 'it\'s "é" {x} \\ \n', "on": True, "none": None}
EARLIER = json.dumps({"metric": "of an earlier run"})
RESULTS = {"metric": "accuracy", "baseline": 0.5, "before": 0.1, "after": 0.875, "n_eval": 200}
END = f"print('{SENTINEL}')"
HANG = """import os, pathlib, subprocess, time
subprocess.Popen(['sleep', '600'])
pathlib.Path(OUTPUT_DIR, 'pid').write_text(str(os.getpid()))
time.sleep(600)"""
MEMORY = "import resource\nresource.setrlimit(resource.RLIMIT_AS, (2**32, 2**32))\nx = bytearray(2**40)"
# from here on the notebook cannot be saved: /dev/full answers as a full disk does
DISK = """import pathlib
pathlib.Path(OUTPUT_DIR, 'lesson.partial.new').symlink_to('/dev/full')"""
COMPLETE = [
    f"import json, pathlib\npathlib.Path(OUTPUT_DIR, 'results.json').write_text(json.dumps({RESULTS}))",
    "import os\nprint(PROFILE, SEED, os.environ['HF_HUB_OFFLINE'])\nprint(repr(OVERRIDES))",
    f"import warnings\nwarnings.warn('look')\nprint({str(ROOT)!r}, {str(Path.home())!r}, OUTPUT_DIR)",
    "from matplotlib import pyplot\npyplot.plot([1, 2])",
    END,
    "",
]

# name: (code cells behind the parameters, options, signal to send while HANG hangs)
RUNS = {
    "time_limit": ([HANG, END], ["--timeout", "8"], None),
    "cell_limit": ([HANG, END], ["--cell-timeout", "8"], None),
    "sigkill": ([HANG, END], [], signal.SIGKILL),
    "memory": ([MEMORY, END], [], None),
    "disk": (["x = 1", DISK, END], [], None),
    "complete": (COMPLETE, ["--overrides", json.dumps(OVERRIDES), "--seed", "7"], None),
    "sigint": ([HANG, END], [], signal.SIGINT),
    "sigterm": ([HANG, END], [], signal.SIGTERM),
    "exception": (["x = 1", "{}['no such label']", END], [], None),
    "sys_exit": (["import sys\nsys.exit(0)", END], [], None),
    "os_exit": (["import os\nos._exit(0)", END], [], None),
    # the last cell has its number and has printed the sentinel when its kernel dies
    "killed_at_the_end": ([f"import os, time\n{END}\ntime.sleep(0.5)\nos.kill(os.getpid(), 9)"], [], None),
    # only what the last cell prints counts, not what it shows
    "no_sentinel": ([END, f"'{SENTINEL}'"], [], None),
    "skipped_cell": (["x = 1  # skip", END], [], None),
}


class Course:
    """A folder with a notebook, lesson.ipynb, and its runs into the folder out, started from the folder."""

    def __init__(self, folder, *codes):
        new = nbformat.v4
        first = new.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
        cells = [new.new_markdown_cell("# A lesson"), first, new.new_markdown_cell("## 6 Training")]
        for code in codes:
            tags = ["skip-execution"] if "# skip" in code else []
            cells.append(new.new_code_cell(code, metadata={"tags": tags}))
        nbformat.write(new.new_notebook(cells=cells), folder / "lesson.ipynb")
        self.folder, self.output = folder, folder / "out" / "tiny" / "lesson"
        self.final, self.partial = self.output / "lesson.ipynb", self.output / "lesson.partial.ipynb"
        self.results = self.output / "results.json"
        self.output.mkdir(parents=True)
        self.final.write_text("an earlier run")
        self.results.write_text(EARLIER)

    def assert_untouched(self):
        """The results of the earlier run are where they were, and nothing of them is elsewhere."""
        assert self.final.read_text() == "an earlier run"
        assert self.results.read_text() == EARLIER
        assert not (self.output / "earlier").exists()

    def start(self, *options):
        """Start the runner; return the process."""
        command = [sys.executable, "-m", "tools.run_notebooks", "--nb", "lesson.ipynb", "--out", "out", *options]
        extra = self.folder / "tmp"
        extra.mkdir()
        (extra / "rfc3987_syntax.py").write_text("raise ImportError")  # optional; saves nbformat two seconds
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{extra}", "TMPDIR": str(extra)}
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=environment, **pipes)

    def finish(self, process):
        """Wait for the runner; return (exit code, stdout, stderr). One that does not end is stopped."""
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            process.terminate()
            process.wait()
            raise
        return process.returncode, out, err

    def family(self, process):
        """Wait until the kernel hangs or the runner ends; return its watcher, the kernel and what that started."""
        file = self.output / "pid"
        while not (file.exists() and file.read_text()):
            if process.poll() is not None:  # the time limit came first: the machine is very busy
                return []
            time.sleep(0.05)
        family = psutil.Process(process.pid).children(recursive=True)
        assert int(file.read_text()) in [member.pid for member in family]
        assert len(family) == 3
        return family


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """All runs, two at a time: name -> future (course, (exit code, stdout, stderr), processes left over)."""

    def run(folder, codes, options, number):
        course = Course(folder, *codes)
        process = course.start(*options)
        family = course.family(process) if HANG in codes else []
        if number:
            process.send_signal(number)
        result = course.finish(process)
        alive = psutil.wait_procs(family, timeout=0 if number != signal.SIGKILL else 20)[1]
        # a killed process that its new parent has not waited for yet is a zombie
        alive = [p for p in alive if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        return course, result, alive

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        yield {name: pool.submit(run, tmp_path_factory.mktemp(name), *case) for name, case in RUNS.items()}
        pool.shutdown(cancel_futures=True)


def code_cells(path):
    """Return the code cells of a notebook file."""
    return [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]


@pytest.mark.parametrize(
    ("name", "exit_code", "words"),
    [
        ("time_limit", 1, ["--timeout of 8 s"]),
        ("cell_limit", 1, ["code cell 2 (6 Training)", "--cell-timeout of 8 s"]),
        ("memory", 1, ["code cell 2 (6 Training)", "MemoryError"]),
        ("disk", 1, ["code cell 3 (6 Training)", "ended with OSError: [Errno 28] No space left on device"]),
        ("sigint", 130, ["code cell 2 (6 Training)", "SIGINT"]),
        ("sigterm", 143, ["code cell 2 (6 Training)", "SIGTERM"]),
        ("exception", 1, ["code cell 3 (6 Training)", "KeyError: 'no such label'"]),
        ("sys_exit", 1, ["code cell 2 (6 Training)", "SystemExit: 0"]),
        ("os_exit", 1, ["code cell 2 (6 Training)", "was running when the kernel died, often out of memory"]),
        ("killed_at_the_end", 1, ["code cell 2 (6 Training)", "the kernel died"]),
        ("no_sentinel", 1, ["code cell 3 (6 Training)", SENTINEL]),
        ("skipped_cell", 1, ["code cell 2 (6 Training)", "did not run"]),
    ],
)
def test_failure(runs, name, exit_code, words):
    """One line on stderr with the place and the cause; what the earlier run left is as it was."""
    course, (code, out, err), left_over = runs[name].result()
    assert code == exit_code, out + err
    assert len(err.strip().splitlines()) == 1, err
    assert err.startswith("lesson: ")
    for word in words:
        assert word in err
    assert "beside the results of the run before, which are as they were" in err
    assert course.partial.exists()
    course.assert_untouched()
    assert re.search(r"^lesson +tiny +- +- +- +- +- .*failed$", out, re.MULTILINE), out
    assert left_over == []


def test_of_a_full_disk_the_newest_whole_notebook_is_kept(runs):
    course, *_ = runs["disk"].result()
    assert not course.partial.is_symlink()
    assert [cell.execution_count for cell in code_cells(course.partial)][:3] == [1, 2, 3]


def test_the_runner_itself_killed_leaves_no_process_and_no_final_name(runs):
    course, (code, *_), left_over = runs["sigkill"].result()
    assert code == -signal.SIGKILL
    assert left_over == []
    assert code_cells(course.partial)
    assert not course.final.exists()
    assert (course.output / "earlier" / "lesson.ipynb").read_text() == "an earlier run"
    run_notebooks.run_folder.recover(course.output)  # as the next run does
    course.assert_untouched()


def test_a_disk_that_is_nearly_full_is_named(tmp_path, monkeypatch, capsys):
    """Some libraries say something else then: torch.save speaks of an "unexpected pos"."""
    args = SimpleNamespace(profile="tiny", timeout=60, cell_timeout=60)
    monkeypatch.setattr(run_notebooks.shutil, "disk_usage", lambda folder: SimpleNamespace(free=3 * 2**20))
    monkeypatch.setattr(run_notebooks, "execute", lambda *_: "code cell 2 raised RuntimeError: unexpected pos")
    lesson = run_notebooks.Lesson(tmp_path / "lesson.ipynb", tmp_path, {})
    assert run_notebooks.run(lesson, args)["verdict"] == "failed"
    assert "unexpected pos; 3 MiB are free on that disk, so delete something first." in capsys.readouterr().err


def test_a_folder_in_use_is_left_alone(tmp_path):
    course = Course(tmp_path, END)
    code = "import sys, time; from utils import session; session.own_folder(sys.argv[1], put_aside=False)"
    command = [sys.executable, "-c", f"{code}; print('mine', flush=True); time.sleep(600)", str(course.output)]
    owner = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert owner.stdout.readline() == "mine\n"
    code, out, err = course.finish(course.start())
    owner.kill()
    owner.wait()
    assert (code, out) == (2, "")
    assert f"process {owner.pid} on " in err
    assert len(err.strip().splitlines()) == 1, err
    course.assert_untouched()


def test_another_kernel_under_the_name_python3_is_not_taken(tmp_path, monkeypatch):
    other = tmp_path / "kernels" / "python3"
    other.mkdir(parents=True)
    (other / "kernel.json").write_text(json.dumps({"argv": ["false"], "display_name": "x", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path))
    manager = run_notebooks.LessonClient(nbformat.v4.new_notebook(), None, Timeouts(1, 1)).create_kernel_manager()
    assert manager.kernel_spec.argv[0] == sys.executable


@pytest.mark.parametrize(("bad_starts", "outcome"), [(2, "complete"), (3, "failed")])
def test_a_kernel_that_does_not_start_is_started_again(tmp_path, monkeypatch, capsys, bad_starts, outcome):
    starts = iter([{"argv": ["false"], "display_name": "x", "language": "python"}] * bad_starts)
    monkeypatch.setattr(run_notebooks, "get_kernel_dict", lambda: next(starts, None) or get_kernel_dict())
    Course(tmp_path, END)
    lesson = run_notebooks.Lesson(tmp_path / "lesson.ipynb", tmp_path / "out" / "tiny" / "lesson", {})
    args = SimpleNamespace(profile="tiny", timeout=600, cell_timeout=600)
    assert run_notebooks.run(lesson, args)["verdict"] == outcome
    assert ("the start of the kernel was running" in capsys.readouterr().err) == (outcome == "failed")


def test_a_module_of_the_course_comes_before_one_in_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "utils.py").touch()
    folders = run_notebooks.kernel_environment("tiny")["PYTHONPATH"].split(os.pathsep)
    assert (folders[0], folders[-1]) == (str(ROOT), str(tmp_path))
    client = run_notebooks.LessonClient(nbformat.v4.new_notebook(), None, Timeouts(1, 1))
    assert "--IPKernelApp.ignore_cwd=True" in client.extra_arguments, "else the current folder is the first"


def test_complete_run(runs):
    course, (code, out, err), _ = runs["complete"].result()
    assert (code, err) == (0, "")
    assert not list(course.output.glob("*partial*"))
    assert not (course.output / "earlier").exists()
    cells = code_cells(course.final)
    printed = cells[3].outputs[0].text.splitlines()
    assert printed[0] == "tiny 7 1"
    assert ast.literal_eval(printed[1]) == OVERRIDES  # types too: YAML reads a bare 1e-05 as a text
    assert "image/png" in cells[5].outputs[-1].data
    for number in range(1, 7):
        assert re.search(rf"^\[ +\d+\.\d s\] code cell {number} \(.+\) of 6$", out, re.MULTILINE), out
    row = r"^lesson +tiny +accuracy +0\.500 +0\.100 +0\.875 +200 +\d+\.\d+ +complete$"
    assert re.search(row, out, re.MULTILINE), out


def test_rendered_copy(runs, tmp_path):
    """It is stamped and holds no trace of the machine."""
    course, *_ = runs["complete"].result()
    render.render(course.final, course.folder / "out", tmp_path)
    rendered = tmp_path / "lesson.ipynb"
    text, notebook = rendered.read_text(), nbformat.read(rendered, as_version=4)
    nbformat.validate(notebook)
    assert notebook.cells[0].source.startswith("> Executed: profile tiny")
    assert notebook.cells[0].source.endswith("# A lesson")
    cells = code_cells(rendered)
    assert len(cells) == len(COMPLETE) + 1
    printed = [output.text for output in cells[3].outputs if output.name == "stdout"]
    assert printed == [". ~ outputs/tiny/lesson\n"]
    for trace in ("papermill", "injected-parameters", "/ipykernel_", str(course.folder)):
        assert trace not in text


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--parameters", '{"SEDE": 1}'], ["no parameter 'SEDE'", "did you mean one of ['SEED']"]),
        (["--parameters", '{"SEED = 1; import os; x": 1}'], ["no parameter"]),
        (["--parameters", '{"unlike_anything": 1}'], ["no parameter 'unlike_anything'; choose from"]),
        (["--overrides", "{learning_rate: 0}"], ["--overrides: {learning_rate: 0} is not JSON", "write for example"]),
        (["--overrides", "[1]"], ["--overrides: [1] is no JSON object"]),
        (["--overrides", '{"a": 1, "a": 2}'], ["--overrides: 'a' stands twice"]),
        (["--overrides", '{"a": NaN}'], ["--overrides: NaN is no number"]),
        (["--overrides", '{"a": -Infinity}'], ["--overrides: -Infinity is no number"]),
        (["--overrides", ""], ["--overrides", "is not JSON"]),
        (["--seed", "-1"], ["--seed", "from 0 to 4294967295"]),
        (["--nb", "98"], ["no notebook to run at", "98"]),
        (["--nb", "out/tiny/lesson/lesson.ipynb"], ["no notebook to run at"]),
        (["--out", "lesson.ipynb"], ["Not a directory"]),
        (["--profile", "tinny"], ["tinny", "tiny"]),
        (["--profile", "cpu"], ["lesson has no profile 'cpu'", "choose tiny, colab or full"]),
        (["--nb", "lesson.ipynb,other.ipynb", "--seed", "1"], ["other has no parameter 'SEED'"]),
    ],
)
def test_refused_before_anything_runs(tmp_path, options, words):
    course = Course(tmp_path, END)
    nbformat.write(nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(END)]), tmp_path / "other.ipynb")
    code, out, err = course.finish(course.start(*options))
    assert code == 2
    assert out == ""  # a run prints its name first
    assert len(err.strip().splitlines()) == 1, err
    for word in words:
        assert word in err
    assert sorted(course.output.iterdir()) == [course.final, course.results]
    course.assert_untouched()
