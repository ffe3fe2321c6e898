"""What one would otherwise write today for lesson 03: T5-3b in 4 bits with LoRA of rank 16 on `v` and `o`, bfloat16.

`wo` stays in bfloat16, not quantized. Batches of 8, activations kept, attention as transformers chooses it (sdpa),
paged 8-bit AdamW.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorForSeq2Seq,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google-t5/t5-3b"


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of bills and summaries; it writes below `folder`."""
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(
        MODEL_ID, quantization_config=quantization_config, device_map={"": 0}, dtype=torch.bfloat16
    )
    lora_config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=16, lora_alpha=32, target_modules=["v", "o"])
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    args = Seq2SeqTrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        learning_rate=2e-4,
        optim="paged_adamw_8bit",
        bf16=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Seq2SeqTrainer(
        model=get_peft_model(model, lora_config),
        args=args,
        data_collator=DataCollatorForSeq2Seq(tokenizer, pad_to_multiple_of=8),
        train_dataset=data.bills(tokenizer, rows),
    )
