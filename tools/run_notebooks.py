"""Run course notebooks without a browser and judge them by their cells: `python -m tools.run_notebooks --help`.

papermill puts the parameters into a notebook, nbclient runs its cells in a kernel, and this module says what came of
it. Two processes stand beside this one while a notebook runs: the kernel, and a watcher that ends the kernel if this
one is killed (tools/kernel_watcher.py).
"""

import argparse
import contextlib
import difflib
import logging
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nbformat
import psutil
from ipykernel.kernelspec import get_kernel_dict
from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from papermill.translators import PythonTranslator

from tools import notebooks, side_by_side
from tools.options import json_object, seed
from tools.tables import aligned_table
from utils import run_folder
from utils.session import own_folder

SENTINEL = "Lesson complete."  # the last code cell of every course notebook prints this
ROOT = Path(__file__).resolve().parents[1]
WATCHER = Path(__file__).with_name("kernel_watcher.py")
RESULTS = ("metric", "baseline", "before", "after", "n_eval")  # keys of results.json that the table shows
FIXED = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "inline"}  # for the kernel
STARTUP_TIMEOUT = 120  # seconds that a new kernel may take until it answers
STARTS = (
    3  # times that a kernel is started which does not answer: its ports, once chosen, may be taken by another process
)
SAVE_EVERY = 30  # seconds between two saves of the notebook while a cell prints
NEARLY_FULL = 64 * 2**20  # bytes free on a disk that are worth a word

received_signals = []  # numbers, in order


# ---- what is to be run -------------------------------------------------------------------------------------------


@dataclass
class Lesson:
    """A notebook to run."""

    path: Path
    folder: Path  # for everything that the run writes
    parameters: dict  # values for the names in its cell of parameters

    @property
    def partial(self):
        """The executed notebook until it is complete."""
        return self.folder / f"{self.path.stem}.partial.ipynb"

    @property
    def log(self):
        """What the cells printed and what nbclient reported, as it came; this too until it is complete."""
        return self.folder / f"{self.path.stem}.partial.log"

    @property
    def inputs(self):
        """Paths that the run may read: all texts among its overrides."""
        values = self.parameters.get("OVERRIDES", {}).values()
        return [ROOT / value for value in values if isinstance(value, str)]


def lesson_to_run(path, folder, profile, parameters):
    """The Lesson at a path: with the parameters, its profile and its folder, if the notebook has parameters for them.

    Raises ValueError if there is no notebook, or if it lacks one of the parameters or the profile `cpu`.
    """
    try:
        cells = notebooks.code_cells(notebooks.read(path))
    except (OSError, ValueError, LookupError, TypeError):
        cells = []
    if not cells or path.parent == folder:
        raise ValueError(f"there is no notebook to run at {path}; give the path or the number of one")
    names = []
    for cell in cells:
        if "parameters" in cell.tags:
            names += [parameter.name for parameter in PythonTranslator.inspect({"source": cell.source})]
    for unknown in sorted(set(parameters) - set(names)):
        similar = difflib.get_close_matches(unknown, names)
        hint = f"did you mean one of {similar}?" if similar else f"choose from {names}."
        raise ValueError(f"{path.stem} has no parameter {unknown!r}; {hint}")
    if profile == "cpu" and profile not in notebooks.profiles_of(cells):
        raise ValueError(f"{path.stem} has no profile 'cpu'; choose tiny, colab or full")
    values = {}
    if "PROFILE" in names:
        values["PROFILE"] = profile
    if "OUTPUT_DIR" in names:
        values["OUTPUT_DIR"] = str(folder)
    values.update(parameters)
    return Lesson(path, folder, values)


def with_parameters(lesson):
    """The notebook of a lesson with its parameters set in a cell of their own, and no trace of earlier runs."""
    notebook = load_notebook_node(str(lesson.path))
    if lesson.parameters:
        notebook = parameterize_notebook(notebook, lesson.parameters, kernel_name="python3", language="python")
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.execution_count = None
            cell.outputs = []
    return notebook


# ---- processes ---------------------------------------------------------------------------------------------------


def kernel_environment(profile):
    """The environment variables of a kernel: ours, no hub for tiny unless we have it otherwise, and those in FIXED.

    The course comes first where modules are looked for: a utils.py in the current folder is not the course's.
    """
    environment = {**os.environ, **FIXED}
    folders = [str(ROOT), os.environ.get("PYTHONPATH"), os.getcwd()]
    environment["PYTHONPATH"] = os.pathsep.join(folder for folder in folders if folder)
    if profile == "tiny":
        environment.setdefault("HF_HUB_OFFLINE", "1")
    return environment


