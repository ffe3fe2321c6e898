"""The table of faults is true; and what the text of the repository must never hold. As a script: writes FAULTS.md."""

import ast
import json
import re
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGE, TABLE = ROOT / "tests" / "FAULTS.md", ROOT / "tests" / "faults.toml"
VERDICTS = ("survived", "not applicable yet", "not survived")


def matrix():
    return tomllib.loads(TABLE.read_text("utf-8"))["fault"]


def page():
    """FAULTS.md from faults.toml."""
    faults = matrix()
    counts = [f"{sum(fault['verdict'] == verdict for fault in faults)} {verdict}" for verdict in VERDICTS]
    lines = [
        "# What may happen to a run",
        "",
        "Written by `python tests/robustness/test_faults.py` out of `faults.toml`.",
        "",
    ]
    lines += [
        f"Of {len(faults)} faults: {', '.join(counts)}.",
        "",
        "| | fault | verdict | shown by |",
        "|---|---|---|---|",
    ]
    for fault in faults:
        shown = [f"`{test.replace('.py::', '`: `')}`" for test in fault.get("tests", [])]
        verdict = fault["verdict"] + (f": {fault['why']}" if "why" in fault else "")
        lines.append(f"| {fault['number']} | {fault['name']} | {verdict} | {'<br>'.join(shown)} |")
    return "\n".join(lines) + "\n"


def test_the_page_is_that_of_the_table():
    assert PAGE.read_text("utf-8") == page(), "run `python tests/robustness/test_faults.py`"


def missing(faults):
    """The tests that the table names and no file has."""
    named = {test for fault in faults for test in fault.get("tests", [])}
    there = set()
    for file in {test.split("::")[0] for test in named}:
        tree = ast.parse((ROOT / "tests" / file).read_text("utf-8"))
        there |= {f"{file}::{node.name}" for node in tree.body if isinstance(node, ast.FunctionDef)}
    return sorted(named - there)


def test_every_fault_has_a_verdict_and_every_test_exists():
    faults = matrix()
    assert [fault["number"] for fault in faults] == list(range(1, len(faults) + 1))
    assert missing(faults) == []
    for fault in faults:
        assert fault["verdict"] in VERDICTS
        assert ("why" in fault) == (fault["verdict"] != "survived"), fault["name"]
        assert fault.get("tests") or fault["verdict"] != "survived", fault["name"]
    assert sum(fault["verdict"] == "survived" for fault in faults) >= 32
    assert missing([{"tests": ["robustness/test_faults.py::test_of_nobody"]}]) == [
        "robustness/test_faults.py::test_of_nobody"
    ]


# ------------------------------------------------------------------------------------------------ data

BAD_TEXTS = {
    "one word": "a" * 1_000_000,
    "many words": "open the window " * 200_000,
    "joined emoji": "👩‍👩‍👧‍👦" * 100_000,
    "spaces": " " * 5_000_000 + "x",
}


@pytest.mark.parametrize("name", BAD_TEXTS)
def test_absurd_texts_are_cut_quickly(name):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ROOT / "data" / "models" / "tiny-bert")
    began = time.process_time()
    ids = tokenizer(BAD_TEXTS[name], truncation=True, max_length=512)["input_ids"]
    assert len(ids) <= 512
    assert time.process_time() - began < 10


@pytest.mark.parametrize("lesson", ["01", "02"])
def test_a_control_token_that_somebody_wrote_stays_text_in_the_bert_lessons(lesson):
    from transformers import AutoTokenizer

    (name,) = (ROOT / "notebooks").glob(f"{lesson}_*.ipynb")
    source = code(name.relative_to(ROOT).as_posix())
    (settings,) = re.findall(
        r"^tokenizer = AutoTokenizer.from_pretrained\(run.model_id, (.+?)\)$", source, re.MULTILINE
    )
    name, value = settings.split("=")
    folder = ROOT / "data" / "models" / "tiny-bert"
    for settings, count in (({name: value == "True"}, 1), ({}, 3)):
        tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
        ids = tokenizer("open the [SEP] door [MASK] [SEP]")["input_ids"]
        assert ids.count(tokenizer.sep_token_id) == count
        assert (tokenizer.mask_token_id in ids) == (count == 3)


