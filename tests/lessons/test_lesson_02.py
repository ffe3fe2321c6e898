"""Lesson 02 as a reader runs it: it learns, it does not at rate 0, and its adapter is kept, found again and guarded."""

import csv
import json
import re

import bitsandbytes as bnb
import nbformat
import numpy as np
import pandas as pd
import pytest
import random_models
import torch
from conftest import ROOT
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForSequenceClassification

from benchmarks import adapters
from utils import results

FEW = {"max_steps": 4, "eval_steps": 2, "compare": False}  # a run that is there to reach its end
NAME = "02_bert_large_qlora_classification"
NOTEBOOK = ROOT / "notebooks" / f"{NAME}.ipynb"
RECIPE = ROOT / "recipes" / "02_qlora_classification.py"
MARGIN = 0.08  # as in lesson 01


@pytest.fixture(scope="session")
def qlora(run_notebook):
    """Lesson 02, tiny, run once."""
    done = run_notebook(NOTEBOOK)
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{NAME}.ipynb", as_version=4)
    return done


def learned(record):
    """Whether a run beats its baselines by more than the seeds move it, and is as good as this lesson has ever been."""
    return record["after"] >= max(0.76, record["baseline"] + MARGIN) and record["baseline"] > record["before"]


def test_it_learns(qlora):
    assert learned(qlora.results), qlora.results["metrics"]["methods"]


@pytest.mark.slow  # kills of lesson 02 at other steps: test_any_kill.py
def test_killed_and_run_again_it_ends_as_if_nothing_had_happened(qlora, run_killed_and_resumed):
    """4-bit base and adapter included."""
    done = run_killed_and_resumed(NOTEBOOK, 50, {"compare": False})
    assert done.code == 0, done.text
    assert "Going on from checkpoint-" in (done.folder / f"{NAME}.ipynb").read_text()
    for key in ("baseline", "before", "after", "n_train", "n_eval", "trainable_parameters"):
        assert done.results[key] == qlora.results[key], key
    assert done.results["metrics"]["log_loss"] == qlora.results["metrics"]["log_loss"]
    for name in ("adapter/adapter_model.safetensors", "test_logits.npy"):
        assert (done.folder / name).read_bytes() == (qlora.folder / name).read_bytes(), name


def test_at_learning_rate_0_it_does_not(run_cells):
    done = run_cells(NOTEBOOK, {**FEW, "learning_rate": 0})
    assert done.code == 0, done.text
    assert done.results["after"] <= 0.30
    assert re.search(r"\b0 of \d\d matrices B", done.text)


def test_results_follow_the_contract(qlora):
    record = qlora.results
    assert list(record) == results.KEYS
    assert record["lesson"] == NAME
    layers, width, rank, classes = 3, 192, 12, 5
    lora = rank * (layers * (4 * (width + width) + 2 * (width + 4 * width)) + (width + width))  # and the pooler
    assert record["trainable_parameters"] == lora + classes * (width + 1)
    config = AutoConfig.from_pretrained(ROOT / "data" / "models" / "tiny-bert", num_labels=classes)
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(config).num_parameters()
    assert record["total_parameters"] == base + record["trainable_parameters"], "the head is there twice"
    assert record["n_eval"] == 200
    assert record["weights_bytes"] < 2.5 * 2**20
    assert record["planned_peak_bytes"] > record["weights_bytes"]
    kept = {name: row["kept for backward, MiB"] for name, row in record["metrics"]["checkpointing"].items()}
    assert kept["on"] < kept["off"] / 5
    seconds = {name: row["seconds forward and backward"] for name, row in record["metrics"]["checkpointing"].items()}
    assert seconds["on"] > seconds["off"]
    assert str(ROOT) not in json.dumps(record)


def test_the_methods_of_the_notebook_differ_where_they_should(qlora):
    methods = {name: rows[0] for name, rows in qlora.results["metrics"]["methods"].items()}
    assert methods["QLoRA"]["accuracy"] == qlora.results["after"]
    assert methods["full"]["accuracy"] > qlora.results["baseline"]
    assert methods["QLoRA"]["weights, MiB"] < methods["full"]["weights, MiB"] / 2


