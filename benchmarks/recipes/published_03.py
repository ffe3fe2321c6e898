"""The published recipe of lesson 03: T5-3b in 4 bits with LoRA of rank 32 and a trained output head, for summaries.

Batches of 4, float16, LoRA on `v` and `o`, paged 8-bit AdamW at 2e-5. CHANGED says what today's libraries force.
"""

import torch
from peft import LoraConfig
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
CHANGED = [
    "evaluation and checkpoints left out, reports to nobody, renamed arguments of transformers renamed",
    "dtype=float16 written out: what transformers took for 4-bit models then",
    "texts cut at 1,024 and 128",
]


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of bills and summaries; it writes below `folder`."""
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float16,
    )
    model = AutoModelForSeq2SeqLM.from_pretrained(
        MODEL_ID, quantization_config=quantization_config, device_map={"": 0}, dtype=torch.float16
    )
    lora_config = LoraConfig(
        task_type="SEQ_2_SEQ_LM",
        r=32,
        lora_alpha=16,
        lora_dropout=0.05,
        bias="none",
        target_modules=["v", "o"],
        modules_to_save=["lm_head"],
    )
    model.add_adapter(lora_config, "adapter_4")
    model.set_adapter("adapter_4")
    for name, parameter in model.named_parameters():
        if "lora_" in name:  # PEFT made them in float32 then
            parameter.data = parameter.data.float()
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    args = Seq2SeqTrainingArguments(
        output_dir=folder,
        optim="paged_adamw_8bit",
        per_device_train_batch_size=4,
        weight_decay=0.01,
        learning_rate=2e-5,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Seq2SeqTrainer(
        model=model,
        args=args,
        data_collator=DataCollatorForSeq2Seq(tokenizer=tokenizer, model=model),
        train_dataset=data.bills(tokenizer, rows),
    )
