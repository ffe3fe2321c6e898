"""A lesson's training against the published recipe: same card, same rows, random weights of the real shape.

make bench NB=05    the arms of one lesson, into benchmarks/receipts/bench, and the tables of docs
make bench-table    the tables alone, from the receipts

Each arm has a process of its own. `course` is the notebook, profile full, up to its training; `reference` is the
published recipe, with the changes of CHANGED and no others, so that it runs on today's libraries; `peer` is what one
would otherwise write today (PEERS); those of LEVERS are the course without one thing that makes it fast. Speed and
memory are real; what the models say is not. Results: a JSON file for each arm, in place of an older one. An arm that is
named more than once runs as often, and its medians count; with --add, so do the runs of earlier calls.
"""

import argparse
import csv
import functools
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

from tools import rehearse
from utils import results
from utils.planner import settings as planner_settings

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
    from transformers import BertForSequenceClassification, Trainer, TrainingArguments

    model_id = "google-bert/bert-base-uncased"
    model = BertForSequenceClassification.from_pretrained(model_id, num_labels=5)
    args = TrainingArguments(
        output_dir=folder, per_device_train_batch_size=8, learning_rate=3e-5, optim="adamw_torch", **COMMON
    )
    found, collator = padded_to_512(model_id, rows)
    return Trainer(model, args, collator, train_dataset=found)


def reference_02(rows, folder):
    import torch
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
    from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig, Trainer, TrainingArguments

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
    found, collator = padded_to_512(model_id, rows)
    return Trainer(get_peft_model(model, lora), args, collator, train_dataset=found)


def encoded_bills(tokenizer, rows):
    texts = tokenizer(["summarize: " + row["text"] for row in rows], max_length=1024, truncation=True)["input_ids"]
    labels = tokenizer(text_target=[row["summary"] for row in rows], max_length=128, truncation=True)["input_ids"]
    return [{"input_ids": ids, "labels": answer} for ids, answer in zip(texts, labels, strict=True)]


def reference_03(rows, folder):
    import torch
    from peft import LoraConfig
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
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
    collator = DataCollatorForSeq2Seq(tokenizer=tokenizer, model=model)
    return Seq2SeqTrainer(model, args, collator, train_dataset=encoded_bills(tokenizer, rows))


def talks(rows):
    return [f"Question: {row['conversations'][0]}\n\nAnswer: {row['conversations'][1]}" for row in rows]


