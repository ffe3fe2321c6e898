"""A lesson's training against other recipes: same card, same rows, random weights of the real shape.

make bench NB=05    the published recipe and the course, into benchmarks/receipts/bench, and the tables of docs
make bench-table    the tables alone, from the receipts

An arm is one way to train the lesson: `arms.py` lists them. Each arm has a process of its own. Speed and memory are
real; what the models say is not. Results: a JSON file for each arm, in place of an older one. An arm that is named more
than once runs as often, and its medians count; with --add, so do the runs of earlier calls.
"""

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import arms, pages
from benchmarks.rates import steady_rates
from benchmarks.receipts import BENCH, RATES_OF_A_RUN, Receipt, medians, read_receipt
from tools import rehearse
from utils import paths, session

# what the lessons do before their training that is not timed: untuned models write answers, cut short
BEFORE_THE_TRAINING = {"max_new_tokens": 8, "unquantized_rows": 0}


class TrainingFailedError(Exception):
    """A lesson did not get through its training."""


def prepare(folder):
    """Writes the tokenizer, the rows and the random weights of a lesson, in a process of its own.

    Returns what `rehearse.prepare` says of them: `run`, the settings of the profile (None: there is no GPU, and nothing
    was written), and `cut`, the overrides that make a run short and name the rows.
    """
    command = [sys.executable, "-m", "benchmarks.bench", *sys.argv[1:], "--prepare", str(folder)]
    subprocess.run(command, check=True)
    return json.loads((folder / "ready.json").read_text("utf-8"))


def write_preparation(options, folder):
    """What runs in the process of `prepare`."""
    prepared = rehearse.prepare(options, folder)
    (folder / "ready.json").write_text(json.dumps(prepared, default=str), encoding="utf-8")


def rows_of(prepared):
    """The file with the rows to train on: those of the repository, or synthetic ones."""
    folder = Path(prepared["cut"].get("dataset_id", prepared["run"]["dataset_id"]))
    return next(folder.glob("train.*"))


def measure_recipe(options, folder, prepared, arm):
    """Trains by a recipe in a process of its own; returns what of a Receipt was measured, as a dict."""
    measurement = folder / "measurement.json"
    command = [sys.executable, "-m", "benchmarks.run_recipe", options.nb, arm]
    command += ["--rows", str(rows_of(prepared)), "--folder", str(folder / "trainer"), "--out", str(measurement)]
    search_path = [os.environ["PYTHONPATH"]]  # rehearse.enter has put this repository into it
    if arms.needs_unsloth(arm) and options.unsloth:
        search_path.insert(0, str(options.unsloth.resolve()))
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(search_path)
    # in the temporary folder, because Unsloth writes compiled code where it is started
    subprocess.run(command, check=True, env=environment, cwd=folder)
    return json.loads(measurement.read_text("utf-8"))


def write_up_to_training(path, target):
    """Writes a copy of a notebook that ends with the cell of its first training."""
    notebook = json.loads(path.read_text("utf-8"))
    sources = ["".join(cell["source"]) for cell in notebook["cells"]]
    training = next(number for number, source in enumerate(sources) if "trainer.train(" in source)
    notebook["cells"] = notebook["cells"][: training + 1]
    target.write_text(json.dumps(notebook), encoding="utf-8")


def overrides_of_course(options, prepared, changes):
    """All overrides of a timed lesson: few steps, nothing but steps during the training, and the arm's `changes`."""
    overrides = dict(prepared["cut"])
    for name in ("eval_steps", "logging_steps"):
        if name in overrides:
            overrides[name] = options.steps  # once, at the end
    for name, value in BEFORE_THE_TRAINING.items():
        if name in prepared["run"]:
            overrides[name] = value
    overrides.update(changes)
    return overrides


def settings_of_course(path, overrides, prepared):
    """The settings that a lesson runs with, without folders of this machine."""
    settings = vars(rehearse.profile_of(path, "full", overrides))
    text = json.dumps(settings, default=str).replace(str(paths.ROOT), ".")
    settings = json.loads(text)
    if "dataset_id" in prepared["cut"]:
        settings["dataset_id"] = prepared["rows"]["described"]
    return settings


def counts_of_steps(totals):
    """[rows, real tokens, padded tokens] of each step, from the totals after each step."""
    counts = []
    before = [0, 0, 0]
    for total in totals:
        counts.append([now - then for now, then in zip(total, before, strict=True)])
        before = total
    return counts


def measure_course(options, folder, prepared, arm_overrides):
    """Runs the lesson up to its training; returns what of a Receipt was measured, as a dict.

    A rehearsal's probe in the kernel notes the times of the steps and the peak bytes of that cell. Raises
    TrainingFailedError if the lesson did not get through its training.
    """
    path = rehearse.lesson_of(options.nb)
    notebook = folder / path.name
    write_up_to_training(path, notebook)
    changes = {**arms.COURSE_OVERRIDES[options.nb], **arm_overrides}
    overrides = overrides_of_course(options, prepared, changes)
    command = [sys.executable, "-m", "tools.run_notebooks", "--nb", str(notebook), "--profile", "full"]
    command += ["--overrides", json.dumps(overrides), "--out", str(folder / "out")]
    # not checked: its verdict is that no results were written, because the cells that write them are cut off
    subprocess.run(command, cwd=paths.ROOT, check=False)

    record = json.loads((folder / "record.json").read_text("utf-8"))
    (folder / "record.json").unlink()
    shutil.rmtree(folder / "out", ignore_errors=True)
    if not record["trainings"] or record["trainings"][0]["end"] is None:
        raise TrainingFailedError(f"lesson {options.nb} did not get through its training; its output stands above.")
    training = record["trainings"][0]
    rates = steady_rates(
        training["ends"],
        counts_of_steps(training["counts"]),
        training["undisturbed"],
        arms.warm_up_steps(options.nb, "course"),
    )
    return {
        **dataclasses.asdict(rates),
        "peak_allocated_bytes": record["training_peak"],
        "planned_bytes": record["planned"]["total"],
        "reserved_bytes": record["cells"][-1].get("reserved"),
        "held_bytes": training["held"],
        "overrides": changes,
        "settings": settings_of_course(path, overrides, prepared),
        "mean_loss": training["loss"],
    }


