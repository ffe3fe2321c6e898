"""Lesson 05 as a reader runs it: the judge learns, is fair to both places, means its probabilities, runs no data; on
Gemma-2 and on other decoders."""

import ast
import csv
import itertools
import json
import math
import re

import numpy as np
import pandas as pd
import pytest
import random_models
import torch
from conftest import ROOT
from datasets import Dataset, load_dataset
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    set_seed,
)

from tools.check_notebooks import cells_of, python_of
from tools.notebooks import read
from utils import data, results
from utils.training import adapters

NAME = "05_gemma2_qlora_preference"
NOTEBOOK = ROOT / "notebooks" / f"{NAME}.ipynb"
RECIPE = ROOT / "recipes" / "05_preference_judge.py"
TINY = ROOT / "data" / "models" / "tiny-gemma-2"
DATA = ROOT / "data" / "toy_preference"
OF_BASELINE, OF_BEST = 0.85, 1.15  # log loss after, at most so many times the best baseline's and the best possible
FLIPS = 0.5  # flips of the training on both orders, at most so many times those of the files' order
# Two trainings that differ in the order of their rows only differ by about 0.02; the recipe's batches are others, too.
RECIPE_NOISE = 0.05
QUICK = {"max_steps": 2, "eval_steps": 1, "compare_steps": 0, "train_rows": 60, "eval_rows": 40}
QUICK["per_device_train_batch_size"] = 8
FILES_ORDER, BOTH_ORDERS, FINAL = "trained on the files' order", "trained on both orders", "after: ... and temperature"
WINNERS = list(data.preferences.WINNERS)


@pytest.fixture(scope="session")
def judge(run_cells):
    """Lesson 05, tiny, run once."""
    done = run_cells(NOTEBOOK)
    assert done.code == 0, done.text
    return done


def reaches_the_bars(record):
    """Whether a run's log loss is as far below the best baseline and as near to the best possible as the lesson's."""
    best = record["metrics"]["scores"]["the best possible"]["log loss"]
    return record["after"] <= OF_BASELINE * record["baseline"] and record["after"] <= OF_BEST * best


def own(space, *names):
    """Adds the lesson's own functions and values of these names, run from its cells, to `space`; returns it."""
    found = set()
    for cell in cells_of(read(NOTEBOOK)):
        for node in ast.parse(python_of(cell)).body:
            targets = [node.name] if isinstance(node, ast.FunctionDef) else []
            if isinstance(node, ast.Assign):
                targets = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if {*targets} & {*names}:
                exec(ast.unparse(node), space)  # the notebook's own, committed code
                found |= {*targets}
    assert {*names} <= found, {*names} - found
    return space


def functions_of_the_lesson(model_id):
    """The lesson's own functions around texts and probabilities, with the tokenizer of a model and 128 tokens."""
    space = {"run": type("run", (), {"model_id": str(model_id), "max_length": 128})}
    space.update(np=np, Dataset=Dataset, data=data, AutoTokenizer=AutoTokenizer)
    texts = ("SWAPPED", "tokenizer", "ids_of", "start_ids", "question_ids", "room", "turns_of", "number_of_tokens")
    return own(space, *texts, "fit", "tokenize", "encode", "in_both_orders", "at_temperature")


@pytest.fixture(scope="session")
def lesson_05():
    """Its functions with the tiny tokenizer."""
    return functions_of_the_lesson(TINY)


@pytest.fixture(scope="session")
def table():
    """The committed test comparisons, as the lesson reads them."""
    return data.preferences.load(DATA, load_dataset, n_folds=None)["test"]


# ------------------------------------------------------------------------------------------------ the whole lesson


