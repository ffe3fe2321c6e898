"""The choices of lesson 03 against others: the tiny T5, fine-tuned in several ways from several seeds.

    python -m benchmarks.summaries        writes receipts/summaries_tiny.json, which the lesson's figure is drawn from

All ways have the same bills, steps, batches and learning rate, and answer the same test bills. Some minutes on two
cores for each seed.
"""

import argparse
import contextlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from datasets import disable_progress_bars, load_dataset
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5PreTrainedModel,
    set_seed,
)

from utils import metrics, session
from utils.paths import ROOT
from utils.rouge import Rouge
from utils.training import adapters

MODEL = ROOT / "data" / "models" / "tiny-t5"
DATA = ROOT / "data" / "toy_bills"
RECEIPT = Path(__file__).parent / "receipts" / "summaries_tiny.json"
LONGEST_TEXT = 256  # tokens, as in the profile `tiny` of the lesson
LONGEST_SUMMARY = 48
CUT = 48


@dataclass(frozen=True)
class Way:
    """A way to fine-tune; its fields are what differs from the lesson's way."""

    target_modules: str | tuple = "all-linear"
    """the layers that get an adapter"""
    wo_in_4_bits: bool = True
    """False leaves `wo` unquantized, as transformers does by itself"""
    is_pretrained: bool = True
    """False trains the adapter on weights that were never trained"""
    longest_text: int = LONGEST_TEXT
    """tokens of a bill that the model reads, in training and when it writes"""


WAYS = {
    "lesson": Way(),
    "wo not in 4 bits": Way(wo_in_4_bits=False),
    "v and o only": Way(target_modules=("v", "o")),
    "cut texts": Way(longest_text=CUT),
    "random base": Way(is_pretrained=False),
}


@contextlib.contextmanager
def wo_quantized(is_quantized):
    """Inside the block, transformers quantizes the layers `wo` of T5 like any other; or not, if it is not asked for."""
    kept_out = T5PreTrainedModel._keep_in_fp32_modules
    if is_quantized:
        T5PreTrainedModel._keep_in_fp32_modules = []
    try:
        yield
    finally:
        T5PreTrainedModel._keep_in_fp32_modules = kept_out


def load_base(way, folder):
    """The frozen base model of a way, in NF4. folder: where random weights are written."""
    model_id = MODEL
    if not way.is_pretrained:
        model_id = Path(folder) / "random"
        AutoModelForSeq2SeqLM.from_config(AutoConfig.from_pretrained(MODEL)).save_pretrained(model_id)
    with wo_quantized(way.wo_in_4_bits):
        adapters.keep_trainable()
        model = AutoModelForSeq2SeqLM.from_pretrained(
            model_id,
            dtype=torch.float32,
            quantization_config=BitsAndBytesConfig(
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=torch.float32,
                bnb_4bit_quant_storage=torch.float32,
            ),
        )
    in_4_bits = sum(isinstance(module, bnb.nn.Linear4bit) for module in model.modules())
    if in_4_bits != (48 if way.wo_in_4_bits else 42):
        raise ValueError(f"{in_4_bits} layers are in 4 bits, so this is not the model that was asked for")
    return model


def train(way, dataset, tokenizer, seed, steps, folder):
    """The model of a way after its training, and the seconds that the training took."""

    def tokenize(batch):
        texts = [f"summarize: {text}" for text in batch["text"]]
        encoded = tokenizer(texts, truncation=True, max_length=way.longest_text)
        encoded["labels"] = tokenizer(text_target=batch["summary"])["input_ids"]
        return encoded

    encoded = dataset["train"].map(tokenize, batched=True, remove_columns=dataset["train"].column_names)
    set_seed(seed)
    model = load_base(way, folder)
    set_seed(seed)
    lora_config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=32, target_modules=way.target_modules)
    model = get_peft_model(model, lora_config)
    args = Seq2SeqTrainingArguments(
        output_dir=folder,
        max_steps=steps,
        learning_rate=3e-3,
        warmup_steps=0.1,
        weight_decay=0.01,
        per_device_train_batch_size=8,
        optim="paged_adamw_8bit",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        report_to="none",
        seed=seed,
    )
    collator = DataCollatorForSeq2Seq(tokenizer)
    trainer = Seq2SeqTrainer(model=model, args=args, data_collator=collator, train_dataset=encoded)
    trainer.model_accepts_loss_kwargs = False
    started = time.perf_counter()
    trainer.train()
    return model, time.perf_counter() - started


def write_summaries(model, tokenizer, texts, longest_text):
    """The summaries that the model writes of texts, in their order."""
    model.eval()
    summaries = []
    for first in range(0, len(texts), 50):
        inputs = [f"summarize: {text}" for text in texts[first : first + 50]]
        batch = tokenizer(inputs, truncation=True, max_length=longest_text, padding=True, return_tensors="pt")
        with torch.no_grad():
            ids = model.generate(**batch, max_new_tokens=LONGEST_SUMMARY, do_sample=False)
        summaries += tokenizer.decode(ids, skip_special_tokens=True)
    return summaries


def judge(summaries, rows):
    """{"facts": share of the facts that are stated, "rougeL": mean F1} of summaries of `rows`."""
    rouge = Rouge(["rougeL"])
    hits = [metrics.fact_hits(said, facts) for said, facts in zip(summaries, rows["facts"], strict=True)]
    scores = rouge.compute(predictions=summaries, references=rows["summary"][:])
    return {"facts": float(np.mean(hits)), "rougeL": float(scores["rougeL"])}


def measure(names, seeds, steps, n_rows):
    """{"ways": {name: a list with the result of each seed}, and what they have in common}."""
    disable_progress_bars()
    dataset = load_dataset(str(DATA))
    rows = dataset["test"].select(range(n_rows))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    ways = {name: [] for name in names}
    for seed in range(seeds):
        for name in names:
            way = WAYS[name]
            with tempfile.TemporaryDirectory() as folder:
                model, seconds = train(way, dataset, tokenizer, seed, steps, folder)
            summaries = write_summaries(model, tokenizer, rows["text"][:], way.longest_text)
            result = {"seed": seed, **judge(summaries, rows), "says": summaries[0]}
            ways[name].append(result)
            print(f"{name:18} {result}, {seconds:.0f} s", flush=True)
    wanted = rows["summary"][:]
    return {
        "steps": steps,
        "n_eval": n_rows,
        "cut": CUT,
        "wanted": wanted[0],
        "another bill's summary": judge([wanted[-1], *wanted[:-1]], rows),
        "ways": ways,
        **session.facts(),
    }


def main(arguments=None):
    """Measure the ways that are asked for, and write the receipt."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=42)
    parser.add_argument("--rows", type=int, default=100)
    parser.add_argument("--out", type=Path, default=RECEIPT)
    args = parser.parse_args(arguments)
    measured = measure(args.ways, args.seeds, args.steps, args.rows)
    args.out.write_text(json.dumps(measured, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
