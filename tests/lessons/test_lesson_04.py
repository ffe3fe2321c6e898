"""Lesson 04 as a reader runs it: form and knowledge told apart, which tokens count, packing, merge, other decoders."""

import csv
import json
import re

import nbformat
import numpy as np
import pytest
import random_models
import torch
from conftest import ROOT
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetNotFoundError
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PrinterCallback, set_seed
from trl import SFTConfig, SFTTrainer, chat_template_utils

from tools.check_notebooks import cells_of, python_of
from tools.notebooks import read
from utils import data, metrics, results
from utils.errors import CourseError
from utils.training import adapters, nan

NAME = "04_opt_lora_sft"
NOTEBOOK = ROOT / "notebooks" / f"{NAME}.ipynb"
MANUAL = ROOT / "data" / "car_manual"
TINY = ROOT / "data" / "models" / "tiny-opt"
SHORT = {"max_steps": 4, "compare_steps": 0, "eval_steps": 2, "eval_rows": 12, "watch_rows": 2, "manual": ""}


@pytest.fixture(scope="session")
def sft(run_notebook):
    """Lesson 04, tiny, run once."""
    done = run_notebook(NOTEBOOK)
    assert done.code == 0, done.text
    done.notebook = nbformat.read(done.folder / f"{NAME}.ipynb", as_version=4)
    return done


@pytest.fixture(scope="session")
def lesson_04():
    """The lesson's own functions around its template, run from its cells, with the tiny tokenizer."""
    run = {"model_id": str(TINY), "max_new_tokens": 16, "max_length": 64, "eval_batch": 64}
    dataset = {"train": Dataset.from_list([{"messages": talk("Where?", "here.")}])}
    space = {"run": type("run", (), run), "AutoTokenizer": AutoTokenizer, "AutoConfig": AutoConfig, "dataset": dataset}
    space["chat_template_utils"] = chat_template_utils
    wanted = ("CHAT_TEMPLATE =", "def escape", "def encode", "def batch_of", "def prompt_of", "def tokenize(")
    for cell in cells_of(read(NOTEBOOK)):
        source = python_of(cell)
        if any(word in source for word in (*wanted, "def tokenize_by_hand")):
            source = re.split(r"\n\n\n(?=dataset = |encoded = |if tokenizer|count_cut)", source)[0]
            exec(source, space)  # the notebook's own, committed code
    return space


@pytest.fixture(scope="session")
def rows(tmp_path_factory):
    """The training rows as the lesson has them: messages and group."""
    found = load_dataset(str(MANUAL), cache_dir=str(tmp_path_factory.mktemp("cache")))["train"]
    return [{"messages": data.conversations.conversation(row), "group": row["source"]} for row in found]


def talk(*texts):
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def quiet(folder, **settings):
    """Arguments of a training that leaves nothing behind."""
    return SFTConfig(folder, use_cpu=True, bf16=False, report_to=[], save_strategy="no", disable_tqdm=True, **settings)


