"""Lesson 00: the four bits of the notebook are bitsandbytes' own, bit by bit, and the comparison can fail."""

import ast
import json
import re
import time

import bitsandbytes.functional as bnb_functional
import pytest
import random_models
import torch
from conftest import ROOT

from utils import results

NOTEBOOK = ROOT / "notebooks" / "00_will_it_fit.ipynb"
TYPES = [torch.float32, torch.bfloat16, torch.float16]


@pytest.fixture(scope="module")
def lesson_00(run_notebook):
    begin = time.monotonic()
    done = run_notebook(NOTEBOOK)
    done.seconds = time.monotonic() - begin
    assert done.code == 0, done.text
    done.notebook = json.loads((done.folder / NOTEBOOK.name).read_text())
    return done


@pytest.fixture
def hand():
    """The notebook's own functions, as they stand in its cells, with the names that they use."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    code = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "code"]
    found = [node for text in code[1:] for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]
    nf4 = bnb_functional.get_4bit_type("nf4", device="cpu")
    space = {"torch": torch, "bnb_functional": bnb_functional, "nf4": nf4}
    exec(compile(ast.Module(found, []), NOTEBOOK.name, "exec"), space)  # the notebook's own, committed code
    return space


def weights(dtype=torch.float32, shape=(1000, 1000), seed=7):
    return (torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 0.02).to(dtype)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_a_million_weights_agree_bit_by_bit(hand, dtype):
    assert set(hand["same_as_the_library"](weights(dtype)).values()) == {True}


@pytest.mark.parametrize("shape", [(1, 64), (160, 640), (640, 192), (7, 128, 64), (2, 2), (10, 10), (9, 20)], ids=str)
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_shapes_and_types_agree(hand, dtype, shape):
    case = weights(dtype, shape)
    case[0] = 0
    assert set(hand["same_as_the_library"](case).values()) == {True}


@pytest.mark.parametrize("fault", ["a level moved", "blocks of 32", "second code first", "midpoints moved"])
def test_the_comparison_fails_if_something_is_wrong(hand, fault):
    quantize, pack, case = hand["quantize"], hand["pack"], weights()
    if fault == "a level moved":
        hand["nf4"] = hand["nf4"] + torch.eye(16)[3] / 1000
    elif fault == "blocks of 32":
        hand["quantize"] = lambda weights, levels: quantize(weights, levels, 32)
    elif fault == "second code first":
        hand["pack"] = lambda codes, n: pack(codes.view(-1, 2).flip(1), n)
    else:
        hand["quantize"] = lambda weights, levels: quantize(weights, levels + 1e-4)
    agrees = hand["same_as_the_library"](case)
    expected = {"second code first": {"codes"}, "blocks of 32": {"codes", "scales", "weights back"}}
    wrong = {name for name, same in agrees.items() if not same}
    assert wrong == expected.get(fault, {"codes", "weights back"})


@pytest.mark.parametrize("width", [64, 96, 160, 176, 768])
def test_by_hand_the_width_of_a_row_does_not_matter(hand, width):
    """The AVX-512 path of bitsandbytes 0.50.2 fails this at 96, 160 and 176; at multiples of 64 nothing may."""
    case = weights(shape=(192, width))
    assert hand["relative_error"](hand["rounded"](case, hand["nf4"]), case) == pytest.approx(0.0913, abs=0.002)
    if width % 64 == 0:
        back = bnb_functional.dequantize_4bit(*bnb_functional.quantize_4bit(case, quant_type="nf4"))
        assert torch.equal(back, hand["rounded"](case, hand["nf4"]))


def test_it_runs_in_time_and_follows_the_contract(lesson_00):
    record = lesson_00.results
    assert lesson_00.seconds < 300, "55 on two idle cores; other tests run beside it"
    assert list(record) == results.KEYS
    assert (record["lesson"], record["metric"], record["higher_is_better"]) == (NOTEBOOK.stem, "nf4_error", False)
    assert record["n_eval"] == 1_000_000
    assert record["train_seconds"] is record["planned_peak_bytes"] is record["total_parameters"] is None
    assert str(ROOT) not in json.dumps(record)


def test_bits_are_counted_and_equal_the_formula(lesson_00):
    bits = lesson_00.results["metrics"]["bits_per_parameter"]
    assert bits["float32 scales"]["counted"] == 4.5
    assert bits["8-bit scales"]["counted"] == pytest.approx(4.127, abs=0.001)
    for counted in bits.values():
        assert counted["counted"] == pytest.approx(counted["by formula"], abs=1e-4)


def test_nf4_costs_least_on_normal_and_on_real_weights(lesson_00):
    record = lesson_00.results
    for errors in (record["metrics"]["relative_error"][kind] for kind in ("normal", "real")):
        assert errors["NF4"] < 0.95 * min(error for name, error in errors.items() if name != "NF4")
    assert record["metrics"]["relative_error"]["normal"]["NF4"] == pytest.approx(0.0913, abs=0.001)
    assert record["after"] < record["baseline"] < record["before"]


def test_the_plans_of_the_lesson_are_close_and_say_who_fits(lesson_00):
    metrics = lesson_00.results["metrics"]
    assert max(map(abs, metrics["planner_off_by"].values())) < 0.05
    batches = metrics["largest_batch"]
    assert len(batches) == 15
    assert batches["Gemma-2-9b · full, float32 weights"]["H200 141 GB"] == 0
    assert batches["Gemma-2-9b · QLoRA, checkpointing"]["T4 16 GB"] > 0
    for fits in batches.values():
        assert fits["RTX 3060 12 GB"] <= fits["T4 16 GB"] <= fits["A100 40 GB"] <= fits["H200 141 GB"]


def test_what_the_text_says_of_the_plans_is_true(lesson_00):
    """The surprise, its two causes and its cure; the numbers stand in the lesson's text."""
    metrics = lesson_00.results["metrics"]
    total = metrics["totals_gib"]
    for model in ("BERT-base", "BERT-large"):
        least = total[f"{model} · full, bfloat16, 8-bit AdamW"]
        assert least < total[f"{model} · LoRA"] < total[f"{model} · QLoRA"]
    for model in ("T5-3b", "Gemma-2-9b"):
        assert total[f"{model} · QLoRA"] < total[f"{model} · LoRA"] < total[f"{model} · full, bfloat16, 8-bit AdamW"]
    assert abs(total["OPT-1.3b · full, bfloat16, 8-bit AdamW"] - total["OPT-1.3b · QLoRA"]) < 0.1
    for model in ("BERT-base", "BERT-large", "T5-3b", "OPT-1.3b", "Gemma-2-9b"):
        assert 3 < total[f"{model} · QLoRA"] / total[f"{model} · QLoRA, checkpointing"] < 5.5
    same = metrics["same_types"]
    saved = {name: 1 - row["QLoRA: total"] / row["full: total"] for name, row in same.items()}
    assert saved["as people start them"] < 0
    assert saved["both under autocast"] == pytest.approx(0.06, abs=0.01)
    assert saved["both in bfloat16 throughout"] == pytest.approx(0.23, abs=0.01)
    copies = (
        same["both under autocast"]["QLoRA: activations"] - same["both in bfloat16 throughout"]["QLoRA: activations"]
    )
    assert copies == pytest.approx(1.5, abs=0.05)


