"""Do the levers that make the lessons fast change what is learned? Loss curves of both ways, three seeds, on a CPU.

python -m benchmarks.loss_bands    minutes; into benchmarks/receipts/loss_bands.json,
    and the table of docs/faster-not-different.md

Each lesson runs, profile tiny, up to its training: once as it is, once the published way (PUBLISHED_WAYS): all rows
padded to one length, small batches accumulated, checkpointing, attention as transformers chooses it. Rows, order and
optimizer are the same; dropout is off in both, because its draws depend on the padding.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from benchmarks.lesson_training import TrainingDone, pad_all_rows, train
from tools.tables import markdown_table, put_into_page
from utils import paths, session, speed

RECEIPT = paths.ROOT / "benchmarks" / "receipts" / "loss_bands.json"
SEEDS = (0, 1, 2)
COMPARED_AT_THE_END = 10  # steps


def change_01(names):
    """Changes what the notebook of lesson 01 made to the published way; the others alike. names: its variables."""
    pad_all_rows(names, 128)


def change_02(names):
    """The published way of lesson 02."""
    pad_all_rows(names, 64)


def change_03(names):
    """The published way of lesson 03."""
    pad_all_rows(names, 256)


def change_04(names):
    """The published way of lesson 04: attention gets the padding mask, whatever the row `speed` says."""
    for callback in names["trainer"].callback_handler.callbacks:
        if isinstance(callback, speed.DuringTraining):
            callback.names = [name for name in callback.names if name != "no_padding_mask"]


def change_05(names):
    """The published way of lesson 05: the last layer computes all positions, not only those that are read."""
    pad_all_rows(names, 128)
    layers = names["model"].get_base_model().model.layers
    if type(layers[-1]) is type(layers[0]):
        raise ValueError("lesson 05 changes its last layer no more: say here how all its positions are computed")
    layers[-1].__class__ = type(layers[0])  # as it was before the lesson made a layer for the last token of it


@dataclass(frozen=True)
class PublishedWay:
    """What the published way of a lesson does otherwise than the course."""

    steps: int
    """of both trainings"""
    overrides: dict
    """settings of the profile"""
    change: Callable
    """a function of the notebook's variables, called before the training"""
    description: str


PUBLISHED_WAYS = {
    "01": PublishedWay(60, {}, change_01, "padded to 128"),
    "02": PublishedWay(
        60,
        {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 8, "activation_checkpointing": True},
        change_02,
        "padded to 64, 4 rows × 8, checkpointing",
    ),
    "03": PublishedWay(
        48,
        {"activation_checkpointing": True},
        change_03,
        "padded to 256, `sdpa`, checkpointing",
    ),
    "04": PublishedWay(60, {"activation_checkpointing": True}, change_04, "padding mask, checkpointing"),
    "05": PublishedWay(
        40,
        {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 16, "activation_checkpointing": True},
        change_05,
        "padded to 128, 2 rows × 16, checkpointing, the whole last layer",
    ),
}


def make_comparable(names):
    """Takes out of a training what would differ by chance or disturb: dropout, evaluations, checkpoints."""
    for module in names["model"].modules():
        for attribute in ("p", "dropout"):
            if isinstance(getattr(module, attribute, None), float):
                setattr(module, attribute, 0.0)
    args = names["args"]
    args.eval_strategy = "no"
    args.save_strategy = "no"
    args.load_best_model_at_end = False
    args.logging_steps = 1


