"""Lesson 03 as a reader runs it: summaries become true, the controls do not, the adapter is kept and found again."""

import csv
import functools
import json
import re

import nbformat
import numpy as np
import pytest
import random_models
import torch
from conftest import ROOT, refusal
from datasets import load_dataset
from rouge_score import rouge_scorer
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BitsAndBytesConfig, T5PreTrainedModel

from benchmarks import summaries as ways_of_training
from tools.check_notebooks import cells_of, python_of
from tools.notebooks import read
from utils import data, metrics, results
from utils.rouge import Rouge
from utils.training import adapters

NAME = "03_t5_3b_qlora_summarization"
NOTEBOOK = ROOT / "notebooks" / f"{NAME}.ipynb"
RECIPE = ROOT / "recipes" / "03_qlora_summarization.py"
TINY = ROOT / "data" / "models" / "tiny-t5"


@pytest.fixture(scope="session")
def summaries(run_notebook):
    """Lesson 03, tiny, run once."""
    done = run_notebook(NOTEBOOK)
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{NAME}.ipynb", as_version=4)
    return done


def test_summaries_become_true(summaries):
    record = summaries.results
    scores = record["metrics"]["scores"]
    assert record["after"] == scores["after: QLoRA"]["rougeL"]
    assert record["after"] >= record["baseline"] + 0.20
    assert record["after"] >= record["before"] + 0.30
    assert scores["after: QLoRA"]["facts"] >= 0.85
    assert min(record["metrics"]["fact_hits"]) >= 0.85, "one kind of fact is lost"
    assert scores["baseline: lead-3"]["facts"] < 0.4
    assert scores["before: untuned, 4 bits"]["facts"] < 0.2


def test_rouge_flatters_and_facts_do_not(summaries):
    other = summaries.results["metrics"]["scores"]["another bill's summary"]
    assert other["rougeL"] > summaries.results["baseline"] + 0.2
    assert other["facts"] < 0.1


def test_the_figure_of_the_ways_says_what_the_lesson_says():
    """Its receipt: three seeds each, the same steps and bills."""
    receipt = json.loads(ways_of_training.RECEIPT.read_text())
    facts = {name: [run["facts"] for run in runs] for name, runs in receipt["ways"].items()}
    rouge = {name: [run["rougeL"] for run in runs] for name, runs in receipt["ways"].items()}
    assert list(facts) == list(ways_of_training.WAYS)
    assert all(len(runs) == 3 for runs in facts.values())
    assert min(facts["lesson"]) > 0.95
    assert abs(np.mean(facts["wo not in 4 bits"]) - np.mean(facts["lesson"])) < 0.03
    assert max(facts["v and o only"]) < min(facts["lesson"])
    assert min(rouge["cut texts"]) > 0.5 > 0.2 > max(facts["cut texts"])
    assert max(facts["random base"]) < 0.05


def test_the_ways_can_be_measured_again(tmp_path):
    out = tmp_path / "ways.json"
    arguments = ["--ways", "wo not in 4 bits", "random base", "--seeds", "1", "--steps", "2", "--rows", "4"]
    ways_of_training.main([*arguments, "--out", str(out)])
    measured = json.loads(out.read_text())
    assert list(measured["ways"]) == ["wo not in 4 bits", "random base"]
    assert all(run["facts"] < 0.5 for runs in measured["ways"].values() for run in runs), "two steps teach nothing"


def test_at_learning_rate_0_it_fails(run_cells):
    overrides = {"learning_rate": 0, "max_steps": 2, "eval_steps": 2, "unquantized_rows": 0}
    overrides |= {"eval_rows": 50, "validation_rows": 10}
    done = run_cells(NOTEBOOK, overrides)
    assert done.code == 0, done.text
    assert done.results["after"] < done.results["baseline"] + 0.20
    assert done.results["after"] < done.results["before"] + 0.30
    assert done.results["metrics"]["scores"]["after: QLoRA"]["facts"] < 0.2
    assert re.search(r"\b0 of 48 matrices B", done.text)


