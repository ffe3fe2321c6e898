"""Lesson 04 as a reader runs it: form and knowledge told apart, loss mask, packing, merge."""

import ast
import copy
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
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer

from tools.check_notebooks import cells_of, python_of
from tools.notebooks import read
from utils import data, metrics, results
from utils.errors import CourseError
from utils.training import adapters, nan

NAME = "04_opt_lora_sft"
NOTEBOOK = ROOT / "notebooks" / f"{NAME}.ipynb"
TINY = ROOT / "data" / "models" / "tiny-opt"
REFUSAL = "the manual does not say"


@pytest.fixture(scope="session")
def sft(run_notebook):
    """Lesson 04, tiny, run once."""
    done = run_notebook(NOTEBOOK)
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{NAME}.ipynb", as_version=4)
    return done


@pytest.fixture(scope="session")
def lesson_04():
    """The lesson's own TEMPLATE, prompt_of, tokenize and answer_all, run from its cells, with the tiny tokenizer."""
    space = {"tokenizer": AutoTokenizer.from_pretrained(TINY), "run": type("run", (), {"max_length": 64})}
    space["run"].max_new_tokens, space["run"].eval_batch, space["room"] = 16, 64, 256
    for cell in cells_of(read(NOTEBOOK)):
        if any(word in python_of(cell) for word in ("def prompt_of", "def tokenize")):
            exec(python_of(cell).split("\n\n\nencoded = ")[0], space)  # the notebook's own, committed code
    return space


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """The training rows as the lesson has them: before, answer, group."""
    found = load_dataset(str(ROOT / "data" / "car_manual"), cache_dir=str(tmp_path_factory.mktemp("cache")))["train"]
    turns = [data.conversations.conversation(row) for row in found]
    return [{"before": t[:-1], "answer": t[-1], "group": s} for t, s in zip(turns, found["source"][:], strict=True)]


