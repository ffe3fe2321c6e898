"""The rules that every notebook keeps: `python -m tools.check_notebooks [file …]` prints a line for each broken one.

Without files it checks all lessons, the template and the solutions. The exit status is 1 if a rule is broken. What the
rules are for: a reader can run every cell of every notebook as it is, at full size too, and every call exists in the
installed libraries (tools/keyword_drift.py).
"""

import argparse
import ast
import re
import sys
import tomllib
from pathlib import Path

from tools import notebooks
from tools.keyword_drift import called_name, drift
from tools.run_notebooks import SENTINEL

ROOT = Path(__file__).resolve().parents[1]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]["urls"]["repository"]
SECTIONS = [
    "Profiles",
    "1 The data",
    "2 A baseline to beat",
    "3 Tokenization",
    "4 The model",
    "5 Check before training",
    "6 Training",
    "7 Evaluation",
    "8 Use it and keep it",
    "9 What it cost",
    "Recap",
    "Exercises",
    "Next, and references",
]
OTHER_SECTIONS = {  # of lessons that train nothing
    "00_will_it_fit": [
        "Profiles",
        "1 What the words mean",
        "2 A plan by hand",
        "3 The planner",
        "4 Which card?",
        "5 LoRA by hand",
        "6 What the optimizer keeps",
        "7 Four bits by hand",
        "8 What the rounding costs",
        "Recap",
        "Exercises",
        "Next, and references",
        "Appendix A: a width that some CPUs get wrong",
        "Appendix B: scales of scales, by hand",
    ],
}
FORBIDDEN_FUNCTIONS = {"eval", "exec", "compile", "__import__", "open"}  # model.eval() is another thing
DRAWING = {"plt.show", "plots.reliability_diagram"}
FORBIDDEN_METHODS = {"system", "popen", "is_available", "is_bf16_supported", "login"}


def all_notebooks():
    """The paths of the source notebooks: lessons, template and solutions."""
    folder = ROOT / "notebooks"
    return sorted(folder.glob("*.ipynb")) + sorted((folder / "solutions").glob("*.ipynb"))


def is_lesson(path):
    """Whether a notebook is a lesson or the template, and no solution."""
    return path.parent.name != "solutions"


# ---- reading -----------------------------------------------------------------------------------------------------


def cells_of(notebook, cell_type="code"):
    """The cells of one type."""
    return [cell for cell in notebook["cells"] if cell["cell_type"] == cell_type]


def python_of(cell):
    """A cell's Python, with `pass` for its lines of IPython magic (only the Colab cell has any)."""
    return re.sub(r"^(\s*)[!%].*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)


def syntax_of(notebook):
    """All nodes of the syntax trees of a notebook's code cells, in one list."""
    nodes = []
    for cell in cells_of(notebook):
        nodes.extend(ast.walk(ast.parse(python_of(cell))))
    return nodes


# ---- the rules: each takes a notebook and its path, and returns what is broken, in words ---------------------------


def broken_cells(notebook, path):
    """A notebook is saved without outputs, has its shell commands in the Colab cell, and ends with the sentinel."""
    faults = []
    is_in_colab = "google.colab" in "\n".join(map(python_of, cells_of(notebook))).split("PROFILE")[0]
    for cell in cells_of(notebook):
        if cell["outputs"] or cell["execution_count"]:
            faults.append("a cell has outputs")
        if re.search(r"^\s*!", "".join(cell["source"]), re.MULTILINE) and not is_in_colab:
            faults.append("a shell command outside the Colab cell")
    if f'print("{SENTINEL}")' not in python_of(cells_of(notebook)[-1]):
        faults.append("the last cell does not print the sentinel")
    return faults


def broken_metadata(notebook, path):
    """Nothing but the kernel is noted, one cell has one tag, and each cell has an id of its own."""
    faults = []
    if set(notebook["metadata"]) - {"kernelspec", "language_info"}:
        faults.append("unknown metadata")
    tags = [len(cell.get("metadata", {}).get("tags", [])) for cell in cells_of(notebook)]
    if tags.count(1) != 1:
        faults.append("not exactly one tagged cell, `parameters`")
    seen = set()
    for cell in notebook["cells"]:
        if cell.get("id") in seen:
            faults.append(f"two cells have the id {cell['id']}")
        seen.add(cell.get("id"))
    return faults


def broken_code(notebook, path):
    """No cell branches on the profile, asks for the machine, runs code out of data, or depends on where it is run."""
    faults = []
    for node in syntax_of(notebook):
        if isinstance(node, ast.If | ast.IfExp | ast.While) and names_profile(node.test):
            faults.append("a branch on PROFILE")
        elif isinstance(node, ast.Call) and is_forbidden(node):
            faults.append(f"a call of {called_name(node)}")
        elif isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            faults.append("trust_remote_code")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"(\.\.?|~)/", node.value):
            faults.append(f"a path that depends on where it is run: {node.value}")
    return faults