def test_results_follow_the_contract(summaries):
    record = summaries.results
    assert list(record) == results.KEYS
    assert (record["lesson"], record["metric"], record["n_train"], record["n_eval"]) == (NAME, "rougeL", 600, 200)
    width, hidden, rank = 128, 512, 16
    attention, dense = 4 * 2 * width, 2 * (width + hidden)
    assert record["trainable_parameters"] == rank * (3 * (attention + dense) + 3 * (2 * attention + dense))
    weights = record["metrics"]["weights"]
    usual, here = weights["4 bits, as transformers loads it"], weights["4 bits, wo too"]
    assert weights["not quantized"] > 2 * usual > 4 * here
    assert record["weights_bytes"] > here
    assert record["metrics"]["same_choice"]["not quantized"] == 1
    assert 0.7 < record["metrics"]["same_choice"]["4 bits, wo too"] < 1
    assert record["planned_peak_bytes"] > record["weights_bytes"]
    assert str(ROOT) not in json.dumps(record)


def test_the_notebook_shows_what_it_says(summaries):
    code = [cell for cell in summaries.notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    printed = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
    for words in (
        *("linear layers that are not in 4 bits: wo", "70,000 becomes inf", "48 of 48 matrices B"),
        *("0 of 600 texts are cut at 256 tokens", "4 bits, wo too, the rest in bfloat16      1.52 GB"),
        *("ended by themselves: 1.000", "switch off idle engines at Falcon Square"),
    ):
        assert words in printed, words
    errors = [o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stderr"]
    assert not errors, errors
    for name in (
        "lengths.png",
        "learning_curve.png",
        "scores.png",
        "ways.png",
        "adapter/adapter_model.safetensors",
        "adapter/tokenizer.json",
    ):
        assert (summaries.folder / name).stat().st_size > 1000, name


def test_validation_summaries_are_not_cut_at_20_tokens(summaries):
    states = sorted((summaries.folder / "checkpoints").glob("*/trainer_state.json"))
    history = json.loads(states[-1].read_text())["log_history"]
    longest = [entry["eval_longest"] for entry in history if "eval_longest" in entry]
    assert 20 < longest[-1] < 48, longest


def test_the_adapter_summarizes_the_same_in_a_fresh_process(summaries, run_script, tmp_path):
    code = f"""
import torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, BitsAndBytesConfig, T5PreTrainedModel
from utils.training import adapters
folder = {str(summaries.folder / "adapter")!r}
T5PreTrainedModel._keep_in_fp32_modules = []
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_storage=torch.float32)
adapters.keep_trainable()
model = AutoModelForSeq2SeqLM.from_pretrained({str(TINY)!r}, quantization_config=nf4, dtype=torch.float32)
adapters.check_base(model, folder)
model = PeftModel.from_pretrained(model, folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
rows = load_dataset({str(ROOT / "data" / "toy_bills")!r}, split="test").shuffle(seed=0).select(range(20))
texts = ["summarize: " + text for text in rows["text"]]
batch = tokenizer(texts, truncation=True, max_length=256, padding=True, return_tensors="pt")
with torch.no_grad():
    said = tokenizer.decode(model.generate(**batch, max_new_tokens=48, do_sample=False), skip_special_tokens=True)
open("said.txt", "w").write("\\n".join(said) + "\\n")
"""
    done = run_script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = (tmp_path / "said.txt").read_text()
    assert said == (summaries.folder / "test_summaries.txt").read_text()
    assert len(set(said.splitlines())) == 20, "a model that always says the same would pass"


def test_own_csv_without_facts_runs(run_cells, tmp_path):
    path = tmp_path / "notes.csv"
    rows = load_dataset(str(ROOT / "data" / "toy_bills"))["train"].select(range(80))
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["long", "short"])
        writer.writerows([row["text"], row["summary"]] for row in rows)
    overrides = {"dataset_id": str(path), "text_column": "long", "summary_column": "short", "max_steps": 4}
    overrides |= {"eval_steps": 4, "unquantized_rows": 0, "max_target_length": 20}
    done = run_cells(NOTEBOOK, overrides)
    assert done.code == 0, done.text
    assert (done.results["n_train"], done.results["n_eval"]) == (57, 16)
    assert done.results["metrics"]["scores"]["another bill's summary"]["facts"] < 0.3
    assert "57 of 57 summaries are cut at 20 tokens" in done.text
    assert "raise max_target_length to keep more" in done.text


@pytest.mark.parametrize("name", random_models.SEQ2SEQ)
def test_another_model_is_one_id(run_cells, tmp_path, name):
    rows = load_dataset(str(ROOT / "data" / "toy_bills"))["train"].select(range(50))
    folder = random_models.seq2seq(name, tmp_path / name, rows["text"][:] + rows["summary"][:])
    overrides = {"model_id": str(folder), "max_length": 600, "max_target_length": 16, "max_steps": 2, "eval_steps": 1}
    overrides |= {"train_rows": 16, "validation_rows": 4, "eval_rows": 8, "unquantized_rows": 4}
    done = run_cells(NOTEBOOK, overrides)
    assert done.code == 0, done.text
    assert done.results["n_eval"] == 8
    is_t5 = name in ("t5", "flan-t5")
    assert ("prefix 'summarize: ', last position None, so texts are cut at 600" in done.text) == is_t5
    assert ("prefix '', last position 512, so texts are cut at 512" in done.text) == (not is_t5)
    assert ("so there is nothing to do" in done.text) == (not is_t5)
    assert ("4 bits, wo too" in done.results["metrics"]["weights"]) == is_t5


def test_the_recipe_reaches_the_score_of_the_lesson(summaries, run_script, tmp_path):
    """It keeps the last step instead of the best one, and shuffles in its own order: a hundredth or two of ROUGE-L."""

    def rouge_of(*options):
        done = run_script(RECIPE, "--output", tmp_path / "out", *options, cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        return float(re.search(r"'test_rougeL': '?([\d.]+)", done.stdout).group(1))

    assert rouge_of() == pytest.approx(summaries.results["after"], abs=0.03)
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").exists()
    assert rouge_of("--learning-rate", "0", "--steps", "2") < 0.3


def test_bad_data_stops_the_lesson_before_training(run_cells, tmp_path):
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"text": "a bill", "sumary": "b"}) + "\n")
    done = run_cells(NOTEBOOK, {"dataset_id": str(path)})
    assert done.code != 0
    assert "rename the column 'sumary' to 'summary'" in done.text
    assert "code cell 6" in done.text
    assert not (done.folder / "adapter").exists()


