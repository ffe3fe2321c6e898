"""Static rules over every notebook's cells: what a reader relies on, and what full size needs to run unchanged."""

import ast
import itertools
import json

import pytest
from conftest import ROOT, notebooks

from tools import check_notebooks, keyword_drift
from tools.notebooks import read
from utils import profiles

SHARED = {"tokenize", "compute_metrics"}  # these two stand in every lesson, word for word alike
ALL = notebooks()
LESSONS = [path for path in ALL if path.parent.name == "notebooks"]
IDS = [str(path.relative_to(ROOT / "notebooks")) for path in ALL]
LESSON_IDS = [path.stem for path in LESSONS]


def changed(notebook, source):
    """A notebook with one more code cell."""
    cell = {"cell_type": "code", "id": "added", "metadata": {}, "outputs": [], "execution_count": None}
    cell["source"] = source.splitlines(keepends=True)
    cells = notebook["cells"]
    return {**notebook, "cells": [*cells[:8], cell, *cells[8:]]}


def write(folder, notebook):
    """The path of a notebook written into a folder, under the name of the first lesson."""
    path = folder / LESSONS[0].name
    path.write_text(json.dumps(notebook))
    return path


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_rules(path):
    assert check_notebooks.broken_rules(path) == []


def test_the_rules_are_those_of_all_notebooks():
    assert check_notebooks.all_notebooks() == ALL
    assert len(ALL) > len(LESSONS) > 5


@pytest.mark.parametrize(
    ("source", "word"),
    [
        ("if PROFILE == 'tiny':\n    pass", "PROFILE"),
        ("x = 1 if PROFILE == 'full' else 2", "PROFILE"),
        ("torch.cuda.is_available()", "is_available"),
        ("eval('1')", "eval"),
        ("wandb.login()", "login"),
        ("load(x, trust_remote_code=False)", "trust_remote_code"),
        ("load('../data')", "path"),
        ("address = 'https://github.com/somebody/something'", "another repository: somebody/something"),
        ("before = 1\ntrainer.train(resume_from_checkpoint=None)", "does not stand alone"),
        ("with graphs:\n    trainer.train()\nprint(1)", "does not stand alone"),
        ("f(**dict(a=1))", "arguments out of a dict"),
        ("f(**(a | {'b': 1}))", "arguments out of a dict"),
        ("vars(args).update(b=1)", "arguments out of a dict"),
        ("SETTINGS = {'a': (1, 2)}", "2 tables called SETTINGS"),
        ("plt.show()\nprint('what is seen')", "a figure without alt text"),
        ("'as published'", "without a link to docs/references.md"),
    ],
)
def test_the_rules_find_what_they_forbid(tmp_path, source, word):
    faults = check_notebooks.broken_rules(write(tmp_path, changed(read(LESSONS[0]), source)))
    assert [fault for fault in faults if word in fault]
    assert len(faults) == 1


def add_output(notebook):
    notebook["cells"][2]["execution_count"] = 1


def add_shell_command(notebook):
    notebook["cells"][2]["source"] = ["!ls"]


def leave_out_the_end(notebook):
    notebook["cells"].pop()


def add_metadata(notebook):
    notebook["metadata"]["widgets"] = {}


def leave_out_the_tag(notebook):
    notebook["cells"][3]["metadata"] = {}


def repeat_an_id(notebook):
    notebook["cells"][4]["id"] = notebook["cells"][5]["id"]


def change_a_heading(notebook):
    notebook["cells"][4]["source"] = ["## The profiles"]


def change_the_title(notebook):
    notebook["cells"][0]["source"] = ["# Without a number"]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        (add_output, "a cell has outputs"),
        (add_shell_command, "a shell command outside the Colab cell"),
        (leave_out_the_end, "the last cell does not print the sentinel"),
        (add_metadata, "unknown metadata"),
        (leave_out_the_tag, "not exactly one tagged cell"),
        (repeat_an_id, "two cells have the id"),
        (change_a_heading, "its sections are ['The profiles', "),
        (change_the_title, "the title does not begin with a number"),
        (change_the_title, "the facts table has not six rows"),
        (change_the_title, "no link that opens this notebook in Colab"),
    ],
)
def test_the_rules_find_what_a_notebook_lacks(tmp_path, change, word):
    notebook = read(LESSONS[0])
    change(notebook)
    assert [fault for fault in check_notebooks.broken_rules(write(tmp_path, notebook)) if word in fault]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("![](images/none.svg)", "an image without alt text: images/none.svg"),
        ("![Boxes](images/none.svg)", "there is no image images/none.svg"),
    ],
)
def test_an_image_needs_words_and_a_file(text, word):
    assert word in check_notebooks.broken_images(text)


def test_a_figure_needs_a_sentence_below_it():
    figure = {"cell_type": "code", "metadata": {"mystnb": {"image": {"alt": "A line"}}}, "source": ["plt.show()"]}
    text = {"cell_type": "markdown", "metadata": {}, "source": ["It rises."]}
    assert check_notebooks.broken_pictures({"cells": [figure, text]}, None) == []
    faults = check_notebooks.broken_pictures({"cells": [figure]}, None)
    assert len(faults) == 1
    assert faults[0].startswith("a figure without a sentence below")


@pytest.mark.parametrize("path", [path for path in LESSONS if path.stem[0].isdigit()], ids=lambda path: path.stem)
def test_every_rendered_figure_has_words(path):
    """What the rule finds in the source by its call, found in the copy by its output."""
    cells = read(path.parent / "rendered" / path.name)["cells"]
    shown = 0
    for number, cell in enumerate(cells):
        kinds = {kind for output in cell.get("outputs", []) for kind in output.get("data", {})}
        if not any(kind.startswith("image/") for kind in kinds):
            continue
        shown += 1
        place = "".join(cell["source"])[:80]
        assert check_notebooks.alt_text(cell), place
        says = any(output["output_type"] == "stream" for output in cell["outputs"])
        assert says or cells[number + 1]["cell_type"] == "markdown", place
    assert shown > 0