def reference_04(rows, folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

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
    ids = [[*some, tokenizer.eos_token_id] for some in tokenizer(talks(rows))["input_ids"]]
    stream = list(itertools.chain(*ids))
    blocks = [stream[at : at + 1024] for at in range(0, len(stream) - 1023, 1024)]
    found = [{"input_ids": block, "labels": block, "attention_mask": [1] * 1024} for block in blocks]
    return Trainer(get_peft_model(model, lora), args, default_data_collator, train_dataset=found)


def encoded_comparisons(tokenizer, rows):
    names = {"<prompt>: ": "prompt", "\n\n<response_a>: ": "response_a", "\n\n<response_b>: ": "response_b"}
    texts = ["".join(start + " ".join(json.loads(row[name])) for start, name in names.items()) for row in rows]
    encoded = tokenizer(texts, max_length=1024, truncation=True)["input_ids"]
    labels = [[int(row[name]) for name in rehearse.WINNERS].index(1) for row in rows]
    return [{"input_ids": ids, "labels": label} for ids, label in zip(encoded, labels, strict=True)]


def reference_05(rows, folder):
    import torch
    from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
    from transformers import (
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorWithPadding,
        Gemma2ForSequenceClassification,
        Trainer,
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
    collator = DataCollatorWithPadding(tokenizer)
    return Trainer(get_peft_model(model, lora), args, collator, train_dataset=encoded_comparisons(tokenizer, rows))


def compiled_bert(model, rows, folder, model_id, **changes):
    """A Trainer for 64 short rows a step, all padded to one length, so that there is one compilation."""
    from transformers import AutoTokenizer, DataCollatorWithPadding, Trainer, TrainingArguments

    tokenizer, names = AutoTokenizer.from_pretrained(model_id), sorted({row["label"] for row in rows})
    encoded = tokenizer([row["text"] for row in rows], truncation=True)["input_ids"]
    pairs = zip(encoded, rows, strict=True)
    found = [{"input_ids": ids, "labels": names.index(row["label"])} for ids, row in pairs]
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=32)
    speed = dict(bf16=True, optim="adamw_torch_fused", torch_compile=True, per_device_train_batch_size=64)
    args = TrainingArguments(output_dir=folder, dataloader_drop_last=True, **speed, **changes, **COMMON)
    return Trainer(model, args, collator, train_dataset=found)


def peer_01(rows, folder):
    from transformers import BertForSequenceClassification

    model_id = "google-bert/bert-base-uncased"
    model = BertForSequenceClassification.from_pretrained(model_id, num_labels=5)
    return compiled_bert(model, rows, folder, model_id, learning_rate=8.5e-5)


def peer_02(rows, folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForSequenceClassification

    model_id = "google-bert/bert-large-uncased"
    model = AutoModelForSequenceClassification.from_pretrained(model_id, num_labels=5, dtype=torch.bfloat16)
    lora = LoraConfig(task_type="SEQ_CLS", r=12, lora_alpha=32, lora_dropout=0.1)
    return compiled_bert(get_peft_model(model, lora), rows, folder, model_id, learning_rate=5e-4)


def peer_03(rows, folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSeq2SeqLM,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorForSeq2Seq,
        Seq2SeqTrainer,
        Seq2SeqTrainingArguments,
    )

    model_id = "google-t5/t5-3b"
    nf4 = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.bfloat16)
    model = AutoModelForSeq2SeqLM.from_pretrained(
        model_id, quantization_config=nf4, device_map={"": 0}, dtype=torch.bfloat16
    )
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=32, target_modules=["v", "o"])
    speed = dict(bf16=True, optim="paged_adamw_8bit", per_device_train_batch_size=8)
    args = Seq2SeqTrainingArguments(output_dir=folder, learning_rate=2e-4, **speed, **COMMON)
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    collator = DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8)
    return Seq2SeqTrainer(get_peft_model(model, lora), args, collator, train_dataset=encoded_bills(tokenizer, rows))


def peer_04(rows, folder):
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    model_id = "facebook/opt-1.3b"
    model = AutoModelForCausalLM.from_pretrained(model_id, dtype=torch.bfloat16, device_map={"": 0})
    packs = dict(packing=True, packing_strategy="wrapped", max_length=1024)  # "bfd" makes one row: 8,192 positions
    speed = dict(bf16=True, gradient_checkpointing=False, per_device_train_batch_size=8)
    return SFTTrainer(
        model=model,
        args=SFTConfig(output_dir=folder, learning_rate=1e-4, **packs, **speed, **COMMON),
        train_dataset=Dataset.from_dict({"text": talks(rows)}),
        processing_class=AutoTokenizer.from_pretrained(model_id),
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM"),
    )


def peer_05(rows, folder):
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        BitsAndBytesConfig,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    model_id = "google/gemma-2-9b-it"
    tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="right")
    nf4 = BitsAndBytesConfig(**NF4, bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=["score"])
    loading = dict(num_labels=3, dtype=torch.bfloat16, device_map={"": 0}, quantization_config=nf4)
    model = AutoModelForSequenceClassification.from_pretrained(
        model_id, attn_implementation="flex_attention", **loading
    )
    model.config.use_cache, model.config.pad_token_id = False, tokenizer.pad_token_id
    targets = ["k_proj", "o_proj", "q_proj", "v_proj", "gate_proj"]
    lora = LoraConfig(task_type="SEQ_CLS", r=64, lora_alpha=32, target_modules=targets)
    speed = dict(bf16=True, use_liger_kernel=True, train_sampling_strategy="group_by_length", optim="adamw_8bit")
    speed |= dict(
        liger_kernel_config={"fused_linear_cross_entropy": False}
    )  # else it replaces the classifier's forward
    speed |= dict(per_device_train_batch_size=8, gradient_accumulation_steps=4)
    args = TrainingArguments(output_dir=folder, learning_rate=1.7e-4, **speed, **COMMON)
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=128)
    return Trainer(get_peft_model(model, lora), args, collator, train_dataset=encoded_comparisons(tokenizer, rows))