@pytest.mark.parametrize(
    ("rows", "fault"),
    [
        ([{"text": "a bill", "summary": " "}], "is an empty text"),
        ([{"text": "a bill", "summary": 3}], "is not text"),
        ([{"text": "x" * 1_000_001, "summary": "y"}], "is too long"),
    ],
)
def test_bad_data_gets_one_sentence(tmp_path, rows, fault):
    path = tmp_path / "bad.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    load_from = functools.partial(load_dataset, cache_dir=str(tmp_path / "cache"))
    space = {"PROFILE": "tiny", "OVERRIDES": {"dataset_id": str(path)}, "SEED": 0}
    space |= {"data": data, "load_dataset": load_from}
    code = [python_of(cell) for cell in cells_of(read(NOTEBOOK))]  # the notebook's own, committed cells
    exec(next(cell for cell in code if "SETTINGS = " in cell), space)
    assert fault in refusal(exec, next(cell for cell in code if "data.summaries.load(" in cell), space)


def test_solutions_run(run_cells):
    done = run_cells(ROOT / "notebooks" / "solutions" / f"{NAME}.ipynb", {"max_steps": 4, "rows": 10})
    assert done.code == 0, done.text


def test_wo_in_4_bits_answers_as_wo_in_float32_does():
    """What quant_storage is for: with uint8 the input of `wo` would be cast to whole numbers."""
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    row = json.loads((ROOT / "data" / "toy_bills" / "test.jsonl").read_text().split("\n")[0])
    batch = tokenizer([row["text"]], return_tensors="pt") | {
        "labels": tokenizer([row["summary"]], return_tensors="pt").input_ids
    }
    logits, kept = {}, T5PreTrainedModel._keep_in_fp32_modules
    ways = {"published": (["wo"], torch.uint8), "ours": ([], torch.float32), "uint8": ([], torch.uint8)}
    try:
        for name, (modules, storage) in ways.items():
            T5PreTrainedModel._keep_in_fp32_modules = modules
            nf4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
            nf4 = BitsAndBytesConfig(**nf4, bnb_4bit_compute_dtype=torch.float32, bnb_4bit_quant_storage=storage)
            adapters.keep_trainable()
            model = AutoModelForSeq2SeqLM.from_pretrained(TINY, quantization_config=nf4, dtype=torch.float32).eval()
            logits[name] = model(**batch).logits
    finally:
        T5PreTrainedModel._keep_in_fp32_modules = kept
    moved = {
        name: ((found - logits["published"]).norm() / logits["published"].norm()).item()
        for name, found in logits.items()
    }
    assert moved["ours"] < 0.2
    assert moved["uint8"] > 0.8, "the warning of the lesson is void"


