"""Run course notebooks without a browser and judge them by their cells: `python -m tools.run_notebooks --help`."""

import argparse
import contextlib
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import yaml

from utils.session import own_folder

SENTINEL = "Lesson complete."  # the last code cell of every course notebook prints this
ROOT = Path(__file__).resolve().parents[1]
COLUMNS = "lesson profile metric baseline before after n_eval minutes verdict".split()
FIXED = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "inline"}  # for the kernel
SIGNALS = []  # numbers of the signals received so far


def json_object(text):
    """The JSON object in a text; ValueError or TypeError if there is none."""
    return {**json.loads(text)}


def content(path):
    """The bytes of a file; none if there is no such file (yet)."""
    return path.read_bytes() if path.is_file() else b""


def code_cells(text):
    """The cells that hold code in the text of a notebook, each with its place; none if this is no notebook (yet)."""
    heading, found = "start", []
    with contextlib.suppress(ValueError, TypeError, KeyError):
        for cell in json_object(text).get("cells", []):
            code = cell["source"] = "".join(cell["source"]).strip()
            if cell["cell_type"] == "markdown":
                heading = (re.findall(r"^#+ (.+)", code, re.MULTILINE) or [heading])[-1]
            elif cell["cell_type"] == "code" and code and "injected-parameters" not in cell["metadata"].get("tags", []):
                found.append(cell | {"place": f"code cell {len(found) + 1} ({heading})"})
    return found


def check(path, folder, profile, given):
    """The parameters for a notebook that writes to the folder; ValueError if there is no such notebook or parameter."""
    cells = code_cells(content(path))
    if not cells or path.parent == folder:
        raise ValueError(f"there is no notebook to run at {path}; give the path or the number of one")
    code = "\n".join(cell["source"] for cell in cells if "parameters" in cell["metadata"].get("tags", []))
    known = re.findall(r"^(\w+) *(?::[^=\n]+)?=(?!=)", code, re.MULTILINE)
    for wrong in sorted(set(given) - set(known)):
        like = difflib.get_close_matches(wrong, known) or known
        raise ValueError(f"{path.stem} has no parameter {wrong!r}; did you mean one of {like}?")
    own = {"PROFILE": profile, "OUTPUT_DIR": str(folder)}
    return path, folder, {name: value for name, value in own.items() if name in known} | given


def under_watch():
    """What the process under the runner does: papermill, which ends with its kernel when the runner is gone."""

    def wait():
        os.read(0, 1)  # our input is a pipe: the end comes when nobody holds its other side any more
        end(psutil.Process().children(recursive=True))
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()
    from papermill.__main__ import papermill

    papermill(prog_name="papermill")