def unsloth_05(rows, folder, attention=None):
    import torch
    import unsloth  # noqa: I001 (before transformers, which it patches)
    from huggingface_hub import snapshot_download
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
    )

    model_id = "google/gemma-2-9b-it"
    tokenizer = AutoTokenizer.from_pretrained(model_id, padding_side="right")
    kind = dict(auto_model=AutoModelForSequenceClassification, num_labels=3, load_in_4bit=True, dtype=torch.bfloat16)
    kind |= {"attn_implementation": attention} if attention else {}
    path = snapshot_download(model_id, local_files_only=True)  # by its name, it would ask for a copy in 4 bits
    model, _ = unsloth.FastModel.from_pretrained(path, max_seq_length=1024, use_gradient_checkpointing=False, **kind)
    targets = ["k_proj", "o_proj", "q_proj", "v_proj", "gate_proj"]
    lora = dict(r=64, lora_alpha=32, lora_dropout=0, bias="none", target_modules=targets, task_type="SEQ_CLS")
    model = unsloth.FastModel.get_peft_model(model, use_gradient_checkpointing=False, **lora)
    print("attention:", model.config._attn_implementation, "cap:", model.config.attn_logit_softcapping, flush=True)
    model.config.use_cache, model.config.pad_token_id = False, tokenizer.pad_token_id
    speed = dict(bf16=True, train_sampling_strategy="group_by_length", optim="adamw_8bit")
    speed |= dict(per_device_train_batch_size=8, gradient_accumulation_steps=4)
    args = TrainingArguments(output_dir=folder, learning_rate=1.7e-4, **speed, **COMMON)
    collator = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
    return Trainer(model, args, collator, train_dataset=encoded_comparisons(tokenizer, rows))


# the published recipe; steps that are timed after the first: of the reference, of the course
RECIPES = {
    "01": (reference_01, 60, 200),
    "02": (reference_02, 8, 60),
    "03": (reference_03, 20, 30),
    "04": (reference_04, 25, 40),
    "05": (reference_05, 4, 12),
}
# what one would otherwise write; steps; in words
PEERS = {
    "01": (peer_01, 100, "Trainer, bfloat16 autocast, fused AdamW, torch_compile, 64 rows padded to 32"),
    "02": (peer_02, 40, "LoRA on a bfloat16 base (not quantized), torch_compile, 64 rows padded to 32"),
    "03": (peer_03, 20, "NF4, bfloat16 (wo too, not quantized), sdpa, 8 rows, no checkpointing"),
    "04": (peer_04, 25, "TRL's packing ('wrapped': documents leak), bfloat16, 8 rows, no checkpointing"),
    "05": (peer_05, 12, "NF4, bfloat16, Liger's kernels, flex attention, 8 rows x 4, no checkpointing, by length"),
}
# the same with Unsloth, which needs older releases of some packages: --unsloth names a folder that has them
UNSLOTH = {"05": (unsloth_05, 12, "Unsloth, NF4, bfloat16, 8 rows x 4, no checkpointing, by length")}
CAPPED = {
    "05": (functools.partial(unsloth_05, attention="flex_attention"), 12, "Unsloth, the same with flex_attention")
}
OTHERS = {"peer": PEERS, "unsloth": UNSLOTH, "unsloth with the cap": CAPPED}
LEVERS = {  # arms, too: the course's with these overrides
    "01": {"without TF32": {"matmul": "highest"}, "batches of 8": {"per_device_train_batch_size": 8}},
    "02": {
        "without CUDA graphs": {"cuda_graphs": False},
        "8-bit paged optimizer": {"optim": "paged_adamw_8bit"},
        "LoRA on all layers": {"target_modules": []},
        "checkpointing without graphs": {"activation_checkpointing": True, "cuda_graphs": False},  # not with them
    },
    "03": {
        "without CUDA graphs": {"cuda_graphs": False},
        "8-bit paged optimizer": {"optim": "paged_adamw_8bit"},
        "batches of 4": {"per_device_train_batch_size": 4},
        "a bias for each layer": {"attention": "sdpa"},
    },
}
FIRST = dict.fromkeys(RECIPES, 3) | {"05": 12}  # steps of warm-up that no rate counts
# Rows grouped by length come from long to short within a group. So few rows make groups of 12 steps (of 32 rows, both
# orders of each comparison; the whole set makes groups of 50), and the steps that count are a whole group.
COURSE = {"05": {"train_rows": 768}}
BEFORE = {"max_new_tokens": 8, "unquantized_rows": 0}  # what untuned models write before the training, cut short