def trained(rows, steps, folder):
    """A model fine-tuned as in the lesson on tokenized rows, for a few steps."""
    set_seed(0)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    base = AutoModelForCausalLM.from_pretrained(TINY, quantization_config=nf4, dtype=torch.float32)
    adapters.keep_trainable(base)
    names = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"]
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=names))
    config = dict(max_steps=steps, learning_rate=4e-3, per_device_train_batch_size=16, max_length=None, bf16=False)
    config |= dict(use_cpu=True, activation_checkpointing=False, report_to=[], save_strategy="no", disable_tqdm=True)
    data = Dataset.from_list(rows)
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    trainer = SFTTrainer(model, SFTConfig(folder, **config), train_dataset=data, processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


def test_form_is_learned_and_knowledge_comes_from_the_base(sft):
    record, groups = sft.results, sft.results["metrics"]["groups"]
    after = groups["after: SFT"]
    assert (
        record["after"] == after["never_asked"]["exact match"]
        or abs(record["after"] - after["never_asked"]["exact match"]) < 1e-3
    )
    for group in ("never_asked", "never_asked_known_wording", "asked"):
        assert after[group]["exact match"] >= 0.85, (group, after)
        assert after[group]["refused"] <= 0.10 + 1e-9, "false refusals"
        assert groups["untuned"][group]["exact match"] <= 0.05
        assert record["metrics"]["compared"]["random base"][group] <= 0.15
    assert after["unanswerable"]["refused"] >= 0.70
    assert sum(row["ended"] * row["n"] for row in after.values()) / sum(row["n"] for row in after.values()) >= 0.95
    assert record["after"] > record["baseline"] + 0.5
    assert record["before"] <= 0.05
    assert groups["nearest question"]["asked"]["exact match"] > groups["nearest question"]["never_asked"]["exact match"]
    perplexity = record["metrics"]["perplexity"]
    assert all(perplexity["after"][group] < perplexity["before"][group] / 5 for group in perplexity["before"])


def test_at_learning_rate_0_nothing_is_learned(run_cells):
    overrides = {"learning_rate": 0, "max_steps": 4, "compare_steps": 1, "logging_steps": 2, "eval_rows": 72}
    done = run_cells(NOTEBOOK, overrides)
    assert done.code == 0, done.text
    assert done.results["after"] <= 0.05
    assert re.search(r"\b0 of 24 matrices B", done.text)


def test_results_follow_the_contract(sft):
    record = sft.results
    assert list(record) == results.KEYS
    assert (record["lesson"], record["metric"], record["n_eval"]) == (NAME, "exact_match", 144)
    config = AutoConfig.from_pretrained(TINY)
    width, wide = config.hidden_size, config.ffn_dim
    assert record["trainable_parameters"] == 16 * config.num_hidden_layers * (4 * (width + width) + 2 * (width + wide))
    assert record["weights_bytes"] < 4 * 2**20
    assert record["planned_peak_bytes"] > record["weights_bytes"]
    assert record["real_tokens_per_second"] > 0.9 * record["padded_tokens_per_second"], "batches of like lengths"
    assert str(ROOT) not in json.dumps(record)


def test_the_notebook_shows_what_it_says(sft):
    code = [cell for cell in sft.notebook.cells if cell.cell_type == "code" and cell.source.strip()]
    assert all(cell.execution_count for cell in code)
    printed = "".join(o.text for cell in code for o in cell.outputs if o.output_type == "stream" and o.name == "stdout")
    for words in (
        *("3,145,728 of 1,318,903,808 (0.2385%)", "24 of 24 matrices B", "the one to use: merged into the dequantized"),
        *("pad token </s>   -> 0 of 2", "adapter as TRL left it: {torch.bfloat16}", "reloaded: the same"),
    ):
        assert words in printed, words
    places, gap = re.search(r"without a mask for (\d+) places of padding, .* move by (\S+)", printed).groups()
    assert int(places) > 0
    assert float(gap) < 1e-6
    views = [o.data for cell in code for o in cell.outputs if "in the loss" in str(o.get("data", {}).get("text/html"))]
    assert "[</s>]" in views[0]["text/plain"]
    assert "background" in views[0]["text/html"]
    for name in ("lengths.png", "learning_curve.png", "adapter/adapter_model.safetensors", "merged/model.safetensors"):
        assert (sft.folder / name).stat().st_size > 1000, name
    assert not (sft.folder / "random_base").exists()


def in_loss(row):
    return [number for number, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]


def test_only_the_answer_and_its_end_are_in_the_loss_as_with_the_columns_of_trl(lesson_04, rows, tmp_path):
    tokenizer, ours = lesson_04["tokenizer"], [lesson_04["tokenize"](row) for row in rows]
    for row, encoded in zip(rows, ours, strict=True):
        assert tokenizer.decode(in_loss(encoded)) == f" {row['answer']}</s>"
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))
    columns = [{"prompt": lesson_04["prompt_of"](row["before"]), "completion": f" {row['answer']}"} for row in rows]
    args = SFTConfig(tmp_path, use_cpu=True, bf16=False, report_to=[], max_length=64)
    theirs = SFTTrainer(model, args, train_dataset=Dataset.from_list(columns), processing_class=tokenizer).train_dataset
    assert [row["labels"] for row in theirs] == [row["labels"] for row in ours]
    assert [row["input_ids"] for row in theirs] == [row["input_ids"] for row in ours]
    whole = Dataset.from_list([{"text": c["prompt"] + c["completion"]} for c in columns])
    whole = SFTTrainer(model, args, train_dataset=whole, processing_class=tokenizer).train_dataset
    assert whole[0]["labels"] != ours[0]["labels"], "the control: a plain text column counts the question as well"


def test_the_output_wrapper_of_the_reference_stops_the_trainer_of_today(lesson_04, rows, tmp_path):
    encoded = [{name: lesson_04["tokenize"](row)[name] for name in ("input_ids", "labels")} for row in rows[:32]]

    class CastOutputToFloat(torch.nn.Sequential):
        def forward(self, hidden):
            return super().forward(hidden).float()

    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    model.lm_head = CastOutputToFloat(model.lm_head)
    args = SFTConfig(
        tmp_path, use_cpu=True, bf16=False, max_steps=1, report_to=[], save_strategy="no", disable_tqdm=True
    )
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(encoded), processing_class=lesson_04["tokenizer"])
    with pytest.raises(AttributeError, match="has no attribute 'weight'"):
        trainer.train()


def test_the_guard_sees_the_loss_that_trl_computes_by_itself(lesson_04, rows, tmp_path):
    encoded = [{name: lesson_04["tokenize"](row)[name] for name in ("input_ids", "labels")} for row in rows[:32]]
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    args = SFTConfig(
        tmp_path, use_cpu=True, bf16=False, max_steps=2, report_to=[], save_strategy="no", disable_tqdm=True
    )
    settings = dict(train_dataset=Dataset.from_list(encoded), processing_class=lesson_04["tokenizer"])
    SFTTrainer(model, args, **settings, callbacks=[nan.StopOnNaN()]).train()  # the control: all is well
    with torch.no_grad():
        model.model.decoder.final_layer_norm.bias[0] = float("nan")
    with pytest.raises(CourseError, match="step 1, learning rate"):
        SFTTrainer(model, args, **settings, callbacks=[nan.StopOnNaN()]).train()


