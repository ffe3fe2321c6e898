"""Static rules over every notebook's cells: what a reader relies on, and what full size needs to run unchanged."""

import ast
import inspect
import json
import re
import tomllib

import bitsandbytes
import peft
import pytest
import transformers
import trl
from conftest import ROOT, notebooks

SECTIONS = [
    *("Profiles", "1 The data", "2 A baseline to beat", "3 Tokenization", "4 The model", "5 Check before training"),
    *("6 Training", "7 Evaluation", "8 Use it and keep it", "9 What it cost", "Recap", "Exercises"),
    "Next, and references",
]
SECTIONS_00 = [  # this one trains nothing
    *("Profiles", "1 Four bits by hand", "2 Scales of scales", "3 What the rounding costs", "4 LoRA by hand"),
    *("5 What the optimizer keeps", "6 The planner", "7 Which card?", "Recap", "Exercises", "Next, and references"),
]
REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["repository"]
BUILTINS = {"eval", "exec", "compile", "__import__", "open"}  # model.eval() is another thing
METHODS = {"system", "popen", "is_available", "is_bf16_supported", "login"}
SHARED = {"tokenize", "compute_metrics"}  # these two stand in every lesson, word for word alike
ALL = notebooks()
LESSONS = [path for path in ALL if path.parent.name == "notebooks"]
ids = [str(path.relative_to(ROOT / "notebooks")) for path in ALL]


def read(path):
    return json.loads(path.read_text(encoding="utf-8"))


def code_of(cell):
    """A cell's Python without its lines of IPython magic (only the Colab cell has any)."""
    return re.sub(r"^(\s*)[!%].*$", r"\1pass", "".join(cell["source"]), flags=re.MULTILINE)


def cells(path, kind="code"):
    return [cell for cell in read(path)["cells"] if cell["cell_type"] == kind]


def nodes(path):
    return [node for cell in cells(path) for node in ast.walk(ast.parse(code_of(cell)))]


def faults(path):
    """Every broken rule of one notebook, in words."""
    notebook, found = read(path), []
    text = "\n".join(code_of(cell) for cell in cells(path))
    for cell in cells(path):
        if cell["outputs"] or cell["execution_count"]:
            found.append("a cell has outputs")
        if len("".join(cell["source"]).splitlines()) > 25:
            found.append(f"a code cell is longer than 25 lines: {cell['source'][0]}")
        if (
            re.search(r"^\s*!", "".join(cell["source"]), re.MULTILINE)
            and "google.colab" not in text.split("PROFILE")[0]
        ):
            found.append("a shell command outside the Colab cell")
    for cell in cells(path, "markdown"):
        words = re.sub(r"\]\(.*?\)|\|.*\||\$.*?\$", " ", "".join(cell["source"])).split()
        if len(words) > 120:
            found.append(f"a text cell has {len(words)} words: {words[:6]}")
    if len(notebook["cells"]) > 60:
        found.append(f"{len(notebook['cells'])} cells")
    if set(notebook["metadata"]) - {"kernelspec", "language_info"}:
        found.append("unknown metadata")
    if [len(cell.get("metadata", {}).get("tags", [])) for cell in cells(path)].count(1) != 1:
        found.append("not exactly one tagged cell, `parameters`")
    for node in nodes(path):
        if isinstance(node, ast.If | ast.IfExp | ast.While) and {"PROFILE"} & names_in(node.test):
            found.append("a branch on PROFILE")
        if isinstance(node, ast.Call) and called(node) in (BUILTINS if isinstance(node.func, ast.Name) else METHODS):
            found.append(f"a call of {called(node)}")
        if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
            found.append("trust_remote_code")
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and re.match(r"(\.\.?|~)/", node.value):
            found.append(f"a path that depends on where it is run: {node.value}")
    if 'print("Lesson complete.")' not in code_of(cells(path)[-1]):
        found.append("the last cell does not print the sentinel")
    return found


def names_in(node):
    return {child.id for child in ast.walk(node) if isinstance(child, ast.Name)}


