"""Whether the calls in a notebook exist in the installed libraries: names, functions and keywords, without running it.

A library renames an argument, and a notebook that nobody ran since passes a name that is not there any more. Checkers
of types do not see that: `from_pretrained` and its kind take any keyword. So the keywords that such a function
understands are read out of its source and its configurations.
"""

import ast
import dataclasses
import functools
import importlib
import inspect
import re

import datasets
import peft
import transformers
import trl

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


def called_name(call):
    """The last part of the name of a called function: "train" of `trainer.train()`, "" if it has no name."""
    return getattr(call.func, "attr", getattr(call.func, "id", ""))


# ---- what a function understands ---------------------------------------------------------------------------------


def fields_of(*configs):
    """The names of all fields of these classes of configurations."""
    names = set()
    for config in configs:
        names.update(dir(config()), config().to_dict())
    return names


@functools.cache
def open_names():
    """{function that takes any keyword: the names that it understands}, as its source and its configurations say."""
    config = fields_of(
        transformers.BertConfig, transformers.T5Config, transformers.OPTConfig, transformers.Gemma2Config
    )
    loading = set(config)
    for function in (
        transformers.PreTrainedModel.from_pretrained,
        transformers.AutoModel.from_pretrained,
        transformers.AutoModel.from_config,
        transformers.AutoConfig.from_pretrained,
        transformers.PreTrainedConfig.get_config_dict,
        transformers.PreTrainedModel._from_config,
    ):
        loading.update(re.findall(r"kwargs\.(?:pop|get)\(\s*[\"'](\w+)", inspect.getsource(function)))
        loading.update(inspect.signature(function).parameters)
    reading = set()
    for module, name in (("csv.csv", "CsvConfig"), ("json.json", "JsonConfig")):
        file_config = getattr(importlib.import_module(f"datasets.packaged_modules.{module}"), name)
        reading.update(field.name for field in dataclasses.fields(file_config))
    generation = fields_of(transformers.GenerationConfig)
    return {
        "from_pretrained": loading | set(vars(transformers.BertTokenizer())),
        "from_config": loading,
        "for_model": config,
        "GenerationConfig": generation,
        "generate": generation | {"tokenizer", "input_ids", "attention_mask"},
        "load_dataset": reading,
        "map": {"features"},
        "tokenizer": set(inspect.signature(transformers.BertTokenizer._encode_plus).parameters),
        "save_pretrained": {"safe_serialization"},
    }


def understood(name, functions):
    """The keywords that at least one of the functions, called by this name, takes."""
    names = set()
    for function in functions:
        parameters = inspect.signature(function).parameters.values()
        names.update(parameter.name for parameter in parameters)
        if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
            names.update(open_names().get(name, set()))
    return names


# ---- what a notebook says ----------------------------------------------------------------------------------------


def imports_of(tree):
    """({name in the notebook: what it is in the stack}, faults: names that a module of the stack has not)."""
    imported = {}
    faults = []
    for node in tree:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if is_of_the_stack(alias.name):
                    module = importlib.import_module(alias.name)
                    imported[alias.asname or alias.name.split(".")[0]] = module
        elif isinstance(node, ast.ImportFrom) and is_of_the_stack(node.module or ""):
            module = importlib.import_module(node.module)
            for alias in node.names:
                if hasattr(module, alias.name):
                    imported[alias.asname or alias.name] = getattr(module, alias.name)
                else:
                    faults.append(f"{node.module} has no {alias.name}")
    _add_subclasses(tree, imported)
    return imported, faults


def _add_subclasses(tree, imported):
    """A class of the notebook that is made of one of the stack's is called like that one."""
    for node in tree:
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if ast.unparse(base) in imported:
                    imported[node.name] = imported[ast.unparse(base)]


def is_of_the_stack(module):
    """Whether a module belongs to one of the libraries that are checked."""
    return module.split(".")[0] in STACK


def classes_of(tree, imported):
    """{class of the notebook: the class of the stack that it is made of}; both are called in the same way."""
    classes = {}
    for node in tree:
        if isinstance(node, ast.ClassDef):
            for base in node.bases:
                if ast.unparse(base) in imported:
                    classes[node.name] = imported[ast.unparse(base)]
    return classes