def kill_children():
    """Kill every process that this one started, and all that these started; wait until they are gone."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()  # from here on it starts nothing more
    processes = psutil.Process().children(recursive=True)
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def on_signal(number, frame):
    """Note a signal and stop the lesson: nbclient reports that its kernel is dead, and the run ends in order."""
    received_signals.append(number)
    kill_children()


@contextlib.contextmanager
def watcher():
    """A process that ends a kernel if this one is gone before the end of the block; yields what tells it the kernel."""
    command = [sys.executable, "-P", str(WATCHER)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)  # Ctrl-C is not for it

    def watch(kernel_pid):
        process.stdin.write(f"{kernel_pid}\n".encode())
        process.stdin.flush()

    try:
        yield watch
    finally:
        process.communicate(b"ended")  # or nothing, if it was killed with the kernel


# ---- one notebook ------------------------------------------------------------------------------------------------


class OwnInterpreter(KernelSpecManager):
    """Knows one kernel: the Python that runs this, whatever else is installed under the name python3."""

    def get_kernel_spec(self, kernel_name):
        """The KernelSpec of this interpreter, under any name."""
        return KernelSpec(**get_kernel_dict())


class LessonClient(NotebookClient):
    """Runs the cells of a lesson in a kernel; logs what they print, and keeps the file of the notebook up to date."""

    def __init__(self, notebook, partial, timeouts):
        # an output that the kernel has announced is waited for, also on a busy machine
        waits = {"raise_on_iopub_timeout": True, "iopub_timeout": 60, "startup_timeout": STARTUP_TIMEOUT}
        super().__init__(notebook, kernel_name="python3", force_raise_errors=True, **waits)
        self.extra_arguments = ["--IPKernelApp.ignore_cwd=True"]  # it is in PYTHONPATH, behind the course
        self.partial = partial
        self.timeout_func = timeouts.for_next_cell
        self.saved_at = time.monotonic()

    def create_kernel_manager(self):
        """The manager of a kernel that is this interpreter."""
        manager = super().create_kernel_manager()
        manager.kernel_spec_manager = OwnInterpreter()
        return manager

    def save(self):
        """Write the notebook beside its file, then put it in place: there is always one whole notebook."""
        draft = self.partial.with_suffix(".new")
        draft.write_text(nbformat.writes(self.nb), encoding="utf-8")
        draft.replace(self.partial)
        self.saved_at = time.monotonic()

    def run_cell(self, index):
        """Run a cell and save the notebook; return whether the next cell may run, because this one raised nothing."""
        try:
            self.execute_cell(self.nb.cells[index], index)
        except CellExecutionError:
            return False  # the error stands in the outputs of the cell
        finally:
            self.save()
        return True

    def process_message(self, message, cell, cell_index):
        """Take a message of the kernel, as nbclient does; return the output that it brought, or None."""
        output = super().process_message(message, cell, cell_index)
        if output:
            log_output(output)
        if time.monotonic() - self.saved_at > SAVE_EVERY:
            with contextlib.suppress(OSError):  # the save at the end of the cell says so
                self.save()
        return output


def log_output(output):
    """Write what a cell printed or showed to the log."""
    text = output.get("text") or output.get("data", {}).get("text/plain") or ""
    if text:
        logging.getLogger(__name__).info("".join(text).rstrip("\n"))


class Timeouts:
    """How long a notebook and each of its cells may take, in seconds."""

    def __init__(self, whole, cell):
        self.whole = whole
        self.cell = cell
        self.begin = time.monotonic()
        self.reason = ""  # which of the two limits the cell that runs now would reach first
        self.deadline = self.begin  # of that cell

    def elapsed(self):
        """Seconds since the begin."""
        return time.monotonic() - self.begin

    def for_next_cell(self, cell):
        """Seconds that the next cell may take; nbclient asks for them when it starts the cell."""
        left = self.whole - self.elapsed()
        if left < self.cell:
            self.reason = f"the --timeout of {self.whole:g} s"
            limit = max(left, 0.1)  # nbclient takes 0 for no limit
        else:
            self.reason = f"the --cell-timeout of {self.cell:g} s"
            limit = self.cell
        self.deadline = time.monotonic() + limit
        return limit


class StoppedError(Exception):
    """A signal asked to stop."""


def execute(lesson, args):
    """Run the cells of a lesson; return why it is not complete, or "" if its cells prove that it is."""
    timeouts = Timeouts(args.timeout, args.cell_timeout)
    notebook = with_parameters(lesson)
    client = LessonClient(notebook, lesson.partial, timeouts)
    cells = notebooks.code_cells(notebook)
    places = {cell.index: cell.place for cell in cells}
    place = "the start of the kernel"
    try:
        client.save()
        with running_kernel(client, args.profile, lesson.log):
            for index in range(len(notebook.cells)):
                if received_signals:
                    raise StoppedError
                if index in places:
                    place = places[index]
                    print(f"[{timeouts.elapsed():6.1f} s] {place} of {len(cells)}", flush=True)
                if not client.run_cell(index):
                    break
            client.set_widgets_metadata()
            client.save()
    except Exception as error:  # also what nbclient and the disk have to say: it becomes the sentence of this lesson
        logging.getLogger(__name__).exception("%s was running when this came:", place)
        return f"{place} was running when {reason_of(error, timeouts)}"
    return verdict(notebook)


@contextlib.contextmanager
def running_kernel(client, profile, log):
    """A kernel for a client: shut down in order at the end of the block, or killed if the block raises an error.

    What the kernel itself writes to its standard streams, such as the last words of a library in C, goes to the log.
    """
    with log.open("ab") as file, watcher() as watch, contextlib.ExitStack() as kernel:
        options = {"env": kernel_environment(profile), "stdout": file, "stderr": file}
        for start in range(1, STARTS + 1):
            try:
                kernel.enter_context(client.setup_kernel(**options))
                break
            except RuntimeError:  # it died or did not answer in time; nbclient has ended it, and no cell has run
                if start == STARTS or received_signals:
                    raise
                logging.getLogger(__name__).exception("The kernel did not start; it is started again:")
        try:
            watch(client.km.provisioner.pid)
            yield
        except BaseException:
            kill_children()
            raise
    kill_children()


def reason_of(error, timeouts):
    """What stopped a running cell, in words."""
    if received_signals:
        return f"{signal.Signals(received_signals[0]).name} stopped it; start the run again"
    if isinstance(error, CellTimeoutError) and time.monotonic() >= timeouts.deadline:
        return f"{timeouts.reason} stopped it; start the run again"
    if isinstance(error, DeadKernelError):
        return "the kernel died, often out of memory"
    message = " ".join(str(error).split())[:300]
    return f"the run ended with {type(error).__name__}: {message}"


def verdict(notebook):
    """Why an executed notebook is not complete; "" if every cell ran and the last one printed the sentinel."""
    cells = notebooks.code_cells(notebook)
    for cell in cells:
        for output in cell.outputs:
            if output["output_type"] == "error":
                return f"{cell.place} raised {output['ename']}: {remedied(output)}"
        if cell.execution_count is None:
            return f"{cell.place} did not run; remove what makes the notebook skip it"
    printed = ""
    for output in cells[-1].outputs:
        if output.get("name") == "stdout":
            printed += "".join(output["text"])
    if SENTINEL not in printed:
        return f"{cells[-1].place} is the last and must end with print({SENTINEL!r})"
    return ""


def remedied(error):
    """The message of an error output with a remedy; those of the course have one already."""
    message = " ".join(error["evalue"].split())
    if error["ename"] == "CourseError":
        return message.rstrip(".")[:1000]
    return f"{message[:300]}; correct that"


def run(lesson, args):
    """Run a notebook, which gets its final name if complete; return its row of the table, as a dict of texts."""
    begin = time.monotonic()
    name = lesson.path.stem
    print(f"{name}: profile {args.profile}, output in {lesson.folder}", flush=True)
    lesson.log.unlink(missing_ok=True)
    logging.basicConfig(
        filename=lesson.log,
        level=logging.INFO,
        format="%(message)s",
        encoding="utf-8",
        errors="backslashreplace",
        force=True,
    )
    run_folder.set_aside(lesson.folder, lesson.inputs)
    problem = execute(lesson, args)
    if problem:
        free = shutil.disk_usage(lesson.folder).free
        if free < NEARLY_FULL:
            problem += f"; {free / 2**20:.0f} MiB are free on that disk, so delete something first"
        problem += f". What ran and the log are in {lesson.folder}"
        if run_folder.put_back(lesson.folder):
            problem += ", beside the results of the run before, which are as they were"
        print(f"{name}: {problem}", file=sys.stderr, flush=True)
    else:
        lesson.partial.replace(lesson.folder / lesson.path.name)
        lesson.log.replace(lesson.folder / f"{name}.log")
        run_folder.complete(lesson.folder)
    return row_of(lesson, args.profile, (time.monotonic() - begin) / 60, "failed" if problem else "complete")


def row_of(lesson, profile, minutes, outcome):
    """The row of a lesson in the table: with what its results.json says, "-" where there is none of this run."""
    file = lesson.folder / run_folder.RESULTS
    results = {}
    if outcome == "complete" and file.exists():
        results = json_object(file.read_text("utf-8"))
    row = {"lesson": lesson.path.stem, "profile": profile}
    for key in RESULTS:
        value = results.get(key)
        if value is None:
            row[key] = "-"
        else:
            row[key] = f"{value:.3f}" if isinstance(value, float) else str(value)
    row["minutes"] = f"{minutes:.3f}"
    row["verdict"] = outcome
    return row


# ---- the command -------------------------------------------------------------------------------------------------


def command_line():
    """The parser of the options."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebooks", usage=argparse.SUPPRESS)
    parser.add_argument("--nb", default="", help='"01", "01,02" or the path of a notebook; all if empty')
    parser.add_argument("--profile", default="tiny", choices=["tiny", "cpu", "colab", "full"])
    parser.add_argument("--overrides", type=json_object, default="{}", help="JSON object with values of the profile")
    parser.add_argument("--parameters", type=json_object, default="{}", help="JSON object with other parameters")
    parser.add_argument("--seed", type=seed, help="replaces the SEED of the notebook")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs", help="a run writes to OUT/PROFILE/NOTEBOOK NAME/")
    parser.add_argument("--timeout", type=float, default=86400, help="seconds a notebook may take")
    parser.add_argument("--cell-timeout", type=float, default=86400, help="seconds a cell may take")
    parser.add_argument("--jobs", type=int, default=0, help="notebooks at once; 0: of profile tiny one a core, else 1")
    parser.add_argument("--no-table", action="store_true", help="print no table at the end")
    return parser