def test_what_was_forgotten(qlora):
    words = qlora.results["metrics"]["masked_words"]
    before = words["as pre-trained, float32"]
    assert before > 0.8, "the model can read to begin with"
    assert abs(words["in 4 bits, adapter off"] - before) < 0.02
    assert words["in 4 bits, adapter on"] < before - 0.02
    assert words["after full fine-tuning"] < before - 0.02


@pytest.fixture(scope="module")
def runs():
    """The receipt behind the figures of choices and methods."""
    return pd.read_json(ROOT / "benchmarks" / "receipts" / "adapters_tiny.jsonl", lines=True)


def test_each_figure_has_three_seeds_of_each_setting(runs):
    """If this fails, run `python -m benchmarks.adapters`: it does what the receipt lacks."""
    wanted = adapters.settings(list(adapters.QUESTIONS), [0, 1, 2])
    measured = [adapters.setting_of(run) for run in adapters.read()]
    assert set(wanted) - set(measured) == set()
    assert set(runs["test_right"].str.len()) == {200}
    assert set("".join(runs["test_right"])) == {"x", "."}


def test_what_the_lesson_says_of_the_methods(runs):
    methods = runs[runs["steps"] == 200].groupby(["base", "adapter"])
    accuracy = methods["test_accuracy"].mean()
    assert accuracy.min() > 0.655 + MARGIN, "all beat the word counter"
    seconds = methods["core_seconds"].mean()
    assert seconds["nf4", "LoRA"] == seconds.max(), "QLoRA takes the most time"
    words = methods["masked_word_accuracy"].mean()
    assert words["float32", ""] < words["nf4", "LoRA"], "full fine-tuning has forgotten more"
    weights = methods["weight_bytes"].mean()
    assert weights["nf4", "LoRA"] < weights["float32", "LoRA"] / 2


def test_what_the_lesson_says_of_bits_and_variants(runs):
    short = runs[(runs["steps"] == 100) & (runs["rank"] == 12)]
    lora = short[short["adapter"] == "LoRA"].groupby("base")
    assert lora["weight_bytes"].mean().rank().to_dict() == {"nf4": 1, "int8": 2, "float32": 3}
    moved = lora["merging_moves"].max()
    assert moved["float32"] < 1e-5 < moved["int8"] < moved["nf4"]
    variants = short[short["base"] == "float32"].groupby("adapter")
    assert variants["merging_moves"].max().max() < 1e-4, "all merge in float32"
    kept = variants["saved_bytes"].mean()
    assert kept.idxmax() == "DoRA"


@pytest.mark.parametrize("start", ["pissa", "olora"])
def test_what_the_lesson_says_of_variants_on_4_bits(start):
    layer = torch.nn.Sequential(bnb.nn.Linear4bit(64, 64, quant_type="nf4")).to("cpu")
    bnb.functional.quantize_4bit(torch.zeros(64, 64))  # loads the library
    layer[0].weight = bnb.nn.Params4bit(torch.randn(64, 64), quant_type="nf4", module=layer[0]).to("cpu")
    config = LoraConfig(r=4, target_modules=["0"], init_lora_weights=start)
    if start == "pissa":
        with pytest.raises(TypeError, match="initialize PiSSA under float32"):
            get_peft_model(layer, config)
    else:
        get_peft_model(layer, config)


@pytest.mark.parametrize("family", ["distilbert", "roberta", "deberta-v2", "modernbert", "electra"])
def test_another_encoder_is_one_id(run_cells, tmp_path, family):
    """Random weights, a few steps: every cell runs, the head stays plain, the adapter comes back."""
    texts = [json.loads(line)["text"] for line in (ROOT / "data/driver_intent/train.jsonl").open(encoding="utf-8")]
    folder = random_models.encoder(family, tmp_path / family, texts)
    done = run_cells(NOTEBOOK, {**FEW, "model_id": str(folder)})
    assert done.code == 0, done.text
    assert "A, B and the head learn; nothing else does" in done.text
    assert re.search(r"largest difference of a logit: \d\.\de-\d\d|largest difference of a logit: 0", done.text)
    assert done.results["trainable_parameters"] > 0


