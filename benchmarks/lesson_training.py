"""Runs a lesson up to its training and through it, in this process; used where losses and times are compared.

The code before the training can change what the notebook made: how rows are padded, for example.
"""

import json

from utils import paths


class TrainingDone(Exception):  # noqa: N818  (no error: it ends the training in time)
    """The training is over, and with it what is of interest. A callback raises it."""


def notebook_of(lesson):
    """The path of a lesson, "01" to "05"."""
    return next((paths.ROOT / "notebooks").glob(f"{lesson}_*.ipynb"))


def pad_all_rows(names, length):
    """Has a notebook's collator pad every row to `length` tokens. names: the notebook's variables."""
    names["data_collator"].padding = "max_length"
    names["data_collator"].max_length = length
    if "trainer" in names:  # lesson 03 makes it in the cell that trains
        names["trainer"].data_collator = names["data_collator"]


def train(lesson, parameters, change, callback):
    """Runs a lesson up to the end of its first training, in this process.

    parameters: {name: value} in place of the notebook's own, such as PROFILE. change: a function that gets the
    notebook's variables, a dict, directly before the cell that trains. callback: a class of TrainerCallback that sees
    the training; it raises TrainingDone at its end. Training does not stop early.
    """
    from IPython.core.interactiveshell import InteractiveShell
    from transformers import EarlyStoppingCallback, trainer

    trainer.DEFAULT_CALLBACKS.append(callback)
    shell = InteractiveShell.instance()
    names = shell.user_ns
    for cell in json.loads(notebook_of(lesson).read_text("utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        code = "".join(cell["source"])
        if "trainer.train(" in code:
            if "trainer" in names:
                names["trainer"].remove_callback(EarlyStoppingCallback)
            change(names)
            try:
                shell.run_cell(code, silent=True).raise_error()
            except TrainingDone:
                return
            continue
        shell.run_cell(code, silent=True).raise_error()
        if "parameters" in cell["metadata"].get("tags", []):
            names.update(parameters)
    raise SystemExit(f"lesson {lesson} has no training")
