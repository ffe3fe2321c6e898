"""Lesson 05 with Unsloth: Gemma-2-9b in 4 bits with LoRA, to judge which of two answers won.

8 rows a micro-batch and 4 micro-batches a step, grouped by length, bfloat16, activations kept, 8-bit AdamW. Unsloth
needs older releases of some packages: they lie in a folder of their own (`bench.py --unsloth FOLDER`).

As it comes, Unsloth loads this classifier with an attention that cannot cap the scores, as Gemma-2 wants them capped
(`check_cap.py` shows it). With `attention="flex_attention"` it caps: the recipe *unsloth with the cap*.
"""

import torch
import unsloth  # before transformers, which it patches
from huggingface_hub import snapshot_download
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

from benchmarks.recipes import rows as data

MODEL_ID = "google/gemma-2-9b-it"


def build_trainer(rows, folder, attention=None):
    """Returns the Trainer of this recipe for rows of comparisons; it writes below `folder`.

    attention: the name of an attention of transformers; None leaves the choice to Unsloth.
    """
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID, padding_side="right")
    chosen_attention = {}
    if attention is not None:
        chosen_attention["attn_implementation"] = attention
    # from its folder: by the model's name, Unsloth would ask the hub for a copy in 4 bits
    path = snapshot_download(MODEL_ID, local_files_only=True)
    model, _ = unsloth.FastModel.from_pretrained(
        path,
        auto_model=AutoModelForSequenceClassification,
        num_labels=3,
        load_in_4bit=True,
        dtype=torch.bfloat16,
        max_seq_length=1024,
        use_gradient_checkpointing=False,
        **chosen_attention,
    )
    model = unsloth.FastModel.get_peft_model(
        model,
        use_gradient_checkpointing=False,
        task_type="SEQ_CLS",
        r=64,
        lora_alpha=32,
        lora_dropout=0,
        bias="none",
        target_modules=["k_proj", "o_proj", "q_proj", "v_proj", "gate_proj"],
    )
    print("attention:", model.config._attn_implementation, "cap:", model.config.attn_logit_softcapping, flush=True)
    model.config.use_cache = False
    model.config.pad_token_id = tokenizer.pad_token_id
    args = TrainingArguments(
        output_dir=folder,
        per_device_train_batch_size=8,
        gradient_accumulation_steps=4,
        train_sampling_strategy="group_by_length",
        learning_rate=1.7e-4,
        optim="adamw_8bit",
        bf16=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Trainer(
        model=model,
        args=args,
        data_collator=DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8),
        train_dataset=data.comparisons(tokenizer, rows),
    )
