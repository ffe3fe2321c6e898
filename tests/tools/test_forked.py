"""What controls take in place of a kernel: it runs all cells in order, and a cell that fails is no success."""

import os

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from tools.run_notebooks import SENTINEL


@pytest.fixture
def notebook(tmp_path):
    """A function that writes a notebook with these cells behind its parameters."""

    def write(*sources):
        parameters = new_code_cell('PROFILE = ""\nOVERRIDES = {}\nOUTPUT_DIR = ""', metadata={"tags": ["parameters"]})
        cells = [parameters, *map(new_code_cell, sources)]
        nbformat.write(new_notebook(cells=cells), tmp_path / "some.ipynb")
        return tmp_path / "some.ipynb"

    return write


def test_cells_run_in_order_in_a_process_of_their_own_with_the_parameters(run_cells, notebook):
    writes = "import os, pathlib\npathlib.Path(OUTPUT_DIR, 'results.json').write_text(f'[{os.getpid()}, {a}]')"
    cells = ("a = OVERRIDES['rows']", "a += 1\n!echo shell $PPID", writes, "print(PROFILE)")
    done = run_cells(notebook(*cells), {"rows": 2})
    assert done.code == 0, done.text
    number, a = done.results
    assert a == 3
    assert number != os.getpid()
    assert f"shell {number}\n" in done.text
    assert done.text.endswith("tiny\n")


@pytest.mark.parametrize(
    ("source", "said"),
    [("1 / 0", "ZeroDivisionError"), ("raise SystemExit", "SystemExit"), ("a =", "SyntaxError"), ("os._exit(3)", "")],
)
def test_a_cell_that_fails_ends_the_run(run_cells, notebook, source, said):
    done = run_cells(notebook("import os", source, f"print({SENTINEL!r})"))
    assert done.code != 0
    assert said in done.text
    assert SENTINEL not in done.text


def test_each_of_two_tests_side_by_side_has_one_thread(run_cells, notebook, offline):
    assert offline["OMP_NUM_THREADS"] == "1"
    assert run_cells(notebook("import torch", "print('threads', torch.get_num_threads())")).text == "threads 1\n"


def test_it_has_no_network(run_cells, notebook):
    done = run_cells(notebook("import urllib.request", "urllib.request.urlopen('http://192.0.2.1', timeout=1)"))
    assert "the tests allow no network" in done.text
    assert done.code != 0