def end(processes):
    """Kills the processes and waits for them."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(processes, timeout=10)


def watch(process, partial, log, args):
    """Print a line for each cell that starts; return why the run is not complete ("" if its cells prove that it is),
    and the newest whole state of the notebook."""
    begin, cells, seen, place, last = time.monotonic(), [], 0, "the start of the kernel", b""
    exit_code, since = None, begin
    while exit_code is None:
        time.sleep(0.2)
        exit_code, now, text = process.poll(), time.monotonic(), content(partial)
        if found := code_cells(text):  # none while papermill writes the file
            cells, last = found, text
        started = [cell["place"] for cell in cells if cell["metadata"]["papermill"]["start_time"]]
        for place in started[seen:]:
            print(f"[{now - begin:6.1f} s] {place} of {len(cells)}", flush=True)
            since = now
        seen = len(started)
        for name, spent, limit in (("", now - begin, args.timeout), ("cell-", now - since, args.cell_timeout)):
            if SIGNALS or spent > limit:
                cause = signal.Signals(SIGNALS[0]).name if SIGNALS else f"the --{name}timeout of {limit:g} s"
                return f"{place} was running when {cause} stopped it; start the run again", last
    for cell in cells:
        for error in (output for output in cell["outputs"] if output["output_type"] == "error"):
            what = f"{error['ename']}: {' '.join(error['evalue'].split())[:300]}"
            return f"{cell['place']} raised {what}; correct that", last
        if cell["execution_count"] is None and not exit_code:
            return f"{cell['place']} did not run; remove what makes the notebook skip it", last
    if exit_code:
        why = "the kernel died, often out of memory"
        if exit_code != 138:
            why = (content(log).decode(errors="replace").split("\n")[:-1] or ["nothing in the log"])[-1].strip()
        return f"{place} was running when papermill ended with {exit_code}: {why}", last
    printed = ["".join(output["text"]) for output in cells[-1]["outputs"] if output.get("name") == "stdout"]
    return "" if SENTINEL in "".join(printed) else f"{place} is the last and must end with print({SENTINEL!r})", last


def run(path, folder, parameters, args):
    """Run a notebook, which gets its final name if complete; return its row of the table."""
    print(f"{path.stem}: profile {args.profile}, output in {folder}", flush=True)
    partial, results, begin = folder / f"{path.stem}.partial.ipynb", folder / "results.json", time.monotonic()
    environment = ({"HF_HUB_OFFLINE": "1"} if args.profile == "tiny" else {}) | os.environ | FIXED
    command = [
        sys.executable,
        "-c",
        "from tools.run_notebooks import under_watch; under_watch()",
        "-k",
        "python3",
        "-l",
        "python",
    ]
    command += ["--log-output", "--no-progress-bar"]
    command += ["-y", yaml.safe_dump(parameters), str(path), str(partial)]  # JSON is not YAML: 1e-05
    log, pipe = folder / f"{path.stem}.log", subprocess.PIPE
    with log.open("wb") as file:
        streams = dict(stdin=pipe, stdout=file, stderr=file)
        process = subprocess.Popen(command, env=environment, start_new_session=True, **streams)
    try:
        problem, notebook = watch(process, partial, log, args)
    finally:
        process.send_signal(signal.SIGSTOP)  # from here on it starts nothing more
        end(psutil.Process().children(recursive=True))  # also the kernel, which has a session of its own
        process.stdin.close()
    if problem:
        if not code_cells(content(partial)):  # papermill was writing it, or the disk was full
            partial.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                partial.write_bytes(notebook)
        if (free := shutil.disk_usage(folder).free) < 2**26:
            problem += f"; {free / 2**20:.0f} MiB are free on that disk, so delete something first"
        print(f"{path.stem}: {problem}. What ran and the log are in {folder}", file=sys.stderr, flush=True)
    else:
        partial.replace(folder / path.name)
    record = json_object(results.read_text("utf-8")) if results.exists() else {}
    values = [path.stem, args.profile, *(record.get(k, "-") for k in COLUMNS[2:-2]), (time.monotonic() - begin) / 60]
    return [f"{v:.3f}" if isinstance(v, float) else str(v) for v in values] + ["failed" if problem else "complete"]


def main():
    """Read the command line, run, and return the exit code: 0 only if every lesson ran to its last cell."""
    parser = argparse.ArgumentParser(prog="python -m tools.run_notebooks", usage=argparse.SUPPRESS)
    parser.add_argument("--nb", default="", help='"01", "01,02" or the path of a notebook; all if empty')
    parser.add_argument("--profile", default="tiny", choices=["tiny", "colab", "full"])
    parser.add_argument("--overrides", type=json_object, default="{}", help="JSON object with values of the profile")
    parser.add_argument("--parameters", type=json_object, default="{}", help="JSON object with other parameters")
    parser.add_argument("--seed", type=int, help="replaces the SEED of the notebook")
    parser.add_argument("--out", type=Path, default=ROOT / "outputs", help="a run writes to OUT/PROFILE/NOTEBOOK NAME/")
    parser.add_argument("--timeout", type=float, default=86400, help="seconds a notebook may take")
    parser.add_argument("--cell-timeout", type=float, default=86400, help="seconds a cell may take")
    args = parser.parse_args()
    given = args.parameters | ({"OVERRIDES": args.overrides} if args.overrides else {})
    given |= {} if args.seed is None else {"SEED": args.seed}
    known = {path.name[:2]: path for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))}
    paths = [known.get(name.zfill(2), Path(name)).resolve() for name in (args.nb.split(",") if args.nb else known)]
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: SIGNALS.append(number))
    try:
        lessons = [check(path, args.out.resolve() / args.profile / path.stem, args.profile, given) for path in paths]
        for _, folder, _ in lessons:
            folder.mkdir(parents=True, exist_ok=True)
            own_folder(folder)  # before anything of an earlier run is touched
        for _, folder, _ in lessons:
            for old in (*folder.glob("*.ipynb"), folder / "results.json"):
                old.unlink(missing_ok=True)
    except (ValueError, OSError) as error:
        remedy = f"cannot write to {args.out} ({error}); choose another --out (OUT= with make)"
        parser.error(remedy if isinstance(error, OSError) else str(error))
    rows = [COLUMNS] + [run(*lesson, args) for lesson in lessons if not SIGNALS]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        print("  ".join(map(str.ljust, row, widths)).rstrip())
    return 128 + SIGNALS[0] if SIGNALS else int(any(row[-1] != "complete" for row in rows[1:]))


if __name__ == "__main__":
    sys.exit(main())
