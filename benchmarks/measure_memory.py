"""Measure on a GPU what memory.plan predicts: random weights of the real sizes, real Trainer steps, one line a set-up.

python -m benchmarks.measure_memory [--only "NAME; NAME"]    also rewrites the table of docs/will-it-fit.md

Memory depends on shapes and types, not on the values of the weights, so nothing is downloaded: a checkpoint with
random values is written to a temporary folder and loaded as usual. The quality of such a model means nothing.
"""

import argparse
import copy
import gc
import json
import logging
import re
import shutil
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

from utils import memory, paths, results, session

BERT, LARGE, T5 = "google-bert/bert-base-uncased", "google-bert/bert-large-uncased", "google-t5/t5-3b"
OPT, GEMMA = "facebook/opt-1.3b", "google/gemma-2-9b-it"
ALL = {"r": 16, "target_modules": "all-linear"}
QKVOG = {"r": 64, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]}
UPPER = {**QKVOG, "layers_to_transform": list(range(16, 42))}
B16 = {"autocast": "bfloat16"}
BF = {"dtype": "bfloat16", "autocast": "bfloat16"}
PAGED = {"optimizer": "paged_adamw_8bit"}
SETUPS = {
    "bert-base full, autocast": (BERT, "full", {"batch": 32, "length": 128, **B16}),
    "bert-base full, float16, long rows": (BERT, "full", {"batch": 16, "length": 512, "autocast": "float16"}),
    "bert-base full, float32, eager": (BERT, "full", {"batch": 32, "length": 256, "attention": "eager"}),
    "bert-large full": (LARGE, "full", {"batch": 32, "length": 128, **B16}),
    "bert-large lora": (LARGE, "lora", {"batch": 64, "length": 128, "lora": ALL, **BF}),
    "bert-large qlora": (LARGE, "qlora", {"batch": 64, "length": 64, "lora": ALL, "prepare": True, **BF, **PAGED}),
    "bert-large qlora, checkpointing": (
        LARGE,
        "qlora",
        {"batch": 32, "length": 512, "lora": ALL, "prepare": True, "checkpointing": True, **BF, **PAGED},
    ),
    "t5-3b qlora, as published": (
        T5,
        "qlora",
        {
            "batch": 2,
            "length": 1024,
            "target_length": 128,
            "dtype": "float16",
            "autocast": None,
            "prepare": True,
            "lora": {"r": 32, "target_modules": ["v", "o"], "modules_to_save": ["lm_head"]},
            **PAGED,
        },
    ),
    "t5-3b qlora": (T5, "qlora", {"batch": 4, "length": 1024, "target_length": 128, "lora": ALL, **BF}),
    "t5-3b qlora, wo in 4 bits too": (
        T5,
        "qlora",
        {"batch": 4, "length": 512, "target_length": 128, "keep_in_fp32": [], "lora": ALL, **BF},
    ),
    "t5-3b qlora, checkpointing": (
        T5,
        "qlora",
        {"batch": 16, "length": 512, "target_length": 128, "lora": ALL, "checkpointing": True, **BF},
    ),
    "opt-1.3b lora": (OPT, "lora", {"batch": 8, "length": 1024, "lora": {"r": 16}, **BF}),
    "opt-1.3b lora, checkpointing": (
        OPT,
        "lora",
        {"batch": 8, "length": 1024, "lora": {"r": 16}, "checkpointing": True, **BF},
    ),
    "opt-1.3b lora, eager": (OPT, "lora", {"batch": 4, "length": 1024, "lora": ALL, "attention": "eager", **BF}),
    "opt-1.3b full, 8-bit AdamW": (
        OPT,
        "full",
        {"batch": 4, "length": 512, "accumulation": 2, "optimizer": "adamw_8bit", **BF},
    ),
    "gemma-2-9b qlora": (GEMMA, "qlora", {"batch": 2, "length": 1024, "num_labels": 3, "lora": QKVOG, **BF}),
    "gemma-2-9b qlora, checkpointing": (
        GEMMA,
        "qlora",
        {"batch": 8, "length": 1024, "num_labels": 3, "lora": QKVOG, "checkpointing": True, "prepare": True, **BF},
    ),
    "gemma-2-9b qlora, flex attention": (
        GEMMA,
        "qlora",
        {"batch": 4, "length": 1024, "num_labels": 3, "lora": QKVOG, "attention": "flex_attention", **BF},
    ),
    "gemma-2-9b qlora, upper layers": (
        GEMMA,
        "qlora",
        {
            "batch": 4,
            "length": 1024,
            "num_labels": 3,
            "lora": {**QKVOG, "layers_to_transform": list(range(16, 42))},
            **BF,
        },
    ),
    "gemma-2-9b qlora, language model": (
        GEMMA,
        "qlora",
        {"batch": 2, "length": 512, "lora": ALL, "checkpointing": True, "accumulation": 2, **BF},
    ),
}
HELD_OUT = {  # first measured after the planner was finished
    "bert-base qlora, eager": (
        BERT,
        "qlora",
        {"batch": 64, "length": 256, "lora": {"r": 8}, "attention": "eager", **BF},
    ),
    "bert-large full, checkpointing": (
        LARGE,
        "full",
        {"batch": 64, "length": 256, "checkpointing": True, "accumulation": 2, "optimizer": "adamw_8bit", **B16},
    ),
    "t5-3b lora, eager": (
        T5,
        "lora",
        {"batch": 2, "length": 512, "target_length": 64, "attention": "eager", "lora": {"r": 16}, **BF},
    ),
    "opt-1.3b qlora, short rows": (
        OPT,
        "qlora",
        {"batch": 32, "length": 256, "lora": ALL, "checkpointing": True, "prepare": True, **BF, **PAGED},
    ),
    "gemma-2-9b lora": (GEMMA, "lora", {"batch": 1, "length": 768, "num_labels": 3, "lora": ALL, **BF}),
    "gemma-2-9b qlora, language model, short": (GEMMA, "qlora", {"batch": 4, "length": 256, "lora": {"r": 8}, **BF}),
}
SETUPS |= HELD_OUT
LAYER = re.compile(r"((?:\w+\.)*?(?:block|layers?)\.)(\d+)\.(.+)")  # the first number in a name: T5 has two