def called(node):
    return getattr(node.func, "attr", getattr(node.func, "id", ""))


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_rules(path):
    assert faults(path) == []


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("if PROFILE == 'tiny':\n    pass", "PROFILE"),
        ("x = 1 if PROFILE == 'full' else 2", "PROFILE"),
        ("torch.cuda.is_available()", "is_available"),
        ("eval('1')", "eval"),
        ("wandb.login()", "login"),
        ("load(x, trust_remote_code=False)", "trust_remote_code"),
        ("load('../data')", "path"),
        ("x = 1\n" * 26, "25 lines"),
    ],
)
def test_the_rules_find_what_they_forbid(tmp_path, source, fault):
    notebook = read(LESSONS[0])
    notebook["cells"].insert(8, {**cells(LESSONS[0])[3], "source": source.splitlines(keepends=True), "metadata": {}})
    path = tmp_path / "bad.ipynb"
    path.write_text(json.dumps(notebook))
    assert [found for found in faults(path) if fault in found]


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])
def test_headings_stand_in_order(path):
    text = ["".join(cell["source"]) for cell in cells(path, "markdown")]
    expected = SECTIONS_00 if path.stem == "00_will_it_fit" else SECTIONS
    assert [line[3:] for t in text for line in t.splitlines() if line.startswith("## ")] == expected
    assert re.match(r"# (\d\d|NN) · ", text[0])
    assert len(re.findall(r"^\| \*\*", text[0], re.MULTILINE)) == 6, "the facts table has six rows"


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_links_name_this_file_and_this_repository(path):
    text = path.read_text(encoding="utf-8")
    place = REPOSITORY.removeprefix("https://github.com/")
    assert set(re.findall(r"github\.com/([\w-]+/[\w-]+)|/github/([\w-]+/[\w-]+)", text)) <= {(place, ""), ("", place)}
    assert {
        name for name in re.findall(r"colab/?.*?/notebooks/([\w/]+)\.ipynb\)", text) if "solutions" not in name
    } <= {
        path.stem,
        f"rendered/{path.stem}",
    }
    if path in LESSONS:
        assert f"colab.research.google.com/github/{place}/blob/main/notebooks/{path.name})" in text


def test_no_function_body_is_written_twice():
    seen = {}
    for path in ALL:
        for node in nodes(path):
            if isinstance(node, ast.FunctionDef) and node.name not in SHARED:
                body = ast.dump(ast.Module(node.body, []))
                assert seen.setdefault(body, path) == path, f"{node.name} in {path.name} and {seen[body].name}"


def profile_table(path):
    """PROFILES of a notebook, computed by its own cell; `profiles.select` of it for each profile."""
    cell = next(code_of(cell) for cell in cells(path) if "PROFILES = " in code_of(cell))
    space = {"PROFILE": "tiny", "OVERRIDES": {}}
    exec(cell, space)  # the notebook's own, committed code
    return space["PROFILES"], space["profiles"].select


@pytest.mark.parametrize("path", LESSONS, ids=[path.stem for path in LESSONS])
@pytest.mark.parametrize("profile", ["tiny", "colab", "full"])
def test_every_profile_is_accepted_by_the_installed_signatures(path, profile, tmp_path):
    table, select = profile_table(path)
    run = select(table, profile, {})
    space = {"run": run, "SEED": 0, "checkpoints": tmp_path, "output_dir": tmp_path, "args": None}
    checked = 0
    for node in [node for node in nodes(path) if isinstance(node, ast.Call)]:
        library = next(
            (lib for lib in (transformers, peft, bitsandbytes.nn, trl) if callable(getattr(lib, called(node), 0))), None
        )
        if library is None:
            continue
        signature = inspect.signature(getattr(library, called(node)))
        if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
            unknown = {keyword.arg for keyword in node.keywords if keyword.arg} - set(signature.parameters)
            assert not unknown, f"{called(node)}: {unknown}"
            checked += 1
        if called(node) == "TrainingArguments":
            node.keywords.append(ast.keyword("use_cpu", ast.Constant(True)))
            node.func = ast.Name("TrainingArguments", ast.Load())
            expression = ast.fix_missing_locations(ast.Expression(node))
            made = eval(compile(expression, path.name, "eval"), space | vars(transformers) | vars(transformers.utils))
            assert made.learning_rate == run.learning_rate
    assert checked >= 3


def test_the_published_recipe_is_the_full_profile():
    table, _ = profile_table(ROOT / "notebooks" / "01_bert_full_fine_tuning.ipynb")
    full = table["full"]
    assert (full["model_id"], full["learning_rate"], full["eval_steps"]) == ("google-bert/bert-base-uncased", 3e-5, 10)
    assert (full["num_train_epochs"], full["per_device_train_batch_size"], full["max_steps"]) == (10, 8, -1)
