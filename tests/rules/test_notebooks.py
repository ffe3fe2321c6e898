"""Static rules over every notebook's cells: what a reader relies on, and what full size needs to run unchanged."""

import ast
import dataclasses
import functools
import importlib
import inspect
import json
import re
import tomllib

import datasets
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
        if (
            re.search(r"^\s*!", "".join(cell["source"]), re.MULTILINE)
            and "google.colab" not in text.split("PROFILE")[0]
        ):
            found.append("a shell command outside the Colab cell")
    names = [cell["id"] for cell in notebook["cells"]]
    if len(set(names)) < len(names):
        found.append("two cells have the same id")
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
        ("x = 1", "the same id"),
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
def test_every_profile_makes_training_arguments(path, profile, tmp_path):
    """The very expression of the notebook, with the values of each profile."""
    table, select = profile_table(path)
    run = select(table, profile, {})
    space = {"run": run, "SEED": 0, "checkpoints": tmp_path, "output_dir": tmp_path, "max": max, "dict": dict}
    made = 0
    for node in nodes(path):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "args" and isinstance(node.value, ast.Call):
            call = node.value
            call.keywords.append(ast.keyword("use_cpu", ast.Constant(True)))
            expression = ast.fix_missing_locations(ast.Expression(call))
            args = eval(compile(expression, path.name, "eval"), vars(transformers) | vars(trl) | space)
            assert args.learning_rate == run.learning_rate
            made += 1
    assert made == (path.stem != "00_will_it_fit")


# ------------------------------------------------------------------------------------------------ drift

STACK = ("transformers", "trl", "peft", "bitsandbytes", "datasets")
ARGUMENTS = (transformers.TrainingArguments, transformers.Seq2SeqTrainingArguments, trl.SFTConfig)
# methods of objects that a notebook gets from the stack: by their name, where the object's class does not stand there
METHODS_OF_THE_STACK = {
    "map": [datasets.Dataset.map, datasets.IterableDataset.map],
    "filter": [datasets.Dataset.filter],
    "shuffle": [datasets.Dataset.shuffle, datasets.IterableDataset.shuffle],
    "train_test_split": [datasets.Dataset.train_test_split],
    "decode": [transformers.PreTrainedTokenizerBase.decode],
    "batch_decode": [transformers.PreTrainedTokenizerBase.batch_decode],
    "pad": [transformers.PreTrainedTokenizerBase.pad],
    "apply_chat_template": [transformers.PreTrainedTokenizerBase.apply_chat_template],
    "generate": [transformers.GenerationMixin.generate],
    "train": [transformers.Trainer.train],
    "predict": [transformers.Trainer.predict, transformers.Seq2SeqTrainer.predict],
    "evaluate": [transformers.Trainer.evaluate, transformers.Seq2SeqTrainer.evaluate],
    "save_model": [transformers.Trainer.save_model],
    "save_pretrained": [transformers.PreTrainedModel.save_pretrained, peft.PeftModel.save_pretrained],
    "push_to_hub": [transformers.PreTrainedModel.push_to_hub],
    "add_adapter": [transformers.PreTrainedModel.add_adapter, peft.PeftModel.add_adapter],
    "merge_and_unload": [peft.LoraModel.merge_and_unload],
    "dequantize": [transformers.PreTrainedModel.dequantize],
    "activation_checkpointing_enable": [transformers.PreTrainedModel.activation_checkpointing_enable],
}


def fields_of(*configs):
    return {name for config in configs for name in [*dir(config()), *config().to_dict()]}


@functools.cache
def open_names():
    """{function that takes any keyword: the names that it understands}, as its source and its configurations say."""
    config = fields_of(
        transformers.BertConfig, transformers.T5Config, transformers.OPTConfig, transformers.Gemma2Config
    )
    popped = set()
    for function in (
        transformers.PreTrainedModel.from_pretrained,
        transformers.AutoModel.from_pretrained,
        transformers.AutoModel.from_config,
        transformers.AutoConfig.from_pretrained,
        transformers.PreTrainedConfig.get_config_dict,
        transformers.PreTrainedModel._from_config,
    ):
        popped |= set(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)", inspect.getsource(function)))
        popped |= set(inspect.signature(function).parameters)
    csv = importlib.import_module("datasets.packaged_modules.csv.csv").CsvConfig
    json_lines = importlib.import_module("datasets.packaged_modules.json.json").JsonConfig
    return {
        "from_pretrained": config | popped | set(vars(transformers.BertTokenizer())),
        "from_config": config | popped,
        "for_model": config,
        "GenerationConfig": fields_of(transformers.GenerationConfig),
        "generate": fields_of(transformers.GenerationConfig) | {"tokenizer", "input_ids", "attention_mask"},
        "load_dataset": {field.name for kind in (csv, json_lines) for field in dataclasses.fields(kind)},
        "map": {"features"},
        "tokenizer": {*inspect.signature(transformers.BertTokenizer._encode_plus).parameters},
        "save_pretrained": {"safe_serialization"},
    }


def understood(name, functions):
    """The keywords that at least one of the functions takes."""
    names = set()
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names |= {parameter.name for parameter in parameters}
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            names |= open_names().get(name, set())
    return names


