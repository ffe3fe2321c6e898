"""What the benchmarks measured, as files: a Receipt of each arm, and the whole lessons that were rehearsed."""

import dataclasses
import json
import statistics
from dataclasses import dataclass
from pathlib import Path

from benchmarks.rates import Rates
from utils import paths, results
from utils.planner import settings as planner_settings

FOLDER = paths.ROOT / "benchmarks" / "receipts"
BENCH = FOLDER / "bench"
FIRST_KEYS = ("arm", "lesson", "device", "versions", "commit")

# what is in one run of an arm, and what a receipt of several runs holds the medians of
RATES_OF_A_RUN = ("rows_per_second", "real_tokens_per_second", "step_seconds", "first_steps_seconds")

# the sizes of cards that one can buy or rent, GB
CARD_SIZES = (4, 6, 8, 12, 16, 24, 32, 48, 80, 141)

# settings that make a rehearsal short, or name its data: they do not change what a lesson needs
SETTINGS_OF_LENGTH = {
    "max_steps",
    "eval_steps",
    "logging_steps",
    "eval_rows",
    "validation_rows",
    "max_new_tokens",
    "unquantized_rows",
    "compare_rows",
    "compare_steps",
    "compare_seeds",
    "dataset_id",
    "data_files",
}


@dataclass(kw_only=True)
class Receipt(Rates):
    """One arm of a lesson, timed at full size on a GPU: a file in receipts/bench.

    Its rates are those of its last run, but for RATES_OF_A_RUN: they are medians of all runs. What does not apply to an
    arm, or was not recorded yet when its file was written, is None, and is not in the file.
    """

    arm: str
    """a name of `arms.py`, or what --name said"""
    lesson: str
    """01 to 05"""
    device: str
    """the card and its memory"""
    versions: dict
    """{package: version}"""
    commit: str | None
    """of this repository; "+" behind it if files differed"""
    runs: list
    """a dict of RATES_OF_A_RUN for each run"""
    mean_loss: float | None = None
    """mean training loss over all steps"""
    peak_allocated_bytes: int | None = None
    """peak of torch's allocator during the training; None without a GPU"""
    wall_seconds: float | None = None
    """what the last run took in all, with loading and preparation"""
    settings: dict | None = None
    """of the course: its profile with all overrides. Of a recipe: the arguments of its Trainer that are not defaults"""
    beside: float | None = None
    """real tokens/s of the course in the same call, median"""

    overrides: dict | None = None
    """of the course: what makes this arm differ from the profile, but for the number of steps"""
    planned_bytes: int | None = None
    """of the course: the planner's forecast of the peak"""
    reserved_bytes: int | None = None
    """of the course: what torch took from the card during the training"""
    held_bytes: int | None = None
    """of the course: what was allocated when the training began"""

    changed: list | None = None
    """of a reference: what differs from the published recipe, and why"""
    recipe: str | None = None
    """of the other recipes: the recipe in a line"""
    attention: str | None = None
    """of a recipe: the attention of its model"""
    trainable_parameters: int | None = None
    """of a recipe"""

    @property
    def card(self):
        """The card's name without its memory."""
        return results.card({"device": self.device})

    @property
    def peak_gib(self):
        """Peak of torch's allocator during the training, GiB."""
        return self.peak_allocated_bytes / 2**30

    @property
    def is_course(self):
        """Whether it is the course as it stands, on whatever card ("course", "course on H200")."""
        return self.arm.split(" on ")[0] == "course"

    def write(self, path):
        """Writes the file: what identifies the arm comes first, what is None is left out."""
        values = dataclasses.asdict(self)
        ordered = {}
        for key in [*FIRST_KEYS, *values]:
            if values[key] is not None or key == "commit":
                ordered[key] = values[key]
        path.write_text(json.dumps(ordered, indent=2) + "\n", encoding="utf-8")


def read_receipt(path):
    """The Receipt in a file."""
    return Receipt(**json.loads(path.read_text("utf-8")))


def read_receipts(folder=BENCH):
    """The receipts of all arms, by the names of their files."""
    return [read_receipt(path) for path in sorted(folder.glob("*.json"))]


def medians(runs):
    """{name: median of the runs} of RATES_OF_A_RUN."""
    return {name: statistics.median(run[name] for run in runs) for name in RATES_OF_A_RUN}


@dataclass
class WholeLesson:
    """A lesson that was rehearsed to its end on a GPU: a file of `make rehearse … OUT=folder`."""

    path: Path
    lesson: str
    """01 to 05"""
    model_id: str
    profile: str
    device: str
    planned_peak_bytes: int
    """the planner's forecast of the training's peak"""
    measured_peak_bytes: int
    """peak of torch's allocator during the training"""
    highest_reserved_bytes: int
    """the most that torch took from the card in the whole lesson"""
    capped_gb: float | None
    """GB that the rehearsal was limited to, as a smaller card would; None if it had the whole card"""
    overrides: dict
    """settings that the rehearsal changed"""

    @property
    def changes(self):
        """What was changed of the profile, but for the numbers of rows and steps, in words; empty if nothing was."""
        return ", ".join(
            f"`{name}` {value}" for name, value in self.overrides.items() if name not in SETTINGS_OF_LENGTH
        )

    @property
    def card(self):
        """The size of the card that it was limited to, or the card's name."""
        if self.capped_gb:
            return f"{self.capped_gb:g} GB"
        return results.card({"device": self.device})

    @property
    def needed_gb(self):
        """GB of the card that it needs: what it was limited to, or the smallest size of card that holds all of it."""
        if self.capped_gb:
            return round(self.capped_gb)
        needed_bytes = self.highest_reserved_bytes + planner_settings.CONTEXT
        return next(size for size in CARD_SIZES if size * 1e9 >= needed_bytes)


def read_whole_lesson(path):
    """The WholeLesson in a file."""
    values = json.loads(path.read_text("utf-8"))
    rehearsal = values["metrics"]["rehearsal"]
    return WholeLesson(
        path=path,
        lesson=values["lesson"][:2],
        model_id=values["model_id"],
        profile=values["profile"],
        device=values["device"],
        planned_peak_bytes=values["planned_peak_bytes"],
        measured_peak_bytes=values["measured_peak_bytes"],
        highest_reserved_bytes=rehearsal["highest_reserved_bytes"],
        capped_gb=rehearsal["capped_gb"],
        overrides=rehearsal["overrides"],
    )


def read_whole_lessons(folder=FOLDER):
    """All whole lessons, by the names of their files."""
    return [read_whole_lesson(path) for path in sorted(folder.glob("[0-9]*.json"))]