def trained(rows, steps, folder):
    """A model fine-tuned as in the lesson on tokenized rows, for a few steps."""
    set_seed(0)
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32)
    adapters.keep_trainable()
    base = AutoModelForCausalLM.from_pretrained(TINY, quantization_config=nf4, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))
    args = quiet(
        folder,
        max_steps=steps,
        learning_rate=4e-3,
        per_device_train_batch_size=16,
        max_length=None,
        gradient_checkpointing=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    trainer = SFTTrainer(model, args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return model


# ---- what it teaches


def test_form_is_learned_and_knowledge_comes_from_the_base(sft):
    record, groups = sft.results, sft.results["metrics"]["groups"]
    after = groups["after SFT"]
    assert abs(record["after"] - after["never_asked"]["exact match"]) < 1e-3
    for group in ("never_asked", "never_asked_known_wording", "asked"):
        assert after[group]["exact match"] >= 0.85, (group, after)
        assert after[group]["refused"] <= 0.10 + 1e-9, "false refusals"
        assert groups["untuned"][group]["exact match"] <= 0.05
        assert record["metrics"]["compared"]["random base"][group] <= 0.15
    assert after["unanswerable"]["refused"] >= 0.70
    assert sum(row["ended"] * row["n"] for row in after.values()) / sum(row["n"] for row in after.values()) >= 0.95
    assert record["before"] <= 0.05
    assert groups["nearest question"]["asked"]["exact match"] > groups["nearest question"]["never_asked"]["exact match"]
    perplexity = record["metrics"]["perplexity"]
    assert all(perplexity["after"][group] < perplexity["before"][group] / 5 for group in perplexity["before"])


def test_baselines_are_not_all_zero_and_the_tuned_model_beats_them(sft):
    record = sft.results
    reached = record["metrics"]["reached"]
    assert 0.2 < reached["open book, no model"] == record["baseline"] < record["after"] - 0.3


def test_the_form_is_learned_early_and_not_on_random_weights(sft):
    watched = sft.results["metrics"]["watched"]
    assert len(watched) >= 6, "points of the curve"
    assert all(entry["exact_match"] >= 0.3 for entry in watched), "0.00 before training, n = 24"
    control = sft.results["metrics"]["watched_control"]
    step = control[-1]["step"]
    ours = {entry["step"]: entry["exact_match"] for entry in watched}[step]
    assert ours >= control[-1]["exact_match"] + 0.4, "at equal steps"


def test_at_learning_rate_0_nothing_is_learned(run_cells):
    done = run_cells(NOTEBOOK, SHORT | {"learning_rate": 0, "eval_rows": 72})
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
        "24 of 24 matrices B",
        "by hand and by template: the same labels in all of 624 rows",
        "usual collator, pad = eos: the token that ends the answer stands 0 times",
        "TRL's collator, pad = eos: the token that ends the answer stands 1 times",
        "as TRL left the adapter: {torch.bfloat16}",
        "bf16                   TrainingArguments: False    SFTConfig: None",
        "gradient_checkpointing TrainingArguments: None     SFTConfig: True",
        "reloaded: the same",
    ):
        assert words in printed, words
    views = [o.data for cell in code for o in cell.outputs if "in the loss" in str(o.get("data", {}).get("text/html"))]
    assert "[</s>]" in views[0]["text/plain"]
    assert views[1]["text/plain"].count("[</s>]") == 2, "both answers of the dialogue"
    for name in ("lengths.png", "learning_curve.png", "adapter/adapter_model.safetensors", "merged/model.safetensors"):
        assert (sft.folder / name).stat().st_size > 1000, name
    assert not (sft.folder / "random_base").exists()


# ---- which tokens count


def in_loss(row):
    return [number for number, label in zip(row["input_ids"], row["labels"], strict=True) if label != -100]


def test_the_labels_are_those_by_hand_and_those_of_trl(lesson_04, rows, tmp_path):
    tokenizer, ours = lesson_04["tokenizer"], [lesson_04["tokenize"](row) for row in rows]
    for row, encoded in zip(rows, ours, strict=True):
        assert tokenizer.decode(in_loss(encoded)) == f" {row['messages'][-1]['content']}</s>"
        assert lesson_04["tokenize_by_hand"](row["messages"]) == encoded
    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(TINY))

    def prepared(rows, **settings):
        args = quiet(tmp_path, max_length=64, **settings)
        dataset = Dataset.from_list(rows)
        return SFTTrainer(model, args, train_dataset=dataset, processing_class=tokenizer).train_dataset["labels"][:]

    wanted = [row["labels"] for row in ours]
    chats = [{"messages": row["messages"]} for row in rows]
    assert prepared(chats, assistant_only_loss=True) == wanted
    assert prepared(chats) != wanted, "the control: TRL's default counts the questions as well"
    pairs = [{"prompt": row["messages"][:1], "completion": row["messages"][1:]} for row in rows]
    assert prepared(pairs) == wanted


def test_every_answer_of_a_dialogue_counts(lesson_04):
    encoded = lesson_04["tokenize"]({"messages": talk("a?", "b.", "c?", "d.")})
    text = lesson_04["tokenizer"].decode(encoded["input_ids"])
    assert text == "</s>Question: a?\n\nAnswer: b.</s>\n\nQuestion: c?\n\nAnswer: d.</s>"
    assert lesson_04["tokenizer"].decode(in_loss(encoded)) == " b.</s> d.</s>"
    assert encoded == lesson_04["tokenize_by_hand"](talk("a?", "b.", "c?", "d."))
    assert text.startswith(lesson_04["prompt_of"](talk("a?", "b.", "c?"))), "training and use write the same"


