"""What a rehearsal has measured: printed, and kept as a receipt."""

import json
import re
import shutil

from tools.rehearse.lesson import code_cells
from tools.rehearse.projection import project, step_times
from utils import memory

REPEATED = r"[Oo]ut of memory (with|in an evaluation of) \d+ \w+ at once.*"  # what utils.training.out_of_memory prints


class Measured:
    """What a lesson left behind when it was rehearsed; a part of it, if it did not run to its end.

    record: what probe.py wrote. cells: the CodeCells of the executed notebook. results: results.json, or None.
    """

    def __init__(self, folder):
        """folder: the temporary one of the rehearsal."""
        self.record = read_json(folder / "record.json") or {}
        executed = sorted((folder / "out").glob("*/*/*.ipynb"))
        self.notebook = executed[0] if executed else None
        self.cells = code_cells(self.notebook) if executed else []
        written = sorted((folder / "out").glob("*/*/results.json"))
        self.results = read_json(written[0]) if written else None

    def place_of(self, execution_count):
        """The cell with this number, in words."""
        for cell in self.cells:
            if cell.execution_count == execution_count:
                return cell.place
        return "?"

    @property
    def main_training(self):
        """The record of the first training; None if it did not come to its end."""
        trainings = self.record.get("trainings")
        if not trainings or trainings[0]["end"] is None:
            return None
        return trainings[0]


def read_json(path):
    """The content of a JSON file; None if there is no such file."""
    return json.loads(path.read_text("utf-8")) if path.exists() else None


def report(args, run, ready, measured):
    """Print what was measured; return it as a dict, with what an incomplete run left.

    args: the options of the command line. run: the settings of the profile. ready: what preparation.prepare returned.
    """
    summary = {
        "overrides": {**args.overrides, **ready["cut"]},
        "complete": measured.results is not None,
        "capped_gb": args.gpu_memory or None,
        "planned_before": ready["planned"]["total"],
    }
    print_parts(measured.record, ready["planned"])
    summary.update(report_peaks(measured))
    summary.update(report_out_of_memory(measured))
    if measured.main_training is None:
        print("The lesson did not get through its training, so there is no speed to report.")
        return summary
    lengths = report_speed(run, ready["rows"], measured, summary)
    report_duration(run, ready, measured, lengths, summary)
    print("Quality was not measured: the weights were random.")
    return summary


def print_parts(record, planned_before):
    """Print the memory of the training: planned by component, and the measured peak if the lesson got so far."""
    print(f"\n{'memory of the training':24} {'GiB':>7}")
    for part, size in record.get("planned", planned_before).items():
        if size:
            print(f"{'planned ' + part:24} {size / memory.GIB:7.2f}")
    if record.get("training_peak"):
        print(f"{'measured total':24} {record['training_peak'] / memory.GIB:7.2f}")


def report_peaks(measured):
    """Print the highest memory of the whole lesson, and in which cell; return both, allocated and reserved."""
    peaks = [cell for cell in measured.record.get("cells", []) if cell.get("allocated")]
    if not peaks:
        return {}
    summary = {}
    for kind in ("allocated", "reserved"):
        highest = peaks[0]
        for cell in peaks:
            if cell[kind] > highest[kind]:
                highest = cell
        place = measured.place_of(highest["number"])
        summary[f"highest_{kind}_bytes"] = highest[kind]
        summary[f"highest_{kind}_in"] = place
        print(f"whole lesson: at most {highest[kind] / memory.GIB:.2f} GiB {kind}, in {place}")
    return summary


def report_out_of_memory(measured):
    """Print which cells ran out of memory, and which went on with smaller parts; return the latter as "halved"."""
    summary = {}
    for cell in measured.cells:
        for output in cell.outputs:
            error = f"{output.get('ename')} {output.get('evalue')}"
            if "out of memory" in error or "OutOfMemory" in error:
                remedy = "take a smaller batch (OVERRIDES), PROFILE=colab, or a larger card"
                print(f"It does not fit: {cell.place} ran out of memory; {remedy}.")
            repeated = re.search(REPEATED, "".join(output.get("text", "")))
            if repeated:
                summary["halved"] = repeated[0]
                print(f"Tight: in {cell.place}, {repeated[0]}")
    return summary