def random_checkpoint(kind, config, folder, device="cuda"):
    """Writes what `save_pretrained` would of a model with random weights in bfloat16, one file a layer.

    Made are two layers, on the device; the others are copies of the second. So it takes seconds and little memory.
    """
    import torch
    from safetensors.torch import save_file

    two = copy.deepcopy(config)
    for name in {"num_hidden_layers", "num_layers", "num_decoder_layers"} & {*config.to_dict()}:
        setattr(two, name, min(2, getattr(config, name)))
    if getattr(config, "layer_types", None):
        two.layer_types = config.layer_types[:2]
    with torch.device(device):
        model = kind.from_config(two, dtype=torch.bfloat16)
    files = {0: {}}
    for name, parameter in model.named_parameters():  # a tied one has one name here, as in save_pretrained
        stack, number, rest = LAYER.fullmatch(name).groups() if LAYER.fullmatch(name) else ("", "0", "")
        count = config.num_decoder_layers if stack.startswith("decoder.") else config.num_hidden_layers
        for layer in range(1, count) if number == "1" else [0]:
            files.setdefault(layer, {})[f"{stack}{layer}.{rest}" if rest else name] = parameter.detach()
    folder.mkdir(parents=True, exist_ok=True)
    index = {"metadata": {}, "weight_map": {}}
    for number, tensors in files.items():
        file = f"model-{number + 1:05}-of-{len(files):05}.safetensors"
        save_file(tensors, folder / file, metadata={"format": "pt"})
        index["weight_map"] |= dict.fromkeys(tensors, file)
    index["metadata"]["total_size"] = sum(t.numel() * 2 for tensors in files.values() for t in tensors.values())
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    config.architectures, config.dtype = [type(model).__name__], torch.bfloat16
    config.save_pretrained(folder)
    if model.can_generate():
        model.generation_config.save_pretrained(folder)


