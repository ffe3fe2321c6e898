"""QLoRA: an encoder in 4 bits learns to put texts into classes. Plain Hugging Face code, nothing else needed.

python recipes/02_qlora_classification.py --model google-bert/bert-large-uncased --data my_texts --learning-rate 5e-4
"""

import argparse
from pathlib import Path

import bitsandbytes as bnb
import numpy as np
import torch
from datasets import load_dataset
from peft import AutoPeftModelForSequenceClassification, LoraConfig, get_peft_model, prepare_model_for_kbit_training
from sklearn.metrics import accuracy_score
from transformers import (
    AutoConfig,
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
parser.add_argument("--model", default=f"{ROOT}/data/models/tiny-bert", help="any encoder: a hub name or a folder")
parser.add_argument(
    "--data", default=f"{ROOT}/data/driver_intent", help="columns text and label; train, validation, test"
)
parser.add_argument("--output", default="outputs/02_qlora_classification")
parser.add_argument("--epochs", type=float, default=6)
parser.add_argument("--learning-rate", type=float, default=4e-3, help="about 5e-4 for a model of full size")
options = parser.parse_args()

set_seed(0)
dataset = load_dataset(options.data)
label_names = dataset["train"].features["label"].names  # a data set without names: dataset.class_encode_column("label")
tokenizer = AutoTokenizer.from_pretrained(options.model)


def tokenize(batch):
    """Token ids and labels of a batch of rows."""
    return {**tokenizer(batch["text"], truncation=True, max_length=512), "labels": batch["label"]}


encoded = dataset.map(tokenize, batched=True, remove_columns=dataset["train"].column_names)

# The head is new. It must stay a plain layer, or it cannot learn: its name is read off a model without weights.
with torch.device("meta"):
    outline = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(options.model))
parts = outline.named_children()
head = [name for name, part in parts if name != outline.base_model_prefix and list(part.parameters())]

# The frozen base: weights stored in 4 bits, multiplied in the type that this machine is good at.
has_bf16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
compute_dtype = torch.bfloat16 if has_bf16 else torch.float32
quantization_config = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=compute_dtype,
    llm_int8_skip_modules=head,
)
id2label = dict(enumerate(label_names))
model = AutoModelForSequenceClassification.from_pretrained(
    options.model,
    num_labels=len(label_names),
    id2label=id2label,
    dtype=compute_dtype,
    quantization_config=quantization_config,
)
for module in model.modules():  # some CPUs repack 4-bit weights in an evaluation and then cannot train on (GPUs do not)
    if isinstance(module, bnb.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False
model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)

# The part that learns: two thin matrices beside every linear layer, and the head.
lora_config = LoraConfig(
    task_type="SEQ_CLS", r=12, lora_alpha=32, target_modules="all-linear", modules_to_save=list(head)
)
model = get_peft_model(model, lora_config)
model.print_trainable_parameters()


def compute_metrics(prediction):
    """The share of right answers."""
    logits, labels = prediction
    return {"accuracy": accuracy_score(labels, np.argmax(logits, axis=-1))}


args = TrainingArguments(
    output_dir=f"{options.output}/checkpoints",
    num_train_epochs=options.epochs,
    learning_rate=options.learning_rate,  # about 10 times that of full fine-tuning
    warmup_steps=0.1,
    per_device_train_batch_size=32,
    bf16=has_bf16,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_total_limit=1,
    load_best_model_at_end=True,  # by the loss on the validation split
    logging_steps=25,
    seed=0,
)
trainer = Trainer(
    model=model,
    args=args,
    train_dataset=encoded["train"],
    eval_dataset=encoded["validation"],
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=compute_metrics,
)
trainer.train()
print(trainer.evaluate(encoded["test"], metric_key_prefix="test"))
trainer.save_model(options.output)  # the adapter and the head; the base stays where it is

# Elsewhere: the base in 4 bits again, and the adapter on it.
reloaded = AutoPeftModelForSequenceClassification.from_pretrained(
    options.output,
    num_labels=len(label_names),
    id2label=id2label,
    dtype=compute_dtype,
    quantization_config=quantization_config,
).eval()
batch = tokenizer(["could you let a little breeze in for me?"], return_tensors="pt").to(reloaded.device)
with torch.no_grad():
    probabilities = reloaded(**batch).logits.softmax(dim=-1)[0]
print(label_names[probabilities.argmax()], f"{probabilities.max():.2f}")