@pytest.mark.parametrize(
    ("name", "text", "fault"),
    [
        ("train.csv", "text,label,text\nopen it,a,shut it\n", "row 1: 'text' stands twice as a column; rename or"),
        ("train.csv", "text,label,,\nopen it,a,,\n", "row 1: '' stands twice as a column"),
        (
            "train.jsonl",
            '{"text": "open it", "label": "a", "text": "shut it"}\n',
            "row 1: 'text' stands twice as a key",
        ),
    ],
)
def test_a_column_that_is_there_twice_cannot_hide_the_first(tmp_path, name, text, fault):
    from conftest import refusal
    from datasets import load_dataset

    from utils import data

    (tmp_path / name).write_text(text)
    assert fault in refusal(data.classification.load, tmp_path, load_dataset)


def test_a_class_of_one_row_stops_before_training(tmp_path):
    """Missing splits are cut out of `train` with the same shares of each class, which one row cannot have."""
    from datasets import load_dataset

    from utils import data

    (tmp_path / "train.csv").write_text("text,label\n" + "open it,a\n" * 9 + "close it,b\n")
    with pytest.raises(ValueError, match=r"(?i)least populated class"):
        data.classification.load(tmp_path, load_dataset)


# ------------------------------------------------------------------------------------------------ what is committed

TRACKED = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.split("\n")[:-1]
SOURCES = [
    name
    for name in TRACKED
    if name.endswith((".py", ".ipynb")) and re.match(r"(notebooks(?!/rendered)|utils|data)/", name)
]
SECRETS = {
    "Hugging Face": r"\bhf_[A-Za-z0-9]{20,}",
    "GitHub": r"\bgh[pousr]_[A-Za-z0-9]{30,}",
    "OpenAI": r"\bsk-[A-Za-z0-9_-]{20,}",
    "Amazon": r"\bAKIA[A-Z0-9]{16}\b",
    "private key": r"-----BEGIN [A-Z ]*PRIVATE KEY",
    "assigned": r"(?i)(?:token|secret|password|api_?key)[\"']?\s*[=:]\s*[\"'][A-Za-z0-9+/_-]{16,}[\"']",
}


def code(name):
    """The Python of a file; of a notebook, all its cells without their lines of IPython magic."""
    text = (ROOT / name).read_text("utf-8")
    if name.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n".join(re.sub(r"^(\s*)[!%].*$", r"\1pass", "".join(c["source"]), flags=re.MULTILINE) for c in cells)
    return text


BUILTINS = {"eval", "exec", "__import__", "compile"}
WORDS = {"weights_only": False, "trust_remote_code": True, "allow_pickle": True}


