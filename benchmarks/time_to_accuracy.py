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

from benchmarks.loss_bands import PADDED, Done, train
from utils import paths, results, session

RECEIPT = paths.ROOT / "benchmarks" / "receipts" / "time_to_accuracy.json"
SEEDS = (0, 1, 2)
BATCH, EPOCHS, RATE = 8, 10, 3e-4 * (8 / 16) ** 0.5


def curve(way, seed, folder):
    """[seconds since the training began, steps, validation accuracy] of each evaluation."""
    from transformers import TrainerCallback

    found = []

    class Watch(TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            self.begin = time.perf_counter()

        def on_evaluate(self, args, state, control, metrics, **kwargs):
            found.append([time.perf_counter() - self.begin, state.global_step, metrics["eval_accuracy"]])

        def on_train_end(self, args, state, control, **kwargs):
            raise Done

    rows = len((paths.ROOT / "data" / "driver_intent" / "train.jsonl").read_text("utf-8").splitlines())
    published = dict(per_device_train_batch_size=BATCH, max_steps=EPOCHS * rows // BATCH, eval_steps=rows // BATCH)
    published |= dict(learning_rate=RATE)
    overrides, before = (published, PADDED.format(128)) if way == "published" else ({}, "")
    train("01", dict(PROFILE="tiny", SEED=seed, OVERRIDES=overrides, OUTPUT_DIR=str(folder / "out")), before, Watch)
    return found


def compare(published, course):
    """One row of the table: the published recipe's end, and when the course first was as right; None if never."""
    seconds, steps, wanted = published[-1]
    first = next((at for at in course if at[2] >= wanted), [None] * 3)
    found = {"accuracy": wanted, "published_seconds": seconds, "published_steps": steps}
    return found | {"seconds": first[0], "steps": first[1], "reached": first[2]}


def table(record):
    """The table of docs/faster-not-different.md."""
    head = "| seed | published: steps | s | validation accuracy | course: steps to as much | s | times faster |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    for seed, curves in enumerate(zip(record["published"], record["course"], strict=True)):
        r = compare(*curves)
        ours = ["never", "", ""]
        if r["seconds"]:
            ours = [str(r["steps"]), f"{r['seconds']:.1f}", f"{r['published_seconds'] / r['seconds']:.1f}"]
        theirs = [str(r["published_steps"]), f"{r['published_seconds']:.0f}", f"{r['accuracy']:.3f}"]
        lines.append(f"| {' | '.join([str(seed), *theirs, *ours])} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keep", type=Path, default=RECEIPT)
    parser.add_argument("--child", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        with tempfile.TemporaryDirectory() as folder:
            args.keep.write_text(json.dumps(curve(args.child[0], int(args.child[1]), Path(folder))))
        return
    record = {"published": [], "course": []}
    for seed in SEEDS:
        for way, found in record.items():
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "curve.json"
                again = [
                    sys.executable,
                    "-m",
                    "benchmarks.time_to_accuracy",
                    "--keep",
                    str(path),
                    "--child",
                    way,
                    str(seed),
                ]
                subprocess.run(again, cwd=paths.ROOT, check=True, stdout=subprocess.DEVNULL)
                found.append(json.loads(path.read_text("utf-8")))
        print(compare(record["published"][-1], record["course"][-1]), flush=True)
    args.keep.write_text(json.dumps(record | session.facts()) + "\n", "utf-8")
    if args.keep == RECEIPT:
        results.put_into_page("docs/faster-not-different.md", "time", table(record))


if __name__ == "__main__":
    main()