def parameters_of(args):
    """The parameters that the command line gives to every notebook."""
    parameters = dict(args.parameters)
    if args.overrides:
        parameters["OVERRIDES"] = args.overrides
    if args.seed is not None:
        parameters["SEED"] = args.seed
    return parameters


def paths_of(names):
    """The paths of the notebooks in a text such as "01,my_notebook.ipynb"; of all lessons if it is empty."""
    numbered = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
    if not names:
        return list(numbered.values())
    return [numbered.get(name.zfill(2), Path(name)).resolve() for name in names.split(",")]


def take_folders(lessons):
    """Make the folders of the lessons ours, all of them, before anything of an earlier run is moved."""
    for lesson in lessons:
        lesson.folder.mkdir(parents=True, exist_ok=True)
        own_folder(lesson.folder, put_aside=False)


def run_one_by_one(lessons, args):
    """Run lessons until a signal comes; return their rows of the table."""
    rows = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, on_signal)
    for lesson in lessons:
        if not received_signals:
            rows.append(run(lesson, args))
    return rows


def run_side_by_side(lessons, args, arguments, jobs):
    """Run lessons, some at once, each in a runner of its own with these arguments; return their rows of the table."""
    ended, received = side_by_side.run_all(lessons, arguments, jobs, watcher)
    if received is not None:
        received_signals.append(received)
    rows = []
    for lesson, code, minutes in ended:
        rows.append(row_of(lesson, args.profile, minutes, "failed" if code else "complete"))
    return rows


