"""Do the levers that make the lessons fast change what is learned? Loss curves of both ways, three seeds, on a CPU.

python -m benchmarks.loss_bands    minutes; into benchmarks/receipts/loss_bands.json,
    and the table of docs/faster-not-different.md

Each lesson runs, profile tiny, up to its training: once as it is, once the published way (WAYS): all rows padded to one
length, small batches accumulated, checkpointing, attention as transformers chooses it. Rows, order and optimizer are
the same; dropout is off in both, because its draws depend on the padding.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from tools import rehearse
from utils import results

RECEIPT = rehearse.ROOT / "benchmarks" / "receipts" / "loss_bands.json"
SEEDS = (0, 1, 2)
PADDED = "data_collator.padding, data_collator.max_length = 'max_length', {}\ntrainer.data_collator = data_collator"
BATCHES = ("per_device_train_batch_size", "gradient_accumulation_steps")
# steps; what the published way changes: values of the profile, code before the training, in words
WAYS = {
    "01": (60, {}, PADDED.format(128), "padded to 128"),
    "02": (
        60,
        dict(zip(BATCHES, (4, 8), strict=True)) | {"activation_checkpointing": True},
        PADDED.format(64),
        "padded to 64, 4 rows × 8, checkpointing",
    ),
    "03": (
        48,
        {"attention": "sdpa", "activation_checkpointing": True},
        PADDED.format(256).split("\n")[0],
        "padded to 256, `sdpa`, checkpointing",
    ),
    "04": (
        60,
        {"activation_checkpointing": True},
        "import contextlib\nwithout_mask = lambda decoder: contextlib.nullcontext()",
        "padding mask, checkpointing",
    ),
    "05": (
        40,
        dict(zip(BATCHES, (2, 16), strict=True)) | {"activation_checkpointing": True},
        PADDED.format(128) + "\nlayers = model.get_base_model().model.layers\nlayers[-1].__class__ = type(layers[0])",
        "padded to 128, 2 rows × 16, checkpointing, the whole last layer",
    ),
}
EVENLY = """
for module in model.modules():
    for name in ("p", "dropout"):
        if isinstance(getattr(module, name, None), float):
            setattr(module, name, 0.0)
args.eval_strategy = args.save_strategy = "no"
args.load_best_model_at_end, args.logging_steps = False, 1
"""


class Done(Exception):
    """The training is over, and with it what is of interest."""


def train(number, given, before, watch):
    """Runs a lesson up to its training, in this process, with `given` in place of its parameters and the code `before`
    it; `watch`, a class of TrainerCallback, sees the training, and its Done ends it."""
    from IPython.core.interactiveshell import InteractiveShell
    from transformers import EarlyStoppingCallback, trainer

    trainer.DEFAULT_CALLBACKS.append(watch)
    shell = InteractiveShell.instance()
    for cell in json.loads(rehearse.lesson_of(number).read_text("utf-8"))["cells"]:
        code = "".join(cell["source"])
        if cell["cell_type"] != "code":
            continue
        if "trainer.train(" in code:
            if "trainer" in shell.user_ns:
                shell.user_ns["trainer"].remove_callback(EarlyStoppingCallback)
            shell.run_cell(before, silent=True).raise_error()
            try:
                shell.run_cell(code, silent=True).raise_error()
            except Done:
                return
        shell.run_cell(code, silent=True).raise_error()
        if "parameters" in cell["metadata"].get("tags", []):
            shell.user_ns.update(given)
    raise SystemExit(f"lesson {number} has no training")


def losses(number, way, seed, folder):
    """The loss of every step of a lesson's training; runs in a process of its own."""
    from transformers import TrainerCallback

    found = []

    class Watch(TrainerCallback):
        def on_log(self, args, state, control, logs, **kwargs):
            found.extend([logs["loss"]] if "loss" in logs else [])

        def on_train_end(self, args, state, control, **kwargs):
            raise Done

    steps, overrides, patch, _ = WAYS[number]
    given = {"max_steps": steps} | (overrides if way == "published" else {})
    given = dict(PROFILE="tiny", SEED=seed, OVERRIDES=given, OUTPUT_DIR=str(folder / "out"))
    train(number, given, EVENLY + (patch if way == "published" else ""), Watch)
    return found


def compare(curves):
    """From {way: [losses of every step, a list for each seed]}: how far the ways are apart at the same seed, and the
    seeds of the published way from each other, root mean squares over steps; and their last losses."""
    pairs = [
        (a - b) ** 2
        for ours, theirs in zip(curves["course"], curves["published"], strict=True)
        for a, b in zip(ours, theirs, strict=True)
    ]
    spread = [statistics.variance(at) for at in zip(*curves["published"], strict=True)]
    ends = {way: [statistics.mean(curve[-10:]) for curve in found] for way, found in curves.items()}
    return {"apart": statistics.mean(pairs) ** 0.5, "between_seeds": statistics.mean(spread) ** 0.5, "last_ten": ends}


def table(record):
    """The table of docs/faster-not-different.md."""
    lines = ["| lesson | the published way | steps | last 10 losses, seeds 0, 1, 2 | course | apart | between seeds |"]
    lines.append("|---|---|---|---|---|---|---|")
    for number, found in sorted(record["lessons"].items()):
        ends = [" · ".join(f"{end:.4f}" for end in found["last_ten"][way]) for way in ("published", "course")]
        cells = [number, WAYS[number][3], str(WAYS[number][0]), *ends]
        cells += [f"{found[kind]:.1e}" if found[kind] else "0" for kind in ("apart", "between_seeds")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default=",".join(WAYS))
    parser.add_argument("--keep", type=Path, default=RECEIPT)
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        number, way, seed = args.child
        with tempfile.TemporaryDirectory() as folder:
            args.keep.write_text(json.dumps(losses(number, way, int(seed), Path(folder))))
        return
    from utils import session

    record = json.loads(args.keep.read_text("utf-8")) if args.keep.exists() else {"lessons": {}}
    for number in args.nb.split(","):
        curves = {"course": [], "published": []}
        for way, found in curves.items():
            for seed in SEEDS:
                with tempfile.TemporaryDirectory() as folder:
                    path = Path(folder) / "losses.json"
                    again = [
                        sys.executable,
                        "-m",
                        "benchmarks.loss_bands",
                        "--keep",
                        str(path),
                        "--child",
                        number,
                        way,
                        str(seed),
                    ]
                    done = subprocess.run(again, cwd=rehearse.ROOT, capture_output=True, text=True)
                    if done.returncode:
                        raise SystemExit(f"lesson {number}, {way}, seed {seed}: {done.stderr[-2000:]}")
                    found.append(json.loads(path.read_text("utf-8")))
        record["lessons"][number] = compare(curves) | {"losses": curves}
        print(
            number, {key: record["lessons"][number][key] for key in ("apart", "between_seeds", "last_ten")}, flush=True
        )
        args.keep.write_text(json.dumps(record | session.facts()) + "\n", "utf-8")
    if args.keep == RECEIPT:
        results.put_into_page("docs/faster-not-different.md", "bands", table(record))


if __name__ == "__main__":
    main()