class ReceiptsOfCall:
    """The receipts that a call of this program writes: each is written anew with every run, so none is lost."""

    def __init__(self, lesson, folder, add_to_earlier_runs):
        """lesson: "01" to "05". folder: where the files go. add_to_earlier_runs: runs in older files count, too."""
        self.lesson = lesson
        self.folder = folder
        self.add_to_earlier_runs = add_to_earlier_runs
        self.facts = session.facts()
        self.receipts = {}  # by name
        self.course_rates = []  # real tokens/s of the course in this call
        folder.mkdir(parents=True, exist_ok=True)

    def path_of(self, name):
        """The file of an arm."""
        return self.folder / f"{self.lesson}_{name.replace(' ', '_')}.json"

    def earlier_runs(self, name):
        """The runs that count beside the one just made: of this call, or with --add of an older file."""
        if name in self.receipts:
            return self.receipts[name].runs
        if self.add_to_earlier_runs and self.path_of(name).exists():
            return read_receipt(self.path_of(name)).runs
        return []

    def add(self, name, measured):
        """Makes the receipt of one run of an arm, with the medians of all its runs, and writes it."""
        this_run = {rate: measured[rate] for rate in RATES_OF_A_RUN}
        runs = [*self.earlier_runs(name), this_run]
        values = {**self.facts, **measured, **medians(runs)}  # Unsloth's arm measured its own versions
        self.receipts[name] = Receipt(arm=name, lesson=self.lesson, runs=runs, **values)
        self.write()
        return self.receipts[name]

    def write(self):
        """Writes all receipts of this call: what stands beside the course says the course's rate."""
        for name, receipt in self.receipts.items():
            is_compared = name in arms.levers_of(self.lesson) or name in ("peer", "unsloth", "unsloth with the cap")
            if is_compared and self.course_rates:
                receipt.beside = statistics.median(self.course_rates)
            receipt.write(self.path_of(name))


def run_arms(options, folder):
    """Runs the arms that the options name, one after the other, and writes their receipts and the pages."""
    rehearse.enter(folder, 0)
    prepared = prepare(folder)
    if prepared["run"] is None:
        return
    receipts = ReceiptsOfCall(options.nb, options.keep, options.add)
    levers = arms.levers_of(options.nb)
    for arm in options.arms:
        started = time.perf_counter()
        name = arm
        if arm == "course" and options.name:
            name = options.name
        try:
            if arm == "course":
                measured = measure_course(options, folder, prepared, options.overrides)
                receipts.course_rates.append(measured["real_tokens_per_second"])
            elif arm in levers:
                measured = measure_course(options, folder, prepared, levers[arm])
            else:
                measured = measure_recipe(options, folder, prepared, arm)
        except TrainingFailedError as failure:
            print(failure, flush=True)  # the other arms shall have their turn
            continue
        measured["wall_seconds"] = time.perf_counter() - started
        print(receipts.add(name, measured), flush=True)
    if options.keep == BENCH:
        pages.write_all()


def chosen_arms(options):
    """The names of the arms to run, in order. Raises ValueError for a name that the lesson has not."""
    levers = arms.levers_of(options.nb)
    if options.levers:
        return ["course", *levers, "course"]
    names = options.arms.split(",")
    known = ["course", *arms.RECIPES[options.nb], *levers]
    for name in names:
        if name not in known:
            raise ValueError(f"lesson {options.nb} has no arm {name!r}; choose from {', '.join(known)}")
    return names


def parse_options():
    """The options of the command line, completed: `arms` is a list, `steps` a number."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default="05", choices=arms.LESSONS)
    parser.add_argument("--arms", default="reference,course", help="in this order")
    parser.add_argument("--levers", action="store_true", help="the course, itself without each of its levers, itself")
    parser.add_argument("--steps", type=int, help="steps of the course's arm")
    parser.add_argument("--overrides", type=rehearse.json_object, default={}, help="for the course's arm")
    parser.add_argument("--name", default="", help="how the course's arm is called with these overrides")
    parser.add_argument("--keep", type=Path, default=BENCH, help="folder of the results")
    parser.add_argument("--unsloth", type=Path, help="folder with Unsloth and its pins, for the arm of that name")
    parser.add_argument("--add", action="store_true", help="the runs of earlier results count, too")
    parser.add_argument("--table", action="store_true", help="only write the tables of docs from the receipts")
    parser.add_argument("--cpu", action="store_true", help="run the course's arm without a GPU")
    parser.add_argument("--sizes", type=Path, default=rehearse.MODELS / "full_size.json", help=argparse.SUPPRESS)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.steps = options.steps or arms.COURSE_STEPS[options.nb] + arms.WARM_UP_STEPS[options.nb]
    try:
        options.arms = chosen_arms(options)
    except ValueError as problem:
        parser.error(str(problem))
    # of a rehearsal, which prepares the lesson
    options.profile = "full"
    options.gpu_memory = 0
    options.anyway = True
    return options


def main():
    """Does what the command line says."""
    options = parse_options()
    if options.prepare:
        write_preparation(options, options.prepare)
    elif options.table:
        pages.write_all()
    else:
        with tempfile.TemporaryDirectory(prefix="bench-", ignore_cleanup_errors=True) as folder:
            run_arms(options, Path(folder))


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
