"""Run course notebooks without a browser and judge them by their cells: `python -m utils.runner --help`."""

import argparse
import ast
import contextlib
import difflib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

SENTINEL = "Lesson complete."  # the last code cell of every course notebook prints this
ROOT = Path(__file__).resolve().parents[1]
COLUMNS = ["lesson", "profile", "metric", "baseline", "before", "after", "n_eval", "minutes", "verdict"]
SIGNALS = []  # numbers of the signals received so far


class RunError(Exception):
    """What is wrong and what to do about it, in one sentence."""


def read_json(path):
    """Return the JSON object in a file, or {} when there is none to read."""
    try:
        return {**json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError):
        return {}


def json_option(option, text):
    """Return the JSON object given to an option, {} for an empty text; raise RunError for anything else."""
    try:
        return {**json.loads(text or "{}")}
    except (ValueError, TypeError, RecursionError) as error:
        example = """'{"learning_rate": 0}'"""
        raise RunError(f"{option} is not a JSON object ({error}); write it like {example}.") from None


def find_notebooks(text):
    """Return the notebooks that --nb names (numbers or paths), every numbered one if it is empty."""
    numbered = sorted((ROOT / "notebooks").glob("[0-9]*.ipynb"))
    names = [text] if Path(text).is_file() else text.replace(",", " ").split()
    found = [] if names else numbered
    if not names and not numbered:
        raise RunError("notebooks/ holds no numbered notebook; name one with --nb PATH.")
    for name in names:
        same = [path for path in numbered if name.isdecimal() and path.name.startswith(f"{int(name):02}_")]
        found = [*found, *(same or [Path(name).absolute()])]
        if not found[-1].is_file() or found[-1].suffix != ".ipynb":
            known = ", ".join(path.stem for path in numbered) or "none"
            raise RunError(f"There is no notebook {name}; give a number or a path. Numbered ones: {known}.")
    return list(dict.fromkeys(found))


def has_tag(cell, tag):
    """Say whether a cell carries the tag."""
    return tag in cell["metadata"].get("tags", [])


def code_cells(cells):
    """Return the cells with code, each with its position and place; injected parameters do not count."""
    heading, found = "", []
    for position, cell in enumerate(cells, start=1):
        code = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"^#+ (.+)", code, re.MULTILINE) or [heading])[-1]
        elif cell["cell_type"] == "code" and code.strip() and not has_tag(cell, "injected-parameters"):
            title = heading or code.strip().splitlines()[0][:60]
            found.append({**cell, "code": code, "position": position, "place": title})
    for number, cell in enumerate(found, start=1):
        cell["place"] = f"code cell {number} of {len(found)} ({cell['place']})"
    return found


def check_parameters(name, code, given):
    """Return the names that the parameters cell assigns; raise RunError if a given one is missing."""
    try:
        nodes = list(ast.walk(ast.parse(code)))
    except SyntaxError as error:
        raise RunError(f"{name}: the parameters cell is not plain Python ({error}); correct it.") from None
    known = sorted({n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)})
    for wrong in sorted(set(given) - set(known)):
        hint = "".join(f" Did you mean {close}?" for close in difflib.get_close_matches(wrong, known, n=1))
        raise RunError(f"{name} has no parameter {wrong!r}.{hint} It has: {', '.join(known) or 'none'}.")
    return known


