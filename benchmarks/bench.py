"""A lesson's training against the published recipe: same card, same rows, random weights of the real shape.

make bench NB=05    the arms of one lesson, into benchmarks/receipts/bench, and the table of README
make bench-table    the table alone, from the receipts

Each arm has a process of its own. `course` is the notebook, profile full, up to its training; `reference` is the
published recipe, with the changes of CHANGED and no others, so that it runs on today's libraries. Speed and memory are
real; what the models say is not. Results: a JSON file for each arm, in place of an older one.
"""

import argparse
import csv
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

sys.path[:0] = [str(Path(__file__).resolve().parents[1]), str(Path(__file__).resolve().parent)]
import rehearse  # noqa: E402

from utils import results  # noqa: E402

LATER = "evaluation and checkpoints left out, reports to nobody, renamed arguments of transformers renamed"
CHANGED = {
    "01": [LATER, "texts tokenized here (the published set came tokenized), padded to 512 as it was"],
    "02": [
        LATER,
        "texts tokenized here (the published set came tokenized), padded to 512 as it was",
        "llm_int8_skip_modules=['classifier']: today's libraries would quantize the head",
        "dtype=float32 written out: what transformers loaded then",
    ],
    "03": [
        LATER,
        "dtype=float16 written out: what transformers took for 4-bit models then",
        "texts cut at 1,024 and 128",
    ],
    "04": [
        LATER,
        "rows joined to blocks of 1,024 tokens here: ConstantLengthDataset is gone from TRL",
        "get_peft_model and Trainer, which SFTTrainer called",
        "attention as transformers chooses it today (sdpa); then it was eager",
    ],
    "05": [
        LATER,
        "quantized when loaded, as the published checkpoint was: NF4, double quantization, bfloat16",
        "attn_implementation='eager' written out: what transformers took for Gemma-2 then",
        "texts from json.loads instead of eval, the turns of a talk joined by a space",
        "no <eos> behind a text; the pad token is named in the configuration, which today's classifier needs",
    ],
}
RECEIPTS = rehearse.ROOT / "benchmarks" / "receipts" / "bench"
COMMON = dict(report_to="none", save_strategy="no", logging_steps=10)
NF4 = dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)


def padded_to_512(model_id, rows):
    """Rows of the driver intents as the published set had them, and the collator that Trainer took by itself."""
    from transformers import AutoTokenizer, default_data_collator

    tokenizer = AutoTokenizer.from_pretrained(model_id)
    names = sorted({row["label"] for row in rows})
    encoded = tokenizer([row["text"] for row in rows], padding="max_length", truncation=True, max_length=512)
    keys = ("input_ids", "attention_mask", "token_type_ids")
    found = [
        {key: encoded[key][i] for key in keys} | {"labels": names.index(row["label"])} for i, row in enumerate(rows)
    ]
    return found, default_data_collator


def reference_01(rows, folder):
    from transformers import BertForSequenceClassification, TrainingArguments

    model_id = "google-bert/bert-base-uncased"
    model = BertForSequenceClassification.from_pretrained(model_id, num_labels=5)
    args = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=8, learning_rate=3e-5, optim="adamw_torch", **COMMON
    )
    return model, args, *padded_to_512(model_id, rows)


def reference_02(rows, folder):
    import torch
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, TrainingArguments

    model_id = "google-bert/bert-large-uncased"
    nf4 = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["classifier"])
    model = AutoModelForSequenceClassification.from_pretrained(
        model_id, num_labels=5, quantization_config=nf4, device_map={"": 0}, dtype=torch.float32
    )
    model.gradient_checkpointing_enable()
    model = prepare_model_for_kbit_training(model)
    lora = LoraConfig(task_type=TaskType.SEQ_CLS, inference_mode=False, r=12, lora_alpha=32, lora_dropout=0.1)
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,
        learning_rate=5e-4,
        optim="paged_adamw_8bit",
        **COMMON,
    )
    return get_peft_model(model, lora), args, *padded_to_512(model_id, rows)


