"""How long until lesson 01 is as right as its published recipe at its end? Both train the tiny BERT, on this machine.

python -m benchmarks.time_to_accuracy    minutes; into benchmarks/receipts/time_to_accuracy.json,
    and the table of docs/faster-not-different.md

The published recipe: 10 epochs in batches of 8, rows padded to all positions that the model has (there 512, here 128),
its rate by the square root of the batch sizes. The course: the lesson as it is, without an early stop. Both clocks run
from the training's begin and hold its evaluations and checkpoints: an epoch apart there, 25 steps apart in the lesson.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.lesson_training import TrainingDone, pad_all_rows, train
from tools.tables import markdown_table, put_into_page
from utils import paths, session

RECEIPT = paths.ROOT / "benchmarks" / "receipts" / "time_to_accuracy.json"
SEEDS = (0, 1, 2)
WAYS = ("published", "course")

# the published recipe, with the rate of the tiny profile (3e-4 for batches of 16) by the square root of the batch size
BATCH_SIZE = 8
EPOCHS = 10
LEARNING_RATE = 3e-4 * (8 / 16) ** 0.5
POSITIONS = 128


def published_overrides():
    """The settings of lesson 01 that make its training the published one."""
    train_file = paths.ROOT / "data" / "driver_intent" / "train.jsonl"
    rows = len(train_file.read_text("utf-8").splitlines())
    return {
        "per_device_train_batch_size": BATCH_SIZE,
        "max_steps": EPOCHS * rows // BATCH_SIZE,
        "eval_steps": rows // BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
    }


def curve(way, seed, folder):
    """[seconds since the training began, steps, validation accuracy] of each evaluation of a training."""
    from transformers import TrainerCallback

    evaluations = []

    class NoteEvaluations(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.begin = time.perf_counter()

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            seconds = time.perf_counter() - self.begin
            evaluations.append([seconds, state.global_step, metrics["eval_accuracy"]])

        def on_train_end(self, args, state, control, **kwargs):
            raise TrainingDone

    overrides = {}
    if way == "published":
        overrides = published_overrides()

    def change(names):
        if way == "published":
            pad_all_rows(names, POSITIONS)

    parameters = {"PROFILE": "tiny", "SEED": seed, "OVERRIDES": overrides, "OUTPUT_DIR": str(folder / "out")}
    train("01", parameters, change, NoteEvaluations)
    return evaluations


def compare(published, course):
    """The published recipe's end, and when the course first was as right, from the curves of both.

    accuracy, published_seconds, published_steps: of the published recipe's last evaluation. seconds, steps, reached:
    of the course's first evaluation with at least that accuracy; None if there is none.
    """
    published_seconds, published_steps, accuracy = published[-1]
    seconds, steps, reached = None, None, None
    for evaluation in course:
        if evaluation[2] >= accuracy:
            seconds, steps, reached = evaluation
            break
    return {
        "accuracy": accuracy,
        "published_seconds": published_seconds,
        "published_steps": published_steps,
        "seconds": seconds,
        "steps": steps,
        "reached": reached,
    }


def table(record):
    """The table of docs/faster-not-different.md."""
    rows = []
    for seed, (published, course) in enumerate(zip(record["published"], record["course"], strict=True)):
        comparison = compare(published, course)
        row = {
            "seed": seed,
            "published: steps": comparison["published_steps"],
            "published: s": f"{comparison['published_seconds']:.0f}",
            "validation accuracy": f"{comparison['accuracy']:.3f}",
            "course: steps to as much": "never",
            "course: s": "",
            "times faster": "",
        }
        if comparison["seconds"]:
            row["course: steps to as much"] = comparison["steps"]
            row["course: s"] = f"{comparison['seconds']:.1f}"
            row["times faster"] = f"{comparison['published_seconds'] / comparison['seconds']:.1f}"
        rows.append(row)
    return markdown_table(rows)


def curve_in_a_child(way, seed):
    """`curve` in a process of its own: nothing of another training is left in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "curve.json"
        command = [sys.executable, "-m", "benchmarks.time_to_accuracy", "--keep", str(path)]
        command += ["--child", way, str(seed)]
        subprocess.run(command, cwd=paths.ROOT, check=True, stdout=subprocess.DEVNULL)
        return json.loads(path.read_text("utf-8"))


def main():
    """Measures both ways for each seed, and writes receipt and table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=Path, default=RECEIPT)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        way, seed = options.child
        with tempfile.TemporaryDirectory() as folder:
            options.keep.write_text(json.dumps(curve(way, int(seed), Path(folder))), encoding="utf-8")
        return

    record = {way: [] for way in WAYS}
    for seed in SEEDS:
        for way in WAYS:
            record[way].append(curve_in_a_child(way, seed))
        print(compare(record["published"][-1], record["course"][-1]), flush=True)
    record.update(session.facts())
    options.keep.write_text(json.dumps(record) + "\n", "utf-8")
    if options.keep == RECEIPT:
        put_into_page("docs/faster-not-different.md", "time", table(record))


if __name__ == "__main__":
    main()
