"""What the choices of lesson 02 do on the tiny model: methods, ranks, layers, alpha, rates, variants of LoRA, 8 bits.

    python -m benchmarks.adapters                     all runs that the receipt does not have yet (about an hour)
    python -m benchmarks.adapters --only methods      those of one question
    python -m benchmarks.adapters --share 0 4         a quarter of them, for four processes side by side

Every run trains the same rows in batches of 32 with the same optimizer (AdamW), warm-up and decay, without choosing a
checkpoint, and is scored with its last weights. The receipt is a file of JSON lines, one for each run; lesson 02 draws
its figures from it. Seconds are those of one processor core, so that other programs on the machine hardly change them.
"""

import argparse
import dataclasses
import json
import logging
import tempfile
import time
from pathlib import Path

import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForLanguageModeling,
    DataCollatorWithPadding,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)
from transformers import logging as transformers_logging

from utils import meter, paths, session
from utils.training import adapters

RECEIPT = paths.ROOT / "benchmarks" / "receipts" / "adapters_tiny.jsonl"
MODEL = paths.ROOT / "data" / "models" / "tiny-bert"
ARGUMENTS = {  # of LoraConfig
    "LoRA": {},
    "rsLoRA": {"use_rslora": True},
    "DoRA": {"use_dora": True},
    "PiSSA": {"init_lora_weights": "pissa"},
    "OLoRA": {"init_lora_weights": "olora"},
}


@dataclasses.dataclass(frozen=True)
class Setting:
    """What one run is trained with."""

    base: str = "nf4"
    """how the frozen weights are stored: "nf4", "int8" or "float32" """
    adapter: str = "LoRA"
    """a name of ARGUMENTS, or "" for full fine-tuning"""
    rank: int = 12
    alpha: float = 32.0
    targets: str = "all-linear"
    """as in LoraConfig, or names with a comma between them"""
    learning_rate: float = 4e-3
    steps: int = 100
    seed: int = 0


FULL = {"base": "float32", "adapter": "", "learning_rate": 5e-4}
METHODS = [{"steps": 200, **FULL}, {"steps": 200, "base": "float32"}, {"steps": 200}]
GRID = [{"rank": rank, "targets": targets} for rank in (1, 4, 12, 64) for targets in ("query,value", "all-linear")]
RATES = [{"learning_rate": rate} for rate in (5e-4, 1e-3, 2e-3, 8e-3, 1.6e-2)]
ALPHAS = [{"alpha": alpha} for alpha in (1.0, 12.0, 128.0)]
VARIANTS = [
    {"base": "float32", "adapter": adapter, "learning_rate": rate} for adapter in ARGUMENTS for rate in (4e-3, 1e-3)
]
BITS = [{"base": "nf4"}, {"base": "int8"}, {"base": "float32"}]
QUESTIONS = {
    "methods": METHODS,
    "bits": BITS,
    "grid": GRID,
    "rates": RATES,
    "variants": VARIANTS,
    "alphas": ALPHAS,
}


# ---- the parts of a run -------------------------------------------------------------------------------------------


def load_model(base):
    """The classifier on the untrained checkpoint, its frozen weights stored as `base` says."""
    quantization_config = None
    if base == "nf4":
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
            llm_int8_skip_modules=["classifier"],
        )
    elif base == "int8":
        quantization_config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"])
    adapters.keep_trainable()
    model = AutoModelForSequenceClassification.from_pretrained(
        MODEL, num_labels=5, dtype=torch.float32, quantization_config=quantization_config
    )
    if quantization_config is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return model


def add_adapter(model, setting):
    """The model with the adapter of `setting`, or as it is for full fine-tuning."""
    if not setting.adapter:
        return model
    targets = setting.targets if setting.targets == "all-linear" else setting.targets.split(",")
    lora_config = LoraConfig(
        task_type="SEQ_CLS",
        r=setting.rank,
        lora_alpha=setting.alpha,
        target_modules=targets,
        modules_to_save=["classifier"],
        **ARGUMENTS[setting.adapter],
    )
    return get_peft_model(model, lora_config)


def tokenized(tokenizer):
    """The splits of driver_intent as token numbers and labels."""
    dataset = load_dataset(str(paths.ROOT / "data" / "driver_intent"))
    encoded = dataset.map(lambda rows: tokenizer(rows["text"]), batched=True)
    return encoded.remove_columns(["text", "family"])


def masked_batches(tokenizer):
    """The dialogues of the pre-training's world that no model has read, with 15 % of their tokens masked."""
    path = paths.ROOT / "data" / "driver_world" / "dialogues.jsonl"
    dialogues = load_dataset("json", data_files=str(path), split="train")
    collator = DataCollatorForLanguageModeling(
        tokenizer, mlm_probability=0.15, mask_replace_prob=1.0, random_replace_prob=0.0, seed=0
    )
    rows = [tokenizer(row["driver"], row["car"], return_special_tokens_mask=True) for row in dialogues]
    return [collator(rows[start : start + 50]) for start in range(0, len(rows), 50)]


