"""What one would otherwise write today for lesson 05: Gemma-2-9b in 4 bits with LoRA, Liger's kernels, flex attention.

8 rows a micro-batch and 4 micro-batches a step, grouped by length and padded to a multiple of 128 tokens, bfloat16,
activations kept, 8-bit AdamW.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google/gemma-2-9b-it"


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of comparisons; it writes below `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID, padding_side="right")
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
        llm_int8_skip_modules=["score"],
    )
    model = AutoModelForSequenceClassification.from_pretrained(
        MODEL_ID,
        num_labels=3,
        dtype=torch.bfloat16,
        device_map={"": 0},
        attn_implementation="flex_attention",
        quantization_config=quantization_config,
    )
    model.config.use_cache = False
    model.config.pad_token_id = tokenizer.pad_token_id
    lora_config = LoraConfig(
        task_type="SEQ_CLS",
        r=64,
        lora_alpha=32,
        target_modules=["k_proj", "o_proj", "q_proj", "v_proj", "gate_proj"],
    )
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        train_sampling_strategy="group_by_length",
        learning_rate=1.7e-4,
        optim="adamw_8bit",
        bf16=True,
        use_liger_kernel=True,
        liger_kernel_config={"fused_linear_cross_entropy": False},  # else it replaces the classifier's forward
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Trainer(
        model=get_peft_model(model, lora_config),
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=128),
        train_dataset=data.comparisons(tokenizer, rows),
    )
