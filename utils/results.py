"""results.json: what a run of a lesson leaves behind for readers, tables and tests."""

import json
import math
import os
import re
import time
from dataclasses import dataclass, fields
from pathlib import Path

import psutil

from utils import meter, paths, run_folder, session
from utils.errors import first_ten


@dataclass
class RunRecord:
    """What results.json holds, in this order. Bytes, seconds and rates are plain numbers, never rounded.

    A value that this machine cannot measure, or that a lesson without a training does not have, is None.
    """

    lesson: str
    """The notebook's name without ".ipynb"."""
    profile: str
    """"tiny", "cpu", "colab" or "full"."""
    seed: int
    """The SEED of the run."""
    model_id: str | None
    """The model, a name on the hub or a path; the course's own folder is written as "."."""
    dataset_id: str | None
    """The data set, in the same way."""
    device: str
    """The GPU with its memory, or "CPU" with the number of threads."""
    versions: dict
    """{package: version} of Python and of all that requirements.txt lists."""
    commit: str | None
    """The git commit, with a "+" if files differ from it; None outside a checkout."""
    metric: str
    """What `baseline`, `before` and `after` are, such as "accuracy"."""
    higher_is_better: bool
    """False for a loss or an error."""
    n_train: int
    """Examples that the model was trained on."""
    n_eval: int
    """Examples that `baseline`, `before` and `after` were measured on."""
    baseline: float | None
    """The score of the best simple method."""
    before: float | None
    """The score of the model before training."""
    after: float | None
    """The score of the model after training."""
    trainable_parameters: int | None
    """Parameters that were trained."""
    total_parameters: int | None
    """All parameters; those in 4 bits count one by one."""
    weights_bytes: int | None
    """Bytes of all parameters as they are stored."""
    planned_peak_bytes: int | None
    """Bytes at the fullest instant of training, as `memory.plan` says."""
    measured_peak_bytes: int | None
    """The same as the GPU counted it; None on a CPU, which has no such counter."""
    train_seconds: float | None
    """Seconds of `trainer.train()`, with its evaluations and checkpoints."""
    rows_per_second: float | None
    """Examples that went through the model in training, divided by `train_seconds`."""
    real_tokens_per_second: float | None
    """The same for tokens, padding left out."""
    padded_tokens_per_second: float | None
    """The same for all positions, padding counted."""
    metrics: dict
    """Everything else that the lesson measured; each lesson has keys of its own."""
    settings: dict
    """{name: value} of the profile, after the overrides."""
    overrides: dict
    """{name: value} of OVERRIDES: the settings that are not those of the profile."""
    wall_seconds: float
    """Seconds from the start of the process (the notebook's kernel) to the writing of this record: imports, all
    cells, and the pauses of a reader who runs the cells by hand."""


KEYS = [field.name for field in fields(RunRecord)]
SCORES = ("baseline", "before", "after")
COSTS = KEYS[KEYS.index("trainable_parameters") : KEYS.index("metrics")]


def costs(model, planned, cost):
    """{name: value} of COSTS.

    model: the trained one; planned: what `memory.plan` said; cost: what the meter counted, an object with rows,
    real_tokens, padded_tokens, seconds and peak_bytes. In 4 bits two parameters share one number; PEFT counts both.
    """
    if hasattr(model, "get_nb_trainable_parameters"):
        _, total_parameters = model.get_nb_trainable_parameters()
    else:
        total_parameters = sum(parameter.numel() for parameter in model.parameters())
    return {
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "total_parameters": total_parameters,
        "weights_bytes": meter.weight_bytes(model),
        "planned_peak_bytes": planned["total"],
        "measured_peak_bytes": cost.peak_bytes,
        "train_seconds": cost.seconds,
        "rows_per_second": cost.rows / cost.seconds,
        "real_tokens_per_second": cost.real_tokens / cost.seconds,
        "padded_tokens_per_second": cost.padded_tokens / cost.seconds,
    }


def write(
    folder,
    *,
    lesson,
    profile,
    seed,
    settings,
    overrides,
    model_id,
    dataset_id,
    metric,
    higher_is_better,
    n_train,
    n_eval,
    baseline,
    before,
    after,
    metrics,
    model=None,
    planned=None,
    cost=None,
):
    """Writes `folder`/results.json, whole or not at all, and returns its content, a dict: see RunRecord.

    settings: what `profiles.select` returned. model, planned, cost: the trained model, what `memory.plan` said and what
    the meter counted; all None where nothing was trained. Device, versions, commit and wall_seconds are read here. NaN
    and infinite numbers are written as None, and named: JSON has no such numbers, and a table must show none that was
    not measured. Raises TypeError for a value that JSON does not know.
    """
    numbers = dict.fromkeys(COSTS)
    if model is not None:
        numbers = costs(model, planned, cost)
    record = RunRecord(
        lesson=lesson,
        profile=profile,
        seed=seed,
        model_id=model_id,
        dataset_id=dataset_id,
        metric=metric,
        higher_is_better=higher_is_better,
        n_train=n_train,
        n_eval=n_eval,
        baseline=baseline,
        before=before,
        after=after,
        metrics=metrics,
        settings=vars(settings),
        overrides=overrides,
        wall_seconds=time.time() - psutil.Process().create_time(),
        **session.facts(),
        **numbers,
    )
    values = {name: getattr(record, name) for name in KEYS}
    for name in ("model_id", "dataset_id", "settings", "overrides"):
        values[name] = _without_root(values[name])
    not_finite = []
    values = {name: _finite(value, name, not_finite) for name, value in values.items()}
    if not_finite:
        print(f"Not a finite number, so None in {run_folder.RESULTS}: {first_ten(not_finite)}.")
    text = json.dumps(values, indent=2, allow_nan=False) + "\n"
    partial = Path(folder) / f"{run_folder.RESULTS}.partial"
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, Path(folder) / run_folder.RESULTS)
    if session.is_ours(folder):  # else the runner has taken it, and looks at all cells before it says so
        run_folder.complete(folder)
    content = json.loads(text)
    content.update({name: math.nan for name in SCORES if name in not_finite})  # a lesson prints them as numbers
    return content


def _finite(value, name, not_finite):
    """The value with None for each number in it that is NaN or infinite; their names are added to `not_finite`."""
    if isinstance(value, dict):
        return {key: _finite(item, f"{name}.{key}", not_finite) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item, f"{name}.{number}", not_finite) for number, item in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        not_finite.append(name)
        return None
    return value


def _without_root(value):
    """The value with the course's own folder written as ".", so that runs can be compared between machines."""
    if isinstance(value, dict):
        return {name: _without_root(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_root(item) for item in value]
    if isinstance(value, str | Path):  # not in /x/course-data, where the course is /x/course
        return re.sub(rf"(?<![^\s,;:=]){re.escape(str(paths.ROOT))}(?=/|$)", ".", str(value))
    return value


def card(record):
    """The name of the card that a receipt is of, without its memory."""
    return record["device"].removeprefix("NVIDIA ").split(",")[0]
