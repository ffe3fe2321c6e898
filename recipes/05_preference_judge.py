"""A judge of two answers: QLoRA on a decoder that reads both and says A, B or tie. Plain Hugging Face code.

python recipes/05_preference_judge.py --model google/gemma-2-9b-it --data my_comparisons
"""

import argparse
import json
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from datasets import Dataset, concatenate_datasets, load_dataset
from peft import LoraConfig, get_peft_model
from scipy.special import softmax
from sklearn.metrics import accuracy_score, log_loss
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    set_seed,
)

ROOT = Path(__file__).resolve().parents[1]
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--model", default=f"{ROOT}/data/models/tiny-gemma-2", help="any decoder: Gemma, Llama, Qwen ...")
parser.add_argument("--data", default=f"{ROOT}/data/toy_preference", help="a folder or hub name, columns as LMSYS's")
parser.add_argument("--output", default="outputs/05_preference_judge")
parser.add_argument("--max-length", type=int, default=128)
parser.add_argument("--max-steps", type=int, default=60)
parser.add_argument("--learning-rate", type=float, default=1.5e-3, help="about 2e-4 for a model of full size")
options = parser.parse_args()

WINNERS = ["winner_model_a", "winner_model_b", "winner_tie"]  # the classes 0, 1 and 2
SWAPPED = [1, 0, 2]  # the classes when the answers change places
QUESTION = "\nWhich answer is better?"

set_seed(0)
tokenizer = AutoTokenizer.from_pretrained(options.model, padding_side="right")
if tokenizer.pad_token is None:
    tokenizer.pad_token = tokenizer.eos_token


def ids_of(text):
    """Token ids of a text; control tokens that somebody wrote into it stay text."""
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True)["input_ids"]


def tokenize(prompt, first, second):
    """Token ids of a comparison. If it is too long, old turns go; then the longest parts of the last one are cut."""
    turns = []
    for question, a, b in zip(prompt, first, second, strict=True):
        lines = [f"\nQuestion: {question}", f"\nThe first answer: {a}", f"\nThe second answer: {b}"]
        turns.append([ids_of(line) for line in lines])
    start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    end = ids_of(QUESTION)
    room = options.max_length - len(start) - len(end)
    limit = room
    while sum(len(part) for turn in turns for part in turn) > room:
        if len(turns) > 1:
            turns = turns[1:]
        else:
            limit -= 1
            turns = [[part[:limit] for part in turns[0]]]
    return start + [number for turn in turns for part in turn for number in part] + end


def encode(rows, swap):
    """The rows as token ids and labels; with swap, the answers change places, and the labels with them."""
    encoded = {"input_ids": [], "labels": []}
    for row in rows:
        prompt, a, b = (json.loads(row[name]) for name in ("prompt", "response_a", "response_b"))  # JSON, never eval
        encoded["input_ids"].append(tokenize(prompt, b, a) if swap else tokenize(prompt, a, b))
        label = int(np.argmax([row[name] for name in WINNERS]))
        encoded["labels"].append(SWAPPED[label] if swap else label)
    return Dataset.from_dict(encoded)


dataset = load_dataset(options.data)  # splits train and test
train = concatenate_datasets([encode(dataset["train"], swap=False), encode(dataset["train"], swap=True)])
test = {swap: encode(dataset["test"], swap) for swap in (False, True)}

# The frozen base: weights stored in 4 bits, multiplied in the type that this machine is good at.
has_bf16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
dtype = torch.bfloat16 if has_bf16 else torch.float32
model = AutoModelForSequenceClassification.from_pretrained(
    options.model,
    num_labels=3,
    dtype=dtype,
    quantization_config=BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["score"],  # the new head stays a plain layer, or it cannot learn
    ),
)
model.config.pad_token_id = tokenizer.pad_token_id  # the head reads the last token that is no padding
model.config.use_cache = False
model.score.float()
for module in model.modules():  # some CPUs repack 4-bit weights in an evaluation and then cannot train on (GPUs don't)
    if isinstance(module, bnb.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False

# The part that learns: two thin matrices beside the linear layers, and the head.
model = get_peft_model(
    model,
    LoraConfig(
        task_type="SEQ_CLS",
        r=32,
        lora_alpha=16,
        target_modules="all-linear",
        exclude_modules=["up_proj", "down_proj"],  # the widest ones: leaving them out saves memory and time
        modules_to_save=["score"],
    ),
)
model.print_trainable_parameters()


def compute_metrics(prediction):
    """The log loss of a validation."""
    logits, labels = prediction
    return {"log_loss": log_loss(labels, softmax(logits.astype(float), axis=1), labels=range(3))}


trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=f"{options.output}/checkpoints",
        max_steps=options.max_steps,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        per_device_train_batch_size=32,  # too large for long rows: 4, and 8 gradient_accumulation_steps
        bf16=has_bf16,
        logging_steps=20,
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=train,
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=compute_metrics,
)
trainer.train()

# Each pair is asked in both orders; the mean does not care who stands first.
straight = softmax(trainer.predict(test[False]).predictions.astype(float), axis=1)
turned = softmax(trainer.predict(test[True]).predictions.astype(float), axis=1)
probabilities = (straight + turned[:, SWAPPED]) / 2
labels = test[False]["labels"][:]
scores = {
    "log_loss": log_loss(labels, probabilities, labels=range(3)),
    "accuracy": accuracy_score(labels, probabilities.argmax(axis=1)),
    "n": len(labels),
}
trainer.save_model(f"{options.output}/adapter")
print(json.dumps(scores))

mine = {"input_ids": [tokenize(["Where is the horn?"], ["Can you not read?"], ["Gladly. I do not know."])]}
logits = trainer.predict(Dataset.from_dict(mine)).predictions
print("A, B, tie:", softmax(logits.astype(float), axis=1).round(2).tolist()[0])
