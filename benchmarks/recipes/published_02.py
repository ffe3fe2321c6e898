"""The published recipe of lesson 02: BERT-large in 4 bits with LoRA of rank 12, for five intents of a driver.

8 rows a micro-batch and 8 micro-batches a step, each row padded to 512 tokens, activations computed again in the
backward pass, paged 8-bit AdamW at 5e-4. CHANGED says what today's libraries force.
"""

import torch
from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google-bert/bert-large-uncased"
CHANGED = [
    "evaluation and checkpoints left out, reports to nobody, renamed arguments of transformers renamed",
    "texts tokenized here (the published set came tokenized), padded to 512 as it was",
    "llm_int8_skip_modules=['classifier']: today's libraries would quantize the head",
    "dtype=float32 written out: what transformers loaded then",
]


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of the driver intents; it writes below `folder`."""
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["classifier"],
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        MODEL_ID, num_labels=5, quantization_config=quantization_config, device_map={"": 0}, dtype=torch.float32
    )
    model.gradient_checkpointing_enable()
    model = prepare_model_for_kbit_training(model)
    lora_config = LoraConfig(task_type=TaskType.SEQ_CLS, inference_mode=False, r=12, lora_alpha=32, lora_dropout=0.1)
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=8,
        learning_rate=5e-4,
        optim="paged_adamw_8bit",
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Trainer(
        model=get_peft_model(model, lora_config),
        args=args,
        data_collator=default_data_collator,
        train_dataset=data.driver_intents_padded_to_512(tokenizer, rows),
    )
