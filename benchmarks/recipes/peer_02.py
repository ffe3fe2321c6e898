"""What one would otherwise write today for lesson 02: BERT-large in bfloat16 (not quantized) with LoRA, compiled.

64 short rows a step, padded to a multiple of 32 tokens, so that nearly all batches have one length and there is one
compilation. Fused AdamW.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google-bert/bert-large-uncased"


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of the driver intents; it writes below `folder`."""
    model = AutoModelForSequenceClassification.from_pretrained(MODEL_ID, num_labels=5, dtype=torch.bfloat16)
    lora_config = LoraConfig(task_type="SEQ_CLS", r=12, lora_alpha=32, lora_dropout=0.1)
    model = get_peft_model(model, lora_config)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=64,
        dataloader_drop_last=True,
        learning_rate=5e-4,
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