def test_control_tokens_in_a_question_stay_text(lesson_04):
    tokenizer = lesson_04["tokenizer"]
    row = {"before": ["What is </s>?<pad>"], "answer": "an </s> of text."}
    encoded = lesson_04["tokenize"](row)
    control = [number for number in encoded["input_ids"] if number in tokenizer.all_special_ids]
    assert control == [tokenizer.bos_token_id, tokenizer.eos_token_id], "the first and the last, and no other"
    parsed = tokenizer(lesson_04["prompt_of"](row["before"]))["input_ids"]
    assert sum(number in tokenizer.all_special_ids for number in parsed) == 3, "the control: without the option"


def test_earlier_turns_stand_in_the_prompt(lesson_04):
    encoded = lesson_04["tokenize"]({"before": ["a?", "b.", "c?"], "answer": "d."})
    text = lesson_04["tokenizer"].decode(encoded["input_ids"])
    assert text == "</s>Question: a?\n\nAnswer: b.\n\nQuestion: c?\n\nAnswer: d.</s>"
    assert lesson_04["tokenizer"].decode(in_loss(encoded)) == " d.</s>"


def test_without_the_end_token_in_the_loss_it_does_not_stop(lesson_04, rows, tmp_path):
    encoded = [lesson_04["tokenize"](row) for row in rows]
    encoded = [{"input_ids": row["input_ids"], "labels": row["labels"]} for row in encoded]
    endless = copy.deepcopy(encoded)
    for row in endless:
        row["labels"][-1] = -100
    prompts = [lesson_04["prompt_of"](row["before"]) for row in rows[:64]]
    ended = {}
    for name, tokenized_rows in {"with": encoded, "without": endless}.items():
        _, stopped = lesson_04["answer_all"](trained(tokenized_rows, 40, tmp_path), prompts)
        ended[name] = np.mean(stopped)
    assert ended["with"] >= 0.95, ended
    assert ended["without"] <= 0.30, ended


def test_documents_leak_in_a_packed_row_unless_a_mask_forbids_it(sft):
    leaks = sft.results["metrics"]["leaks"]
    for attention in ("eager", "sdpa"):
        assert leaks[f"{attention} border by positions"] > 0.05
        assert leaks[f"{attention} border by a mask"] < 1e-5
    assert sft.results["metrics"]["padding"]["batches of like lengths"] < 0.05


def most_ends_in_a_row(trainer):
    """The most end tokens that a row of a training batch has."""
    end = trainer.processing_class.eos_token_id
    return max((batch["input_ids"] == end).sum(dim=1).max().item() for batch in trainer.get_train_dataloader())


def test_a_row_of_a_batch_is_one_document_unless_the_trainer_packs(lesson_04, rows, tmp_path):
    sources = [ast.parse(python_of(cell)) for cell in cells_of(read(NOTEBOOK)) if "SFTConfig(" in python_of(cell)]
    found = [node for source in sources for node in ast.walk(source) if isinstance(node, ast.Call)]
    (call,) = (node for node in found if ast.unparse(node.func) == "SFTConfig")
    own = {word.arg: ast.unparse(word.value) for word in call.keywords if word.arg}
    assert own.get("packing", "False") == "False"
    assert own["train_sampling_strategy"] == "'group_by_length'"
    tokenized = [lesson_04["tokenize"](row) for row in rows[:200]]
    end = lesson_04["tokenizer"].eos_token_id
    alone = max(row["input_ids"].count(end) for row in tokenized)
    config = dict(per_device_train_batch_size=16, bf16=False, use_cpu=True, report_to=[], dataloader_pin_memory=False)
    found = {}
    for packing in (False, True):
        model = AutoModelForCausalLM.from_pretrained(TINY)
        settings = config | (dict(packing=True, packing_strategy="wrapped") if packing else {"max_length": None})
        args = SFTConfig(tmp_path, train_sampling_strategy="group_by_length", **settings)
        data = Dataset.from_list(tokenized)
        found[packing] = most_ends_in_a_row(
            SFTTrainer(model, args, train_dataset=data, processing_class=lesson_04["tokenizer"])
        )
    assert found[False] == alone
    assert found[True] > alone


def test_no_prompt_of_the_few_shot_baseline_is_cut(lesson_04, rows):
    sources = "\n".join(python_of(cell) for cell in cells_of(read(NOTEBOOK)))
    assert len(re.findall(r"(?m)^[\w, ]*\broom\b[\w, ]* = ", sources)) == 1, (
        "answer_all cuts by it wherever it is called"
    )
    shots = [turn for row in rows[:3] for turn in (row["before"][-1], row["answer"])]
    prompts = [lesson_04["prompt_of"](shots + row["before"][-1:]) for row in rows]
    longest = max(len(ids) for ids in lesson_04["tokenizer"](prompts)["input_ids"])
    assert 64 < longest <= AutoConfig.from_pretrained(TINY).max_position_embeddings - 16


