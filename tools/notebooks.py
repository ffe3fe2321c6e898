"""Notebooks as data: the cells that hold code, each with its place in words."""

import ast
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from utils import profiles

INJECTED = "injected-parameters"  # papermill's tag of the cell in which it sets the parameters


@dataclass
class CodeCell:
    """A cell that holds code."""

    index: int  # among all cells of the notebook, from 0
    place: str  # such as "code cell 3 (2 A baseline to beat)": the third cell with code, under that heading
    source: str
    tags: list[str] = field(default_factory=list)
    execution_count: int | None = None  # None: it did not run
    outputs: list[dict] = field(default_factory=list)


def read(path):
    """The content of a notebook file, as a dict; OSError or ValueError if there is none."""
    notebook = json.loads(Path(path).read_text(encoding="utf-8"))
    if not isinstance(notebook, dict) or not isinstance(notebook.get("cells"), list):
        raise ValueError(f"{path} is no notebook: it has no list of cells.")
    return notebook


def text_of(cell):
    """The text of a cell: files hold it as a list of lines, nbformat as one string."""
    return "".join(cell["source"]).strip()


def code_cells(notebook):
    """The CodeCells of a notebook, in order, without empty ones and without the cell that papermill puts in."""
    heading = "start"
    cells = []
    for index, cell in enumerate(notebook["cells"]):
        source = text_of(cell)
        tags = cell.get("metadata", {}).get("tags", [])
        if cell["cell_type"] == "markdown":
            headings = re.findall(r"^#+ (.+)", source, re.MULTILINE)
            if headings:
                heading = headings[-1]
        elif cell["cell_type"] == "code" and source and INJECTED not in tags:
            place = f"code cell {len(cells) + 1} ({heading})"
            cells.append(CodeCell(index, place, source, tags, cell.get("execution_count"), cell.get("outputs", [])))
    return cells


def profiles_of(cells):
    """The names of the profiles in the table of a notebook, given its CodeCells; none if it has no table."""
    for cell in cells:
        if "profiles.select(" not in cell.source:
            continue
        for statement in ast.parse(cell.source).body:
            if not isinstance(statement, ast.Assign) or not isinstance(statement.value, ast.Dict):
                continue
            name = ast.unparse(statement.targets[0])
            if name == "SETTINGS":
                return profiles.names_of_columns(len(statement.value.values[0].elts))
    return ()
