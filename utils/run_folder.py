"""An output folder holds one run: what the run before it left comes back unless the new one is complete.

While a run goes on, what an earlier complete one left lies in the subfolder EARLIER. When the run is complete, EARLIER
is removed; when it fails, what it has written goes to UNFINISHED, and the earlier run is back where it was. A run that
was killed can do neither: the next one in the folder does it. Only names that the course itself writes are moved.
"""

import shutil
from pathlib import Path

RESULTS = "results.json"  # the last thing that a lesson writes: a folder with it holds a complete run
EARLIER = "earlier"
UNFINISHED = "unfinished"
MOVING = "earlier.moving"  # what is in it belongs one folder higher: somebody was interrupted while moving it
# what the lessons write, apart from `checkpoints`, which look after themselves and are needed to go on
NAMES = (
    RESULTS,
    # figures
    "answers_by_bits.png",
    "choices.png",
    "confusion_matrix.png",
    "learning_curve.png",
    "lengths.png",
    "methods.png",
    "nf4_levels.png",
    "reliability.png",
    "rounding_error.png",
    "scores.png",
    "ways.png",
    "weights.png",
    "what_it_takes.png",
    # models and adapters
    "adapter",
    "control",
    "full_fine_tuning",
    "merged",
    "model",
    "random_base",
    "random_weights",
    "tuned",
    "unbalanced",
    # answers
    "merged_answers.txt",
    "submission.csv",
    "test_logits.npy",
    "test_summaries.txt",
)


def set_aside(folder, needed=()):
    """Moves what a complete earlier run left in `folder` to its subfolder EARLIER; returns whether there was one.

    needed: paths that the new run reads, such as its model; what they name stays where it is.
    """
    folder = Path(folder)
    recover(folder)
    if not (folder / RESULTS).exists():
        return False
    stays = {_name_inside(folder, path) for path in needed}
    _move([path for path in _own_files(folder) if path.name not in stays], folder / MOVING)
    (folder / MOVING).rename(folder / EARLIER)
    return True


def recover(folder):
    """Puts a folder in order after a run that was killed: it was complete, or the run before it comes back."""
    folder = Path(folder)
    if (folder / MOVING).is_dir():
        _move_up(folder)
    if not (folder / EARLIER).is_dir():
        return
    if (folder / RESULTS).exists():
        complete(folder)
    else:
        put_back(folder)


def put_back(folder):
    """After a run that failed: moves what it wrote to UNFINISHED, and what was there before it back.

    Returns whether there was an earlier run to put back; if not, what the failed run wrote stays where it is.
    """
    folder = Path(folder)
    if not (folder / EARLIER).is_dir():
        return False
    written = _own_files(folder)
    if written:
        _move(written, _new_folder(folder))
    (folder / EARLIER).rename(folder / MOVING)
    _move_up(folder)
    return True


def complete(folder):
    """After a complete run: removes what the run before it left."""
    shutil.rmtree(Path(folder) / EARLIER, ignore_errors=True)


def _own_files(folder):
    """The paths in a folder that a run of the course has written: NAMES, and the executed notebook with its log."""
    names = (*NAMES, f"{folder.name}.ipynb", f"{folder.name}.log")
    return [folder / name for name in names if (folder / name).exists()]


def _name_inside(folder, path):
    """The first part of a path below a folder; "" if it lies elsewhere."""
    try:
        return Path(path).expanduser().resolve().relative_to(folder.resolve()).parts[0]
    except (OSError, ValueError, RuntimeError, IndexError):  # no path at all, a link to itself, no home
        return ""


def _new_folder(folder):
    """The path of UNFINISHED: free of what an earlier failed run left, or with a number if that has weights."""
    path = folder / UNFINISHED
    number = 1
    while path.exists() and any(path.rglob("*.safetensors")):
        number += 1
        path = folder / f"{UNFINISHED}-{number}"
    shutil.rmtree(path, ignore_errors=True)
    return path


def _move(paths, target):
    """Moves files and folders into a folder beside them."""
    target.mkdir(exist_ok=True)
    for path in paths:
        path.rename(target / path.name)


def _move_up(folder):
    """Empties MOVING into the folder above it."""
    for path in sorted((folder / MOVING).iterdir()):
        path.rename(folder / path.name)
    (folder / MOVING).rmdir()