def test_a_live_model_keeps_more_with_an_adapter_in_float32(lesson_00):
    kept = lesson_00.results["metrics"]["kept_against_full"]
    assert kept["LoRA"] > 1.5
    assert kept["QLoRA"] == pytest.approx(kept["LoRA"], rel=0.01), "4 bits change nothing about activations"
    assert kept["LoRA, adapter in bfloat16"] == pytest.approx(1, abs=0.05)


def test_the_plan_by_hand_is_as_good_as_the_text_says(lesson_00):
    off_by = lesson_00.results["metrics"]["by_hand_off_by"]
    assert abs(off_by["full, bfloat16, 8-bit AdamW"]) < 0.1
    assert abs(off_by["QLoRA"]) < 0.1
    assert off_by["QLoRA, checkpointing"] == pytest.approx(-1 / 3, abs=0.05)


def test_twice_the_alpha_moves_twice_as_far(lesson_00):
    moved = lesson_00.results["metrics"]["output_moved_by"]
    assert moved["r = 8, alpha = 16"] == pytest.approx(2 * moved["r = 8, alpha = 8"], rel=0.01)
    assert moved["r = 8, alpha = 32"] == pytest.approx(4 * moved["r = 8, alpha = 8"], rel=0.01)
    assert moved["r = 32, alpha = 32"] > moved["r = 8, alpha = 8"]


