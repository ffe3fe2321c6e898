"""Modules of utils import each other in one direction only, and nobody there needs what is made for speed."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import ROOT, notebooks

SPEED = "utils.speed"
MAY_IMPORT_SPEED = ("notebooks", "tools", "benchmarks", "tests")


def modules_of(folder, package="utils"):
    """{name with dots: file} of all modules of a package in `folder`."""
    modules = {}
    for path in sorted((folder / package).rglob("*.py")):
        parts = path.relative_to(folder).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        modules[".".join(parts)] = path
    return modules


def imported_names(source):
    """The modules, and the names in modules, that Python code imports anywhere in it, inside functions too."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports are not looked at here"
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


def imported_modules(source, modules):
    """Those of `modules` that the code imports, as `import a.b`, `from a import b` or `from a.b import name`."""
    imported = set()
    for name in imported_names(source):
        parent = name.rpartition(".")[0]
        if name in modules:
            imported.add(name)
        elif parent in modules:
            imported.add(parent)
    return imported


def import_graph(folder):
    """{module of utils: the modules of utils that it imports}."""
    modules = modules_of(folder)
    return {name: imported_modules(path.read_text("utf-8"), modules) for name, path in modules.items()}


def circle(graph):
    """The modules of a circle in the order in which they import each other, or [] if there is none."""
    done = set()

    def search(module, path):
        if module in path:
            return path[path.index(module) :]
        if module in done:
            return []
        for imported in sorted(graph[module]):
            modules = search(imported, [*path, module])
            if modules:
                return modules
        done.add(module)
        return []

    for module in graph:
        modules = search(module, [])
        if modules:
            return modules
    return []


def who_imports_speed(graph):
    """The modules of utils outside of utils.speed that import one of it."""
    outside = [module for module in graph if not module.startswith(SPEED)]
    return [module for module in outside if any(imported.startswith(SPEED) for imported in graph[module])]


def test_no_module_of_utils_imports_itself_in_a_circle():
    graph = import_graph(ROOT)
    assert len(graph) > 20
    assert circle(graph) == []


def test_only_notebooks_tools_benchmarks_and_tests_import_what_is_made_for_speed():
    assert who_imports_speed(import_graph(ROOT)) == []
    for folder in ROOT.iterdir():
        if folder.name in (*MAY_IMPORT_SPEED, "utils", "outputs") or folder.name.startswith("."):
            continue
        for path in folder.rglob("*.py"):
            assert not any(name.startswith(SPEED) for name in imported_names(path.read_text("utf-8"))), path
    sources = [path.read_text("utf-8") for path in notebooks()]
    assert any("speed.DuringTraining" in source for source in sources), "then it would be there for nobody"


def small_package(folder, files):
    """A package utils with these files, {path below utils: code}."""
    for name, source in files.items():
        path = Path(folder) / "utils" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(source)
    return folder


@pytest.mark.parametrize(
    ("files", "modules"),
    [
        ({"a.py": "from utils import b", "b.py": "import utils.a"}, ["utils.a", "utils.b"]),
        ({"a.py": "import utils.b", "b.py": "def f():\n    from utils.a import x"}, ["utils.a", "utils.b"]),
        (
            {"__init__.py": "", "a/__init__.py": "from utils.a.b import x", "a/b.py": "from utils.a import y"},
            ["utils.a", "utils.a.b"],
        ),
        ({"a.py": "from utils.a import x"}, ["utils.a"]),
        ({"a/__init__.py": "from utils.a.b import x", "a/b.py": "from utils.a import c", "a/c.py": ""}, []),
    ],
)
def test_a_circle_is_found(files, modules, tmp_path):
    assert sorted(circle(import_graph(small_package(tmp_path, files)))) == modules


def test_an_import_of_speed_is_found(tmp_path):
    files = {"a.py": "def f():\n    from utils.speed import flash", "speed/flash.py": "", "b.py": "import torch"}
    assert who_imports_speed(import_graph(small_package(tmp_path, files))) == ["utils.a"]


@pytest.mark.parametrize("module", ["utils.memory", "utils.planner", "utils.profiles", "utils.session"])
def test_these_are_imported_without_torch(module):
    """A plan answers at once, and a lesson sets up its process before torch is imported."""
    code = f"import sys, {module}; sys.exit(bool({{'torch', 'transformers'}} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    if module == "utils.memory":
        assert subprocess.run([sys.executable, "-c", "import torch\n" + code], cwd=ROOT).returncode == 1, "the control"