def test_control_tokens_in_a_question_stay_text(lesson_04):
    tokenizer = lesson_04["tokenizer"]
    row = {"messages": talk("What is </s>?<pad>", "an </s> of text.")}
    escaped = lesson_04["tokenize"](lesson_04["escape_messages"](row))
    control = [number for number in escaped["input_ids"] if number in tokenizer.all_special_ids]
    assert control == [tokenizer.bos_token_id, tokenizer.eos_token_id], "the first and the last, and no other"
    parsed = lesson_04["tokenize"](row)["input_ids"]
    assert sum(number in tokenizer.all_special_ids for number in parsed) == 5, "the control: as it was written"


def test_without_the_end_token_in_the_loss_it_does_not_stop(lesson_04, rows, tmp_path):
    encoded = [lesson_04["tokenize"](row) for row in rows]
    endless = [{**row, "labels": [*row["labels"][:-1], -100]} for row in encoded]
    prompts = [lesson_04["prompt_of"](row["messages"][:-1]) for row in rows[:64]]
    ended = {}
    for name, tokenized_rows in {"with": encoded, "without": endless}.items():
        _, stopped = lesson_04["write_on"](trained(tokenized_rows, 40, tmp_path), prompts)
        ended[name] = np.mean(stopped)
    assert ended["with"] >= 0.95, ended
    assert ended["without"] <= 0.30, ended


def test_the_guard_sees_the_loss_that_trl_computes_by_itself(lesson_04, rows, tmp_path):
    encoded = Dataset.from_list([lesson_04["tokenize"](row) for row in rows[:32]])
    model = AutoModelForCausalLM.from_pretrained(TINY, dtype=torch.float32)
    args = quiet(tmp_path, max_steps=2)
    settings = {"train_dataset": encoded, "processing_class": lesson_04["tokenizer"]}
    SFTTrainer(model, args, **settings, callbacks=[nan.StopOnNaN()]).train()  # the control: all is well
    with torch.no_grad():
        model.model.decoder.final_layer_norm.bias[0] = float("nan")
    with pytest.raises(CourseError, match="step 1, learning rate"):
        SFTTrainer(model, args, **settings, callbacks=[nan.StopOnNaN()]).train()


def test_no_prompt_of_the_few_shot_baseline_is_cut(lesson_04, rows):
    shots = [message for row in rows[:3] for message in row["messages"]]
    prompts = [lesson_04["prompt_of"]([*shots, *row["messages"][:1]]) for row in rows]
    longest = max(len(ids) for ids in lesson_04["tokenizer"](prompts)["input_ids"])
    assert 64 < longest <= lesson_04["room"]


# ---- packing


def test_documents_leak_where_attention_ignores_positions_and_nowhere_else(sft):
    record = sft.results["metrics"]
    assert record["own_leak"] > 0.05
    assert record["packing"] is False, "the probe of tiny-opt forbids it"
    for name, moved in record["leaks"].items():
        if name.split()[0] in ("opt", "falcon"):
            assert moved > 0.05, name
        else:
            assert moved < 1e-5, name
    assert len(record["leaks"]) == 13
    assert record["padding"]["sorted by length, all rows"] < 0.05


# ---- merging, and what is kept


def test_merging_into_the_dequantized_base_is_the_faithful_way(sft):
    moved = sft.results["metrics"]["merging"]
    assert moved["merged into the base that it was trained beside"] < 1e-4
    for other in ("merged into the full-precision base", "merged inside 4 bits"):
        assert moved[other] > 100 * moved["merged into the base that it was trained beside"], "the control"