def reference_03(rows, folder):
    import torch
    from peft import LoraConfig
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainingArguments,
    )

    model_id = "google-t5/t5-3b"
    nf4 = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.float16)
    model = AutoModelForSeq2SeqLM.from_pretrained(
        model_id, quantization_config=nf4, device_map={"": 0}, dtype=torch.float16
    )
    lora = dict(lora_alpha=16, lora_dropout=0.05, r=32, bias="none", target_modules=["v", "o"])
    model.add_adapter(LoraConfig(task_type="SEQ_2_SEQ_LM", modules_to_save=["lm_head"], **lora), "adapter_4")
    model.set_adapter("adapter_4")
    for name, parameter in model.named_parameters():  # as PEFT made them then
        parameter.data = parameter.data.float() if "lora_" in name else parameter.data
    args = Seq2SeqTrainingArguments(
        output_dir=folder,
        optim="paged_adamw_8bit",
        per_device_train_batch_size=4,
        weight_decay=0.01,
        learning_rate=2e-5,
        **COMMON,
    )
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    texts = tokenizer(["summarize: " + row["text"] for row in rows], max_length=1024, truncation=True)["input_ids"]
    labels = tokenizer(text_target=[row["summary"] for row in rows], max_length=128, truncation=True)["input_ids"]
    found = [{"input_ids": ids, "labels": answer} for ids, answer in zip(texts, labels, strict=True)]
    return model, args, found, DataCollatorForSeq2Seq(tokenizer=tokenizer, model=model)


def reference_04(rows, folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, TrainingArguments, default_data_collator

    model_id = "facebook/opt-1.3b"
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.bfloat16)
    for parameter in model.parameters():
        parameter.requires_grad = False
        parameter.data = parameter.data.float() if parameter.ndim == 1 else parameter.data
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()

    class CastOutputToFloat(torch.nn.Sequential):
        def forward(self, x):
            return super().forward(x).to(torch.float32)

    model.lm_head = CastOutputToFloat(model.lm_head)
    lora = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    args = TrainingArguments(
        output_dir=folder,
        dataloader_drop_last=True,
        per_device_train_batch_size=8,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        bf16=True,
        weight_decay=0.05,
        **COMMON,
    )
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    texts = [f"Question: {row['conversations'][0]}\n\nAnswer: {row['conversations'][1]}" for row in rows]
    ids = [[*some, tokenizer.eos_token_id] for some in tokenizer(texts)["input_ids"]]
    stream = list(itertools.chain(*ids))
    blocks = [stream[at : at + 1024] for at in range(0, len(stream) - 1023, 1024)]
    found = [{"input_ids": block, "labels": block, "attention_mask": [1] * 1024} for block in blocks]
    return get_peft_model(model, lora), args, found, default_data_collator


def reference_05(rows, folder):
    import torch
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorWithPadding,
        Gemma2ForSequenceClassification,
        TrainingArguments,
    )

    model_id = "google/gemma-2-9b-it"
    tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="right")
    model = Gemma2ForSequenceClassification.from_pretrained(
        model_id,
        num_labels=3,
        dtype=torch.float16,
        device_map="auto",
        attn_implementation="eager",
        quantization_config=BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.bfloat16),
    )
    model.config.use_cache, model.config.pad_token_id = False, tokenizer.pad_token_id
    model = prepare_model_for_kbit_training(model)
    targets = ["k_proj", "o_proj", "q_proj", "v_proj", "gate_proj"]
    lora = LoraConfig(r=64, lora_alpha=32, target_modules=targets, lora_dropout=0.05, task_type=TaskType.SEQ_CLS)
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=16,
        optim="adamw_8bit",
        fp16=True,
        learning_rate=1.7e-4,
        warmup_steps=20,
        **COMMON,
    )
    names = {"<prompt>: ": "prompt", "\n\n<response_a>: ": "response_a", "\n\n<response_b>: ": "response_b"}
    texts = ["".join(start + " ".join(json.loads(row[name])) for start, name in names.items()) for row in rows]
    encoded = tokenizer(texts, max_length=1024, truncation=True)["input_ids"]
    labels = [[int(row[name]) for name in rehearse.WINNERS].index(1) for row in rows]
    found = [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, labels, strict=True)]
    return get_peft_model(model, lora), args, found, DataCollatorWithPadding(tokenizer)


# the published recipe; steps that are timed after the first: of the reference, of the course
RECIPES = {
    "01": (reference_01, 60, 200),
    "02": (reference_02, 8, 60),
    "03": (reference_03, 20, 30),
    "04": (reference_04, 25, 40),
    "05": (reference_05, 4, 16),
}
FIRST = 3  # steps of warm-up that no rate counts