@torch.no_grad()
def masked_word_accuracy(model, batches):
    """Share of masked tokens that the encoder of `model` finds, with the masked-word head of its pre-training."""
    reader = AutoModelForMaskedLM.from_pretrained(MODEL, dtype=torch.float32)
    classifier = model.get_base_model() if isinstance(model, PeftModel) else model
    setattr(reader, reader.base_model_prefix, classifier.base_model)
    reader.eval()
    right = 0
    masked = 0
    for batch in batches:
        logits = reader(**batch).logits
        counts = batch["labels"] != -100
        right += (logits.argmax(-1) == batch["labels"])[counts].sum().item()
        masked += counts.sum().item()
    return right / masked


@torch.no_grad()
def logits_of(model, rows, data_collator):
    """The logits of the rows, in one batch."""
    batch = data_collator([row for row in rows])
    batch.pop("labels", None)
    return model.eval()(**batch).logits


def what_the_adapter_can(model, setting, rows, data_collator):
    """{name: value}: bytes on disk, and by how much reloading and merging move the logits (mean, relative)."""
    expected = logits_of(model, rows, data_collator)

    def moved(other):
        found = logits_of(other, rows, data_collator)
        return ((found - expected).abs().mean() / expected.abs().mean()).item()

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        size = sum(file.stat().st_size for file in Path(folder).glob("*.safetensors"))
        found = {"bytes_on_disk": size}
        if setting.adapter:
            found["reloading_moves"] = moved(PeftModel.from_pretrained(load_model(setting.base), folder))
    if setting.adapter:
        found["merging_moves"] = moved(model.merge_and_unload())
    return found


def run(setting, tokenizer, encoded, masked):
    """Trains as `setting` says; returns what was measured, a dict."""
    set_seed(setting.seed)
    model = add_adapter(load_model(setting.base), setting)
    data_collator = DataCollatorWithPadding(tokenizer)
    args = TrainingArguments(
        output_dir=tempfile.gettempdir(),
        max_steps=setting.steps,
        learning_rate=setting.learning_rate,
        warmup_steps=0.1,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=100,
        eval_strategy="steps",
        eval_steps=setting.steps // 8,
        logging_steps=setting.steps // 8,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=True,
        seed=setting.seed,
    )
    trainer = Trainer(
        model=model,
        args=args,
        data_collator=data_collator,
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
    )
    trainer.remove_callback(PrinterCallback)
    longest = sorted(encoded["train"], key=lambda row: len(row["input_ids"]))[-32:]
    saved_bytes = meter.saved_bytes(model, data_collator(longest))
    started = time.process_time()
    trainer.train()
    core_seconds = time.process_time() - started
    history = trainer.state.log_history
    validation = trainer.predict(encoded["validation"])
    test = trainer.predict(encoded["test"])
    right = test.predictions.argmax(-1) == test.label_ids
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    record = {
        **dataclasses.asdict(setting),
        "test_accuracy": right.mean().item(),
        "test_right": "".join("x" if answer else "." for answer in right),
        "validation_accuracy": (validation.predictions.argmax(-1) == validation.label_ids).mean().item(),
        "validation_loss": validation.metrics["test_loss"],
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "validation_losses": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
        "masked_word_accuracy": masked_word_accuracy(model, masked),
        "core_seconds": core_seconds,
        "trainable_parameters": sum(parameter.numel() for parameter in learning),
        "weight_bytes": meter.weight_bytes(model),
        "gradient_bytes": sum(parameter.numel() * parameter.element_size() for parameter in learning),
        "optimizer_bytes": meter.optimizer_bytes(trainer.optimizer),
        "saved_bytes": saved_bytes,
    }
    if setting.seed == 0:
        record.update(what_the_adapter_can(model, setting, encoded["validation"], data_collator))
    return record


# ---- the receipt --------------------------------------------------------------------------------------------------


def settings(questions, seeds):
    """The settings of some questions, each once, the first seed of all of them first."""
    found = []
    for seed in seeds:
        for question in questions:
            for choice in QUESTIONS[question]:
                setting = Setting(**choice, seed=seed)
                if setting not in found:
                    found.append(setting)
    return found


def read(path=RECEIPT):
    """The runs of the receipt: a list of dicts."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def setting_of(record):
    """The Setting of a line of the receipt."""
    names = [field.name for field in dataclasses.fields(Setting)]
    return Setting(**{name: record[name] for name in names})


def measure(questions, seeds, share):
    """Does the runs that the receipt does not have yet, and adds each to it when it is done.

    share: (i, n) for every n-th setting from the i-th on, so that n processes can divide the work.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    encoded = tokenized(tokenizer)
    masked = masked_batches(tokenizer)
    first, step = share
    for setting in settings(questions, seeds)[first::step]:
        if setting in [setting_of(record) for record in read()]:
            continue
        record = {**run(setting, tokenizer, encoded, masked), **session.facts()}
        with RECEIPT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(f"{setting}: {record['test_accuracy']:.3f}", flush=True)


def main():
    """What the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="*", choices=QUESTIONS, default=list(QUESTIONS), help="these questions")
    parser.add_argument("--seeds", nargs="*", type=int, default=[0, 1, 2])
    parser.add_argument(
        "--share", nargs=2, type=int, default=[0, 1], metavar=("I", "N"), help="the I-th of N processes"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    measure(options.only, options.seeds, options.share)


if __name__ == "__main__":
    main()