def recipe_accuracy(run_script, folder, *options):
    """The test accuracy that the recipe prints, and all that it printed."""
    done = run_script(RECIPE, "--output", folder, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return float(re.search(r"'test_accuracy': ([\d.e-]+)", done.stdout).group(1)), done.stdout


def test_the_recipe_reaches_the_score_of_the_lesson(qlora, run_script, tmp_path):
    """Within 0.06: it draws other batches and keeps another checkpoint; seeds of one method differ by as much."""
    accuracy, printed = recipe_accuracy(run_script, tmp_path)
    assert abs(accuracy - qlora.results["after"]) <= 0.06
    assert accuracy > qlora.results["baseline"]
    assert printed.splitlines()[-1].split()[0] in {"driver_window_down", "passenger_window_down", "ac_on", "other"}
    assert (tmp_path / "adapter_model.safetensors").stat().st_size < 2**20


def test_the_recipe_does_not_learn_at_rate_0(qlora, run_script, tmp_path):
    accuracy, _ = recipe_accuracy(run_script, tmp_path, "--learning-rate", "0", "--epochs", "0.2")
    assert accuracy < qlora.results["baseline"]


def test_the_notebook_shows_what_it_says(qlora):
    code = [cell for cell in qlora.notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    printed = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
    for words in (
        "classifier: a Linear4bit whose weights are torch.float32, not packed",
        "the forward pass says: AssertionError",
        "stays plain and is trained whole: ['classifier']",
        "19 layers in 4 bits, 19 have an adapter",
        "19 of 19 matrices B",
        "trained on another base",
    ):
        assert words in printed, words
    errors = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert len(errors) == 2, errors  # both are read in the lesson: the load report, and what bitsandbytes says
    assert "LOAD REPORT" in errors[0]
    assert "quantization state not initialized" in errors[1]
    for name in (
        "nf4_levels.png",
        "choices.png",
        "learning_curve.png",
        "methods.png",
        "adapter/adapter_model.safetensors",
    ):
        assert (qlora.folder / name).stat().st_size > 1000, name


def test_the_adapter_answers_the_same_in_a_fresh_process(qlora, run_script, tmp_path):
    code = f"""
import numpy as np, torch
from datasets import load_dataset
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from utils.training import adapters
folder, base = {str(qlora.folder / "adapter")!r}, {str(ROOT / "data" / "models" / "tiny-bert")!r}
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["classifier"])
adapters.keep_trainable()
model = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=5, quantization_config=nf4, dtype=torch.float32)
model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
adapters.check_base(model, folder)
model = PeftModel.from_pretrained(model, folder).eval()
texts = load_dataset({str(ROOT / "data" / "driver_intent")!r}, split="test")["text"][:]
batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    np.save("logits.npy", model(**batch).logits.numpy())
"""
    done = run_script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected, found = np.load(qlora.folder / "test_logits.npy"), np.load(tmp_path / "logits.npy")
    np.testing.assert_allclose(found, expected, atol=1e-4)
    assert (found.argmax(-1) == expected.argmax(-1)).all()
    assert np.abs(expected).max() > 1, "a model that says nothing would pass"


def test_own_csv_with_class_names_trains(run_cells, tmp_path):
    path = tmp_path / "tickets.csv"
    things = "jacket phone lamp book helmet keyboard coat kettle tent chair mirror radio".split()
    texts = {"billing": "the invoice for the {} is wrong", "shipping": "where is my {}", "NA": "i send back the {}"}
    more = {"billing": "you charged me twice for a {}", "shipping": "the {} has not come", "NA": "this {} does not fit"}
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["text", "label"])
        writer.writerows(
            [text.format(thing), label] for d in (texts, more) for label, text in d.items() for thing in things
        )
    overrides = {"dataset_id": str(path), "max_steps": 40, "eval_steps": 20, "compare": False}
    done = run_cells(NOTEBOOK, overrides)
    assert done.code == 0, done.text
    assert done.results["after"] >= 0.8 > done.results["before"]
    assert set(done.results["metrics"]["report"]) >= set(texts)


def test_solutions_run(run_cells):
    done = run_cells(ROOT / "notebooks" / "solutions" / f"{NAME}.ipynb", {"max_steps": 12})
    assert done.code == 0, done.text