class Lesson:
    """A notebook and its run, which leaves NAME.ipynb if complete, else NAME.partial.ipynb, and NAME.log."""

    def __init__(self, path, profile, out, given):
        """Check the notebook and the parameters (RunError); the run will write to out/profile/NAME."""
        self.path, self.name, self.profile, self.folder = path, path.stem, profile, out / profile / path.stem
        files = [f"{self.name}.ipynb", f"{self.name}.partial.ipynb", f"{self.name}.log", "results.json"]
        self.final, self.partial, self.log, self.results = self.files = [self.folder / file for file in files]
        self.minutes, self.verdict = None, "not run"
        cells = read_json(path).get("cells", [])
        self.cells = code_cells(cells)
        is_output = any(has_tag(cell, "injected-parameters") for cell in cells) or path.resolve() in self.files
        if not self.cells or is_output:
            raise RunError(f"{path} is not a notebook to run: it has no code or is the output of a run.")
        tagged = [cell for cell in self.cells if has_tag(cell, "parameters")]
        start = tagged[0] if tagged else {"code": "", "position": 0}
        known = check_parameters(self.name, start["code"], given)
        automatic = {"PROFILE": profile, "OUTPUT_DIR": str(self.folder)}
        self.parameters = {name: value for name, value in automatic.items() if name in known} | given
        for cell in self.cells:  # papermill adds a cell behind the parameters cell
            cell["position"] += bool(self.parameters) and cell["position"] > start["position"]

    def clear(self):
        """Make the output folder and remove what an earlier run left there; RunError if that is not possible."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.files:
                old.unlink(missing_ok=True)
            self.log.touch()
        except OSError as error:
            reason = f"({error.strerror}); choose another folder with --out"
            raise RunError(f"Cannot write to {self.folder} {reason}.") from None

    def start(self):
        """Start papermill in a session of its own, its messages going to the log; return the process."""
        import yaml  # not at the top: the runner answers before it loads what is not in Python itself

        fixed = {"PYTHONHASHSEED": "0", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1"}
        environment = ({"HF_HUB_OFFLINE": "1"} if self.profile == "tiny" else {}) | os.environ | fixed
        environment.pop("MPLBACKEND", None)  # figures go into the notebook
        command = [sys.executable, "-m", "papermill", "-k", "python3", "-l", "python", "--log-output"]
        command += ["--no-progress-bar", "-y", yaml.safe_dump(self.parameters)]  # JSON is not YAML: 1e-05
        command += [str(path).replace("{", "{{").replace("}", "}}") for path in (self.path, self.partial)]
        with self.log.open("wb") as log:
            pipes = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            return subprocess.Popen(command, env=environment, start_new_session=True, **pipes)

    def watch(self, process, cell_limit, limit):
        """Print a line a cell; return (last place, "" or why to stop). Limits: seconds a cell, a notebook."""
        places = {str(cell["position"]): cell["place"] for cell in self.cells}
        start, cell_start, place, rest = time.monotonic(), float("inf"), "the start of the kernel", ""
        with self.log.open(errors="replace") as log:
            while True:
                running, now = process.poll() is None, time.monotonic()
                *lines, rest = (rest + log.read()).split("\n")
                for number in re.findall(r"^Executing Cell (\d+)-+$", "\n".join(lines), re.MULTILINE):
                    cell_start, place = now, places.get(number, place)
                    if number in places:
                        print(f"[{now - start:6.1f} s] {place}", flush=True)
                self.minutes = f"{(now - start) / 60:.1f}"
                if SIGNALS:
                    return place, f"was interrupted by {signal.Signals(SIGNALS[0]).name}; start the run again"
                if now - cell_start > cell_limit:
                    return place, f"ran longer than {cell_limit:g} s; make it smaller or raise --cell-timeout"
                if now - start > limit:
                    return place, f"was running when the notebook reached {limit:g} s; raise --timeout"
                if not running:
                    return place, ""
                time.sleep(0.1)

    def judge(self, last_place, exit_code):
        """Return why the run is not complete, "" if it is; the executed cells must prove it."""
        done = code_cells(read_json(self.partial).get("cells", []))
        for place, cell in zip((cell["place"] for cell in self.cells), done, strict=False):
            for error in (output for output in cell["outputs"] if output["output_type"] == "error"):
                if error["ename"] == "SystemExit":
                    return f"{place} called sys.exit, so no later cell ran; remove that call"
                cause = f"{error['ename']}: {' '.join(error['evalue'].split())[:300]}"
                return f"{place} raised {cause.rstrip('.: ')}; correct that and run again"
        if exit_code == 138:  # papermill's code for a dead kernel
            return f"{last_place} lost its kernel, probably out of memory; use smaller batches"
        if exit_code:
            message = self.log.read_text(errors="replace").strip().split("\n")[-1]
            return f"{last_place} was the last when papermill ended with code {exit_code}: {message}"
        ran = [cell["code"] for cell in done if cell["execution_count"] is not None]
        for number, cell in enumerate(self.cells):
            if ran[number : number + 1] != [cell["code"]]:
                return f"{cell['place']} did not run; remove what makes the notebook skip it"
        printed = [output["text"] for output in done[-1]["outputs"] if output.get("name") == "stdout"]
        if SENTINEL not in "".join("".join(text) for text in printed):
            return f"{last_place} is the last and does not print {SENTINEL!r}; add that as its last line"
        return ""

    def run(self, cell_limit, limit):
        """Run the notebook; give it its final name if complete, else print one sentence that says why."""
        print(f"{self.name}: profile {self.profile}, output in {self.folder}", flush=True)
        process = self.start()
        try:
            place, trouble = self.watch(process, cell_limit, limit)
        finally:
            stop(process)
        problem = f"{place} {trouble}" if trouble else self.judge(place, process.returncode)
        self.verdict = "failed" if problem else "complete"
        if problem:
            print(f"{self.name}: {problem}. What ran is in {self.folder}", file=sys.stderr, flush=True)
        else:
            os.replace(self.partial, self.final)


def stop(process):
    """Kill papermill, its kernel (in a session of its own) and all that they started; wait for them."""
    import psutil

    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        if process.poll() is None:
            process.send_signal(signal.SIGSTOP)  # from here on it starts nothing more
            family = psutil.Process(process.pid).children(recursive=True)
    for member in [process, *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    process.wait()
    psutil.wait_procs(family, timeout=10)


def table(lessons):
    """Return one line a lesson; the numbers come from its results.json, "-" where there is none."""
    rows = [COLUMNS]
    for lesson in lessons:
        own = dict(lesson=lesson.name, profile=lesson.profile, minutes=lesson.minutes, verdict=lesson.verdict)
        values = [(read_json(lesson.results) | own).get(column) for column in COLUMNS]
        rows.append([f"{v:.3f}" if isinstance(v, float) else "-" if v is None else str(v) for v in values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def render(lesson, out, target):
    """Copy a complete run to the folder target, stamped, without widgets and without paths of the machine."""
    notebook, results = read_json(lesson.final), {"profile": lesson.profile} | read_json(lesson.results)
    versions = results.get("versions") or {}
    facts = [f"{name} {results.get(name) or '-'}" for name in ("profile", "commit", "device")]
    facts += [f"{name} {versions.get(name, '-')}" for name in ("torch", "transformers", "datasets")]
    cells = [cell for cell in notebook["cells"] if not has_tag(cell, "injected-parameters")]
    for cell in [notebook, *cells]:
        for key in ("papermill", "widgets", "execution"):
            cell["metadata"].pop(key, None)
        if cell["metadata"].get("tags") == []:  # papermill adds these
            del cell["metadata"]["tags"]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    title = next(cell for cell in cells if cell["cell_type"] == "markdown")
    title["source"] = f"> Executed: {' · '.join(facts)} · {date.today()}\n\n{''.join(title['source'])}"
    text = json.dumps({**notebook, "cells": cells}, indent=1, ensure_ascii=False) + "\n"
    text = re.sub(r"[^\s\"]*/ipykernel_\d+/", "", text)  # where a kernel pretends that a cell's file is
    for path, name in ((out, "outputs"), (ROOT, "."), (Path.home(), "~")):
        text = re.sub(rf"{re.escape(str(path))}(?=/|[^\w+=-])", name, text) if len(str(path)) > 1 else text
    target.mkdir(parents=True, exist_ok=True)
    (target / lesson.path.name).write_text(text, encoding="utf-8")


def run_all(args):
    """Run the lessons that the options name, print the table and return the exit code; may raise RunError."""
    given = json_option("--parameters", args.parameters)
    if args.overrides:
        given["OVERRIDES"] = json_option("--overrides", args.overrides)
    if args.seed is not None:
        given["SEED"] = args.seed
    out = Path(args.out or (tempfile.mkdtemp() if args.render else ROOT / "outputs")).resolve()
    lessons = [Lesson(path, args.profile, out, given) for path in find_notebooks(args.nb)]
    for lesson in lessons:
        lesson.clear()
    for lesson in lessons:
        lesson.run(args.cell_timeout, args.timeout)
        if SIGNALS:
            break
    print(table(lessons), flush=True)
    if SIGNALS:
        return 128 + SIGNALS[0]
    if any(lesson.verdict != "complete" for lesson in lessons):
        return 1
    if args.render:
        for lesson in lessons:
            render(lesson, out, Path(args.render))
        if not args.out:
            shutil.rmtree(out)
    return 0


def main():
    """Read the command line, run, and return the exit code: 0 only if every lesson ran to its last cell."""
    parser = argparse.ArgumentParser(prog="python -m utils.runner", description="Run notebooks headless.")
    parser.add_argument("--nb", default="", help='"01", "01,02" or the path of a notebook; all if empty')
    parser.add_argument("--profile", default="tiny", choices=["tiny", "colab", "full"])
    parser.add_argument("--overrides", default="", help="JSON object that changes values of the profile")
    parser.add_argument("--parameters", default="", help="JSON object with other parameters of the notebook")
    parser.add_argument("--seed", type=int, help="replaces the SEED of the notebook")
    parser.add_argument("--out", default="", help="base folder; a run writes to OUT/PROFILE/NOTEBOOK NAME/")
    parser.add_argument("--cell-timeout", type=float, default=7200, help="seconds a cell may take")
    parser.add_argument("--timeout", type=float, default=86400, help="seconds a notebook may take")
    rendered = str(ROOT / "notebooks" / "rendered")
    parser.add_argument("--render", nargs="?", const=rendered, help="then copy to notebooks/rendered/")
    args = parser.parse_args()
    sys.stdout.reconfigure(errors="replace")  # a heading may hold what an old terminal cannot show
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, lambda number, frame: SIGNALS.append(number))
    try:
        return run_all(args)
    except RunError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
