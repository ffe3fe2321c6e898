"""Run the lessons and put stamped copies with outputs into notebooks/rendered: `make render`, `make render NB=02`.

Takes the options of `python -m tools.run_notebooks`, except --out. Nothing is written unless every lesson is complete.
"""

import json
import re
import shutil
import sys
import tempfile
from datetime import date
from pathlib import Path

from tools import notebooks, run_notebooks
from tools.tables import markdown_table, put_into_page

ROOT = Path(__file__).resolve().parents[1]
RENDERED = ROOT / "notebooks" / "rendered"
STAMPED = ("profile", "commit", "device", "torch", "transformers", "datasets")
WIDGET = "application/vnd.jupyter.widget-view+json"  # a widget shows nothing where no kernel runs


def stamp(path):
    """The line on top of a copy: what the executed notebook at path ran with, from its results.json."""
    facts = {"profile": path.parts[-3]}
    file = path.with_name("results.json")
    if file.exists():
        results = json.loads(file.read_text(encoding="utf-8"))
        facts.update(results)
        facts.update(results.get("versions") or {})
    parts = [f"{name} {facts.get(name) or '-'}" for name in STAMPED]
    return "> Executed: " + " · ".join([*parts, str(date.today())])


def clean(cell):
    """Remove from a cell what papermill, nbclient and widgets have left in it."""
    for key in ("papermill", "execution"):
        cell["metadata"].pop(key, None)
    if cell["metadata"].get("tags") == []:
        del cell["metadata"]["tags"]
    for output in cell.get("outputs", []):
        output.get("data", {}).pop(WIDGET, None)


def link_images(cell):
    """Let a text name the images of the lessons from where its copy lies, one folder deeper."""
    if cell["cell_type"] == "markdown":
        cell["source"] = notebooks.text_of(cell).replace("](images/", "](../images/")


def without_paths(text, out):
    """A text that names no folder of this machine: those of kernels are left out, three others get a short name."""
    text = re.sub(r"(?:/[\w.+-]+){1,8}?/ipykernel_\d+/", "", text)  # where a kernel pretends that a cell's file is
    for folder, name in ((out, "outputs"), (ROOT, "."), (Path.home(), "~")):
        if len(str(folder)) > 1:
            text = re.sub(rf"{re.escape(str(folder))}(?=/|[^\w+=-])", name, text)
    return text


def render(path, out, target):
    """Copy an executed notebook below the folder out to target: stamped, without traces of papermill or the machine."""
    notebook = notebooks.read(path)
    for key in ("papermill", "widgets"):
        notebook["metadata"].pop(key, None)
    cells = []
    for cell in notebook["cells"]:
        if notebooks.INJECTED not in cell["metadata"].get("tags", []):
            clean(cell)
            link_images(cell)
            cells.append(cell)
    notebook["cells"] = cells
    title = next(cell for cell in cells if cell["cell_type"] == "markdown")
    title["source"] = f"{stamp(path)}\n\n{notebooks.text_of(title)}"
    text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
    (target / path.name).write_text(without_paths(text, out), encoding="utf-8")


def results_table(paths):
    """The front page's table of results: a row for each executed notebook, from its results.json."""
    rows = []
    for path in paths:
        results = json.loads(path.with_name("results.json").read_text(encoding="utf-8"))
        seconds = results["train_seconds"]
        rows.append(
            {
                "lesson": results["lesson"][:2],
                "metric": results["metric"],
                "baseline": f"{results['baseline']:.3f}",
                "before": f"{results['before']:.3f}",
                "after": f"{results['after']:.3f}",
                "n": f"{results['n_eval']:,}",
                "training": f"{seconds:.0f} s" if seconds else "none",
                "device": results["device"],
            }
        )
    return markdown_table(rows)


def main():
    """Run the lessons into a temporary folder, then copy them; return the exit code of the runner."""
    out = Path(tempfile.mkdtemp()).resolve()
    arguments = [*sys.argv[1:], "--out", str(out)]
    code = run_notebooks.main(arguments)
    if code != 0:
        return code  # the folder stays, as the runner has said what is there
    paths = sorted(out.glob("*/*/*.ipynb"))
    for path in paths:
        render(path, out, RENDERED)
    ran_all = not run_notebooks.command_line().parse_args(arguments).nb
    if ran_all:
        put_into_page("README.md", "results", results_table(paths))
    shutil.rmtree(out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