def rates(ends, counts, undisturbed, first):
    """Steady and overall rates from the time of each step's end (the first time is the training's begin), [rows, real
    tokens, padded tokens] of each step, whether nothing but the step lies in its time, and the steps of warm-up.

    A step that takes more than three times as long a token as most compiled kernels: it counts overall only.
    """
    times = [after - before for before, after in itertools.pairwise(ends)]
    clean = [step for step in range(len(times)) if step >= first and undisturbed[step]]
    median = statistics.median(times[step] / counts[step][2] for step in clean)
    steady = [step for step in clean if times[step] / counts[step][2] <= 3 * median]
    seconds = sum(times[step] for step in steady)
    rows, real, padded = (sum(column) for column in zip(*(counts[step] for step in steady), strict=True))
    found = {"steps": len(times), "steady_steps": len(steady), "step_seconds": seconds / len(steady)}
    found |= {"rows_per_second": rows / seconds, "real_tokens_per_second": real / seconds}
    found |= {"padding": 1 - real / padded, "tokens_a_row": real / rows, "first_steps_seconds": sum(times[:first])}
    slow = [times[step] for step in clean if step not in steady]
    return found | {"slow_steps": len(slow), "slow_seconds": sum(slow), "all_seconds": ends[-1] - ends[0]}


RATES = ("rows_per_second", "real_tokens_per_second", "step_seconds", "first_steps_seconds")


def median(record, runs):
    """One record for the runs of an arm: that of the last, with the medians of rates and times, and those of each."""
    return record | {name: statistics.median(run[name] for run in runs) for name in RATES} | {"runs": runs}


def read_table(path):
    """The rows of a .csv or .jsonl file."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file)) if path.suffix == ".csv" else [json.loads(line) for line in file]


def run_recipe(recipe, steps, first, rows, folder):
    """Trains by a recipe that returns a Trainer; its rates, peak bytes of what follows the `first` steps, mean loss."""
    trainer = recipe(rows, folder)  # before these imports: Unsloth wants to be the first
    import torch
    from transformers import TrainerCallback

    model, args, collator, batches = trainer.model, trainer.args, trainer.data_collator, []
    args.max_steps = steps + first

    def collate(batch):
        made = collator(batch)
        mask = made.get("attention_mask", torch.ones_like(made["input_ids"]))  # TRL's packs have none
        batches.append((len(batch), int(mask.sum()), mask.numel()))
        return made

    class Clock(TrainerCallback):
        marks = []  # the GPU notes the time when it comes to them; nobody waits for it

        def on_step_end(self, args, state, control, **kwargs):
            self.marks.append(torch.cuda.Event(enable_timing=True))
            self.marks[-1].record()
            if len(self.marks) == first:
                torch.cuda.reset_peak_memory_stats()

        on_train_begin = on_step_end

    trainer.data_collator = collate
    trainer.add_callback(Clock)
    loss = trainer.train().training_loss
    each, steps = args.gradient_accumulation_steps, range(args.max_steps)
    counts = [[sum(column) for column in zip(*batches[i * each : (i + 1) * each], strict=True)] for i in steps]
    torch.cuda.synchronize()
    ends = [Clock.marks[0].elapsed_time(mark) / 1000 for mark in Clock.marks]
    found = rates(ends, counts, [True] * len(counts), first)
    found |= {"peak_allocated_bytes": torch.cuda.max_memory_allocated(), "mean_loss": loss}
    found |= {"attention": getattr(model.config, "_attn_implementation", None)}
    return found | {"trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad)}


def run_course(args, folder, ready, changes):
    """Runs the lesson with overrides up to its training; rates and peak bytes of that cell, by a rehearsal's probe."""
    path = rehearse.lesson_of(args.nb)
    lesson = json.loads(path.read_text("utf-8"))
    last = next(i for i, cell in enumerate(lesson["cells"]) if "trainer.train(" in "".join(cell["source"]))
    short = folder / path.name
    short.write_text(json.dumps(lesson | {"cells": lesson["cells"][: last + 1]}), encoding="utf-8")
    command = [sys.executable, "-m", "tools.run_notebooks", "--nb", str(short), "--profile", "full"]
    late = {name: args.steps for name in ("eval_steps", "logging_steps") if name in ready["cut"]}  # nothing in between
    late |= {name: value for name, value in BEFORE.items() if name in ready["run"]}
    changes = COURSE.get(args.nb, {}) | changes
    overrides = ready["cut"] | late | changes
    command += ["--overrides", json.dumps(overrides), "--out", str(folder / "out")]
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
    found = rates(training["ends"], counts, training["undisturbed"], FIRST[args.nb])
    found |= {"peak_allocated_bytes": record["training_peak"], "planned_bytes": record["planned"]["total"]}
    found |= {"reserved_bytes": record["cells"][-1].get("reserved"), "held_bytes": training["held"]}
    return found | {"overrides": changes, "mean_loss": training["loss"]}