def names_profile(expression):
    """Whether PROFILE stands in an expression."""
    return any(isinstance(node, ast.Name) and node.id == "PROFILE" for node in ast.walk(expression))


def is_forbidden(call):
    """Whether a call is one of those that no cell may have."""
    if isinstance(call.func, ast.Name):
        return called_name(call) in FORBIDDEN_FUNCTIONS
    return called_name(call) in FORBIDDEN_METHODS


def broken_headings(notebook, path):
    """A lesson has its title with number, its table of facts, and its sections in order."""
    if not is_lesson(path):
        return []
    faults = []
    texts = ["".join(cell["source"]) for cell in cells_of(notebook, "markdown")]
    sections = []
    for text in texts:
        sections.extend(re.findall(r"^## (.*)", text, re.MULTILINE))
    expected = OTHER_SECTIONS.get(path.stem, SECTIONS)
    if sections != expected:
        faults.append(f"its sections are {sections}, not {expected}")
    if not re.match(r"# (\d\d|NN) · ", texts[0]):
        faults.append("the title does not begin with a number, such as `# 01 · `")
    if len(re.findall(r"^\| \*\*", texts[0], re.MULTILINE)) != 6:
        faults.append("the facts table has not six rows")
    return faults


def broken_links(notebook, path):
    """Links lead to this repository, and those to Colab to this notebook."""
    faults = []
    text = "\n".join("".join(cell["source"]) for cell in notebook["cells"])
    place = REPOSITORY.removeprefix("https://github.com/")
    for address in re.findall(r"(?:github\.com|/github)/([\w-]+/[\w-]+)", text):
        if address != place:
            faults.append(f"a link to another repository: {address}")
    for name in re.findall(r"colab/?.*?/notebooks/([\w/]+)\.ipynb\)", text):
        if "solutions" not in name and name not in (path.stem, f"rendered/{path.stem}"):
            faults.append(f"a link to another notebook: {name}")
    if is_lesson(path) and f"colab.research.google.com/github/{place}/blob/main/notebooks/{path.name})" not in text:
        faults.append("no link that opens this notebook in Colab")
    return faults


def broken_training(notebook, path):
    """The call that everybody looks for, `trainer.train(...)`, is the only statement of its cell."""
    faults = []
    for cell in cells_of(notebook):
        statements = ast.parse(python_of(cell)).body
        trains = [statement for statement in statements if trains_the_model(statement)]
        if trains and len(statements) > 1:
            faults.append("`trainer.train` does not stand alone in its cell")
    return faults


def trains_the_model(statement):
    """Whether a statement calls `trainer.train` outside of a function."""
    if isinstance(statement, ast.FunctionDef | ast.ClassDef):
        return False
    calls = [node for node in ast.walk(statement) if isinstance(node, ast.Call)]
    return any(ast.unparse(call.func) == "trainer.train" for call in calls)