def assignments_of(tree):
    """{name: expressions that are assigned to it}, also by `|=`."""
    assigned = {}
    for node in tree:
        if isinstance(node, ast.Assign):
            targets = node.targets
        elif isinstance(node, ast.AugAssign | ast.AnnAssign | ast.NamedExpr):
            targets = [node.target]
        else:
            targets = []
        for target in targets:
            if isinstance(target, ast.Name) and node.value is not None:
                assigned.setdefault(target.id, []).append(node.value)
    return assigned


def keys_of(node, assigned):
    """The keys of an expression behind `**`, as far as they stand in the notebook."""
    parts = []  # expressions whose keys are keys of the whole
    keys = set()
    if isinstance(node, ast.Dict):
        keys.update(key.value for key in node.keys if isinstance(key, ast.Constant))
        parts = [value for key, value in zip(node.keys, node.values, strict=True) if key is None]
    elif isinstance(node, ast.Call):
        keys, parts = keys_of_call(node)
    elif isinstance(node, ast.BinOp):
        parts = [node.left, node.right]
    elif isinstance(node, ast.IfExp):
        parts = [node.body, node.orelse]
    elif isinstance(node, ast.Name):
        parts = assigned.get(node.id, [])
        assigned = {}  # one step is enough, and none goes in a circle
    for part in parts:
        keys |= keys_of(part, assigned)
    return keys


def keys_of_call(call):
    """(keys, expressions with more keys) of `dict(…)` and of `dict.fromkeys((…), value)`."""
    if called_name(call) == "dict":
        keys = {keyword.arg for keyword in call.keywords if keyword.arg}
        return keys, [keyword.value for keyword in call.keywords if not keyword.arg]
    if called_name(call) == "fromkeys" and isinstance(call.args[0], ast.Tuple):
        return {element.value for element in call.args[0].elts}, []
    return set(), []


def keywords_of(call, assigned):
    """The keywords of a call, those behind `**` included."""
    keywords = set()
    for keyword in call.keywords:
        if keyword.arg:
            keywords.add(keyword.arg)
        else:
            keywords |= keys_of(keyword.value, assigned)
    return keywords


def look_up(path, imported):
    """The function that a dotted name such as "bnb.nn.Linear4bit" means; None if it does not exist."""
    first, *rest = path.split(".")
    function = imported[first]
    for part in rest:
        function = getattr(function, part, None)
    return function


def is_a_tokenizer(call):
    """Whether `tokenizer` is called, or handed to functools.partial."""
    if ast.unparse(call.func) == "tokenizer":
        return True
    return called_name(call) == "partial" and bool(call.args) and ast.unparse(call.args[0]) == "tokenizer"


def functions_of(call, imported):
    """(name, functions of the stack that a call may mean); no functions if it is none of the stack."""
    path = ast.unparse(call.func)
    name = called_name(call)
    if path.split(".")[0] in imported:
        return name, [look_up(path, imported)]
    if is_a_tokenizer(call):
        return "tokenizer", [transformers.PreTrainedTokenizerBase.__call__]
    if path.startswith("vars(") and name == "update":
        return name, ARGUMENTS
    if isinstance(call.func, ast.Attribute):
        return name, METHODS_OF_THE_STACK.get(name, [])
    return name, []


def drift(tree):
    """(number of calls of the stack that have keywords, faults in words) of the nodes of a notebook's syntax trees."""
    imported, faults = imports_of(tree)
    imported.update(classes_of(tree, imported))
    assigned = assignments_of(tree)
    count = 0
    for node in tree:
        if not isinstance(node, ast.Call) or not node.keywords:
            continue
        name, functions = functions_of(node, imported)
        if not functions:
            continue
        count += 1
        if None in functions:
            faults.append(f"{ast.unparse(node.func)} is no more")
            continue
        unknown = keywords_of(node, assigned) - understood(name, functions)
        if unknown:
            faults.append(f"{ast.unparse(node.func)} does not know {sorted(unknown)}")
    return count, faults