def test_a_fresh_process_says_the_same_with_the_merged_model_and_with_the_adapter(sft, run_script, tmp_path):
    code = f"""
import json, torch
from datasets import load_dataset
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig
folder, base, data = {str(sft.folder)!r}, {str(TINY)!r}, {str(MANUAL)!r}
nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32)
merged = AutoModelForCausalLM.from_pretrained(folder + "/merged", dtype=torch.float32)
base = AutoModelForCausalLM.from_pretrained(base, quantization_config=nf4, dtype=torch.float32)
models = [merged, PeftModel.from_pretrained(base, folder + "/adapter")]
tokenizer = AutoTokenizer.from_pretrained(folder + "/merged")
questions = [turns[0] for turns in load_dataset(data, split="validation")["conversations"]]
prompts = [[{{"role": "user", "content": question}}] for question in questions]
batch = tokenizer.apply_chat_template(prompts, add_generation_prompt=True, padding=True, return_dict=True,
    tokenizer_kwargs={{"padding_side": "left"}}, return_tensors="pt")
batch = {{name: batch[name] for name in ("input_ids", "attention_mask")}}
said = []
for model in models:
    output = model.eval().generate(**batch, max_new_tokens=16, do_sample=False)[:, batch["input_ids"].shape[1]:]
    said.append([tokenizer.decode(ids, skip_special_tokens=True).strip() for ids in output])
json.dump(said, open("said.json", "w"))
"""
    done = run_script(code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    expected = (sft.folder / "merged_answers.txt").read_text("utf-8").split("\n")
    merged, adapter = json.loads((tmp_path / "said.json").read_text())
    assert merged == expected
    assert adapter == expected
    assert len(set(expected)) > 10, "a model that always says the same would pass"


# ---- own data, other models


def test_own_chat_with_control_tokens_and_two_answers_trains(run_cells, tmp_path):
    path = tmp_path / "chat.csv"
    things = "jacket phone lamp book helmet keyboard coat kettle tent chair mirror radio".split()
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["messages"])
        for thing in things:
            for number, question in enumerate((f"Where is the {thing}?</s>", f"Who has my {thing}?")):
                answer = "on the table. " * (40 if (thing, number) == ("tent", 0) else 1)
                chat = [("system", "Be brief.")] * number + [("user", question), ("assistant", answer)]
                chat += [("user", "Sure?"), ("assistant", "on the table.")] * number
                writer.writerow([json.dumps([{"role": role, "content": text} for role, text in chat])])
    overrides = {"dataset_id": str(path), "columns": ["messages"], "max_steps": 60, "eval_steps": 30, "manual": ""}
    done = run_cells(NOTEBOOK, overrides | {"compare_steps": 0})
    assert done.code == 0, done.text
    assert done.results["after"] >= 0.8 > done.results["before"]
    assert done.results["metric"] == "exact_match"
    assert re.search(r"'(train|test|validation)': \d+ of \d+ answers are cut in part", done.text)


def test_answers_of_a_page_are_not_judged_by_exact_match(run_cells, tmp_path):
    path = tmp_path / "essays.jsonl"
    sentences = [row["text"] for row in map(json.loads, (MANUAL / "manual.jsonl").read_text().splitlines())]
    with path.open("w") as file:
        for number in range(30):
            answer = " ".join(sentences[6 * number : 6 * number + 6])
            turns = [{"from": "human", "value": f"What is on page {number}?"}, {"from": "gpt", "value": answer}]
            file.write(json.dumps({"conversations": turns}) + "\n")
    overrides = {"dataset_id": str(path), "max_length": 128, "max_new_tokens": 32, "test_group": "", "refusal": ""}
    done = run_cells(NOTEBOOK, SHORT | overrides)
    assert done.code == 0, done.text
    assert done.results["metric"] == "token_f1"
    assert done.results["n_eval"] == done.results["metrics"]["groups"]["untuned"]["all"]["n"]
    assert "no manual, so no open book" in done.text


DECODERS = ("llama", "qwen3", "gemma3_text", "smollm3", "gpt2")


@pytest.mark.parametrize("model_type", DECODERS)
def test_another_decoder_is_one_id(run_cells, tmp_path, model_type):
    texts = random_models.texts_of(MANUAL)
    folder = random_models.decoder(model_type, tmp_path / model_type, texts)
    done = run_cells(NOTEBOOK, SHORT | {"model_id": folder, "max_steps": 2})
    assert done.code == 0, done.text
    assert done.results["metrics"]["packing"] is True, "attention keeps documents apart in these"
    matrices = re.search(r"(\d+) of (\d+) matrices B", done.text)
    assert matrices[1] == matrices[2] != "0"