def test_the_judge_beats_the_baselines_and_comes_near_the_best_possible(judge):
    record, scores = judge.results, judge.results["metrics"]["scores"]
    assert record["after"] == scores[FINAL]["log loss"]
    assert reaches_the_bars(record), scores
    assert not reaches_the_bars(record | {"after": record["baseline"]}), "the control: the baseline as it is"
    assert record["after"] > scores["the best possible"]["log loss"] - 0.02, "better than possible: it knows the test"
    assert scores[FINAL]["accuracy"] > scores["baseline: longer answer wins"]["accuracy"]
    assert abs(record["before"] - math.log(3)) <= 0.25
    assert scores["baseline: one third each"]["log loss"] == pytest.approx(math.log(3))
    low, high = record["metrics"]["interval"]
    assert low < record["after"] < high < record["baseline"]
    against_baseline = next(row for name, row in record["metrics"]["differences"].items() if "against '" in name)
    assert against_baseline["to"] < 0, "prompts drawn anew, the judge is better all the same"


def test_both_orders_unlearn_the_advantage_of_the_first_place(judge):
    scores = judge.results["metrics"]["scores"]
    given, both = scores[FILES_ORDER], scores[BOTH_ORDERS]
    assert both["flips"] <= FLIPS * given["flips"], scores
    assert given["A before B"] > 0.15
    assert abs(both["A before B"]) < 0.10
    for fair in ("... asked in both orders", FINAL, "the best possible"):
        assert scores[fair]["flips"] < 0.01, fair
        assert abs(scores[fair]["A before B"]) < 1e-9, fair


def test_it_means_its_probabilities(judge):
    scores = judge.results["metrics"]["scores"]
    assert scores[FINAL]["calibration error"] <= 0.05
    assert scores[FINAL]["accuracy"] == scores["... asked in both orders"]["accuracy"], "a temperature moves no winner"
    assert scores["before: untuned"]["calibration error"] > 0.05, "the control: another judge does not"
    assert 0.25 < judge.results["metrics"]["temperature"] < 4, "not at the end of what was tried"


def test_a_temperature_mends_boastfulness_and_nothing_else(judge):
    rows = judge.results["metrics"]["calibration"]
    averaged, boastful = rows["averaged"], rows["averaged, boastful on purpose"]
    assert boastful["T"] == pytest.approx(3 * averaged["T"], rel=0.1), "it finds what was done"
    assert boastful["error"] > 2 * boastful["noise floor"]
    assert boastful["error with T"] == pytest.approx(averaged["error with T"], abs=0.01)
    for name, row in rows.items():
        assert row["accuracy with T"] == row["accuracy"], name
        assert row["noise floor"] > 0.005, name
    flips = judge.results["metrics"]["scores"][FILES_ORDER]["flips"]
    assert rows["files' order, asked once"]["flips with T"] == flips, "position bias stays"


def test_results_follow_the_contract(judge):
    record = judge.results
    assert list(record) == results.KEYS
    assert (record["lesson"], record["metric"], record["n_eval"]) == (NAME, "log_loss", 600)
    assert record["higher_is_better"] is False
    config = AutoConfig.from_pretrained(TINY, num_labels=3)
    width, layers = config.hidden_size, config.num_hidden_layers
    queries = config.num_attention_heads * config.head_dim
    keys = config.num_key_value_heads * config.head_dim
    lora = 32 * layers * (2 * (width + queries) + 2 * (width + keys) + width + config.intermediate_size)
    assert record["trainable_parameters"] == lora + 3 * width
    with torch.device("meta"):
        base = AutoModelForSequenceClassification.from_config(config).num_parameters()
    assert record["total_parameters"] == base + record["trainable_parameters"], "the head is there twice"
    assert record["weights_bytes"] < 4 * 2**20
    assert record["planned_peak_bytes"] > record["weights_bytes"]
    assert record["real_tokens_per_second"] > 0.8 * record["padded_tokens_per_second"], "batches of like lengths"
    assert str(ROOT) not in json.dumps(record)


