"""Measure on a GPU what memory.plan predicts: random weights of the real sizes, real Trainer steps, one line a set-up.

python -m benchmarks.memory.measure [--only "NAME; NAME"]    also rewrites the table of docs/will-it-fit.md

The set-ups stand in setups.toml. Memory depends on shapes and types, not on the values of the weights, so nothing is
downloaded: a checkpoint with random values is written to a temporary folder and loaded as usual. The quality of such a
model means nothing.
"""

import argparse
import gc
import json
import logging
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from tools.random_checkpoint import random_checkpoint
from tools.tables import markdown_table, put_into_page
from utils import memory, paths, session

RECEIPT = paths.ROOT / "benchmarks" / "receipts" / "memory.json"
STEPS = 3  # of the optimizer


@dataclass(frozen=True)
class SetUp:
    """One training whose memory is planned and measured."""

    name: str
    model_id: str
    method: str
    """full, lora or qlora"""
    held_out: bool
    """whether it was first measured after the planner was finished"""
    settings: dict
    """arguments of memory.plan"""

    @property
    def is_classifier(self):
        """Whether the model has a head for classes."""
        return "num_labels" in self.settings


def read_setups():
    """{name: SetUp} of setups.toml, in its order."""
    tables = tomllib.loads((Path(__file__).parent / "setups.toml").read_text("utf-8"))["setup"]
    setups = {}
    for settings in tables:
        if settings.get("autocast") == "off":  # TOML has no None
            settings["autocast"] = None
        setup = SetUp(
            name=settings.pop("name"),
            model_id=settings.pop("model"),
            method=settings.pop("method"),
            held_out=settings.pop("held_out", False),
            settings=settings,
        )
        setups[setup.name] = setup
    return setups


def configuration_of(setup):
    """The transformers configuration of a set-up, and the class of its model."""
    import transformers

    shapes = json.loads((paths.ROOT / "data" / "models" / "full_size.json").read_text("utf-8"))
    config = transformers.AutoConfig.for_model(**shapes[setup.model_id], pad_token_id=0, decoder_start_token_id=0)
    if setup.is_classifier:
        config.num_labels = setup.settings["num_labels"]
        return config, transformers.AutoModelForSequenceClassification
    if config.model_type == "t5":
        return config, transformers.AutoModelForSeq2SeqLM
    return config, transformers.AutoModelForCausalLM


def checkpoint_of(setup, config, model_class, folder):
    """The folder of a checkpoint with random weights for a set-up, written if it is not there yet."""
    import torch

    checkpoint = folder / f"{setup.model_id.split('/')[-1]}-{model_class.__name__}"
    if checkpoint.exists():
        return checkpoint
    for other in folder.iterdir():
        if other.is_dir():
            shutil.rmtree(other)  # one at a time: together they would need more than 64 GB of disk
    random_checkpoint(model_class, config, checkpoint)
    gc.collect()
    torch.cuda.empty_cache()
    return checkpoint


def quantization_of(setup, config):
    """The quantization of a set-up; None if its method has none."""
    import torch
    import transformers

    if setup.method != "qlora":
        return None
    skipped = None
    if config.model_type == "bert":
        skipped = ["classifier"]
    storage = torch.uint8
    if "keep_in_fp32" in setup.settings:
        # T5 casts what goes into `wo` to the type in which `wo` is stored: it must not be bytes
        storage = torch.bfloat16
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=storage,
        llm_int8_skip_modules=skipped,
    )


def attention_of(setup, config):
    """The attention of a set-up: what it names, or what the planner takes for its model."""
    usual = "sdpa"
    if config.model_type == "gemma2":
        usual = "eager"
    return setup.settings.get("attention", usual)


