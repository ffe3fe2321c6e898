"""The published recipe of lesson 05: Gemma-2-9b in 4 bits with LoRA of rank 64, to judge which of two answers won.

2 rows a micro-batch and 16 micro-batches a step, float16, activations computed again in the backward pass, 8-bit AdamW
at 1.7e-4. CHANGED says what today's libraries force.
"""

import torch
from peft import LoraConfig, TaskType, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoTokenizer,
    BitsAndBytesConfig,
    DataCollatorWithPadding,
    Gemma2ForSequenceClassification,
    Trainer,
    TrainingArguments,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google/gemma-2-9b-it"
CHANGED = [
    "evaluation and checkpoints left out, reports to nobody, renamed arguments of transformers renamed",
    "quantized when loaded, as the published checkpoint was: NF4, double quantization, bfloat16",
    "attn_implementation='eager' written out: what transformers took for Gemma-2 then",
    "texts from json.loads instead of eval, the turns of a talk joined by a space",
    "no <eos> behind a text; the pad token is named in the configuration, which today's classifier needs",
]


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of comparisons; it writes below `folder`."""
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID, padding_side="right")
    quantization_config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    model = Gemma2ForSequenceClassification.from_pretrained(
        MODEL_ID,
        num_labels=3,
        dtype=torch.float16,
        device_map="auto",
        attn_implementation="eager",
        quantization_config=quantization_config,
    )
    model.config.use_cache = False
    model.config.pad_token_id = tokenizer.pad_token_id
    model = prepare_model_for_kbit_training(model)
    lora_config = LoraConfig(
        task_type=TaskType.SEQ_CLS,
        r=64,
        lora_alpha=32,
        lora_dropout=0.05,
        target_modules=["k_proj", "o_proj", "q_proj", "v_proj", "gate_proj"],
    )
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=16,
        optim="adamw_8bit",
        fp16=True,
        learning_rate=1.7e-4,
        warmup_steps=20,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Trainer(
        model=get_peft_model(model, lora_config),
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer),
        train_dataset=data.comparisons(tokenizer, rows),
    )