def test_cut_at_the_right_end_b_loses_more_than_a(judge):
    budgets = judge.results["metrics"]["budgets"]
    for limit, ways in budgets.items():
        right, evenly = np.array(ways["right end"]), np.array(ways["evenly, by turn"])
        assert abs(evenly[0] - evenly[1]) < 0.02, (limit, ways)
        assert min(right) >= 0
        assert max(*right, *evenly) <= 1
    a, b = budgets[min(budgets, key=int)]["right end"]
    assert a > b + 0.2, "the control: half of the tokens hurts B if cut at the end"


def test_the_notebook_shows_what_it_says(judge):
    for words in ("without the cap, a logit moves by", "sdpa: Gemma2ForSequenceClassification does not support"):
        assert words in judge.text, words
    assert "refused: Expecting value" in judge.text
    assert "head: Linear\n" in judge.text, "not Linear4bit"
    matrices = 5 * AutoConfig.from_pretrained(TINY).num_hidden_layers
    assert f"{matrices} of {matrices} matrices B" in judge.text
    assert float(re.search(r"padding moves a logit by (\S+)", judge.text)[1]) < 1e-4
    for name in ("lengths.png", "reliability.png", "learning_curve.png", "adapter/adapter_model.safetensors"):
        assert (judge.folder / name).stat().st_size > 1000, name


def test_an_interruption_costs_one_batch(judge):
    """The second batch fails; what the first one said is not asked again."""
    batches = judge.results["metrics"]["batches"]
    assert batches == [64] * 10 + [24]
    assert sum(batches) == judge.results["n_eval"] + 64, "one batch is asked twice"
    assert "interrupted: the power is gone" in judge.text


def test_the_submission_has_every_id_once_and_rows_that_sum_to_one(judge, table):
    rows = pd.read_csv(judge.folder / "submission.csv")
    assert list(rows) == ["id", *WINNERS]
    assert sorted(rows["id"]) == sorted(table["id"].astype(rows["id"].dtype))
    assert rows["id"].is_unique
    values = rows[WINNERS].to_numpy()
    np.testing.assert_allclose(values.sum(axis=1), 1, atol=1e-6)
    assert values.min() >= 0
    assert values.std(axis=0).min() > 0.03, "a judge that always says the same would pass"
    assert not list(judge.folder.glob("submission.csv.*"))
    winners = table.set_index("id").loc[rows["id"], WINNERS].to_numpy().argmax(axis=1)
    found = -np.log(values[np.arange(len(values)), winners]).mean()
    assert found == pytest.approx(judge.results["after"], abs=2e-3), "in the order of the ids"


def plain_probabilities(done, model_id, rows, **loading):
    """What plain transformers and PEFT say with the adapter of a run: (rows, 3) probabilities of `rows`, token ids.

    Nothing of the course touches the model, but the flag that keeps bitsandbytes from repacking weights on some CPUs.
    """
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=["score"],
    )
    adapters.keep_trainable()
    base = AutoModelForSequenceClassification.from_pretrained(
        model_id, num_labels=3, quantization_config=nf4, dtype=torch.float32, **loading
    )
    model = PeftModel.from_pretrained(base, done.folder / "adapter").eval()
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([ids])).logits[0].double() for ids in rows]
    return torch.stack(logits).softmax(-1).numpy()


def check_against_plain_transformers(done, model_id, table, **loading):
    """The submission of a run holds what plain transformers say with its adapter, of each pair and in both orders."""
    functions = functions_of_the_lesson(model_id)
    submission = pd.read_csv(done.folder / "submission.csv").head(12)
    submission["id"] = submission["id"].astype(table["id"].dtype)
    pairs = table.set_index("id").loc[submission["id"]].reset_index()
    straight, turned = (
        plain_probabilities(done, model_id, functions["encode"](pairs, swap=swap)["input_ids"][:], **loading)
        for swap in (False, True)
    )
    temperature = float((done.folder / "adapter" / "temperature.txt").read_text())
    expected = functions["at_temperature"](functions["in_both_orders"](straight, turned), temperature)
    np.testing.assert_allclose(submission[WINNERS].to_numpy(), expected, atol=2e-5)
    return np.abs(straight - expected).max()


