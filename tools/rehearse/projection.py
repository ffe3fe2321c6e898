"""How long a whole run will take, from what a rehearsal measured: its record, as probe.py writes it."""

import itertools
import math
import statistics
from dataclasses import dataclass

WARM_UP_STEPS = 3
SHARES = {"test": 0.2, "validation": 0.1}  # of train, that a lesson takes if there is no such split


def split_sizes(run, sizes):
    """{split: rows} as a lesson splits and selects them; `sizes`: {split: rows} of the data set."""
    sizes = dict(sizes)
    for split, share in SHARES.items():
        if split not in sizes:
            if hasattr(run, "n_folds"):
                share = 1 / run.n_folds
            sizes[split] = math.ceil(sizes["train"] * share)
            sizes["train"] -= sizes[split]
    if hasattr(run, "train_rows"):
        for split in sizes:
            limit = run.train_rows if split == "train" else run.eval_rows
            sizes[split] = min(sizes[split], limit)
    return sizes


@dataclass
class StepTimes:
    """Seconds of the steps of a training, in three kinds; steps after an evaluation or a checkpoint are in none."""

    warm_up: list[float]  # the first three
    steady: list[float]
    slow: list[float]  # more than twice as long as most: kernels were compiled or graphs captured

    @property
    def mean(self):
        """Seconds a step after the warm-up, slow ones left out; with the warm-up, if there was nothing else."""
        return statistics.fmean(self.steady or self.warm_up)


def step_times(training):
    """The StepTimes of a training of the record."""
    times = [after - before for before, after in itertools.pairwise(training["ends"])]
    undisturbed = []
    for seconds, is_undisturbed in zip(times[WARM_UP_STEPS:], training["undisturbed"][WARM_UP_STEPS:], strict=True):
        if is_undisturbed:
            undisturbed.append(seconds)
    limit = 2 * statistics.median(undisturbed) if undisturbed else 0
    return StepTimes(
        warm_up=times[:WARM_UP_STEPS],
        steady=[seconds for seconds in undisturbed if seconds <= limit],
        slow=[seconds for seconds in undisturbed if seconds > limit],
    )


def whole_steps(run, train_rows):
    """The training steps of a whole run with so many rows an epoch."""
    if run.max_steps > 0:
        return run.max_steps
    batches = math.ceil(train_rows / run.per_device_train_batch_size)
    return math.ceil(batches / getattr(run, "gradient_accumulation_steps", 1)) * run.num_train_epochs


def seconds_a_row(evaluations):
    """Seconds that an evaluation takes for a row; evaluations: [rows, seconds] of each.

    Of several, the first is left out: it compiles, if anything is compiled.
    """
    later = evaluations[1:] or evaluations[:1]
    rows = sum(count for count, _ in later)
    return sum(seconds for _, seconds in later) / max(1, rows)


def compilation_seconds(training):
    """What compiling took: slow steps, and the first evaluation, each beyond what such a thing takes usually."""
    times = step_times(training)
    seconds = sum(times.slow) - len(times.slow) * times.mean
    usual = seconds_a_row(training["evaluations"])
    for rows, took in training["evaluations"][:1]:
        seconds += max(0, took - rows * usual)
    return seconds


def comparison_seconds(run, cut, trainings, steps, lengths):
    """What the trainings for comparison take: each as long before its steps, then `compare_steps` steps.

    steps: of the main training, where the profile has no `compare_steps`.
    """
    steps = getattr(run, "compare_steps", steps)
    seconds = 0
    for training in trainings:
        mean = step_times(training).mean
        measured_steps = len(training["ends"]) - 1
        seconds += training["end"] - training["begin"] - measured_steps * mean
        seconds += steps * mean * lengths
    if cut.get("compare_seeds"):  # of three methods with as many seeds each, one run is the lesson's own
        seconds *= (3 * run.compare_seeds - 1) / (3 * cut["compare_seeds"] - 1)
    return seconds


def project(run, cut, sizes, record, lengths=1.0, copies=1):
    """(seconds of the whole run by part, its steps), from the record of a rehearsal with the overrides `cut`.

    Training: steps and evaluations of the profile at the measured rates. Generation outside of it grows with eval_rows,
    trainings for comparison with their steps; what else a lesson does took as long in the rehearsal.
    lengths: mean tokens of a row, by those of the rows in the rehearsal; rows grouped by length begin with the longest.
    copies: how often an epoch trains on a row.
    """
    rows = split_sizes(run, sizes)
    main, *later = record["trainings"]
    steps = whole_steps(run, copies * rows["train"])
    evaluations = steps // getattr(run, "eval_steps", getattr(run, "logging_steps", steps))
    more_rows = run.eval_rows / cut["eval_rows"] if "eval_rows" in cut else 1
    in_cells = sum(cell["seconds"] for cell in record["cells"])
    in_trainings = sum(training["end"] - training["begin"] for training in record["trainings"])
    seconds = {
        "steps": steps * step_times(main).mean * lengths,
        "compilation": compilation_seconds(main),
        "evaluations": evaluations * rows["validation"] * seconds_a_row(main["evaluations"]),
        "checkpoints": evaluations * main["save_seconds"] / max(1, main["saves"]),
        "generation": record["generate_seconds"] * more_rows,
        "comparisons": comparison_seconds(run, cut, later, steps, lengths),
        "the rest": in_cells - record["generate_seconds"] - in_trainings,
    }
    return seconds, steps
