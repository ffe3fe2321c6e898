"""What one would otherwise write today for lesson 04: OPT-1.3b in bfloat16 with LoRA, rows packed by TRL.

Packs of 1,024 tokens, 8 a step, activations kept. In a pack, documents can see each other.
"""

import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from benchmarks.recipes import rows as data

MODEL_ID = "facebook/opt-1.3b"


def build_trainer(rows, folder):
    """Returns the SFTTrainer of this recipe for rows of conversations; it writes below `folder`."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_ID, dtype=torch.bfloat16, device_map={"": 0})
    args = SFTConfig(
        output_dir=folder,
        packing=True,
        packing_strategy="wrapped",  # "bfd" makes one row of a batch: 8,192 positions, more than OPT has
        max_length=1024,
        per_device_train_batch_size=8,
        gradient_checkpointing=False,
        learning_rate=1e-4,
        bf16=True,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return SFTTrainer(
        model=model,
        args=args,
        train_dataset=Dataset.from_dict({"text": data.questions_and_answers(rows)}),
        processing_class=AutoTokenizer.from_pretrained(MODEL_ID),
        peft_config=LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules=["q_proj", "v_proj"]),
    )