def test_plain_transformers_say_the_same_with_the_saved_adapter(judge, table):
    moved = check_against_plain_transformers(judge, TINY, table, attn_implementation="eager")
    assert moved > 1e-3, "the control: one order alone is not the same"


# ------------------------------------------------------------------------------------------------ controls


def test_at_learning_rate_0_it_says_one_third_each(run_cells):
    done = run_cells(NOTEBOOK, QUICK | {"learning_rate": 0})
    assert done.code == 0, done.text
    assert abs(done.results["after"] - math.log(3)) <= 0.06
    assert not reaches_the_bars(done.results)
    assert re.search(r"\b0 of \d\d matrices B", done.text)


def test_a_random_base_does_not_reach_the_bars(judge, run_cells, tmp_path):
    """Adapters on weights that know nothing learn little: what the judge knows comes from its base."""
    set_seed(0)
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))
    random.save_pretrained(tmp_path / "random")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "random")
    overrides = {"model_id": str(tmp_path / "random"), "max_steps": 30, "eval_steps": 30, "compare_steps": 0}
    done = run_cells(NOTEBOOK, overrides | {"train_rows": 600, "eval_rows": 100})
    assert done.code == 0, done.text
    assert not reaches_the_bars(done.results), done.results["metrics"]["scores"]
    assert done.results["after"] > judge.results["after"] + 0.05


# ------------------------------------------------------------------------------------------------ other models


def texts():
    """Texts for the tokenizers of random models."""
    return (DATA / "train.csv").read_text("utf-8").splitlines()[:300]


@pytest.mark.parametrize("model_type", ["llama", "qwen3", "gemma3_text"])
def test_another_decoder_is_one_id(run_cells, table, tmp_path, model_type):
    """It runs to the end, and the model that judged is the one of plain transformers, layer by layer."""
    model_id = random_models.decoder(model_type, tmp_path / "model", texts())
    if model_type == "qwen3":  # has no start token
        tokenizer = AutoTokenizer.from_pretrained(model_id)
        tokenizer.bos_token = None
        tokenizer.save_pretrained(model_id)
    done = run_cells(NOTEBOOK, QUICK | {"model_id": model_id})
    assert done.code == 0, done.text
    assert "This model has no cap on its attention scores" in done.text
    assert re.search(r"\b10 of 10 matrices B", done.text), "five kinds of layers in each of two layers"
    check_against_plain_transformers(done, model_id, table, attn_implementation="eager")


def test_a_checkpoint_that_is_in_4_bits_already_gets_a_plain_head(run_cells, table, tmp_path):
    """As in the profile colab: its own settings name no head to leave out, and another type to compute in."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["lm_head"],
    )
    model = AutoModelForCausalLM.from_pretrained(TINY, quantization_config=nf4, dtype=torch.float32)
    model.save_pretrained(tmp_path / "in_4_bits")
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path / "in_4_bits")
    done = run_cells(NOTEBOOK, QUICK | {"model_id": str(tmp_path / "in_4_bits")})
    assert done.code == 0, done.text
    assert "head: Linear\n" in done.text
    check_against_plain_transformers(done, TINY, table, attn_implementation="eager")


# ------------------------------------------------------------------------------------------------ the recipe


def run_recipe(run_script, folder, *options):
    """The scores that the recipe prints, run as a reader does."""
    done = run_script(RECIPE, "--output", folder, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    line = next(line for line in done.stdout.splitlines() if line.startswith('{"log_loss"'))
    assert "A, B, tie:" in done.stdout
    return json.loads(line)


def test_the_recipe_reaches_the_lesson(judge, run_script, tmp_path):
    scores = run_recipe(run_script, tmp_path)
    lesson = judge.results["metrics"]["scores"]["... asked in both orders"]
    assert abs(scores["log_loss"] - lesson["log loss"]) <= RECIPE_NOISE, scores
    assert scores["n"] == judge.results["n_eval"]
    assert (tmp_path / "adapter" / "adapter_model.safetensors").exists()


def test_the_recipe_without_learning_does_not(judge, run_script, tmp_path):
    scores = run_recipe(run_script, tmp_path, "--learning-rate", "0", "--max-steps", "1")
    assert scores["log_loss"] > judge.results["after"] + 2 * RECIPE_NOISE


# ------------------------------------------------------------------------------------------------ the reader's data


def own_csv(path, rows, winner_of=lambda number: number % 3, **changes):
    """Writes `rows` of the toy set under other ids, as a reader's file without a test file; `changes` go into row 7."""
    with (DATA / "train.csv").open(encoding="utf-8", newline="") as file:
        found = list(itertools.islice(csv.DictReader(file), rows))
    for number, row in enumerate(found):
        row["id"] = f"mine-{number}"
    found[7] |= changes
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, [*found[0]])
        writer.writeheader()
        writer.writerows(found)
    return QUICK | {"dataset_id": str(path), "truth_file": "", "train_rows": 5000}