def spread(node, assigned):
    """The keys of an expression behind **, as far as they stand in the notebook."""
    if isinstance(node, ast.Dict):
        keys = {key.value for key in node.keys if isinstance(key, ast.Constant)}
        return keys.union(*(spread(v, assigned) for k, v in zip(node.keys, node.values, strict=True) if k is None))
    if isinstance(node, ast.Call) and called(node) == "dict":
        return {word.arg for word in node.keywords if word.arg}.union(
            *(spread(word.value, assigned) for word in node.keywords if not word.arg)
        )
    if isinstance(node, ast.Call) and called(node) == "fromkeys" and isinstance(node.args[0], ast.Tuple):
        return {element.value for element in node.args[0].elts}
    if isinstance(node, ast.BinOp | ast.IfExp):
        parts = (node.left, node.right) if isinstance(node, ast.BinOp) else (node.body, node.orelse)
        return set().union(*(spread(part, assigned) for part in parts))
    if isinstance(node, ast.Name):
        return set().union(*(spread(value, {}) for value in assigned.get(node.id, [])))
    return set()


def drift(tree):
    """(calls of the stack that have keywords, faults in words) of the nodes of a notebook."""
    imported, assigned, found, count = {}, {}, [], 0
    for node in tree:
        if isinstance(node, ast.ImportFrom | ast.Import):
            for alias in node.names:
                module = importlib.import_module(getattr(node, "module", None) or alias.name)
                name = alias.asname or (alias.name if isinstance(node, ast.ImportFrom) else alias.name.split(".")[0])
                if module.__name__.split(".")[0] in STACK:
                    if isinstance(node, ast.ImportFrom) and not hasattr(module, alias.name):
                        found.append(f"{module.__name__} has no {alias.name}")
                        continue
                    imported[name] = getattr(module, alias.name) if isinstance(node, ast.ImportFrom) else module
        for target in getattr(node, "targets", [getattr(node, "target", None)]):
            if isinstance(target, ast.Name) and getattr(node, "value", None):
                assigned.setdefault(target.id, []).append(node.value)
    for node in (node for node in tree if isinstance(node, ast.Call) and node.keywords):
        words = {word.arg for word in node.keywords if word.arg}
        words |= set().union(*(spread(word.value, assigned) for word in node.keywords if not word.arg))
        path, name = ast.unparse(node.func), called(node)
        if path.split(".")[0] in imported:
            function = imported[path.split(".")[0]]
            for part in path.split(".")[1:]:
                function = getattr(function, part, None)
            functions = [function]
        elif path == "tokenizer" or (name == "partial" and node.args and ast.unparse(node.args[0]) == "tokenizer"):
            functions, name = [transformers.PreTrainedTokenizerBase.__call__], "tokenizer"
        elif path.startswith("vars(") and name == "update":
            functions = ARGUMENTS
        elif isinstance(node.func, ast.Attribute) and name in METHODS_OF_THE_STACK:
            functions = METHODS_OF_THE_STACK[name]
        else:
            continue
        count += 1
        if None in functions:
            found.append(f"{path} is no more")
        elif unknown := words - understood(name, functions):
            found.append(f"{path} does not know {sorted(unknown)}")
    return count, found


@pytest.mark.parametrize("path", ALL, ids=ids)
def test_every_keyword_is_one_of_the_installed_stack(path):
    count, found = drift(nodes(path))
    assert found == []
    assert count >= (1 if path.stem.startswith("00") else 5)


@pytest.mark.parametrize(
    ("source", "fault"),
    [
        ("from transformers import TFTrainer", "transformers has no TFTrainer"),
        ("from trl import SFTConfig\nSFTConfig('x', max_seq_length=1)", "SFTConfig does not know ['max_seq_length']"),
        ("from transformers import Trainer\nTrainer(tokenizer=1)", "Trainer does not know ['tokenizer']"),
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
    count, found = drift([*ast.walk(ast.parse(source))])
    assert [text for text in found if fault in text], (count, found)


def test_the_published_recipe_is_the_full_profile():
    table, _ = profile_table(ROOT / "notebooks" / "01_bert_full_fine_tuning.ipynb")
    full = table["full"]
    assert (full["model_id"], full["num_train_epochs"], full["eval_steps"]) == ("google-bert/bert-base-uncased", 10, 10)
    times = full["per_device_train_batch_size"] / 8  # published: batches of 8 at a rate of 3e-5
    assert full["learning_rate"] == pytest.approx(3e-5 * times**0.5, rel=0.01), "the rate follows the root of the batch"
    page = (ROOT / "notebooks" / "01_bert_full_fine_tuning.ipynb").read_text()
    assert r"{\"per_device_train_batch_size\": 8, \"learning_rate\": 3e-5}" in page, "how to get it as published"


@pytest.mark.slow  # the tests of the lessons run them with fewer steps
@pytest.mark.parametrize("path", [path for path in ALL if path.parent.name == "solutions"], ids=lambda path: path.stem)
def test_solutions_run_in_full(path, run_notebook):
    done = run_notebook(path)
    assert done.code == 0, done.text