def broken_settings(notebook, path):
    """The table of profiles is one literal dict, a row a setting, and nothing is merged from dicts anywhere."""
    faults = []
    tables = []
    for node in syntax_of(notebook):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "SETTINGS":
            tables.append(node.value)
        if isinstance(node, ast.Call) and merges_a_dict(node):
            faults.append(f"arguments out of a dict: {ast.unparse(node)[:60]}")
    if is_lesson(path) and len(tables) != 1:
        faults.append(f"{len(tables)} tables called SETTINGS, not one")
    for table in tables:
        is_literal = isinstance(table, ast.Dict) and all(isinstance(row, ast.Tuple) for row in table.values)
        if not is_literal:
            faults.append("SETTINGS is not a literal dict with a tuple a row")
    return faults


def merges_a_dict(call):
    """Whether a call gets arguments by `**dict(...)` or `**(a | b)`, or changes an object by `vars(x).update(...)`."""
    if ast.unparse(call.func).startswith("vars(") and called_name(call) == "update":
        return True
    unpacked = [keyword.value for keyword in call.keywords if keyword.arg is None]
    return any(
        isinstance(value, ast.BinOp | ast.Dict) or (isinstance(value, ast.Call) and called_name(value) == "dict")
        for value in unpacked
    )


def broken_pictures(notebook, path):
    """A figure and an image say in words what they show, and a figure has a sentence below it."""
    faults = []
    cells = notebook["cells"]
    for number, cell in enumerate(cells):
        if cell["cell_type"] == "markdown":
            faults.extend(broken_images("".join(cell["source"])))
        elif draws(cell):
            if not alt_text(cell):
                faults.append(f"a figure without alt text: {''.join(cell['source'])[:60]!r}")
            followed_by_text = number + 1 < len(cells) and cells[number + 1]["cell_type"] == "markdown"
            if "print(" not in "".join(cell["source"]) and not followed_by_text:
                faults.append(f"a figure without a sentence below: {''.join(cell['source'])[:60]!r}")
    return faults


def draws(cell):
    """Whether a code cell shows a figure: it calls a function of `plots` that saves one, outside of a function."""
    for statement in ast.parse(python_of(cell)).body:
        if isinstance(statement, ast.FunctionDef | ast.ClassDef):
            continue
        for node in ast.walk(statement):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in DRAWING:
                return True
    return False


def alt_text(cell):
    """The words for a figure of this cell, where MyST-NB reads them; an empty string if there are none."""
    return cell["metadata"].get("mystnb", {}).get("image", {}).get("alt", "").strip()


def broken_images(text):
    """What is wrong with the images in a Markdown text: no words for one, or no file of this name."""
    faults = []
    for words, address in re.findall(r"!\[([^]]*)\]\(([^)]*)\)", text):
        if not words.strip():
            faults.append(f"an image without alt text: {address}")
        if not address.startswith("https://") and not (ROOT / "notebooks" / address).is_file():
            faults.append(f"there is no image {address}")
    return faults


def broken_words(notebook, path):
    """A lesson does not quarrel with notebooks that its reader has not seen; docs/references.md has their place."""
    faults = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        for words in re.findall(r"published run|published recipe|as published|[Tt]he reference\b", text):
            if "docs/references.md" not in text:
                faults.append(f"{words!r} without a link to docs/references.md")
    return faults


RULES = [
    broken_cells,
    broken_metadata,
    broken_code,
    broken_headings,
    broken_links,
    broken_training,
    broken_settings,
    broken_pictures,
    broken_words,
]


def broken_rules(path):
    """Every broken rule of the notebook at a path, in words."""
    notebook = notebooks.read(path)
    faults = []
    for rule in RULES:
        faults.extend(rule(notebook, path))
    return faults


def main(arguments=None):
    """Check the notebooks and print a line for each fault; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("files", nargs="*", type=Path, help="notebooks; all of the course if there is none")
    args = parser.parse_args(arguments)
    faults = 0
    for path in args.files or all_notebooks():
        _, drifted = drift(syntax_of(notebooks.read(path)))
        for fault in [*broken_rules(path), *drifted]:
            print(f"{path}: {fault}")
            faults += 1
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