def hostile(canary):
    """A cell that leaves a file behind for whoever executes it."""
    return f"__import__('pathlib').Path({str(canary)!r}).write_text('here')"


def test_a_hostile_cell_is_refused_before_training_and_never_runs(run_cells, tmp_path):
    canary = tmp_path / "canary"
    done = run_cells(NOTEBOOK, own_csv(tmp_path / "mine.csv", 60, response_a=hostile(canary)))
    assert done.code != 0
    assert "mine.csv, row 9, column 'response_a'" in done.text, "as an editor counts, the header being row 1"
    assert "is not JSON; write a JSON list of texts" in done.text
    assert done.results is None
    assert not (done.folder / "checkpoints").exists()
    assert not (done.folder / "lengths.png").exists()
    assert not canary.exists()
    eval(hostile(canary))  # the control: it is what it looks like
    assert canary.exists()


def test_own_comparisons_without_a_test_file_run_through_and_one_bad_row_is_dropped(run_cells, tmp_path):
    canary = tmp_path / "canary"
    overrides = own_csv(tmp_path / "mine.csv", 120, response_b=hostile(canary)) | {"bad_rows": "drop"}
    done = run_cells(NOTEBOOK, overrides)
    assert done.code == 0, done.text
    assert "split 'train': 119 comparisons, 0 repeats and 1 bad rows were dropped" in done.text
    assert not canary.exists()
    rows = pd.read_csv(done.folder / "submission.csv")
    assert rows["id"].is_unique
    assert rows["id"].str.startswith("mine-").all()
    assert 5 <= len(rows) == done.results["n_eval"]
    assert done.results["n_train"] + done.results["n_eval"] < 119, "the rest is for validation"
    assert "the best possible" not in done.results["metrics"]["scores"], "nobody knows it here"


def test_the_lesson_splits_as_the_loader_does():
    """The notebook's own split by prompt, step by step, gives the rows that `load` gives with n_folds."""
    space = {"run": type("run", (), {"n_folds": 8})}
    space = own(space | {"zlib": __import__("zlib")}, "fold_of")
    whole = data.preferences.load(DATA, load_dataset, n_folds=None)
    split = data.preferences.load(DATA, load_dataset, n_folds=8)
    assert set(whole) == {"train", "test"}
    folds = whole["train"]["prompt"].map(space["fold_of"])
    assert {*whole["train"]["id"][folds == 0]} == {*split["validation"]["id"]}
    assert {*whole["train"]["id"][folds != 0]} == {*split["train"]["id"]}
    assert len(split["validation"]) > 100


# ------------------------------------------------------------------------------------------------ its own functions


def sizes(turns):
    return np.array([[len(part) for part in turn] for turn in turns])