def test_a_chat_template_of_the_model_itself_is_taken(run_cells, tmp_path):
    template = chat_template_utils.qwen2_5_chat_template
    tokens = ("<|im_start|>", "<|im_end|>")
    texts = random_models.texts_of(MANUAL)
    folder = random_models.decoder("mistral", tmp_path / "chat", texts, chat_template=template, chat_tokens=tokens)
    done = run_cells(NOTEBOOK, SHORT | {"model_id": folder, "max_steps": 2, "packing": False, "max_length": 128})
    assert done.code == 0, done.text
    assert "an answer ends with '<|im_end|>'" in done.text
    assert re.search(r"in the loss of a row: '[^']*<\|im_end\|>", done.text)
    assert "this tokenizer has a template of its own" in done.text


def test_a_gated_data_set_says_which_page_to_open():
    cell = next(python_of(cell) for cell in cells_of(read(NOTEBOOK)) if "data.conversations.load(" in python_of(cell))
    asked = []

    def refuse(path, **options):
        asked.append((path, sorted(options["data_files"])))
        raise DatasetNotFoundError("gated")

    run = type("run", (), {"dataset_id": "GAIR/lima", "columns": ["conversations"]})
    with pytest.raises(CourseError, match=r"open https://huggingface.co/datasets/GAIR/lima, accept its terms"):
        exec(cell, {"run": run, "load_dataset": refuse, "data": data, "SEED": 0})
    assert asked == [("json", ["test", "train"])], "the files, not the loading script"


# ---- the recipe and the solutions


def recipe(run_script, folder, *options):
    """The printed scores of the recipe, {group: exact match}."""
    done = run_script(ROOT / "recipes" / "04_sft_lora.py", "--output", folder, *options, cwd=folder)
    assert done.returncode == 0, done.stderr
    return {group: float(score) for group, score in re.findall(r"exact match, (\w+): ([\d.]+)", done.stdout)}


def test_the_recipe_reaches_the_score_of_the_lesson(sft, run_script, tmp_path):
    """Within 0.08: the batches come in another order, which moves the score by up to 0.05 here (n = 144)."""
    scores = recipe(run_script, tmp_path)
    assert scores["never_asked"] >= sft.results["after"] - 0.08
    for name in ("adapter/adapter_model.safetensors", "merged/model.safetensors"):
        assert (tmp_path / name).stat().st_size > 1000


def test_the_recipe_merges_gpt2_the_right_way_round(run_script, tmp_path, rows):
    """GPT-2 keeps its weights turned: a square one that was saved the wrong way round would load without an error."""
    texts = [message["content"] for row in rows for message in row["messages"]]
    folder = random_models.decoder("gpt2", tmp_path / "gpt2", texts)
    (tmp_path / "out").mkdir()
    recipe(run_script, tmp_path / "out", "--model", folder, "--epochs", "0.05")
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
    )
    base = AutoModelForCausalLM.from_pretrained(folder, quantization_config=nf4, dtype=torch.float32)
    tuned = PeftModel.from_pretrained(base, tmp_path / "out" / "adapter").eval()
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32).eval()
    turned = AutoModelForCausalLM.from_pretrained(tmp_path / "out" / "merged", dtype=torch.float32).eval()
    for block in turned.transformer.h:
        block.attn.c_proj.weight.data = block.attn.c_proj.weight.data.T.contiguous()
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        expected = tuned(input_ids=ids).logits
        torch.testing.assert_close(merged(input_ids=ids).logits, expected, atol=1e-4, rtol=0)
        assert (turned(input_ids=ids).logits - expected).abs().max() > 1e-3, "the control: turned, they are others"


def test_the_recipe_without_learning_stays_at_nothing(run_script, tmp_path):
    scores = recipe(run_script, tmp_path, "--learning_rate", "0", "--epochs", "0.05")
    assert scores["never_asked"] <= 0.05


def test_solutions_run(run_cells):
    done = run_cells(ROOT / "notebooks" / "solutions" / f"{NAME}.ipynb", {"max_steps": 40})
    assert done.code == 0, done.text


def test_exact_match_counts_a_wrong_value_as_wrong():
    assert metrics.exact_match("Fuse 12", "fuse 12.") == 1
    assert metrics.exact_match("fuse 11.", "fuse 12.") == 0
