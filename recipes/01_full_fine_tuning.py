"""Full fine-tuning: a BERT-like encoder learns to put texts into classes. Plain Hugging Face code, nothing else needed.

python recipes/01_full_fine_tuning.py --model google-bert/bert-base-uncased --data my_texts --learning-rate 3e-5
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from datasets import load_dataset
from sklearn.metrics import accuracy_score
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    EarlyStoppingCallback,
    Trainer,
    TrainingArguments,
    pipeline,
    set_seed,
)

ROOT = Path(__file__).resolve().parents[1]
parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
parser.add_argument("--model", default=f"{ROOT}/data/models/tiny-bert", help="any encoder: a hub name or a folder")
parser.add_argument(
    "--data", default=f"{ROOT}/data/driver_intent", help="columns text and label; train, validation, test"
)
parser.add_argument("--output", default="outputs/01_full_fine_tuning")
parser.add_argument("--epochs", type=float, default=6)
parser.add_argument("--learning-rate", type=float, default=3e-4, help="2e-5 to 5e-5 for a model of full size")
options = parser.parse_args()

set_seed(0)
dataset = load_dataset(options.data)
label_names = dataset["train"].features["label"].names  # a data set without names: dataset.class_encode_column("label")
tokenizer = AutoTokenizer.from_pretrained(options.model)


def tokenize(batch):
    """Token ids and labels of a batch of rows."""
    return {**tokenizer(batch["text"], truncation=True, max_length=512), "labels": batch["label"]}


def compute_metrics(prediction):
    """The share of right answers."""
    logits, labels = prediction
    return {"accuracy": accuracy_score(labels, np.argmax(logits, axis=-1))}


encoded = dataset.map(tokenize, batched=True, remove_columns=dataset["train"].column_names)
model = AutoModelForSequenceClassification.from_pretrained(
    options.model,
    num_labels=len(label_names),
    id2label=dict(enumerate(label_names)),
    dtype=torch.float32,
)
trainer = Trainer(
    model=model,
    args=TrainingArguments(
        output_dir=f"{options.output}/checkpoints",
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        warmup_steps=0.1,  # a tenth of all steps
        per_device_train_batch_size=16,
        per_device_eval_batch_size=64,
        bf16=torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0),
        eval_strategy="steps",
        eval_steps=25,
        save_steps=25,
        logging_steps=25,
        save_total_limit=2,
        load_best_model_at_end=True,  # the checkpoint with the lowest validation loss
        metric_for_best_model="loss",
        report_to="none",
        seed=0,
    ),
    train_dataset=encoded["train"],
    eval_dataset=encoded["validation"],
    processing_class=tokenizer,
    data_collator=DataCollatorWithPadding(tokenizer),
    compute_metrics=compute_metrics,
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
)
trainer.train()
print(trainer.predict(encoded["test"]).metrics)  # once: this split has decided nothing

trainer.save_model(f"{options.output}/model")
classifier = pipeline("text-classification", f"{options.output}/model")
print(classifier("Could you let a little breeze in for me?"))