def test_fit_keeps_the_newest_turns_and_cuts_both_answers_alike(lesson_05):
    fit, rng, kinds = lesson_05["fit"], np.random.default_rng(0), {"whole": 0, "turns dropped": 0, "cut": 0}
    for _ in range(3000):
        numbers = itertools.count()
        lengths = rng.integers(0, 40, (rng.integers(1, 4), 3))
        turns = [[[next(numbers) for _ in range(n)] for n in turn] for turn in lengths]
        room = int(rng.integers(0, 160))
        kept = fit(turns, room)
        last, newest = kept[-1], turns[-1]
        assert sizes(kept).sum() <= room
        assert all(part == whole[: len(part)] for part, whole in zip(last, newest, strict=True)), "the newest is there"
        mirrored = fit([[question, b, a] for question, a, b in turns], room)
        assert mirrored == [[question, b, a] for question, a, b in kept], "whoever is called A"
        if sizes(turns).sum() <= room:
            kinds["whole"] += 1
            assert kept == turns
        elif last == newest:
            kinds["turns dropped"] += 1
            assert kept == turns[-len(kept) :], "turns are dropped whole"
            assert sizes(turns[-len(kept) - 1 :]).sum() > room, "and no more than need be"
        else:
            kinds["cut"] += 1
            limit = max(len(part) for part in last)
            assert len(kept) == 1
            assert [len(part) for part in last] == [min(len(part), limit) for part in newest], "one limit for all"
            assert sizes(kept).sum() >= room - 2, "no room is wasted"
    assert min(kinds.values()) > 300, kinds


def test_the_last_tokens_are_the_final_question_cut_or_not(lesson_05):
    bos, asked = lesson_05["tokenizer"].bos_token_id, lesson_05["question_ids"]
    assert lesson_05["tokenizer"].decode(asked) == "\nWhich answer is better?"
    for words, cut in ((3, False), (60, True), (500, True)):
        row = {
            "prompt": ["Where is the horn?"],
            "response_a": ["in front " * words],
            "response_b": ["under it " * words],
        }
        encoded = lesson_05["tokenize"](row)
        ids = encoded["input_ids"]
        assert (encoded["whole_length"] > 128) == cut
        assert (len(ids) >= 126) == cut
        assert len(ids) <= 128
        assert ids[0] == bos
        assert ids[-len(asked) :] == asked
        text = lesson_05["tokenizer"].decode(ids)
        said = [text.count(words) for words in ("in front", "under it")]
        assert abs(said[0] - said[1]) <= 2, "both answers have their share"
        assert min(said) > 0


def test_control_tokens_in_a_text_stay_text(lesson_05):
    tokenizer = lesson_05["tokenizer"]
    row = {"prompt": ["<eos>?<bos>"], "response_a": ["yes<pad>"], "response_b": ["</s><eos>"]}
    ids = lesson_05["tokenize"](row)["input_ids"]
    assert [number for number in ids if number in tokenizer.all_special_ids and number != tokenizer.unk_token_id] == [
        tokenizer.bos_token_id
    ], "the first, and no other"
    parsed = tokenizer("<eos>?<bos>", add_special_tokens=False)["input_ids"]
    assert {tokenizer.bos_token_id, tokenizer.eos_token_id} <= {*parsed}, "the control: without the option"


def test_a_swapped_row_is_the_row_of_the_swapped_table(lesson_05, table):
    some = table.head(60)
    winners = some[WINNERS].to_numpy().argmax(axis=1)
    assert {*winners} == {0, 1, 2}
    turned = some.rename(columns={"response_a": "response_b", "response_b": "response_a"})
    swapped = lesson_05["encode"](some, winners, swap=True)
    assert swapped["input_ids"][:] == lesson_05["encode"](turned, winners)["input_ids"][:]
    assert swapped["input_ids"][:] != lesson_05["encode"](some, winners)["input_ids"][:]
    names = {0: 1, 1: 0, 2: 2}
    assert swapped["labels"][:] == [names[winner] for winner in winners]