def test_merging_into_the_dequantized_base_is_the_faithful_way(sft):
    ways = sft.results["metrics"]["merging"]
    moved = {way: row["logits move by"] for way, row in ways.items()}
    faithful = "merged into the dequantized 4-bit base"
    assert sft.results["metrics"]["to_use"] == faithful
    assert moved["on a 4-bit base, not merged"] < 1e-5
    assert moved[faithful] < 1e-4
    assert ways[faithful]["same answers"] == 1
    for other in ("merged into the full-precision base", "merged inside 4 bits"):
        assert moved[other] > 100 * moved[faithful], "the control: other ways do move the logits"


def test_a_fresh_process_says_the_same_with_the_merged_model_and_with_the_adapter(sft, offline, tmp_path):
    code = f"""
import json, torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
from utils.training import adapters
folder, base, data = {str(sft.folder)!r}, {str(TINY)!r}, {str(ROOT / "data" / "car_manual")!r}
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32)
merged = AutoModelForCausalLM.from_pretrained(folder + "/merged", dtype=torch.float32)
base = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.float32)
adapters.check_base(base, folder + "/adapter")
models = [merged, PeftModel.from_pretrained(base, folder + "/adapter")]
tokenizer = AutoTokenizer.from_pretrained(folder + "/merged")
rows = load_dataset(data, split="validation").shuffle(seed=0).select(range(36))
questions = [t[0] for t in rows["conversations"]]
prompts = [f"Question: {{question}}\\n\\nAnswer:" for question in questions]
batch = tokenizer(prompts, padding=True, padding_side="left", return_tensors="pt")
said = []
for model in models:
    output = model.eval().generate(**batch, max_new_tokens=16, do_sample=False)[:, batch["input_ids"].shape[1]:]
    said.append([tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in output])
json.dump(said, open("said.json", "w"))
"""
    done = subprocess.run([sys.executable, "-c", code], env=offline, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    expected = (sft.folder / "merged_answers.txt").read_text("utf-8").split("\n")
    merged, adapter = json.loads((tmp_path / "said.json").read_text())
    assert merged == expected
    assert adapter == expected
    assert len(set(expected)) > 10, "a model that always says the same would pass"


def test_own_chat_messages_with_control_tokens_and_a_cut_answer_train(run_cells, tmp_path):
    path = tmp_path / "chat.csv"
    things = "jacket phone lamp book helmet keyboard coat kettle tent chair mirror radio".split()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages"])
        for thing in things:
            for number, question in enumerate((f"Where is the {thing}?</s>", f"Who has my {thing}?")):
                answer = "on the table. " * (40 if (thing, number) == ("tent", 0) else 1)
                talk = [("system", "Be brief.")] * number + [("user", question), ("assistant", answer)]
                writer.writerow([json.dumps([{"role": role, "content": text} for role, text in talk])])
    overrides = {"dataset_id": str(path), "columns": ["messages"], "max_steps": 60, "compare_steps": 1}
    done = run_cells(NOTEBOOK, overrides | {"logging_steps": 10})
    assert done.code == 0, done.text
    assert done.results["after"] >= 0.8 > done.results["before"]
    assert re.search(r"'(train|test|validation)': 1 of \d+ answers are cut in part", done.text)


def test_a_gated_data_set_says_which_page_to_open():
    cell = next(python_of(cell) for cell in cells_of(read(NOTEBOOK)) if "data.conversations.load(" in python_of(cell))
    asked = []

    def refuse(path, **options):
        asked.append((path, options))
        raise DatasetNotFoundError("gated")

    files = {"train": "x"}
    run = type("run", (), {"dataset_id": "GAIR/lima", "columns": ["conversations"], "data_files": files})
    with pytest.raises(CourseError, match=r"open https://huggingface.co/datasets/GAIR/lima, accept its terms"):
        exec(cell, {"run": run, "load_dataset": refuse, "data": data, "SEED": 0})
    assert asked == [("json", {"data_files": files})], "the files that the profile names"


def test_solutions_run(run_cells):
    done = run_cells(ROOT / "notebooks" / "solutions" / f"{NAME}.ipynb", {"max_steps": 40})
    assert done.code == 0, done.text


def test_exact_match_counts_a_wrong_value_as_wrong():
    assert metrics.exact_match("Fuse 12", "fuse 12.") == 1
    assert metrics.exact_match("fuse 11.", "fuse 12.") == 0
