"""results.json: what a run of a lesson leaves behind for readers, tables and tests."""

import json
import os
from pathlib import Path

from utils import memory, meter, paths, session

KEYS = (
    "lesson profile seed model_id dataset_id device versions commit metric higher_is_better n_train n_eval baseline "
    "before after trainable_parameters total_parameters weights_bytes planned_peak_bytes measured_peak_bytes "
    "train_seconds rows_per_second real_tokens_per_second padded_tokens_per_second metrics"
).split()


def costs(model, planned, cost):
    """The cost keys of results.json from the model, `memory.plan` and `meter.measure`."""
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_parameters": sum(p.numel() for p in model.parameters()),
        "weights_bytes": meter.weight_bytes(model),
        "planned_peak_bytes": planned["total"],
        "measured_peak_bytes": cost.peak_bytes,
        "train_seconds": cost.seconds,
        "rows_per_second": cost.rows / cost.seconds,
        "real_tokens_per_second": cost.real_tokens / cost.seconds,
        "padded_tokens_per_second": cost.padded_tokens / cost.seconds,
    }


def benchmarks(lesson):
    """{recipe: what it reached} of lesson "01" to "05", measured at full size on a GPU by benchmarks/bench.py."""
    folder, found = paths.ROOT / "benchmarks" / "receipts" / "bench", {}
    for r in (json.loads(path.read_text("utf-8")) for path in sorted(folder.glob(f"{lesson}_*.json"))):
        found[r["arm"]] = {"rows/s": r["rows_per_second"], "real tokens/s": r["real_tokens_per_second"]}
        found[r["arm"]] |= {"ms a step": 1000 * r["step_seconds"], "peak GiB": r["peak_allocated_bytes"] / memory.GIB}
        found[r["arm"]] |= {"first steps, s": r["first_steps_seconds"], "card": card(r)}
    return dict(sorted(found.items(), key=lambda pair: pair[1]["real tokens/s"]))


def card(record):
    """The name of the card that a receipt is of, without its memory."""
    return record["device"].removeprefix("NVIDIA ").split(",")[0]


def write(folder, **values):
    """Writes `folder`/results.json and returns its content: KEYS, of which device, versions and commit are read here.

    Bytes, seconds and rates are plain numbers; what this machine cannot measure is None. Raises ValueError for a
    missing or unknown key and for NaN, so that no table shows a number that was not measured.
    """
    values |= session.facts()
    if wrong := set(KEYS) ^ set(values):
        raise ValueError(f"results.json: missing or unknown keys {sorted(wrong)}")
    for key in ("model_id", "dataset_id"):  # the course's own folder is ".": runs are compared between machines
        values[key] = values[key] and str(values[key]).replace(str(paths.ROOT), ".")
    text = json.dumps({key: values[key] for key in KEYS}, indent=2, allow_nan=False) + "\n"
    partial = Path(folder) / "results.json.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, Path(folder) / "results.json")
    return json.loads(text)
