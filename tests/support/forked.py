"""The cells of a notebook in a forked process that has loaded the libraries already, for runs that need no kernel.

A kernel takes 12 seconds to start and to import; the tests run dozens of notebooks. A fork server imports once, without
running anything, and each run is a process of its own that starts from there.
"""

import json
import multiprocessing
import os
import sys
from types import SimpleNamespace
from unittest import mock

from IPython.core.interactiveshell import InteractiveShell

from tools import run_notebooks

LIBRARIES = (
    "forked bitsandbytes datasets evaluate pandas peft scipy.sparse sklearn.dummy sklearn.feature_extraction.text "
    "sklearn.linear_model sklearn.metrics sklearn.pipeline transformers.trainer transformers.trainer_seq2seq "
    "trl.trainer.sft_trainer utils.plots utils.results"
).split()
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(LIBRARIES)


def run_all(path, parameters, log):
    """Runs the code cells in order, as a kernel does; the process fails with the first that fails."""
    with open(log, "wb") as file:
        for number in (1, 2):  # standard output and standard error
            os.dup2(file.fileno(), number)
    shell = InteractiveShell.instance()
    for cell in run_notebooks.code_cells(path.read_bytes()):
        if not shell.run_cell(cell["source"]).success:
            sys.exit(f"{cell['place']} failed")
        if "parameters" in cell["metadata"].get("tags", []):
            shell.push(parameters)


def run(notebook, out, environment, given):
    """Exit code, output, folder and results of a notebook, tiny, with the parameters `given`."""
    path, folder, parameters = run_notebooks.check(notebook, out / "tiny" / notebook.stem, "tiny", given)
    folder.mkdir(parents=True)
    log = folder / "output.log"
    process = context.Process(target=run_all, args=(path, parameters, log))
    with mock.patch.dict(
        os.environ, environment | run_notebooks.FIXED, clear=True
    ):  # the server starts with the first run
        process.start()
    process.join()
    results = folder / "results.json"
    record = json.loads(results.read_text()) if results.exists() else None
    return SimpleNamespace(code=process.exitcode, text=log.read_text(), folder=folder, results=record)