def dangers(source):
    """What in Python code could run data, in words; only what ruff's rules S and TID251 (pyproject.toml) do not see."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Name) and node.id in BUILTINS:  # also by another name: run = exec
            found.append(node.id)
        if isinstance(node, ast.keyword) and isinstance(node.value, ast.Constant):
            value = node.value.value
            if (node.arg, value) in WORDS.items():
                found.append(f"{node.arg}={value}")
        if isinstance(node, ast.Constant) and node.value in ("trust_remote_code", "weights_only"):
            found.append(node.value)
    return found


@pytest.mark.parametrize("name", SOURCES)
def test_no_code_of_the_course_runs_data(name):
    assert dangers(code(name)) == []


@pytest.mark.parametrize(
    ("source", "danger"),
    [
        ("eval('1')", "eval"),
        ("run = exec", "exec"),
        ("__import__('os')", "__import__"),
        ("compile(x, y, 'exec')", "compile"),
        ("torch.load(x, weights_only=False)", "weights_only=False"),
        ("load(x, trust_remote_code=True)", "trust_remote_code=True"),
        ("load(x, **{'trust_remote_code': True})", "trust_remote_code"),
        ("numpy.load(x, allow_pickle=True)", "allow_pickle=True"),
    ],
)
def test_dangerous_code_is_found(source, danger):
    assert danger in dangers(source)


FOUND_BY_RUFF = [  # a piece of code, and a rule that it breaks
    ("eval('1')", "S307"),
    ("import builtins\nbuiltins.eval('1')", "S307"),
    ("exec('1')", "S102"),
    ("import pickle", "TID251"),
    ("import pickle\npickle.load(x)", "S301"),
    ("import marshal\nmarshal.load(x)", "S302"),
    ("import shelve\nshelve.open(x)", "S301"),
    ("import dill", "TID251"),
    ("import cloudpickle", "TID251"),
    ("from joblib import load", "TID251"),
    ("import torch\ntorch.load(x)", "TID251"),
    ("from torch import load as open_it\nopen_it(x)", "TID251"),
    ("import pandas as pd\npd.read_pickle(x)", "S301"),
    ("import yaml\nyaml.load(x)", "S506"),
    ("import os\nos.system('x')", "S605"),
    ("import os as o\no.system('x')", "S605"),
    ("from os import system\nsystem('x')", "S605"),
    ("import subprocess as s\ns.getoutput('x')", "S605"),
    ("import subprocess\nsubprocess.run(x, shell=True)", "S602"),
]


@pytest.mark.parametrize("folder", ["utils", "tools", "benchmarks", "data", "notebooks"])
def test_ruff_finds_the_other_dangers_in_every_folder(folder):
    text = "\n".join(source for source, _ in FOUND_BY_RUFF)
    command = [sys.executable, "-m", "ruff", "check", "--no-cache", "--output-format", "concise", "--stdin-filename"]
    done = subprocess.run([*command, f"{folder}/x.py", "-"], cwd=ROOT, input=text, capture_output=True, text=True)
    found = set(re.findall(r"x\.py:(\d+):\d+: (\w+) ", done.stdout))
    end = 0
    for source, rule in FOUND_BY_RUFF:
        begin, end = end, end + source.count("\n") + 1
        assert any((str(line), rule) in found for line in range(begin + 1, end + 1)), source


def secrets(text):
    return [kind for kind, pattern in SECRETS.items() if re.search(pattern, text)]


def test_no_secret_is_committed():
    for name in TRACKED:
        if not name.endswith((".png", ".safetensors")):
            assert secrets((ROOT / name).read_text("utf-8")) == [], name


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("hf_" + "aB3" * 12, "Hugging Face"),
        ("ghp_" + "aB3" * 12, "GitHub"),
        ("sk-" + "aB3" * 12, "OpenAI"),
        ("AKIA" + "ABCD" * 4, "Amazon"),
        ("-----BEGIN RSA " + "PRIVATE KEY-----", "private key"),
        ("HF_TOKEN" + " = '" + "aB3d" * 6 + "'", "assigned"),
        ('{"api_key' + '": "' + "aB3d" * 6 + '"}', "assigned"),
    ],
)
def test_secrets_are_found(text, kind):
    assert kind in secrets(text)


def locked():
    """{(name, version): number of hashes} of constraints-hashes.txt."""
    text = (ROOT / "constraints-hashes.txt").read_text("utf-8")
    found = re.findall(r"^(\S+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", text, re.MULTILINE)
    assert len(found) == len([line for line in text.splitlines() if "==" in line])
    return {(name, version): hashes.count("sha256:") for name, version, hashes in found}


def test_the_hashes_are_those_of_the_constraints():
    """Each version of constraints.txt, from PyPI; compiled ones for three Pythons on x86-64 and arm64."""
    pins = [line.split("==") for line in (ROOT / "constraints.txt").read_text("utf-8").split()]
    pins = {(re.sub(r"[-_.]+", "-", name).lower(), version) for name, version in pins}
    found = locked()
    assert sorted(pins - set(found)) == [], "run `python .ci/lock_hashes.py`"
    more = {re.match(r"[a-z]+", name)[0] for name, _ in set(found) - pins}
    assert more <= {"nvidia", "cuda", "triton", "setuptools"}, "what torch for CUDA needs"
    for name, version in pins:
        if name in ("torch", "numpy", "pandas", "pyarrow", "pyyaml"):
            assert found[name, version] == 6, name


if __name__ == "__main__":
    sys.exit(PAGE.write_text(page(), encoding="utf-8") and 0)