def rates(ends, counts, undisturbed):
    """Steady and overall rates from the time of each step's end (the first time is the training's begin), [rows, real
    tokens, padded tokens] of each step, and whether nothing but the step lies in its time.

    A step that takes more than three times as long a token as most compiled kernels: it counts overall only.
    """
    times = [after - before for before, after in itertools.pairwise(ends)]
    clean = [step for step in range(len(times)) if step >= FIRST and undisturbed[step]]
    median = statistics.median(times[step] / counts[step][2] for step in clean)
    steady = [step for step in clean if times[step] / counts[step][2] <= 3 * median]
    seconds = sum(times[step] for step in steady)
    rows, real, padded = (sum(column) for column in zip(*(counts[step] for step in steady), strict=True))
    found = {"steps": len(times), "steady_steps": len(steady), "step_seconds": seconds / len(steady)}
    found |= {"rows_per_second": rows / seconds, "real_tokens_per_second": real / seconds}
    found |= {"padding": 1 - real / padded, "tokens_a_row": real / rows, "first_steps_seconds": sum(times[:FIRST])}
    slow = [times[step] for step in clean if step not in steady]
    return found | {"slow_steps": len(slow), "slow_seconds": sum(slow), "all_seconds": ends[-1] - ends[0]}


def read_table(path):
    """The rows of a .csv or .jsonl file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def run_reference(number, rows, folder):
    """Trains by the published recipe; its rates, peak bytes of the steps, and mean loss."""
    import torch
    from transformers import Trainer, TrainerCallback

    recipe, steps, _ = RECIPES[number]
    model, args, encoded, collator = recipe(rows, folder)
    args.max_steps, batches = steps + FIRST, []

    def collate(batch):
        made = collator(batch)
        mask = made["attention_mask"]
        batches.append((len(batch), int(mask.sum()), mask.numel()))
        return made

    class Clock(TrainerCallback):
        marks = []  # the GPU notes the time when it comes to them; nobody waits for it

        def on_step_end(self, args, state, control, **kwargs):
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
            if len(self.marks) == FIRST:
                torch.cuda.reset_peak_memory_stats()

        on_train_begin = on_step_end

    loss = Trainer(model, args, collate, train_dataset=encoded, callbacks=[Clock]).train().training_loss
    each, steps = args.gradient_accumulation_steps, range(args.max_steps)
    counts = [[sum(column) for column in zip(*batches[i * each : (i + 1) * each], strict=True)] for i in steps]
    torch.cuda.synchronize()
    ends = [Clock.marks[0].elapsed_time(mark) / 1000 for mark in Clock.marks]
    found = rates(ends, counts, [True] * len(counts))
    found |= {"peak_allocated_bytes": torch.cuda.max_memory_allocated(), "mean_loss": loss}
    return found | {"trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def run_course(args, folder, ready):
    """Runs the lesson up to its training; rates and peak bytes of that cell, by the probe of a rehearsal."""
    path = rehearse.lesson_of(args.nb)
    lesson = json.loads(path.read_text("utf-8"))
    last = next(i for i, cell in enumerate(lesson["cells"]) if "trainer.train(" in "".join(cell["source"]))
    short = folder / path.name
    short.write_text(json.dumps(lesson | {"cells": lesson["cells"][: last + 1]}), encoding="utf-8")
    command = [sys.executable, "-m", "utils.runner", "--nb", str(short), "--profile", "full"]
    late = {name: args.steps for name in ("eval_steps", "logging_steps") if name in ready["cut"]}  # nothing in between
    command += ["--overrides", json.dumps(ready["cut"] | late | args.overrides), "--out", str(folder / "out")]
    subprocess.run(command, cwd=rehearse.ROOT)  # its verdict is that no results were written: they come later
    record = json.loads((folder / "record.json").read_text("utf-8"))
    (folder / "record.json").unlink()
    shutil.rmtree(folder / "out", ignore_errors=True)
    if not record["trainings"] or record["trainings"][0]["end"] is None:
        raise SystemExit(f"lesson {args.nb} did not get through its training; its output stands above.")
    training = record["trainings"][0]
    counts = [
        [b - a for a, b in zip(*pair, strict=True)] for pair in itertools.pairwise([[0, 0, 0], *training["counts"]])
    ]
    found = rates(training["ends"], counts, training["undisturbed"])
    found |= {"peak_allocated_bytes": record["training_peak"], "planned_bytes": record["planned"]["total"]}
    found |= {"reserved_bytes": record["cells"][-1].get("reserved"), "held_bytes": training["held"]}
    return found | {"overrides": args.overrides, "mean_loss": training["loss"]}


def table(records):
    """README's table of all arms, from their records, and how many times faster the course is."""
    head = "| lesson | recipe | rows/s | real tokens/s | s a step | first steps, s | planned GiB | measured GiB |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for r in sorted(records, key=lambda r: (r["lesson"], r["arm"] == "course")):
        planned = r.get("planned_bytes")
        cells = [r["lesson"], r["arm"], f"{r['rows_per_second']:.1f}", f"{r['real_tokens_per_second']:,.0f}"]
        cells += [f"{r['step_seconds']:.2f}", f"{r['first_steps_seconds']:.0f}"]
        cells += [f"{planned / 2**30:.1f}" if planned else "", f"{r['peak_allocated_bytes'] / 2**30:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    arms, found = {(r["lesson"], r["arm"]): r for r in records}, []
    for lesson in sorted({r["lesson"] for r in records}):
        pair = [arms.get((lesson, arm)) for arm in ("course", "reference")]
        if all(pair):
            ratio = pair[0]["real_tokens_per_second"] / pair[1]["real_tokens_per_second"]
            found.append(f"lesson {lesson}: {ratio:.1f} times the reference's real tokens/s")
    cards = ", ".join(sorted({r["device"] for r in records}))
    return "\n".join([*lines, "", "; ".join(found) + f". Card: {cards}."])


def write_table():
    """Puts the table of the receipts between its marks in README."""
    records = [json.loads(path.read_text("utf-8")) for path in sorted(RECEIPTS.glob("*.json"))]
    results.put_into_readme("bench", table(records))


def in_child(args, folder):
    """What runs in a process of its own: the preparation, or the reference."""
    if args.child == "prepare":
        found = rehearse.prepare(args, folder)
        (folder / "ready.json").write_text(json.dumps(found, default=str), encoding="utf-8")
        return
    ready = json.loads((folder / "ready.json").read_text("utf-8"))
    place = Path(ready["cut"].get("dataset_id", ready["run"]["dataset_id"]))
    found = run_reference(args.nb, read_table(next(place.glob("train.*"))), folder / "reference")
    (folder / "reference.json").write_text(json.dumps(found), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default="05", choices=[*RECIPES])
    parser.add_argument("--arms", default="reference,course", help="in this order")
    parser.add_argument("--steps", type=int, help="steps of the course's arm")
    parser.add_argument("--overrides", type=rehearse.json_object, default={}, help="for the course's arm")
    parser.add_argument("--name", default="", help="how the course's arm is called with these overrides")
    parser.add_argument("--keep", type=Path, default=RECEIPTS, help="folder of the results")
    parser.add_argument("--table", action="store_true", help="only write README's table from the receipts")
    parser.add_argument("--cpu", action="store_true", help="run the course's arm without a GPU")
    parser.add_argument("--sizes", type=Path, default=rehearse.MODELS / "full_size.json", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.steps = args.steps or RECIPES[args.nb][2] + FIRST + 1
    args.profile, args.gpu_memory, args.anyway = "full", 0, True
    if args.child:
        return in_child(args, args.folder)
    if args.table:
        return write_table()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        rehearse.enter(folder, 0)
        again = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder), "--child"]
        subprocess.run([*again, "prepare"], check=True)
        ready = json.loads((folder / "ready.json").read_text("utf-8"))
        if ready["run"] is None:
            return
        from utils import environment

        facts = environment.facts()
        args.keep.mkdir(parents=True, exist_ok=True)
        for arm in args.arms.split(","):
            if arm == "reference":
                subprocess.run([*again, "reference"], check=True)
                found = json.loads((folder / "reference.json").read_text("utf-8")) | {"changed": CHANGED[args.nb]}
            else:
                found = run_course(args, folder, ready)
            name = args.name if args.name and arm == "course" else arm
            found = {"arm": name, "lesson": args.nb} | found | facts
            (args.keep / f"{args.nb}_{name.replace(' ', '_')}.json").write_text(
                json.dumps(found, indent=2) + "\n", "utf-8"
            )
            print(SimpleNamespace(**found), flush=True)
        if args.keep == RECEIPTS:
            write_table()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
