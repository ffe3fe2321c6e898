"""Rehearse a lesson on your own GPU before a large download: random weights of the real shape, synthetic rows.

make rehearse NB=03 [PROFILE=full] [GPU_MEMORY=15] [OVERRIDES='{...}'] [OUT=folder]
python -m tools.rehearse --nb 03 --profile full

The notebook runs unmodified, for a few steps, in a temporary folder with a hub cache of its own. What it measures is
memory and time; the quality of random weights means nothing. Everything is removed at the end, also if interrupted.
"""

import argparse
import json
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

from tools.options import json_object
from tools.rehearse.lesson import FULL_SIZES, lesson_of
from tools.rehearse.preparation import prepare
from tools.rehearse.processes import call, enter
from tools.rehearse.report import Measured, keep, report
from utils.errors import CourseError
from utils.paths import ROOT

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class StoppedError(Exception):
    """A signal asked to stop."""

    def __init__(self, number):
        """number: of the signal."""
        super().__init__(number)
        self.number = number


def ignore_signals():
    """From here on nothing interrupts: a second signal must not leave half of the rehearsal behind."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def on_signal(number, frame):
    """End the rehearsal in order."""
    ignore_signals()
    raise StoppedError(number)


def rehearse(args, arguments, folder):
    """Prepare, run and report one rehearsal in a temporary folder; return the exit code."""
    path = lesson_of(args.nb)
    enter(folder, args.gpu_memory * 1e9)
    code = call([sys.executable, "-m", "tools.rehearse", *arguments, "--child", str(folder)])
    if code != 0:
        return code
    ready = json.loads((folder / "ready.json").read_text("utf-8"))
    if ready["run"] is None:
        return 0
    command = [sys.executable, "-m", "tools.run_notebooks", "--nb", str(path), "--profile", args.profile]
    command += ["--overrides", json.dumps({**args.overrides, **ready["cut"]})]
    command += ["--out", str(folder / "out"), "--timeout", str(args.timeout)]
    code = call(command, cwd=ROOT)
    measured = Measured(folder)
    summary = report(args, SimpleNamespace(**ready["run"]), ready, measured)
    if args.keep:
        keep(args, path, folder, ready["rows"]["described"], measured, summary)
    return code


def prepare_in_this_process(args, folder):
    """What the child process does: it prepares, and writes ready.json for its parent."""
    try:
        ready = prepare(args, folder)
    except CourseError as problem:
        return refused(problem)
    (folder / "ready.json").write_text(json.dumps(ready, default=str), encoding="utf-8")
    return 0


def refused(problem):
    """Print why nothing is run; return the exit code."""
    print(f"Refused: {problem}", file=sys.stderr)
    return 2


def command_line():
    """The parser of the options."""
    parser = argparse.ArgumentParser(prog="python -m tools.rehearse", description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default="", help="the number of the lesson, such as 03, or the path of a notebook")
    parser.add_argument("--profile", default="full", choices=["cpu", "colab", "full"])
    parser.add_argument("--gpu-memory", type=float, default=0, help="act as a card with so many GB (10^9 bytes)")
    parser.add_argument("--overrides", type=json_object, default={}, help="those of your run, as for make run")
    parser.add_argument("--steps", type=int, default=16, help="training steps, an even number")
    parser.add_argument("--timeout", type=float, default=1800, help="seconds the lesson may take")
    parser.add_argument("--keep", type=Path, help="folder for results and the executed notebook")
    parser.add_argument("--anyway", action="store_true", help="run although card or disk look too small")
    parser.add_argument("--cpu", action="store_true", help="run without a GPU")
    parser.add_argument("--sizes", type=Path, default=FULL_SIZES, help=argparse.SUPPRESS)
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    return parser


def main():
    """Read the command line, rehearse, and return the exit code."""
    arguments = sys.argv[1:]
    args = command_line().parse_args(arguments)
    args.cpu = args.cpu or args.profile == "cpu"
    sys.stdout.reconfigure(line_buffering=True)
    if args.child:
        return prepare_in_this_process(args, args.child)
    for number in SIGNALS:
        signal.signal(number, on_signal)
    folder = Path(tempfile.mkdtemp(prefix="rehearsal-"))
    try:
        return rehearse(args, arguments, folder)
    except CourseError as problem:
        return refused(problem)
    except StoppedError as stopped:
        name = signal.Signals(stopped.number).name
        print(f"\nStopped by {name}; everything temporary is removed.", file=sys.stderr)
        return 128 + stopped.number
    finally:
        ignore_signals()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