def test_our_rouge_is_rouge_score(summaries):
    """The memory of the stemmer changes no score, and evaluate's interface neither; on texts of the lesson, too."""
    kinds = ["rouge1", "rouge2", "rougeL", "rougeLsum"]
    said = [
        "The cat sat here. Dogs run fast.",
        "b",
        *(summaries.folder / "test_summaries.txt").read_text().splitlines(),
    ]
    wanted = [
        "A cat sits. The dogs ran fast!",
        "c",
        *load_dataset(str(ROOT / "data" / "toy_bills"))["test"]["summary"][:20],
    ]
    rouge = Rouge(kinds)
    values = rouge.compute(predictions=said, references=wanted, use_aggregator=False)
    plain = rouge_scorer.RougeScorer(kinds, use_stemmer=True)
    for row, (prediction, reference) in enumerate(zip(said, wanted, strict=True)):
        lines = [text.replace(". ", ".\n") for text in (reference, prediction)]
        assert [values[kind][row] for kind in kinds] == [plain.score(*lines)[kind].fmeasure for kind in kinds]
    means = rouge.compute(predictions=said, references=wanted)
    assert means == pytest.approx({kind: np.mean(values[kind]) for kind in kinds})


def test_rouge_counts_words_of_all_alphabets():
    rouge = Rouge(["rouge1"])
    for text, half in (
        ("Закон вводит штраф", "Закон вводит налог"),
        ("法令规定", "法令禁止"),
        ("Gesetz über Straßen", "Gesetz über Wege"),
    ):
        assert rouge.compute(predictions=[text], references=[text]) == {"rouge1": 1.0}
        assert 0.4 < rouge.compute(predictions=[half], references=[text])["rouge1"] < 0.7, text


def test_metrics_count_what_they_say():
    assert metrics.fact_hits("Sets a fine of $250 for it.", ["$25", "$250", "a Fine"]) == [0.0, 1.0, 1.0]
    assert metrics.fact_hits("on May 2, 2026", ["May 2, 2026", "May 2, 2027"]) == [1.0, 0.0]
    assert metrics.stated_facts("On May 2, 2026 pay $1,500, or 5% of 12.") == ["May 2, 2026", "$1,500", "5%", "12"]
    assert metrics.exact_match("It is 2.4 bar.", "it is 2.4 bar") == 1.0
    assert metrics.exact_match("It is 2.4 bar.", "it is 24 bar") == 0.0
    assert metrics.token_f1("a b c", "b c d") == pytest.approx(2 / 3)
    assert metrics.token_f1("", "") == 1.0
    assert metrics.token_f1("a", "") == 0.0
    low, high = metrics.bootstrap_interval([0.0] * 50 + [1.0] * 50)
    assert 0.38 < low < 0.44 < 0.56 < high < 0.62
    assert metrics.bootstrap_interval([0.5] * 9) == (0.5, 0.5)