def report_speed(run, rows, measured, summary):
    """Print the speed of the training, and put it into the summary.

    Returns the mean tokens of a row of the whole set, by those of the rows in the rehearsal; 1 if that is not known.
    """
    times = step_times(measured.main_training)
    batch = run.per_device_train_batch_size * getattr(run, "gradient_accumulation_steps", 1)
    summary["step_seconds"] = times.mean
    summary["measured_steps"] = len(times.steady)
    summary["warm_up_seconds"] = sum(times.warm_up)
    line = f"{times.mean:.3f} s a step of {batch} rows"
    line += f" ({len(times.steady)} steps after {len(times.warm_up)} of warm-up)"
    if times.slow:
        seconds = sum(times.slow)
        summary["slow_steps"] = len(times.slow)
        summary["slow_seconds"] = seconds
        line += f" (without {len(times.slow)} slow ones, {seconds:.0f} s in all: kernels were compiled or recorded)"
    lengths = 1.0
    if measured.results:
        tokens = measured.results["real_tokens_per_second"] / measured.results["rows_per_second"]
        lengths = rows["mean"] / tokens
        summary["tokens_a_row"] = {"here": tokens, "whole set": rows["mean"]}
        summary["real_tokens_per_second"] = tokens * batch / times.mean
        line += f", {summary['real_tokens_per_second']:,.0f} real tokens/s (tokens a row: {tokens:.0f} in these steps,"
        line += f" {rows['mean']:.0f} in the whole set)"
    summary["rows_per_second"] = batch / times.mean / lengths
    print(f"training: {line}, {summary['rows_per_second']:.1f} rows/s of the whole set")
    return lengths


def report_duration(run, ready, measured, lengths, summary):
    """Print how long the whole run will take, and put it into the summary."""
    rows = ready["rows"]
    seconds, steps = project(run, ready["cut"], rows["sizes"], measured.record, lengths, rows["copies"])
    summary["projected_seconds"] = seconds
    summary["projected_steps"] = steps
    total = sum(seconds.values())
    parts = ", ".join(f"{name} {duration(value)}" for name, value in seconds.items() if value >= 1)
    print(
        f"the whole run: at most about {duration(total)} ({total / 3600:.2f} h) for {steps:,} steps: {parts};", end=" "
    )
    print("a first download comes on top")


def duration(seconds):
    """Seconds in words."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def keep(args, path, folder, described, measured, summary):
    """Write a receipt to the folder of --keep: results.json with the summary in its metrics, and the notebook.

    path: of the lesson. folder: the temporary one, whose name is left out. described: the data, in words.
    """
    name = f"{path.name[:2]}_{args.profile}"
    if args.gpu_memory:
        name += f"_{args.gpu_memory:g}gb"
    args.keep.mkdir(parents=True, exist_ok=True)
    if measured.notebook:
        shutil.copy(measured.notebook, args.keep / f"{name}.ipynb")
    receipt = {"metrics": {}}
    if measured.results:
        receipt = measured.results
        receipt["dataset_id"] = described
    else:
        receipt["overrides"] = dict(summary["overrides"])
    receipt["metrics"]["rehearsal"] = summary
    for values in (receipt.get("settings", {}), receipt.get("overrides", {}), summary["overrides"]):
        if "dataset_id" in values:
            values["dataset_id"] = described
    text = json.dumps(receipt, indent=2).replace(str(folder), "(temporary)") + "\n"
    (args.keep / f"{name}.json").write_text(text, encoding="utf-8")
    print(f"kept: {args.keep / name}.json and .ipynb")