def load(model_id, method, s, folder):
    """The model of a set-up on the GPU, with adapters if any, loaded from a checkpoint with random weights."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    config = json.loads((paths.ROOT / "data" / "models" / "full_size.json").read_text("utf-8"))[model_id]
    config = transformers.AutoConfig.for_model(**config, pad_token_id=0, decoder_start_token_id=0)
    task = "SequenceClassification" if config.model_type == "bert" or "num_labels" in s else "CausalLM"
    kind = getattr(transformers, "AutoModelFor" + ("Seq2SeqLM" if config.model_type == "t5" else task))
    config.num_labels = s.get("num_labels", 5)
    dtype = getattr(torch, s.get("dtype", "float32"))
    attention = s.get("attention", "eager" if config.model_type == "gemma2" else "sdpa")
    checkpoint = folder / f"{model_id.split('/')[-1]}-{task}"
    if not checkpoint.exists():
        for other in [other for other in folder.iterdir() if other.is_dir()]:
            shutil.rmtree(other)  # one at a time: together they would need more than 64 GB of disk
        random_checkpoint(kind, config, checkpoint)
        gc.collect()
        torch.cuda.empty_cache()
    if "keep_in_fp32" in s:
        transformers.T5PreTrainedModel._keep_in_fp32_modules = s["keep_in_fp32"]
    quantization = None
    if method == "qlora":
        quantization = transformers.BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16,
            # T5 casts what goes into `wo` to the type in which `wo` is stored: it must not be bytes
            bnb_4bit_quant_storage=torch.bfloat16 if "keep_in_fp32" in s else torch.uint8,
            llm_int8_skip_modules=["classifier"] if config.model_type == "bert" else None,
        )
    model = kind.from_pretrained(
        checkpoint, dtype=dtype, attn_implementation=attention, quantization_config=quantization, device_map={"": 0}
    )
    if s.get("prepare"):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if method != "full":
        task_type = "SEQ_CLS" if task == "SequenceClassification" and config.model_type != "t5" else None
        model = get_peft_model(model, LoraConfig(task_type=task_type, **s["lora"]))
    return model


def rows(model, s, count):
    """Synthetic rows of the length of the set-up; the first of each batch is half padding."""
    import torch

    found, size = [], s["batch"]
    for number in range(count):
        ids = torch.randint(5, 20000, (s["length"],))
        mask = torch.ones_like(ids)
        if number % size == 0:
            mask[s["length"] // 2 :] = 0
            ids[s["length"] // 2 :] = 0
        labels = ids.clone()
        if model.config.model_type == "bert" or "num_labels" in s:
            labels = torch.tensor(number % 3)
        elif "target_length" in s:
            labels = torch.randint(5, 20000, (s["target_length"],))
        found.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return found


def measure(name, folder):
    """Runs three optimizer steps and an evaluation batch; returns the receipt."""
    import torch
    from transformers import Trainer, TrainingArguments

    model_id, method, s = SETUPS[name]
    started = time.perf_counter()
    model = load(model_id, method, s, folder)
    gc.collect()
    torch.cuda.empty_cache()
    loaded, steps = torch.cuda.memory_allocated(), s.get("accumulation", 1)
    args = TrainingArguments(
        output_dir=folder / "out",
        per_device_train_batch_size=s["batch"],
        per_device_eval_batch_size=s["batch"],
        gradient_accumulation_steps=steps,
        max_steps=3,
        bf16=s.get("autocast") == "bfloat16",
        fp16=s.get("autocast") == "float16",
        optim=s.get("optimizer", "adamw_torch_fused"),
        gradient_checkpointing=s.get("checkpointing", False),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    trainer = Trainer(
        model=model,
        args=args,
        train_dataset=rows(model, s, s["batch"] * steps * 3),
        eval_dataset=rows(model, s, s["batch"]),
    )
    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    train, kept = torch.cuda.max_memory_allocated(), torch.cuda.memory_allocated()
    reserved, (free, total) = torch.cuda.max_memory_reserved(), torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()
    torch.cuda.reset_peak_memory_stats()
    trainer.evaluate()
    evaluated = torch.cuda.max_memory_allocated()
    num_labels = {} if "num_labels" in s or model.config.model_type != "bert" else {"num_labels": 5}
    planned = memory.plan(model_id, method, **s, **num_labels)
    return {
        "name": name,
        "held_out": name in HELD_OUT,
        "model_id": model_id,
        "method": method,
        "settings": s | num_labels,
        "planned_bytes": planned["total"],
        "planned_moments": planned.peaks,
        "measured_bytes": max(train, evaluated),
        "measured_moments": {"loaded": loaded, "training": train, "after training": kept, "evaluation": evaluated},
        "reserved_bytes": reserved,
        "context_bytes": context,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(record):
    """The table of docs/will-it-fit.md: a line a set-up."""
    lines = ["| set-up | rows × tokens | planned GiB | measured GiB | off by |", "|---|---|---|---|---|"]
    for r in record["receipts"]:
        shape = f"{r['settings']['batch']} × {r['settings']['length']}"
        planned, measured = r["planned_bytes"] / memory.GIB, r["measured_bytes"] / memory.GIB
        name = r["name"] + " *" * r.get("held_out", False)
        lines.append(f"| {name} | {shape} | {planned:.2f} | {measured:.2f} | {planned / measured - 1:+.1%} |")
    return "\n".join(lines)


def write(record, out):
    out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    results.put_into_page("docs/will-it-fit.md", "memory", table(record))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="names of set-ups, separated by ';'")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--replan", action="store_true", help="renew the plans of --out; needs no GPU")
    parser.add_argument("--timeout", type=float, default=120, help="seconds a set-up may take")
    parser.add_argument("--out", type=Path, default=paths.ROOT / "benchmarks" / "receipts" / "memory.json")
    args = parser.parse_args()
    if args.one:  # a process of its own: nothing of another set-up is left on the card
        logging.disable(logging.WARNING)
        receipt = measure(args.one[0], Path(args.one[1]))
        Path(args.one[1], "receipt.json").write_text(json.dumps(receipt), encoding="utf-8")
        return
    if args.replan:
        record = json.loads(args.out.read_text("utf-8"))
        for receipt in record["receipts"]:
            planned = memory.plan(receipt["model_id"], receipt["method"], hopper=True, **receipt["settings"])
            receipt |= {"planned_bytes": planned["total"], "planned_moments": planned.peaks}
        write(record, args.out)
        return
    folder = Path(tempfile.mkdtemp())
    record = session.facts() | {"date": str(date.today()), "receipts": []}
    if args.only and args.out.exists():  # the others' receipts stay
        record = json.loads(args.out.read_text("utf-8"))
    try:
        for name in [part.strip() for part in args.only.split(";") if part.strip()] or SETUPS:
            command = [sys.executable, "-m", "benchmarks.measure_memory", "--one", name, str(folder)]
            try:
                done = subprocess.run(command, timeout=args.timeout, capture_output=True, text=True)
                problem = done.stderr.strip().splitlines()[-1:] if done.returncode else []
            except subprocess.TimeoutExpired:
                problem = [f"took more than {args.timeout:g} s"]
            if problem:  # the others still count
                print(f"{name:36} failed: {problem[0][:300]}", flush=True)
                continue
            receipt = json.loads((folder / "receipt.json").read_text("utf-8"))
            record["receipts"] = [r for r in record["receipts"] if r["name"] != name] + [receipt]
            write(record, args.out)
            planned, measured = receipt["planned_bytes"] / memory.GIB, receipt["measured_bytes"] / memory.GIB
            off = planned / measured - 1
            print(f"{name:36} planned {planned:6.2f} measured {measured:6.2f} GiB {off:+6.1%}", flush=True)
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main()