def losses(lesson, way, seed, folder):
    """The loss of every step of a lesson's training, "course" or "published"; runs in a process of its own."""
    from transformers import TrainerCallback

    loss_of_each_step = []

    class NoteLosses(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            if "loss" in logs:
                loss_of_each_step.append(logs["loss"])

        def on_train_end(self, args, state, control, **kwargs):
            raise TrainingDone

    published = PUBLISHED_WAYS[lesson]
    overrides = {"max_steps": published.steps}
    if way == "published":
        overrides.update(published.overrides)

    def change(names):
        make_comparable(names)
        if way == "published":
            published.change(names)

    parameters = {"PROFILE": "tiny", "SEED": seed, "OVERRIDES": overrides, "OUTPUT_DIR": str(folder / "out")}
    train(lesson, parameters, change, NoteLosses)
    return loss_of_each_step


def compare(curves):
    """How far the two ways are apart, from {way: for each seed its losses of every step}.

    apart: between the ways at the same seed; between_seeds: between the seeds of the published way. Both are root mean
    squares over steps. last_ten: {way: for each seed the mean of its last ten losses}.
    """
    squares = []
    for course, published in zip(curves["course"], curves["published"], strict=True):
        for course_loss, published_loss in zip(course, published, strict=True):
            squares.append((course_loss - published_loss) ** 2)
    variances = [statistics.variance(at_step) for at_step in zip(*curves["published"], strict=True)]
    last_ten = {}
    for way, of_seeds in curves.items():
        last_ten[way] = [statistics.mean(curve[-COMPARED_AT_THE_END:]) for curve in of_seeds]
    return {
        "apart": statistics.mean(squares) ** 0.5,
        "between_seeds": statistics.mean(variances) ** 0.5,
        "last_ten": last_ten,
    }


def distance_text(distance):
    """A distance between losses, for the table."""
    if distance == 0:
        return "0"
    return f"{distance:.1e}"


def table(record):
    """The table of docs/faster-not-different.md."""
    rows = []
    for lesson, comparison in sorted(record["lessons"].items()):
        last_losses = {}
        for way, means in comparison["last_ten"].items():
            last_losses[way] = " · ".join(f"{mean:.4f}" for mean in means)
        rows.append(
            {
                "lesson": lesson,
                "the published way": PUBLISHED_WAYS[lesson].description,
                "steps": PUBLISHED_WAYS[lesson].steps,
                "last 10 losses, seeds 0, 1, 2": last_losses["published"],
                "course": last_losses["course"],
                "apart": distance_text(comparison["apart"]),
                "between seeds": distance_text(comparison["between_seeds"]),
            }
        )
    return markdown_table(rows)


def losses_in_a_child(lesson, way, seed):
    """`losses` in a process of its own: nothing of another training is left in it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "losses.json"
        command = [sys.executable, "-m", "benchmarks.loss_bands", "--keep", str(path)]
        command += ["--child", lesson, way, str(seed)]
        child = subprocess.run(command, cwd=paths.ROOT, capture_output=True, text=True)
        if child.returncode:
            raise SystemExit(f"lesson {lesson}, {way}, seed {seed}: {child.stderr[-2000:]}")
        return json.loads(path.read_text("utf-8"))


def main():
    """Measures the lessons that the command line names, and writes receipt and table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default=",".join(PUBLISHED_WAYS))
    parser.add_argument("--keep", type=Path, default=RECEIPT)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        lesson, way, seed = options.child
        with tempfile.TemporaryDirectory() as folder:
            options.keep.write_text(json.dumps(losses(lesson, way, int(seed), Path(folder))), encoding="utf-8")
        return

    record = {"lessons": {}}
    if options.keep.exists():
        record = json.loads(options.keep.read_text("utf-8"))
    for lesson in options.nb.split(","):
        curves = {}
        for way in ("course", "published"):
            curves[way] = [losses_in_a_child(lesson, way, seed) for seed in SEEDS]
        comparison = compare(curves)
        print(lesson, comparison, flush=True)
        comparison["losses"] = curves
        record["lessons"][lesson] = comparison
        record.update(session.facts())
        options.keep.write_text(json.dumps(record) + "\n", "utf-8")
    if options.keep == RECEIPT:
        put_into_page("docs/faster-not-different.md", "bands", table(record))


if __name__ == "__main__":
    main()
