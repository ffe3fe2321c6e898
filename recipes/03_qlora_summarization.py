"""QLoRA: an encoder-decoder in 4 bits learns to summarize. Plain Hugging Face code, nothing else needed.

python recipes/03_qlora_summarization.py --model google-t5/t5-3b --data FiscalNote/billsum --learning-rate 2e-4
"""

import argparse
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from datasets import load_dataset
from peft import LoraConfig, get_peft_model
from rouge_score.rouge_scorer import RougeScorer
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    T5PreTrainedModel,
    set_seed,
)

ROOT = Path(__file__).resolve().parents[1]
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument(
    "--model", default=f"{ROOT}/data/models/tiny-t5", help="any encoder-decoder: a hub name or a folder"
)
parser.add_argument("--data", default=f"{ROOT}/data/toy_bills", help="columns text and summary; splits train and test")
parser.add_argument("--output", default="outputs/03_qlora_summarization")
parser.add_argument("--steps", type=int, default=42)
parser.add_argument("--learning-rate", type=float, default=3e-3, help="2e-4 for a model of full size")
parser.add_argument("--max-length", type=int, default=256, help="tokens of a text that are read")
parser.add_argument("--max-target-length", type=int, default=48, help="tokens of a summary")
options = parser.parse_args()

set_seed(0)
dataset = load_dataset(options.data)
tokenizer = AutoTokenizer.from_pretrained(options.model)

# The frozen base: weights stored in 4 bits. No float16 here: T5's large sums do not fit into it.
has_bf16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
dtype = torch.bfloat16 if has_bf16 else torch.float32
T5PreTrainedModel._keep_in_fp32_modules = []  # or transformers leaves T5's `wo` out of 4 bits, most bytes of a large T5
model = AutoModelForSeq2SeqLM.from_pretrained(
    options.model,
    dtype=dtype,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        bnb_4bit_quant_storage=dtype,  # T5 casts the input of `wo` to this type
    ),
)
for module in model.modules():  # some CPUs repack 4-bit weights in an evaluation and then cannot train on (GPUs don't)
    if isinstance(module, bnb.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False

# How it writes: set before PEFT wraps the model. Without it, every summary ends after 20 tokens.
model.generation_config.max_length = options.max_target_length + 1  # the token that it begins with counts
model.generation_config.num_beams = 1
prefix = "summarize: " if model.config.model_type == "t5" else ""

# The part that learns: two thin matrices beside every linear layer but the head.
model = get_peft_model(
    model,
    LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=32, target_modules="all-linear"),
)
model.print_trainable_parameters()


def tokenize(batch):
    """Token ids of texts and summaries."""
    texts = [prefix + text for text in batch["text"]]
    encoded = tokenizer(texts, truncation=True, max_length=options.max_length)
    labels = tokenizer(text_target=batch["summary"], truncation=True, max_length=options.max_target_length)
    return {**encoded, "labels": labels["input_ids"]}


def compute_metrics(prediction):
    """ROUGE-L of the summaries that the model wrote of the test texts, which come in their order."""
    ids = np.where(prediction.predictions == -100, tokenizer.pad_token_id, prediction.predictions)
    scores = []
    for summary, reference in zip(
        tokenizer.decode(ids, skip_special_tokens=True), dataset["test"]["summary"], strict=True
    ):
        scores.append(scorer.score(reference, summary)["rougeL"].fmeasure)
    return {"rougeL": float(np.mean(scores))}


scorer = RougeScorer(["rougeL"], use_stemmer=True)
encoded = dataset.map(tokenize, batched=True, remove_columns=dataset["train"].column_names)
trainer = Seq2SeqTrainer(
    model=model,
    args=Seq2SeqTrainingArguments(
        output_dir=f"{options.output}/checkpoints",
        max_steps=options.steps,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,
        weight_decay=0.01,
        per_device_train_batch_size=8,
        per_device_eval_batch_size=50,
        optim="paged_adamw_8bit",
        bf16=has_bf16,
        predict_with_generate=True,
        logging_steps=7,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=encoded["train"],
    processing_class=tokenizer,
    data_collator=DataCollatorForSeq2Seq(tokenizer),
    compute_metrics=compute_metrics,
)
trainer.model_accepts_loss_kwargs = False  # the loss is a mean: with gradient accumulation it must be averaged
trainer.train()
print(trainer.evaluate(encoded["test"], metric_key_prefix="test"))
trainer.save_model(f"{options.output}/adapter")  # with the tokenizer; load it with PeftModel.from_pretrained

texts = dataset["test"]["text"][:2]
batch = tokenizer(
    [prefix + text for text in texts], truncation=True, max_length=options.max_length, padding=True, return_tensors="pt"
)
ids = model.eval().generate(**batch.to(model.device))
for summary in tokenizer.decode(ids, skip_special_tokens=True):
    print(summary)