ARMS = {"reference": "the reference's", "peer": "the peer's", "unsloth": "Unsloth's"}
ARMS |= {"unsloth with the cap": "Unsloth's with the cap", "course": "the course's"}
# Operations a real token, without which no method does the same: 2 N for a forward pass and 2 N for its way back, with
# N multiplied weights (04 and 05: also attention, all rows of 1,024 tokens), 2 N more where N learns. 03: of 1,024
# tokens of a text with 128 of its summary. At 790 TFLOP/s, which such cards reach with large bfloat16 matrices.
OPERATIONS = {"01": 0.517e9, "02": 1.233e9, "03": 7.44e12 / 1024, "04": 5.44e9, "05": 34.0e9}
CARD = 790e12
SIZES = (4, 6, 8, 12, 16, 24, 32, 48, 80, 141)  # of cards, in GB


def share(record):
    """How near an arm's real tokens/s come to what the card's arithmetic allows, 0 to 1."""
    return record["real_tokens_per_second"] * OPERATIONS[record["lesson"]] / CARD


def is_course(record):
    """Whether it is the course as it stands, on whatever card."""
    return record["arm"].split(" on ")[0] == "course"


def table(records):
    """The table of docs/benchmarks-full.md: all arms, from their records, and how many times faster the course is."""
    head = "| lesson | recipe | card | rows/s | real tokens/s | of each run | of the floor | s a step | first steps, s "
    head += "| planned GiB | measured GiB |"
    lines, order = [head, "|---|---|---|---|---|---|---|---|---|---|---|"], tuple(ARMS)
    records = [r for r in records if r["arm"] not in LEVERS.get(r["lesson"], {})]
    for r in sorted(records, key=lambda r: (r["lesson"], (*order, r["arm"]).index(r["arm"]), r["arm"])):
        planned = r.get("planned_bytes")
        cells = [r["lesson"], r["arm"], results.card(r), f"{r['rows_per_second']:.1f}"]
        cells += [f"{r['real_tokens_per_second']:,.0f}"]
        cells += [" ".join(f"{run['real_tokens_per_second']:,.0f}" for run in r["runs"]) if len(r["runs"]) > 1 else ""]
        cells += [f"{share(r):.1%}", f"{r['step_seconds']:.2f}", f"{r['first_steps_seconds']:.0f}"]
        cells += [f"{planned / 2**30:.1f}" if planned else "", f"{r['peak_allocated_bytes'] / 2**30:.1f}"]
        lines.append(f"| {' | '.join(cells)} |")
    arms, found, faster = {(r["lesson"], r["arm"]) for r in records}, [], speedups(records)
    for lesson in sorted({lesson for lesson, _ in faster}):
        times = [f"{faster[lesson, arm]:.1f} times {ARMS[arm]}" for arm in ARMS if (lesson, arm) in faster]
        found.append(f"{lesson} {', '.join(times)}")
    cards = "; ".join(sorted({r["device"] for r in records}))
    words = [f"The course's real tokens/s, by lesson: {'; '.join(found)}. Cards: {cards}."]
    found = [f"{number} {one[2]}" for arm in OTHERS for number, one in OTHERS[arm].items() if (number, arm) in arms]
    return "\n".join([*lines, "", *words, *(["", f"Others: {'; '.join(found)}."] if found else [])])