def load(setup, folder):
    """The model of a set-up on the GPU, with adapters if any, loaded from a checkpoint with random weights."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training

    config, model_class = configuration_of(setup)
    checkpoint = checkpoint_of(setup, config, model_class, folder)
    if "keep_in_fp32" in setup.settings:
        transformers.T5PreTrainedModel._keep_in_fp32_modules = setup.settings["keep_in_fp32"]
    model = model_class.from_pretrained(
        checkpoint,
        dtype=getattr(torch, setup.settings.get("dtype", "float32")),
        attn_implementation=attention_of(setup, config),
        quantization_config=quantization_of(setup, config),
        device_map={"": 0},
    )
    if setup.settings.get("prepare"):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    if setup.method != "full":
        task_type = None
        if setup.is_classifier:
            task_type = "SEQ_CLS"
        model = get_peft_model(model, LoraConfig(task_type=task_type, **setup.settings["lora"]))
    return model


def synthetic_rows(setup, count):
    """`count` rows of the length of the set-up; the first of each batch is half padding."""
    import torch

    length = setup.settings["length"]
    rows = []
    for number in range(count):
        ids = torch.randint(5, 20000, (length,))
        mask = torch.ones_like(ids)
        if number % setup.settings["batch"] == 0:
            mask[length // 2 :] = 0
            ids[length // 2 :] = 0
        labels = ids.clone()
        if setup.is_classifier:
            labels = torch.tensor(number % 3)
        elif "target_length" in setup.settings:
            labels = torch.randint(5, 20000, (setup.settings["target_length"],))
        rows.append({"input_ids": ids, "attention_mask": mask, "labels": labels})
    return rows


def trainer_of(setup, model, folder):
    """A Trainer for STEPS steps of a set-up, and an evaluation of one batch."""
    from transformers import Trainer, TrainingArguments

    settings = setup.settings
    batch = settings["batch"]
    accumulation = settings.get("accumulation", 1)
    args = TrainingArguments(
        output_dir=folder / "out",
        per_device_train_batch_size=batch,
        per_device_eval_batch_size=batch,
        gradient_accumulation_steps=accumulation,
        max_steps=STEPS,
        bf16=settings.get("autocast") == "bfloat16",
        fp16=settings.get("autocast") == "float16",
        optim=settings.get("optimizer", "adamw_torch_fused"),
        gradient_checkpointing=settings.get("checkpointing", False),
        gradient_checkpointing_kwargs={"use_reentrant": False},
        save_strategy="no",
        prediction_loss_only=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
    )
    return Trainer(
        model=model,
        args=args,
        train_dataset=synthetic_rows(setup, batch * accumulation * STEPS),
        eval_dataset=synthetic_rows(setup, batch),
    )


def measure(setup, folder):
    """Runs three optimizer steps and an evaluation batch of a set-up; returns the receipt, a dict."""
    import torch

    started = time.perf_counter()
    model = load(setup, folder)
    gc.collect()
    torch.cuda.empty_cache()
    loaded = torch.cuda.memory_allocated()
    trainer = trainer_of(setup, model, folder)

    torch.cuda.reset_peak_memory_stats()
    trainer.train()
    training_peak = torch.cuda.max_memory_allocated()
    after_training = torch.cuda.memory_allocated()
    reserved = torch.cuda.max_memory_reserved()
    free, total = torch.cuda.mem_get_info()
    context = total - free - torch.cuda.memory_reserved()

    torch.cuda.reset_peak_memory_stats()
    trainer.evaluate()
    evaluation_peak = torch.cuda.max_memory_allocated()

    planned = memory.plan(setup.model_id, setup.method, **setup.settings)
    return {
        "name": setup.name,
        "held_out": setup.held_out,
        "model_id": setup.model_id,
        "method": setup.method,
        "settings": setup.settings,
        "planned_bytes": planned["total"],
        "planned_moments": planned.peaks,
        "measured_bytes": max(training_peak, evaluation_peak),
        "measured_moments": {
            "loaded": loaded,
            "training": training_peak,
            "after training": after_training,
            "evaluation": evaluation_peak,
        },
        "reserved_bytes": reserved,
        "context_bytes": context,
        "trainable_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "seconds": round(time.perf_counter() - started, 1),
    }


def table(record):
    """The table of docs/will-it-fit.md: a line a set-up, a star behind the held-out ones."""
    rows = []
    for receipt in record["receipts"]:
        settings = receipt["settings"]
        name = receipt["name"]
        if receipt.get("held_out", False):
            name += " *"
        planned = receipt["planned_bytes"] / memory.GIB
        measured = receipt["measured_bytes"] / memory.GIB
        rows.append(
            {
                "set-up": name,
                "rows × tokens": f"{settings['batch']} × {settings['length']}",
                "planned GiB": f"{planned:.2f}",
                "measured GiB": f"{measured:.2f}",
                "off by": f"{planned / measured - 1:+.1%}",
            }
        )
    return markdown_table(rows)


def write(record, path):
    """Writes the receipts to a file, and their table into the page."""
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    put_into_page("docs/will-it-fit.md", "memory", table(record))


def plan_again(path):
    """Renews the plans in a file of receipts; needs no GPU. They are plans for a Hopper card, as the measured one."""
    record = json.loads(path.read_text("utf-8"))
    for receipt in record["receipts"]:
        planned = memory.plan(receipt["model_id"], receipt["method"], hopper=True, **receipt["settings"])
        receipt["planned_bytes"] = planned["total"]
        receipt["planned_moments"] = planned.peaks
    write(record, path)


def measure_in_a_child(name, folder, timeout):
    """`measure` in a process of its own, so that nothing of another set-up is left on the card.

    Returns the receipt, or raises RuntimeError that says what went wrong. timeout: seconds.
    """
    command = [sys.executable, "-m", "benchmarks.memory.measure", "--one", name, str(folder)]
    try:
        child = subprocess.run(command, timeout=timeout, capture_output=True, text=True, cwd=paths.ROOT)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f"took more than {timeout:g} s") from None
    if child.returncode:
        lines = child.stderr.strip().splitlines() or [f"exit code {child.returncode}"]
        raise RuntimeError(lines[-1][:300])
    return json.loads((folder / "receipt.json").read_text("utf-8"))


def measure_all(names, record, path, timeout):
    """Measures the set-ups with these names, one after the other; writes the receipts and the table after each.

    record: the content of the receipts' file; a receipt of the same name is replaced.
    """
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            try:
                receipt = measure_in_a_child(name, Path(folder), timeout)
            except RuntimeError as problem:  # the others still count
                print(f"{name:36} failed: {problem}", flush=True)
                continue
            others = [other for other in record["receipts"] if other["name"] != name]
            record["receipts"] = [*others, receipt]
            write(record, path)
            planned = receipt["planned_bytes"] / memory.GIB
            measured = receipt["measured_bytes"] / memory.GIB
            off = planned / measured - 1
            print(f"{name:36} planned {planned:6.2f} measured {measured:6.2f} GiB {off:+6.1%}", flush=True)


def main():
    """Does what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--only", default="", help="names of set-ups, separated by ';'")
    parser.add_argument("--one", nargs=2, metavar=("NAME", "FOLDER"), help=argparse.SUPPRESS)
    parser.add_argument("--replan", action="store_true", help="renew the plans of --out; needs no GPU")
    parser.add_argument("--timeout", type=float, default=120, help="seconds a set-up may take")
    parser.add_argument("--out", type=Path, default=RECEIPT)
    options = parser.parse_args()
    setups = read_setups()
    if options.one:
        logging.disable(logging.WARNING)
        name, folder = options.one
        receipt = measure(setups[name], Path(folder))
        Path(folder, "receipt.json").write_text(json.dumps(receipt), encoding="utf-8")
        return
    if options.replan:
        plan_again(options.out)
        return

    names = [name.strip() for name in options.only.split(";") if name.strip()] or list(setups)
    record = {**session.facts(), "date": str(date.today()), "receipts": []}
    if options.only and options.out.exists():  # the others' receipts stay
        record = json.loads(options.out.read_text("utf-8"))
    measure_all(names, record, options.out, options.timeout)


if __name__ == "__main__":
    main()
