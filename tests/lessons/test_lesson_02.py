"""Lesson 02 as a reader runs it: it learns, it does not at rate 0, and its adapter is kept, found again and guarded."""

import csv
import json
import re
import subprocess
import sys

import nbformat
import numpy as np
import pytest
import torch
from conftest import ROOT
from transformers import AutoConfig, AutoModelForSequenceClassification

from utils import results

NAME = "02_bert_large_qlora_classification"
NOTEBOOK = ROOT / "notebooks" / f"{NAME}.ipynb"
MARGIN = 0.08  # as in lesson 01


@pytest.fixture(scope="session")
def qlora(run_notebook):
    """Lesson 02, tiny, run once."""
    done = run_notebook(NOTEBOOK)
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{NAME}.ipynb", as_version=4)
    return done


def accuracies(record, method):
    return [row["accuracy"] for row in record["metrics"]["methods"][method]]


def learned(record, seeds):
    """Whether a run with so many seeds of each method beats its baselines with each of them."""
    runs = accuracies(record, "QLoRA")
    return (
        len(runs) == len(accuracies(record, "LoRA")) == len(accuracies(record, "full")) == seeds
        and runs[0] == record["after"]
        and min(runs) > record["baseline"] > record["before"]
        and np.mean(runs) >= max(0.76, record["baseline"] + MARGIN)
        and np.mean(accuracies(record, "LoRA")) > record["baseline"]
    )


def as_good_as_full_fine_tuning(record):
    """A question to the mean of three seeds: one seed alone moves an accuracy by as much."""
    return np.mean(accuracies(record, "QLoRA")) >= np.mean(accuracies(record, "full")) - 0.03


def test_it_learns(qlora):
    assert learned(qlora.results, 1), qlora.results["metrics"]["methods"]


def test_the_published_three_seeds_reach_the_bars():
    record = json.loads((ROOT / "benchmarks" / "receipts" / "methods_tiny.json").read_text())
    assert learned(record, 3)
    assert as_good_as_full_fine_tuning(record)
    record["metrics"]["methods"]["QLoRA"] = record["metrics"]["methods"]["LoRA"]
    assert not as_good_as_full_fine_tuning(record), "the control: another method is not"


@pytest.mark.slow
def test_it_learns_on_three_seeds_as_well_as_full_fine_tuning(run_notebook):
    done = run_notebook(NOTEBOOK, "--overrides", '{"compare_seeds": 3}')
    assert done.code == 0, done.text
    assert learned(done.results, 3), done.results["metrics"]["methods"]
    assert as_good_as_full_fine_tuning(done.results), done.results["metrics"]["methods"]


@pytest.mark.slow  # kills of lesson 02 at other steps: test_any_kill.py
def test_killed_and_run_again_it_ends_as_if_nothing_had_happened(qlora, run_killed_and_resumed):
    """4-bit base, adapter and 8-bit optimizer states included."""
    done = run_killed_and_resumed(NOTEBOOK, 50, {"compare_seeds": 0})
    assert done.code == 0, done.text
    assert "Going on from checkpoint-" in (done.folder / f"{NAME}.ipynb").read_text()
    for key in ("baseline", "before", "after", "n_train", "n_eval", "trainable_parameters"):
        assert done.results[key] == qlora.results[key], key
    assert done.results["metrics"]["log_loss"] == qlora.results["metrics"]["log_loss"]
    for name in ("adapter/adapter_model.safetensors", "test_logits.npy"):
        assert (done.folder / name).read_bytes() == (qlora.folder / name).read_bytes(), name


def test_at_learning_rate_0_it_does_not(run_cells):
    done = run_cells(NOTEBOOK, {"learning_rate": 0, "max_steps": 10, "eval_steps": 5, "compare_seeds": 0})
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
    seconds = {name: row["seconds a step"] for name, row in record["metrics"]["checkpointing"].items()}
    assert seconds["on"] > seconds["off"]
    assert str(ROOT) not in json.dumps(record)


def test_the_three_methods_differ_where_they_should(qlora):
    full, lora, ours = (qlora.results["metrics"]["methods"][name][0] for name in ("full", "LoRA", "QLoRA"))
    assert full["trainable share"] == 1
    assert ours["trainable share"] == lora["trainable share"] < 0.1
    assert ours["weights, MiB"] < lora["weights, MiB"] / 2
    assert ours["optimizer states, MiB"] < lora["optimizer states, MiB"] < full["optimizer states, MiB"] / 5
    assert ours["on disk, MiB"] < full["on disk, MiB"] / 10
    assert full["GPU peak, MiB"] is None or full["GPU peak, MiB"] > 0


def test_the_notebook_shows_what_it_says(qlora):
    code = [cell for cell in qlora.notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    printed = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
    for words in (
        *("the stack says:", "llm_int8_skip_modules=['classifier']", "'decode_head'", "19 of 19 matrices B"),
        *("183,627,781", "1,184,773 of 336,331,786", "trained on another base"),
    ):
        assert words in printed, words
    errors = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert len(errors) == 1, errors  # bitsandbytes on the quantized head, which the lesson reads
    assert "quantization state not initialized" in errors[0]
    for name in ("lengths.png", "nf4_levels.png", "learning_curve.png", "adapter/adapter_model.safetensors"):
        assert (qlora.folder / name).stat().st_size > 1000, name
    assert not (qlora.folder / "compared").exists()


def test_the_adapter_answers_the_same_in_a_fresh_process(qlora, offline, tmp_path):
    code = f"""
import numpy as np, torch
from datasets import load_dataset
from peft import PeftModel, prepare_model_for_kbit_training
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig
from utils.training import adapters
folder, base = {str(qlora.folder / "adapter")!r}, {str(ROOT / "data" / "models" / "tiny-bert")!r}
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32, llm_int8_skip_modules=["classifier"])
model = AutoModelForSequenceClassification.from_pretrained(
    base, num_labels=5, quantization_config=nf4, dtype=torch.bfloat16)
adapters.keep_trainable(model)
model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
adapters.check_base(model, folder)
model = PeftModel.from_pretrained(model, folder).eval()
texts = load_dataset({str(ROOT / "data" / "driver_intent")!r}, split="test")["text"][:]
batch = AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
with torch.no_grad():
    np.save("logits.npy", model(**batch).logits.numpy())
"""
    done = subprocess.run([sys.executable, "-c", code], env=offline, cwd=tmp_path, capture_output=True, text=True)
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
    overrides = {"dataset_id": str(path), "max_steps": 40, "eval_steps": 20, "compare_seeds": 0}
    done = run_cells(NOTEBOOK, overrides)
    assert done.code == 0, done.text
    assert done.results["after"] >= 0.8 > done.results["before"]
    assert set(done.results["metrics"]["report"]) >= set(texts)


def test_solutions_run(run_cells):
    done = run_cells(ROOT / "notebooks" / "solutions" / f"{NAME}.ipynb", {"max_steps": 12})
    assert done.code == 0, done.text
