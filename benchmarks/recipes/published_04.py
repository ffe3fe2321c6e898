"""The published recipe of lesson 04: OPT-1.3b in bfloat16 with LoRA of rank 16, to answer questions.

Rows joined to blocks of 1,024 tokens, 8 blocks a step, activations computed again in the backward pass, AdamW at 1e-4
with a cosine schedule. CHANGED says what today's libraries force.
"""

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments, default_data_collator

from benchmarks.recipes import rows as data

MODEL_ID = "facebook/opt-1.3b"
BLOCK = 1024  # tokens
CHANGED = [
    "evaluation and checkpoints left out, reports to nobody, renamed arguments of transformers renamed",
    "rows joined to blocks of 1,024 tokens here: ConstantLengthDataset is gone from TRL",
    "get_peft_model and Trainer, which SFTTrainer called",
    "attention as transformers chooses it today (sdpa); then it was eager",
]


class CastOutputToFloat(torch.nn.Sequential):
    """The output head with its logits in float32."""

    def forward(self, x):
        """Returns the logits of the hidden states x."""
        return super().forward(x).to(torch.float32)


def blocks_of_tokens(tokenizer, texts):
    """All texts as one stream of tokens, an end token behind each, cut into blocks; what is left over is dropped."""
    stream = []
    for ids in tokenizer(texts)["input_ids"]:
        stream.extend(ids)
        stream.append(tokenizer.eos_token_id)
    examples = []
    for begin in range(0, len(stream) - BLOCK + 1, BLOCK):
        block = stream[begin : begin + BLOCK]
        examples.append({"input_ids": block, "labels": block, "attention_mask": [1] * BLOCK})
    return examples


def build_trainer(rows, folder):
    """Returns the Trainer of this recipe for rows of conversations; it writes below `folder`."""
    model = AutoModelForCausalLM.from_pretrained(MODEL_ID, dtype=torch.bfloat16)
    for parameter in model.parameters():
        parameter.requires_grad = False
        if parameter.ndim == 1:  # biases and the weights of layer norms
            parameter.data = parameter.data.float()
    model.gradient_checkpointing_enable()
    model.enable_input_require_grads()
    model.lm_head = CastOutputToFloat(model.lm_head)
    lora_config = LoraConfig(r=16, lora_alpha=32, lora_dropout=0.05, bias="none", task_type="CAUSAL_LM")
    tokenizer = AutoTokenizer.from_pretrained(MODEL_ID)
    args = TrainingArguments(
        output_dir=folder,
        dataloader_drop_last=True,
        per_device_train_batch_size=8,
        learning_rate=1e-4,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        bf16=True,
        weight_decay=0.05,
        report_to="none",
        save_strategy="no",
        logging_steps=10,
    )
    return Trainer(
        model=get_peft_model(model, lora_config),
        args=args,
        data_collator=default_data_collator,
        train_dataset=blocks_of_tokens(tokenizer, data.questions_and_answers(rows)),
    )