def test_the_command_prints_a_line_for_each_fault(tmp_path, capsys):
    assert check_notebooks.main([str(LESSONS[0])]) == 0
    assert capsys.readouterr().out == ""
    path = write(tmp_path, changed(read(LESSONS[0]), "eval('1')\ntokenizer('x', max_len=3)"))
    assert check_notebooks.main([str(path)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines == [f"{path}: a call of eval", f"{path}: tokenizer does not know ['max_len']"]


def test_no_function_body_is_written_twice():
    seen = {}
    for path in ALL:
        for node in check_notebooks.syntax_of(read(path)):
            if isinstance(node, ast.FunctionDef) and node.name not in SHARED:
                body = ast.dump(ast.Module(node.body, []))
                assert seen.setdefault(body, path) == path, f"{node.name} in {path.name} and {seen[body].name}"


def profile_table(path):
    """SETTINGS of a notebook, as {profile: {setting: value}}, from its own cell."""
    sources = [check_notebooks.python_of(cell) for cell in check_notebooks.cells_of(read(path))]
    source = next(source for source in sources if "SETTINGS = " in source)
    space = {"PROFILE": "tiny", "OVERRIDES": {}}
    exec(source, space)  # the notebook's own, committed code
    return profiles.table(space["SETTINGS"])


def training_arguments(path):
    """The calls that a notebook assigns to `args`."""
    calls = []
    for node in check_notebooks.syntax_of(read(path)):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "args" and isinstance(node.value, ast.Call):
            calls.append(node.value)
    return calls


@pytest.mark.parametrize("path", LESSONS, ids=LESSON_IDS)
def test_every_profile_makes_training_arguments(path, tmp_path):
    """The very expression of the notebook, with the values of each profile."""
    calls = training_arguments(path)
    assert len(calls) == (0 if path.stem == "00_will_it_fit" else 1)
    table = profile_table(path)
    assert list(table)[:1] == ["tiny"]
    for call in calls:
        call.keywords = [keyword for keyword in call.keywords if keyword.arg != "use_cpu"]
        call.keywords.append(ast.keyword("use_cpu", ast.Constant(True)))
    for profile, call in itertools.product(table, calls):
        run = profiles.select(table, profile, {})
        space = {config.__name__: config for config in keyword_drift.ARGUMENTS}
        space.update(run=run, SEED=0, output_dir=tmp_path, dtype="float32", max_length=64, packing=False)
        expression = ast.fix_missing_locations(ast.Expression(call))
        args = eval(compile(expression, path.name, "eval"), space)  # the notebook's own code
        assert args.learning_rate == run.learning_rate


@pytest.mark.parametrize("path", ALL, ids=IDS)
def test_every_keyword_is_one_of_the_installed_stack(path):
    count, faults = keyword_drift.drift(check_notebooks.syntax_of(read(path)))
    assert faults == []
    assert count >= (1 if path.stem.startswith("00") else 5)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from transformers import TFTrainer", "transformers has no TFTrainer"),
        ("from trl import SFTConfig\nSFTConfig('x', max_seq_length=1)", "SFTConfig does not know ['max_seq_length']"),
        ("from transformers import Trainer\nTrainer(tokenizer=1)", "Trainer does not know ['tokenizer']"),
        (
            "from transformers import Trainer\nclass Mine(Other, Trainer):\n    pass\nMine(tokenizer=1)",
            "Mine does not know ['tokenizer']",
        ),
        ("from transformers import TrainingArguments as T\nT('x', evaluation_strategy='no')", "evaluation_strategy"),
        ("from peft import LoraConfig\nmore = dict(rank=2)\nLoraConfig(**more)", "LoraConfig does not know ['rank']"),
        ("import bitsandbytes as bnb\nbnb.functional.quantize_8bit_blocks(x, y=1)", "quantize_8bit_blocks is no more"),
        ("from transformers import AutoModel\nAutoModel.from_pretrained('x', load_in_4bits=True)", "load_in_4bits"),
        ("from transformers import BitsAndBytesConfig as B\nB(bnb_4bit_quant='nf4')", "['bnb_4bit_quant']"),
        ("from transformers import GenerationConfig\nGenerationConfig(max_tokens=3)", "['max_tokens']"),
        ("model.generate(**batch, max_tokens=3)", "model.generate does not know ['max_tokens']"),
        ("tokenizer('x', max_len=3)", "tokenizer does not know ['max_len']"),
        ("import functools\nfunctools.partial(tokenizer, max_len=3)", "does not know ['max_len']"),
        ("dataset.map(f, batch=True)", "dataset.map does not know ['batch']"),
        ("vars(own).update(eval_strategie='no')", "eval_strategie"),
        ("from datasets import load_dataset\nload_dataset('csv', keep_na=True)", "['keep_na']"),
    ],
)
def test_drift_is_found(source, fault):
    count, faults = keyword_drift.drift(list(ast.walk(ast.parse(source))))
    assert count <= 1
    assert [text for text in faults if fault in text], faults


@pytest.mark.slow  # the tests of the lessons run them with fewer steps
@pytest.mark.parametrize("path", [path for path in ALL if path.parent.name == "solutions"], ids=lambda path: path.stem)
def test_solutions_run_in_full(path, run_notebook):
    done = run_notebook(path)
    assert done.code == 0, done.text
