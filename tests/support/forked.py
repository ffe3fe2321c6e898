"""The cells of a notebook, or a script, in a forked process that has loaded the libraries already.

To start Python and to import the libraries takes 12 seconds; the tests run dozens of notebooks and scripts. A fork
server imports once, without running anything, and each run is a process of its own that starts from there.
"""

import json
import multiprocessing
import os
import runpy
import sys
import time
from types import SimpleNamespace
from unittest import mock

from IPython.core.interactiveshell import InteractiveShell

from tools import notebooks, run_notebooks

LIBRARIES = [
    "forked",
    "bitsandbytes",
    "datasets",
    "evaluate",
    "pandas",
    "peft",
    "scipy.sparse",
    "sklearn.dummy",
    "sklearn.feature_extraction.text",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.pipeline",
    "transformers.trainer",
    "transformers.trainer_seq2seq",
    "trl.trainer.sft_trainer",
    "utils.plots",
    "utils.results",
]
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(LIBRARIES)


def run_all(lesson, log):
    """Run the code cells in order, as a kernel does; the process fails with the first that fails."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)  # standard output
        os.dup2(file.fileno(), 2)  # standard error
    shell = InteractiveShell.instance()
    for cell in notebooks.code_cells(notebooks.read(lesson.path)):
        if not shell.run_cell(cell.source).success:
            sys.exit(f"{cell.place} failed")
        if "parameters" in cell.tags:
            shell.push(lesson.parameters)


def started(environment, target, *args):
    """A process that runs a function in this environment."""
    process = context.Process(target=target, args=args)
    fixed = {**environment, **run_notebooks.FIXED}
    with mock.patch.dict(os.environ, fixed, clear=True):  # the fork server starts with the first run
        process.start()
    return process


def run_as_main(script, options, folder):
    """Run a script as `python script options` does in a folder; what it prints goes to stdout.txt and stderr.txt."""
    os.chdir(folder)
    for number, name in enumerate(["stdout.txt", "stderr.txt"], start=1):
        with open(name, "wb") as file:
            os.dup2(file.fileno(), number)
    sys.argv = [str(script), *options]
    runpy.run_path(str(script), run_name="__main__")


def run_script(script, options, folder, environment):
    """Exit code, standard output and standard error of a script that runs in a folder."""
    process = started(environment, run_as_main, script, options, folder)
    process.join()
    stdout, stderr = ((folder / name).read_text() for name in ("stdout.txt", "stderr.txt"))
    return SimpleNamespace(returncode=process.exitcode, stdout=stdout, stderr=stderr)


def run(path, out, environment, parameters, kill_when=None):
    """Exit code, output, folder and results of the notebook at a path, tiny, with these parameters.

    kill_when: a path in the folder of the run; as soon as it exists, the process gets a kill -9.
    """
    lesson = run_notebooks.lesson_to_run(path, out / "tiny" / path.stem, "tiny", parameters)
    lesson.folder.mkdir(parents=True, exist_ok=True)
    log = lesson.folder / "output.log"
    process = started(environment, run_all, lesson, log)
    while kill_when is not None and process.is_alive():
        if (lesson.folder / kill_when).exists():
            process.kill()
        time.sleep(0.01)
    process.join()
    file = lesson.folder / "results.json"
    results = json.loads(file.read_text()) if file.exists() else None
    return SimpleNamespace(code=process.exitcode, text=log.read_text(), folder=lesson.folder, results=results)
