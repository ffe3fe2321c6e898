"""Run the lessons and put stamped copies with outputs into notebooks/rendered: `make render`, `make render NB=02`.

Takes the options of `python -m tools.run_notebooks`, except --out. Nothing is written unless every lesson is complete.
"""

import json
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from datetime import date
from pathlib import Path

from tools.tables import put_into_page

ROOT = Path(__file__).resolve().parents[1]
HERE = ROOT / "notebooks" / "rendered"


def stamp(path):
    """Return the line on top of a copy: what the executed notebook at path ran with, from its results.json."""
    file = path.with_name("results.json")
    results = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    results = {"profile": path.parts[-3]} | results | (results.get("versions") or {})
    names = ["profile", "commit", "device", "torch", "transformers", "datasets"]
    return "> Executed: " + " · ".join([*(f"{name} {results.get(name) or '-'}" for name in names), str(date.today())])


def render(path, out, target):
    """Copy an executed notebook below the folder out to target: stamped, without traces of papermill or the machine."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in notebook["cells"] if "injected-parameters" not in cell["metadata"].get("tags", [])]
    for cell in [notebook, *cells]:
        for key in ("papermill", "widgets", "execution"):
            cell["metadata"].pop(key, None)
        if cell["metadata"].get("tags") == []:  # papermill adds these
            del cell["metadata"]["tags"]
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("application/vnd.jupyter.widget-view+json", None)
    title = next(cell for cell in cells if cell["cell_type"] == "markdown")
    title["source"] = f"{stamp(path)}\n\n{''.join(title['source'])}"
    text = json.dumps({**notebook, "cells": cells}, indent=1, ensure_ascii=False) + "\n"
    text = re.sub(r"(?:/[\w.+-]+){1,8}?/ipykernel_\d+/", "", text)  # where a kernel pretends that a cell's file is
    for folder, name in ((out, "outputs"), (ROOT, "."), (Path.home(), "~")):
        if len(str(folder)) > 1:
            text = re.sub(rf"{re.escape(str(folder))}(?=/|[^\w+=-])", name, text)
    (target / path.name).write_text(text, encoding="utf-8")


def results_table(paths):
    """Return the README's table of results: a line for each executed notebook, from its results.json."""
    lines = ["| lesson | metric | baseline | before | after | n | training | device |", "|---" * 8 + "|"]
    for path in paths:
        r = json.loads(path.with_name("results.json").read_text(encoding="utf-8"))
        numbers = [f"{r[key]:.3f}" for key in ("baseline", "before", "after")]
        training = f"{r['train_seconds']:.0f} s" if r["train_seconds"] else "none"
        cells = [r["lesson"][:2], r["metric"], *numbers, f"{r['n_eval']:,}", training, r["device"]]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main():
    """Run the lessons into a temporary folder, then copy them; return the exit code of the runner."""
    out = Path(tempfile.mkdtemp()).resolve()
    command = [sys.executable, "-m", "tools.run_notebooks", *sys.argv[1:], "--out", str(out)]
    runner = subprocess.Popen(command, cwd=ROOT)
    for number in (signal.SIGINT, signal.SIGTERM):  # the runner stops the notebook and says so
        signal.signal(number, lambda number, frame: runner.send_signal(number))
    if runner.wait() == 0:  # else the folder stays, as the runner has said what is there
        for path in sorted(out.glob("*/*/*.ipynb")):
            render(path, out, HERE)
        if "--nb" not in " ".join(sys.argv):  # all lessons ran
            put_into_page("README.md", "results", results_table(sorted(out.glob("*/*/*.ipynb"))))
        shutil.rmtree(out)
    return runner.returncode


if __name__ == "__main__":
    sys.exit(main())