def speedups(records):
    """How many times a recipe's real tokens/s the course makes on the same card, by (lesson, recipe).

    A recipe whose record says what the course made beside it, in the same call, is compared with that; the others with
    the course's record on a card of the same kind. Lessons without a record of the course are left out.
    """
    by_recipe = {(record["lesson"], record["arm"]): record for record in records}
    found = {}
    for (lesson, recipe), record in by_recipe.items():
        if recipe == "course" or recipe not in ARMS or (lesson, "course") not in by_recipe:
            continue
        ours = record.get("beside")
        if not ours:
            on_this_card = [
                other["real_tokens_per_second"]
                for other in records
                if is_course(other) and other["lesson"] == lesson and other["device"] == record["device"]
            ]
            ours = on_this_card[-1]
        found[lesson, recipe] = ours / record["real_tokens_per_second"]
    return found


def summary(records):
    """The table of docs/benchmarks.md: a line for the course and for each recipe that it is compared with."""
    lines = [
        "| lesson | recipe | card | real tokens/s | the course is | of the card's arithmetic | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    faster = speedups(records)
    by_recipe = {(record["lesson"], record["arm"]): record for record in records}
    for lesson in sorted({lesson for lesson, _ in by_recipe}):
        for recipe in ARMS:
            record = by_recipe.get((lesson, recipe))
            if record is None:
                continue
            times = ""
            if (lesson, recipe) in faster:
                times = f"{faster[lesson, recipe]:.1f} times as fast"
            cells = [
                lesson,
                recipe,
                results.card(record),
                f"{record['real_tokens_per_second']:,.0f}",
                times,
                f"{share(record):.1%}",
                f"{record['peak_allocated_bytes'] / 2**30:.1f}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def levers(records):
    """The table of docs/benchmarks.md: the course without one of LEVERS, beside the course in the same call."""
    head = "| lesson | the course, but | card | real tokens/s | of the course's beside it | s a step | measured GiB |"
    lines = [head, "|---|---|---|---|---|---|---|"]
    known = {(r["lesson"], r["arm"]): r for r in records}
    for lesson, name in ((lesson, name) for lesson, found in LEVERS.items() for name in found):
        if "beside" in (r := known.get((lesson, name), {})):
            rate, beside = r["real_tokens_per_second"], r["beside"]
            cells = [lesson, name, results.card(r), f"{rate:,.0f}", f"{rate / beside:.0%} of {beside:,.0f}"]
            cells += [f"{r['step_seconds']:.3f}", f"{r['peak_allocated_bytes'] / 2**30:.1f}"]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def caps():
    """The table of docs/benchmarks.md: Unsloth's attentions, from the receipt of check_cap.py."""
    found = json.loads((RECEIPTS.parent / "unsloth_cap_h200.json").read_text("utf-8"))
    lines = ["| Unsloth's attention | from logits with the cap | from logits without it |", "|---|---|---|"]
    for way, attention in found["attention"].items():
        name = f"`{attention}`" + ", as it comes" * (way == "unsloth")
        lines.append(f"| {name} | {found[f'with the cap | {way}']:.2f} | {found[f'without it | {way}']:.2f} |")
    return "\n".join(lines)


def draw(records, path):
    """Real tokens/s and memory of all arms as bars, beside each other, into an SVG that is the same each time."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    known = {(r["lesson"], r["arm"]): r for r in records if r["arm"] in ARMS}
    lessons = sorted({lesson for lesson, _ in known})
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever style somebody has set
        matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "bench", "font.size": 9})
        figure, both = pyplot.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
        shown = [("real tokens/s (logarithmic)", lambda r: r["real_tokens_per_second"])]
        shown += [("peak memory, GiB", lambda r: r["peak_allocated_bytes"] / 2**30)]
        for axes, (title, value) in zip(both, shown, strict=True):
            for arm, color in zip(ARMS, ("#7f7f7f", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e"), strict=True):
                bars = {}
                for place, lesson in enumerate(lessons):
                    here = [name for name in ARMS if (lesson, name) in known]
                    if arm in here:
                        bars[place + 0.2 * (here.index(arm) - (len(here) - 1) / 2)] = value(known[lesson, arm])
                axes.bar(bars.keys(), bars.values(), 0.2, label=arm, color=color)
            axes.set_xticks(range(len(lessons)), [f"lesson {lesson}" for lesson in lessons])
            axes.set_title(title)
            axes.spines[["top", "right"]].set_visible(False)
        both[0].set_yscale("log")
        both[1].legend()
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)


def settings_of(found):
    """What a rehearsal changed of its profile, but for the numbers of rows and steps, in words."""
    short = {*rehearse.COUNTS, "max_steps", "max_new_tokens", "eval_steps", "logging_steps", "eval_rows"}
    short |= {"dataset_id", "data_files"}
    return ", ".join(f"`{name}` {value}" for name, value in found["overrides"].items() if name not in short)


def whole_lessons():
    """(path, record) of each receipt that rehearse.py --keep wrote."""
    return [(path, json.loads(path.read_text("utf-8"))) for path in sorted(RECEIPTS.parent.glob("[0-9]*.json"))]


def rehearsals():
    """The table of docs/which-card.md: whole lessons, from their receipts."""
    head = "| lesson | model | profile | card | planned GiB | measured GiB | whole lesson, GiB | receipt |"
    lines = [head, "|---|---|---|---|---|---|---|---|"]
    for path, r in whole_lessons():
        found = r["metrics"]["rehearsal"]
        whole, changed = found["highest_reserved_bytes"] / 2**30, settings_of(found)
        capped = f"{found['capped_gb']:g} GB" if found["capped_gb"] else results.card(r)
        cells = [r["lesson"][:2], r["model_id"], f"`{r['profile']}`" + f", {changed}" * bool(changed), capped]
        cells += [f"{r[f'{name}_peak_bytes'] / 2**30:.1f}" for name in ("planned", "measured")]
        cells += [f"{whole:.1f}", f"[{path.stem}](../benchmarks/receipts/{path.name})"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def needed(record):
    """GB of the card that a rehearsed lesson needs: what it was capped at, or the least size that holds all of it."""
    found = record["metrics"]["rehearsal"]
    wanted = found["highest_reserved_bytes"] + planner_settings.CONTEXT
    return round(found["capped_gb"] or next(size for size in SIZES if size * 1e9 >= wanted))


def cards():
    """The table of docs/which-card.md: cards that each profile needs as it is, and smaller ones that do."""
    words = {"colab": "a GPU before Ampere (T4, V100, GTX 16, RTX 20) | `colab` (float16; 03 float32)"}
    words["full"] = "Ampere or newer (RTX 30, 40, 50, A10, A100, L4, H100) | `full` (bfloat16)"
    lines = ["| you have | profile | needs |", "|---|---|---|", "| no GPU | `tiny` | nothing more |"]
    for profile, name in words.items():
        needs = {}
        for lesson in RECIPES:
            mine = [r for _, r in whole_lessons() if r["lesson"][:2] == lesson and r["profile"] == profile]
            small = min(mine, key=needed)
            as_it_is = min(needed(r) for r in mine if not settings_of(r["metrics"]["rehearsal"]))
            needs[lesson] = f"{as_it_is} GB"
            if needed(small) < as_it_is:
                needs[lesson] += f", or {needed(small)} GB with {settings_of(small['metrics']['rehearsal'])}"
        lines.append(f"| {name} | {' · '.join(f'{lesson}: {need}' for lesson, need in needs.items())} |")
    return "\n".join(lines)


def write_table():
    """Puts the tables of the receipts between their marks in docs."""
    records = [json.loads(path.read_text("utf-8")) for path in sorted(RECEIPTS.glob("*.json"))]
    results.put_into_page("docs/benchmarks.md", "speed", summary(records))
    results.put_into_page("docs/benchmarks.md", "levers", levers(records))
    results.put_into_page("docs/benchmarks.md", "caps", caps())
    results.put_into_page("docs/benchmarks-full.md", "bench", table(records))
    draw(records, RECEIPTS / "rates.svg")
    results.put_into_page("docs/which-card.md", "rehearsals", rehearsals())
    results.put_into_page("docs/which-card.md", "cards", cards())


def in_child(args, folder):
    """What runs in a process of its own: the preparation, or the reference."""
    if args.child == "prepare":
        found = rehearse.prepare(args, folder)
        (folder / "ready.json").write_text(json.dumps(found, default=str), encoding="utf-8")
        return
    ready = json.loads((folder / "ready.json").read_text("utf-8"))
    place = Path(ready["cut"].get("dataset_id", ready["run"]["dataset_id"]))
    rows = read_table(next(place.glob("train.*")))
    recipe, steps, last = ({"reference": RECIPES} | OTHERS)[args.child][args.nb]
    few = rows[: 2 * COURSE[args.nb]["train_rows"]] if args.nb in COURSE else rows
    first = 3 if args.child == "reference" else FIRST[args.nb]
    found = run_recipe(recipe, steps, first, few, folder / args.child)
    found |= {"changed": CHANGED[args.nb]} if args.child == "reference" else {"recipe": last}
    if args.child.startswith("unsloth"):
        from importlib import metadata

        names = ("unsloth", "unsloth_zoo", "torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")
        found["versions"] = {name: metadata.version(name) for name in names}
    (folder / f"{args.child}.json").write_text(json.dumps(found), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--nb", default="05", choices=[*RECIPES])
    parser.add_argument("--arms", default="reference,course", help="in this order")
    parser.add_argument("--levers", action="store_true", help="the course, itself without each of its levers, itself")
    parser.add_argument("--steps", type=int, help="steps of the course's arm")
    parser.add_argument("--overrides", type=rehearse.json_object, default={}, help="for the course's arm")
    parser.add_argument("--name", default="", help="how the course's arm is called with these overrides")
    parser.add_argument("--keep", type=Path, default=RECEIPTS, help="folder of the results")
    parser.add_argument("--unsloth", type=Path, help="folder with Unsloth and its pins, for the arm of that name")
    parser.add_argument("--add", action="store_true", help="the runs of earlier results count, too")
    parser.add_argument("--table", action="store_true", help="only write the tables of docs from the receipts")
    parser.add_argument("--cpu", action="store_true", help="run the course's arm without a GPU")
    parser.add_argument("--sizes", type=Path, default=rehearse.MODELS / "full_size.json", help=argparse.SUPPRESS)
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    args.steps = args.steps or RECIPES[args.nb][2] + FIRST[args.nb] + (args.nb not in COURSE)
    args.profile, args.gpu_memory, args.anyway = "full", 0, True
    if args.child:
        return in_child(args, args.folder)
    if args.table:
        return write_table()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        rehearse.enter(folder, 0)
        again = [sys.executable, "-m", "benchmarks.bench", *sys.argv[1:], "--folder", str(folder), "--child"]
        subprocess.run([*again, "prepare"], check=True)
        ready = json.loads((folder / "ready.json").read_text("utf-8"))
        if ready["run"] is None:
            return
        from utils import session

        facts = session.facts()
        args.keep.mkdir(parents=True, exist_ok=True)
        runs, made, courses, own = {}, {}, [], LEVERS.get(args.nb, {})
        for arm in ["course", *own, "course"] if args.levers else args.arms.split(","):
            if arm == "course" or arm in own:
                try:
                    found = run_course(args, folder, ready, own.get(arm, args.overrides))
                except SystemExit as problem:
                    print(problem, flush=True)  # the other arms shall have their turn
                    continue
                courses += [found["real_tokens_per_second"]] * (arm == "course")
            else:
                folders = [args.unsloth] if arm.startswith("unsloth") else []
                paths = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
                subprocess.run([*again, arm], check=True, env=os.environ | {"PYTHONPATH": paths})
                found = json.loads((folder / f"{arm}.json").read_text("utf-8"))
            name = args.name if args.name and arm == "course" else arm
            path = args.keep / f"{args.nb}_{name.replace(' ', '_')}.json"
            kept = json.loads(path.read_text("utf-8"))["runs"] if args.add and path.exists() else []
            runs.setdefault(name, kept).append({rate: found[rate] for rate in RATES})
            made[path] = {"arm": name, "lesson": args.nb} | facts | median(found, runs[name])
            for path, record in made.items():  # it stands beside all courses of this call
                once = courses and record["arm"] in (*own, *OTHERS)
                record |= {"beside": statistics.median(courses)} if once else {}
                path.write_text(json.dumps(record, indent=2) + "\n", "utf-8")
            print(SimpleNamespace(**made[path]), flush=True)
        if args.keep == RECEIPTS:
            write_table()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTHONUNBUFFERED", "1")
    main()
