"""Models and adapters bring numbers, never code; what does not fit a model is refused before its weights are loaded."""

import ast
import hashlib
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import mini_hub
import pytest
import random_models
import torch
from conftest import ROOT, refusal
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from utils.training import adapters, model_files

MODELS = ROOT / "data" / "models"
FOLDERS = sorted(path.parent for path in MODELS.glob("*/config.json"))


class Payload:
    """What a malicious pickle does when somebody opens it."""

    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.mkdir, (str(self.canary),)


@pytest.fixture
def model(tmp_path):
    return shutil.copytree(MODELS / "tiny-bert", tmp_path / "tiny-bert")


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda path: path.name)
def test_the_models_of_the_course_are_accepted(folder):
    model_files.check_model(str(folder))


def test_a_pickled_model_is_refused_and_stays_closed(model, tmp_path):
    canary = tmp_path / "opened"
    (model / "model.safetensors").unlink()
    torch.save(Payload(canary), model / "pytorch_model.bin")
    message = refusal(model_files.check_model, str(model))
    assert f"{model}: pytorch_model.bin can run code when it is opened; get the model in the safetensors" in message
    assert not canary.exists()
    with pytest.raises(Exception, match=r"(?i)weights.only"):  # and the stack of today does not run it either
        AutoModelForSequenceClassification.from_pretrained(model)
    assert not canary.exists()
    torch.load(model / "pytorch_model.bin", weights_only=False)  # the test could fail: the payload works
    assert canary.exists()


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 6000000\n"


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"model.safetensors": POINTER}, ["model.safetensors: git-lfs has left a pointer", "`git lfs pull`"]),
        ({"model.safetensors": ""}, ["model.safetensors: it is cut or damaged (0 bytes"]),
        ({"model.safetensors": None}, ["it has no model.safetensors; set model_id to"]),
        ({"model.safetensors": None, "model.onnx": ""}, ["it has no model.safetensors (only model.onnx)"]),
        ({"model.safetensors": None, "model.gguf": ""}, ["model.gguf is for llama.cpp"]),
        ({"model.safetensors": None, "model.safetensors.index.json": "{"}, ["index.json: it is not JSON"]),
        ({"model.safetensors": None, "model.safetensors.index.json": "[]"}, ["index.json: it is no JSON object"]),
        ({"model.safetensors": None, "model.safetensors.index.json": "{}"}, ["index.json: it names no files"]),
        (
            {"model.safetensors": None, "model.safetensors.index.json": '{"weight_map": {"a": "one.safetensors"}}'},
            ["one.safetensors is missing, which its index names"],
        ),
        ({"tokenizer.json": None, "tokenizer_config.json": None}, ["it has no tokenizer (tokenizer.json, "]),
        ({"tokenizer.json": "{"}, ["tokenizer.json: it is not JSON"]),
        ({"tokenizer.json": POINTER}, ["tokenizer.json: git-lfs has left a pointer"]),
        ({"config.json": None}, ["it has no config.json; set model_id to"]),
        ({"config.json": ""}, ["config.json: it is not JSON"]),
        ({"config.json": "[]"}, ["config.json: it is no JSON object"]),
        ({"config.json": "{}"}, ["config.json: it has no 'model_type'"]),
        ({"config.json": None, "model.gguf": ""}, ["model.gguf is for llama.cpp"]),
        ({"config.json": '{"model_type": "bertt"}'}, ["cannot read its configuration", "`bertt`"]),
        ({"adapter_config.json": '{"base_model_name_or_path": "some/base"}'}, ["an adapter, not", "(some/base)"]),
    ],
)
def test_a_folder_that_is_no_whole_model_is_refused_before_anything_is_loaded(model, files, words):
    for name, text in files.items():
        (model / name).unlink(missing_ok=True)
        if text is not None:
            (model / name).write_text(text)
    message = refusal(model_files.check_model, str(model))
    assert message.startswith(str(model))
    for word in words:
        assert word in message
    assert "hub" not in message