def test_four_bits_leave_nearly_all_answers_and_two_bits_do_not(lesson_00):
    metrics = lesson_00.results["metrics"]
    n, answers, by_bits = metrics["n_answers"], metrics["answers"], metrics["answers_by_bits"]
    assert n == 200
    assert answers["float32"]["accuracy"] > 0.72, "0.80 in the rendered run; a model that learned nothing has 0.2"
    assert answers["float32"]["same"] == n
    for name in ("NF4", "NF4, 8-bit scales", "FP4"):
        assert 0.94 * n < answers[name]["same"] <= n
    assert answers["INT8"]["same"] >= n - 3
    change = {name: row["logits changed by"] for name, row in answers.items()}
    assert change["INT8"] < change["NF4"] < change["FP4"]
    assert change["float32"] < 1e-5
    assert by_bits["2"]["same"] < by_bits["3"]["same"] < by_bits["8"]["same"]
    assert by_bits["2"]["same"] < 0.94 * n, "the comparison can fail"
    for row in (*answers.values(), *by_bits.values()):
        assert row["became right"] + row["became wrong"] <= n - row["same"]


def test_what_else_the_lesson_measured(lesson_00):
    metrics = lesson_00.results["metrics"]
    assert metrics["table_difference"] < 1e-6
    assert len(metrics["identical"]) == 7
    assert all(case["codes"] and case["scales"] and case["weights back"] for case in metrics["identical"].values())
    errors = metrics["double_quantization_error"]
    assert errors["8-bit scales"] == pytest.approx(errors["float32 scales"], rel=0.01)
    assert metrics["optimizer"]["AdamW"]["matrix: bytes each"] == pytest.approx(8, abs=0.001)
    for name in ("AdamW8bit", "PagedAdamW8bit"):
        assert metrics["optimizer"][name]["matrix: bytes each"] == pytest.approx(2.03, abs=0.01)
        assert metrics["optimizer"][name]["vector: bytes each"] == 8


def test_it_leaves_figures_and_no_noise(lesson_00):
    for name in ("weights.png", "rounding_error.png", "what_it_takes.png", "answers_by_bits.png"):
        assert (lesson_00.folder / name).stat().st_size > 1000
    outputs = [output for cell in lesson_00.notebook["cells"] for output in cell.get("outputs", [])]
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []


@pytest.mark.parametrize("family", ["distilbert", "deberta-v2", "modernbert"])
def test_another_encoder_is_one_id(family, run_cells, tmp_path):
    """Random weights: all sections that look at the reader's own model run to their end, the planner's left out."""
    texts = [json.loads(line)["text"] for line in (ROOT / "data/driver_intent/train.jsonl").open()]
    folder = random_models.encoder(family, tmp_path / family, texts)
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    cells, keep = [], True
    for cell in notebook["cells"]:
        first_line = cell["source"][0]
        if first_line.startswith(("## 2", "## Recap")):
            keep = False
        elif first_line.startswith("## 5"):
            keep = True
        if keep:
            cells.append(cell)
    notebook["cells"] = cells
    short = tmp_path / NOTEBOOK.name
    short.write_text(json.dumps(notebook), encoding="utf-8")
    done = run_cells(short, {"model_id": str(folder), "num_train_epochs": 1})
    assert done.code == 0, done.text
    assert re.search(r"8 bits: (19\d|200) of 200 answers as in float32", done.text)
    assert json.loads((done.folder / "tuned" / "config.json").read_text())["model_type"] == family


def test_solutions_run(run_cells):
    done = run_cells(ROOT / "notebooks" / "solutions" / NOTEBOOK.name)
    assert done.code == 0, done.text
