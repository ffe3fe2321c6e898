"""What one would otherwise write today for lesson 01: BERT-base, all weights trained, compiled, bfloat16 autocast.

64 short rows a step, padded to a multiple of 32 tokens, so that nearly all batches have one length and there is one
compilation. Fused AdamW.
"""

from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google-bert/bert-base-uncased"


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of the driver intents; it writes below `folder`."""
    model = BertForSequenceClassification.from_pretrained(MODEL_ID, num_labels=5)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=64,
        dataloader_drop_last=True,
        learning_rate=8.5e-5,
        optim="adamw_torch_fused",
        bf16=True,
        torch_compile=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Trainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=32),
        train_dataset=data.driver_intents(tokenizer, rows),
    )