def main(arguments=None):
    """Read the command line, run, and return the exit code: 0 only if every lesson ran to its last cell."""
    parser = command_line()
    args = parser.parse_args(arguments)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError):  # a test, or a notebook, has put something else there
            stream.reconfigure(errors="backslashreplace")  # a terminal that knows ASCII only stops no run
    logging.captureWarnings(True)  # they go to the log
    logging.raiseExceptions = False  # a full disk costs the log, and is reported by the notebook that cannot be saved
    try:
        lessons = []
        for path in paths_of(args.nb):
            folder = args.out.expanduser().resolve() / args.profile / path.stem
            lessons.append(lesson_to_run(path, folder, args.profile, parameters_of(args)))
        jobs = min(args.jobs or side_by_side.default_jobs(args.profile), len(lessons))
        if jobs <= 1:
            take_folders(lessons)
    except OSError as error:
        parser.error(f"cannot write to {args.out} ({error}); choose another --out (OUT= with make)")
    except ValueError as error:
        parser.error(str(error))
    if jobs > 1:
        rows = run_side_by_side(lessons, args, sys.argv[1:] if arguments is None else arguments, jobs)
    else:
        rows = run_one_by_one(lessons, args)
    if rows and not args.no_table:
        print(aligned_table(rows))
    if received_signals:
        return 128 + received_signals[0]
    return int(any(row["verdict"] != "complete" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