def test_weights_that_are_cut_are_refused(model):
    weights = (model / "model.safetensors").read_bytes()
    (model / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    assert "model.safetensors: it is cut or damaged" in refusal(model_files.check_model, str(model))


@pytest.mark.parametrize("other", ["tiny-opt", "tiny-t5", "tiny-gemma-2"])
def test_weights_of_another_architecture_are_refused(model, other):
    """They would load without an error, and leave the model with random weights."""
    shutil.copy(MODELS / other / "model.safetensors", model)
    message = refusal(model_files.check_model, str(model))
    assert "a bert, whose weights have other names than those in the folder (0 of 55 are there)" in message


@pytest.mark.parametrize("family", ["qwen3", "gpt2", "gemma3_text"])
def test_weights_of_other_decoders_are_accepted(family, tmp_path):
    folder = random_models.decoder(family, tmp_path / family, ["a few words", "of a text"])
    model_files.check_model(str(folder))


@pytest.mark.parametrize(
    ("model_id", "words"),
    [
        ("{folder}/model.safetensors", "this is a file; set model_id to the folder"),
        ("{folder}/none", "there is no such folder"),
        ("{folder}t", "there is no such folder (there is 'tiny-bert' beside it)"),
        ("https://huggingface.co/some/model", "it is no name on the hub either"),
        ("some/model@main", "it is no name on the hub either"),
    ],
)
def test_a_path_or_a_name_that_is_wrong_is_a_sentence(model, model_id, words):
    assert words in refusal(model_files.check_model, model_id.format(folder=model))


def test_more_tokens_than_positions_are_refused(model):
    model_files.check_model(str(model), max_length=512)
    message = refusal(lambda: model_files.check_model(str(model), max_length=513))
    assert message.endswith("max_length is 513, but this model has 512 positions; set max_length to 512 or less.")
    model_files.check_model(str(MODELS / "tiny-t5"), max_length=5000)  # it knows distances only


def test_a_model_that_this_run_has_put_aside_is_named(tmp_path):
    (tmp_path / "earlier" / "model").mkdir(parents=True)
    assert "has put the earlier one aside" in refusal(model_files.check_model, str(tmp_path / "model"))


@pytest.mark.parametrize(("number", "reason"), [(13, "Permission denied"), (28, "No space left on device")])
def test_a_cache_that_cannot_be_written_is_named(monkeypatch, number, reason):
    def no_cache(*args, **kwargs):
        raise OSError("We couldn't connect") from OSError(number, reason, "/cache")

    monkeypatch.setattr(model_files, "check_code", no_cache)
    message = refusal(model_files.check_model, "some/model")
    assert f"{reason}: '/cache'); make room, or set HF_HOME to a folder of yours" in message


def test_a_pickled_model_beside_other_tensors_is_refused(model):
    (model / "model.safetensors").rename(model / "other.safetensors")
    torch.save({}, model / "pytorch_model.bin")
    assert "pytorch_model.bin can run code" in refusal(model_files.check_model, str(model))


def ask(hub, home, code):
    """Runs code in a process whose hub is at the address `hub`, with a cache of its own in `home`."""
    own = {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "PYTHONPATH": str(ROOT)}
    own["PYTHONPATH"] += os.pathsep + os.environ.get("PYTHONPATH", "")
    return subprocess.run([sys.executable, "-c", code], env=os.environ | own, capture_output=True, text=True)


@pytest.fixture
def pickled(tmp_path):
    """A model whose main branch on the hub is a malicious pickle; the folder of the copy that the bot has converted."""
    main, copy = (shutil.copytree(MODELS / "tiny-opt", tmp_path / name) for name in ("main", "copy"))
    (main / "model.safetensors").unlink()
    torch.save(Payload(tmp_path / "opened"), main / "pytorch_model.bin")
    with mini_hub.serve("some/opt", main, copy) as (address, asked):
        yield SimpleNamespace(address=address, asked=asked, canary=tmp_path / "opened")


def test_a_hub_model_with_a_pickle_only_is_refused_and_it_is_not_even_fetched(pickled, tmp_path):
    refused = ask(
        pickled.address,
        tmp_path / "home",
        "from utils.training import model_files; model_files.check_model('some/opt')",
    )
    assert "CourseError: some/opt: there are no weights in the safetensors format; a pickle can run" in refused.stderr
    assert "/some/opt/resolve/main/model.safetensors" in pickled.asked
    assert not any(path.endswith(".bin") for path in pickled.asked)
    assert not pickled.canary.exists()


def test_where_the_hub_has_a_pickle_only_the_bots_copy_is_loaded_and_the_pickle_is_not_fetched(pickled, tmp_path):
    code = "from utils.training import model_files; model_files.check_model('some/opt', converted=True);"
    code += "from transformers import AutoModelForCausalLM;"
    code += "model = AutoModelForCausalLM.from_pretrained('some/opt', use_safetensors={});"
    code += "print(model.get_input_embeddings().weight.double().sum().item())"
    loaded = ask(pickled.address, tmp_path / "one", code.format(True))
    weights = load_file(MODELS / "tiny-opt" / "model.safetensors")
    table = next(table for name, table in weights.items() if name.endswith("embed_tokens.weight"))
    assert float(loaded.stdout.split()[-1]) == table.double().sum().item(), loaded.stderr
    assert "/some/opt/resolve/refs/pr/1/model.safetensors" in pickled.asked
    assert not any(path.endswith(".bin") for path in pickled.asked)
    other = ask(pickled.address, tmp_path / "two", code.format(None))  # the control: as transformers does by default
    assert "/some/opt/resolve/main/pytorch_model.bin" in pickled.asked
    assert "Weights only load failed" in other.stderr
    assert not pickled.canary.exists()


def test_a_cached_pickle_is_refused(cached):
    (cached.folder / "snapshots" / model_files.REVISIONS[cached.name] / "model.safetensors").rename(
        cached.folder / "snapshots" / model_files.REVISIONS[cached.name] / "pytorch_model.bin"
    )
    assert f"{cached.name}: there are no weights in the safetensors format" in refusal(
        model_files.check_model, cached.name
    )


@pytest.mark.parametrize("path", ["04_opt_lora_sft.ipynb", "solutions/04_opt_lora_sft.ipynb"])
def test_the_lesson_whose_model_is_a_pickle_on_the_hub_loads_with_use_safetensors(path):
    written = json.loads((ROOT / "notebooks" / path).read_text("utf-8"))["cells"]
    codes = ["".join(cell["source"]) for cell in written if cell["cell_type"] == "code"]
    source = "\n".join(code for code in codes if "AutoModel" in code)
    names, loads = {"use_safetensors"}, 0
    for node in ast.walk(ast.parse(source)):  # names of dicts that have it
        if isinstance(node, ast.Assign | ast.AugAssign) and "use_safetensors=True" in ast.unparse(node.value):
            names.add(ast.unparse(node.targets[0] if isinstance(node, ast.Assign) else node.target))
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "AutoModelForCausalLM.from_pretrained":
            loads += 1
            given = {keyword.arg or getattr(keyword.value, "id", "") for keyword in node.keywords}
            assert given & names, ast.unparse(node)
    assert loads


def test_a_pickled_adapter_is_refused_and_stays_closed(tmp_path):
    canary, folder = tmp_path / "opened", tmp_path / "adapter"
    base = AutoModelForSequenceClassification.from_pretrained(MODELS / "tiny-bert", dtype=torch.float32)
    tuned = get_peft_model(base, LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    tuned.save_pretrained(folder)
    adapters.save_fingerprint(tuned, folder)
    adapters.check_base(base, folder)
    (folder / "adapter_model.safetensors").unlink()
    torch.save(Payload(canary), folder / "adapter_model.bin")
    assert "adapter_model.bin can run code when it is opened" in refusal(adapters.check_base, base, folder)
    assert not canary.exists()


@pytest.mark.parametrize("known", [True, False], ids=["known architecture", "unknown architecture"])
def test_a_model_with_code_of_its_own_is_refused_and_it_does_not_run(model, tmp_path, known):
    canary = tmp_path / "ran"
    config = json.loads((model / "config.json").read_text())
    config |= {"auto_map": {"AutoConfig": "own.OwnConfig"}} | ({} if known else {"model_type": "own"})
    (model / "config.json").write_text(json.dumps(config))
    (model / "own.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
    assert "the course runs no code of a model" in refusal(model_files.check_model, str(model))
    assert not canary.exists()


def test_a_tokenizer_of_another_model_is_refused(model):
    for file in (MODELS / "tiny-opt").glob("*token*"):
        shutil.copy(file, model)
    vocabulary = AutoTokenizer.from_pretrained(model).get_vocab()
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": max(vocabulary.values())}))
    message = refusal(model_files.check_model, str(model))
    assert f"the number {max(vocabulary.values())}, but the model has {max(vocabulary.values())} tokens" in message
    (model / "config.json").write_text(json.dumps(config | {"vocab_size": max(vocabulary.values()) + 1}))
    model_files.check_model(str(model))


@pytest.fixture
def cached(model, tmp_path, monkeypatch):
    """A model as the hub's cache holds it: the folder of its revision, and its weights under the name of their hash."""
    name = "google-bert/bert-base-uncased"
    folder = tmp_path / "hub" / f"models--{name.replace('/', '--')}"
    snapshot = folder / "snapshots" / model_files.REVISIONS[name]
    shutil.copytree(model, snapshot)
    for place, text in (("blobs", None), ("refs", model_files.REVISIONS[name])):
        (folder / place).mkdir()
        text and (folder / place / "main").write_text(text)
    weights = snapshot / "model.safetensors"
    blob = folder / "blobs" / hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.rename(blob)
    weights.symlink_to(blob)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    return SimpleNamespace(name=name, folder=folder, blob=blob)


def test_a_whole_cache_is_taken_in_silence_and_a_damaged_file_refused_before_it_is_loaded(cached, capsys):
    model_files.check_model(cached.name)
    assert capsys.readouterr().out == ""
    damaged = bytearray(cached.blob.read_bytes())
    damaged[-1] ^= 1
    cached.blob.write_bytes(damaged)
    message = refusal(model_files.check_model, cached.name)
    assert message.startswith(f"{cached.name}: model.safetensors in the cache is damaged; delete {cached.blob} and run")


def test_another_revision_of_a_known_model_is_named_with_the_way_back(cached, capsys):
    other = "1" * 40
    known = model_files.REVISIONS[cached.name]
    (cached.folder / "snapshots" / known).rename(cached.folder / "snapshots" / other)
    (cached.folder / "refs" / "main").write_text(other)
    model_files.check_model(cached.name)
    printed = capsys.readouterr().out
    assert f"the hub has revision {other}, the course was written for {known}" in printed
    assert f"hf download {cached.name} --revision {known}" in printed


def test_a_model_that_is_not_here_is_a_sentence_at_once(monkeypatch, tmp_path):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # read at its import
    message = refusal(model_files.check_model, "google-bert/bert-base-uncased-of-nobody")
    assert message.startswith("google-bert/bert-base-uncased-of-nobody: ")
    assert "HF_HUB_OFFLINE=1 keeps this run off the hub (`make run` sets it for the profile tiny)" in message
    assert "gated" not in message
