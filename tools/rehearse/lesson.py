"""What a rehearsal reads out of a lesson: the settings of a profile, and the call that plans its memory.

A notebook cannot be imported, so its profile cell is executed here, and its call of `memory.plan` is evaluated here.
This is the only module of the tools that runs code of a notebook outside of a kernel. It is code of this repository.
"""

import ast
import json
import math
from pathlib import Path
from types import SimpleNamespace

from tools import notebooks
from utils import memory, session
from utils.errors import CourseError
from utils.paths import ROOT

FULL_SIZES = ROOT / "data" / "models" / "full_size.json"  # {model id: its configuration}
# what a rehearsal cuts down, if the profile has it: counts only, never lengths, batches, types or the method
COUNTS = {"validation_rows": 8, "unquantized_rows": 8, "compare_rows": 4, "compare_steps": 4, "compare_seeds": 1}


def code_cells(path):
    """The tools.notebooks.CodeCells of the notebook at a path."""
    return notebooks.code_cells(notebooks.read(path))


def lesson_of(name):
    """The path of a lesson that trains by its number, such as "03" or "3", or of any notebook by its path.

    Raises CourseError if there is none.
    """
    trains = {}
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        if "trainer" in assignments(path):
            trains[path.name[:2]] = path
    path = trains.get(name.zfill(2))
    if name.endswith(".ipynb"):
        path = Path(name).resolve()
    if path is None or not path.exists():
        raise CourseError(f"there is no lesson {name!r} to rehearse; choose NB from {', '.join(trains)}.")
    return path


def assignments(path):
    """{name: expression} of what a notebook assigns outside of functions and blocks."""
    expressions = {}
    for cell in code_cells(path):
        lines = [line for line in cell.source.splitlines() if not line.lstrip().startswith(("!", "%"))]
        try:
            statements = ast.parse("\n".join(lines)).body
        except SyntaxError:  # the Colab cell, once its lines of shell are gone
            continue
        for statement in statements:
            if isinstance(statement, ast.Assign) and isinstance(statement.targets[0], ast.Name):
                expressions[statement.targets[0].id] = statement.value
    return expressions


def profile_of(path, profile, overrides):
    """The settings of a profile with overrides, as a namespace: what the notebook's own cell makes of them."""
    tables = [cell.source for cell in code_cells(path) if "profiles.select(" in cell.source]
    if not tables:
        raise CourseError(f"{path.name} has no profiles to rehearse; name a lesson from 01 on.")
    names = {"PROFILE": profile, "OVERRIDES": overrides}
    exec(tables[-1], names)  # noqa: S102  (the course's own code: see above)
    return names["run"]


def cuts(run, steps):
    """The overrides that make a run short; `steps`: of the training."""
    eval_rows = max(4, getattr(run, "eval_batch", 0), getattr(run, "per_device_eval_batch_size", 0))
    short = {"max_steps": steps, "eval_steps": steps // 2, "logging_steps": steps // 2, "eval_rows": eval_rows}
    short.update(COUNTS)
    overrides = {}
    for name, value in vars(run).items():
        if name in short:
            overrides[name] = short[name] if value < 0 else min(value, short[name])  # below 0: no limit
    return overrides


def planned_dtype(wish, device_map="auto"):
    """As `session.choose_dtype`, but a plan may be of a card that is not here."""
    return session.choose_dtype(wish, device_map) if wish == "auto" else wish


class NotebookNames(dict):
    """The names in a notebook's expressions: some of ours, then what it assigns itself, then transformers and peft."""

    def __init__(self, expressions, **values):
        super().__init__(values)
        self.expressions = expressions

    def __missing__(self, name):
        import peft
        import transformers

        if name in self.expressions:
            self[name] = self.value_of(self.expressions[name])
            return self[name]
        for library in (transformers, peft):
            if hasattr(library, name):
                return getattr(library, name)
        raise KeyError(name)

    def value_of(self, expression):
        """The value of an expression of the notebook."""
        code = compile(ast.Expression(expression), "notebook", "eval")
        return eval(code, {}, self)  # noqa: S307  (the course's own code: see above)


def plan_of(path, run, rows):
    """The plan of a lesson by its own call of memory.plan, for rows with these longest inputs and answers.

    run: the settings of its profile. rows: a dict with "longest" and "target", in tokens, and "classes", the number of
    labels. What a lesson reads off its model and its data before it plans is put in here.
    """
    import torch  # here, as it takes seconds to import: the process that waits for this one needs none of it

    from utils import speed

    batch = run.per_device_train_batch_size
    longest_batch = {
        "input_ids": SimpleNamespace(shape=(batch, rows["longest"])),
        "labels": SimpleNamespace(shape=(batch, rows["target"])),
    }
    values = {
        "run": run,
        "memory": memory,
        "speed": speed,
        "session": SimpleNamespace(choose_dtype=planned_dtype),
        "torch": torch,
        "math": math,
        "length": rows["longest"],
        "lengths": [rows["longest"]],
        "longest_batch": longest_batch,
        "num_labels": rows["classes"],
        "linear_names": "all-linear",
        "new_modules": ["classifier"],
    }
    configuration = json.loads(FULL_SIZES.read_text("utf-8")).get(run.model_id)
    if configuration:
        values["model"] = SimpleNamespace(config=SimpleNamespace(**configuration))
    expressions = assignments(path)
    return NotebookNames(expressions, **values).value_of(expressions["planned"])