def random_probabilities(seed, rows=200):
    return np.random.default_rng(seed).dirichlet((1, 1, 1), rows)


def test_asked_in_both_orders_it_does_not_matter_who_stands_first(lesson_05):
    straight, turned = random_probabilities(0), random_probabilities(1)
    found = lesson_05["in_both_orders"](straight, turned)
    np.testing.assert_allclose(found[:, [1, 0, 2]], lesson_05["in_both_orders"](turned, straight), atol=1e-12)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    np.testing.assert_allclose(lesson_05["in_both_orders"](straight, straight[:, [1, 0, 2]]), straight)


def test_a_temperature_keeps_the_winner_and_1_changes_nothing(lesson_05):
    cool, p = lesson_05["at_temperature"], random_probabilities(2)
    np.testing.assert_allclose(cool(p, 1), p, atol=1e-12)
    for temperature in (0.25, 0.7, 1.5, 4):
        found = cool(p, temperature)
        np.testing.assert_allclose(found.sum(axis=1), 1)
        assert (found.argmax(axis=1) == p.argmax(axis=1)).all()
        surer = found.max(axis=1) > p.max(axis=1)
        assert surer.all() if temperature < 1 else not surer.any()
        expected = torch.from_numpy(p).log().div(temperature).softmax(-1)
        np.testing.assert_allclose(found, expected, atol=1e-9)


# ------------------------------------------------------------------------------------------------ Gemma-2


def test_the_cap_matters_and_sdpa_is_refused():
    from transformers import Gemma2Config

    space = dict(torch=torch, set_seed=set_seed, Gemma2Config=Gemma2Config, SEED=0)
    space["AutoModelForSequenceClassification"] = AutoModelForSequenceClassification
    logits = own(space, "small_logits")["small_logits"]
    exact = logits(50.0)
    assert exact.abs().max() > 0.1, "a model that says nothing would pass"
    assert (logits(None) - exact).abs().max() > 0.02 * exact.abs().max(), "with these scores the cap matters"
    with torch.compiler.set_stance("force_eager"):
        torch.testing.assert_close(logits(50.0, "flex_attention"), exact, atol=1e-3, rtol=1e-4)
    with pytest.raises(ValueError, match="scaled_dot_product_attention"):
        logits(50.0, "sdpa")


@pytest.mark.slow
def test_compiled_layers_say_the_same_and_one_compilation_serves_all_lengths():
    """Loss and gradients of the lesson's compiled layers against plain ones; needs a C++ compiler on a CPU."""

    def losses_and_gradients(compiled):
        set_seed(0)
        model = AutoModelForSequenceClassification.from_pretrained(
            TINY, num_labels=3, attn_implementation="eager", dtype=torch.float32
        )
        model.config.use_cache = False
        model.enable_input_require_grads()
        for layer in model.model.layers if compiled else ():
            layer.compile(dynamic=True)
        losses = []
        for length in (24, 40, 33):
            ids = torch.randint(5, 500, (4, length), generator=torch.Generator().manual_seed(length))
            losses.append(model(input_ids=ids, labels=torch.tensor([0, 1, 2, 1])).loss)
        sum(losses).backward()
        return torch.stack(losses), model.model.layers[0].self_attn.q_proj.weight.grad

    plain = losses_and_gradients(compiled=False)
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    torch.testing.assert_close(losses_and_gradients(compiled=True), plain, atol=1e-4, rtol=1e-3)
    assert plain[0].std() > 1e-3, "lengths that all said the same would pass"
    assert counters["stats"]["unique_graphs"] <= 2, "one for each kind of layer"


def test_solutions_run(run_cells):
    overrides = {"max_steps": 3, "eval_rows": 40, "per_device_train_batch_size": 8}
    done = run_cells(ROOT / "notebooks" / "solutions" / f"{NAME}.ipynb", overrides)
    assert done.code == 0, done.text
