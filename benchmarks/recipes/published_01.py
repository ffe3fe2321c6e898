"""The published recipe of lesson 01: BERT-base, all weights trained, for five intents of a driver.

Batches of 8 rows, each padded to 512 tokens, AdamW at 3e-5, float32. CHANGED says what today's libraries force.
"""

from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google-bert/bert-base-uncased"
CHANGED = [
    "evaluation and checkpoints left out, reports to nobody, renamed arguments of transformers renamed",
    "texts tokenized here (the published set came tokenized), padded to 512 as it was",
]


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of the driver intents; it writes below `folder`."""
    model = BertForSequenceClassification.from_pretrained(MODEL_ID, num_labels=5)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        learning_rate=3e-5,
        optim="adamw_torch",
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Trainer(
        model=model,
        args=args,
        data_collator=default_data_collator,
        train_dataset=data.driver_intents_padded_to_512(tokenizer, rows),
    )
