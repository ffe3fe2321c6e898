"""Supervised fine-tuning: teach a decoder to answer, with a LoRA adapter. Plain Hugging Face code, nothing else needed.

python recipes/04_sft_lora.py [--model ID] [--data FOLDER] [--learning_rate 1e-4] [--epochs 3] [--output FOLDER]
"""

import argparse
import math
from pathlib import Path

import bitsandbytes as bnb
import torch
from datasets import load_dataset
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, set_seed
from transformers.pytorch_utils import Conv1D
from trl import SFTConfig, SFTTrainer

ROOT = Path(__file__).resolve().parents[1]
parser = argparse.ArgumentParser()
parser.add_argument("--model", default=str(ROOT / "data/models/tiny-opt"))  # or "Qwen/Qwen3-0.6B", with 1e-4
parser.add_argument("--data", default=str(ROOT / "data/car_manual"))  # splits train, validation, test; see messages()
parser.add_argument("--learning_rate", type=float, default=3e-3)
parser.add_argument("--epochs", type=float, default=8)
parser.add_argument("--max_new_tokens", type=int, default=16)
parser.add_argument("--output", default="outputs/04_sft_lora")
options = parser.parse_args()

# How a conversation becomes a text, if the model has no template of its own. What stands between the marks
# `generation` and `endgeneration` is what the assistant says: it counts in the loss, nothing else does.
CHAT_TEMPLATE = """{{- bos_token }}
{%- for message in messages %}
    {%- if message.role == "user" %}{{ "Question: " + message.content + "\\n\\nAnswer:" }}
    {%- elif message.role == "system" %}{{ message.content + "\\n\\n" }}
    {%- else %}{% generation %}{{ " " + message.content + eos_token }}{% endgeneration %}
        {%- if not loop.last %}{{ "\\n\\n" }}{% endif %}
    {%- endif %}
{%- endfor %}"""


def messages(row):
    """A row of the data as a list of messages; these rows hold question, answer, question, answer, ..."""
    roles = ("user", "assistant")
    turns = enumerate(row["conversations"])
    return {"messages": [{"role": roles[place % 2], "content": text} for place, text in turns]}


set_seed(0)
dataset = load_dataset(options.data)
groups = dataset["test"]["source"]
dataset = dataset.map(messages, remove_columns=dataset["train"].column_names)
tokenizer = AutoTokenizer.from_pretrained(options.model)
if tokenizer.chat_template is None:
    tokenizer.chat_template = CHAT_TEMPLATE

# The frozen base: weights in 4 bits, multiplied in the type that this machine is good at.
has_bf16 = torch.cuda.is_available() and torch.cuda.get_device_capability() >= (8, 0)
compute_dtype = torch.bfloat16 if has_bf16 else torch.float32
nf4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=compute_dtype,
)
base = AutoModelForCausalLM.from_pretrained(
    options.model, dtype=compute_dtype, quantization_config=nf4, use_safetensors=True
)
for module in base.modules():  # some CPUs repack 4-bit weights in an evaluation and then cannot train on (GPUs don't)
    if isinstance(module, bnb.nn.Linear4bit):
        module.support_avx512bf16_for_cpu = False
model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", r=16, lora_alpha=32, target_modules="all-linear"))

trainer = SFTTrainer(
    model=model,
    args=SFTConfig(
        output_dir=f"{options.output}/checkpoints",
        num_train_epochs=options.epochs,
        learning_rate=options.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=10,
        weight_decay=0.05,
        per_device_train_batch_size=16,
        max_length=1024,
        assistant_only_loss=True,  # the default counts the questions, too
        bf16=has_bf16,  # the default is True, whatever the machine
        gradient_checkpointing=False,  # the default is True; it saves memory and costs time
        eval_strategy="epoch",
        save_strategy="no",
        report_to="none",
    ),
    train_dataset=dataset["train"],
    eval_dataset=dataset["validation"],
    processing_class=tokenizer,
)
for parameter in model.parameters():  # on a 4-bit base TRL casts the adapter to bfloat16, which loses small updates
    if parameter.requires_grad:
        parameter.data = parameter.data.float()
trainer.train()
print("perplexity of the right answers:", math.exp(trainer.evaluate(dataset["test"])["eval_loss"]))


def answer(questions):
    """What the model answers, greedily; padding stands on the left, where no answer goes on."""
    prompts = [[{"role": "user", "content": question}] for question in questions]
    batch = tokenizer.apply_chat_template(
        prompts,
        add_generation_prompt=True,
        padding=True,
        tokenizer_kwargs={"padding_side": "left"},
        return_tensors="pt",
        return_dict=True,
    ).to(model.device)
    ids = model.eval().generate(
        input_ids=batch["input_ids"],
        attention_mask=batch["attention_mask"],
        max_new_tokens=options.max_new_tokens,
        do_sample=False,
        use_cache=True,
    )
    texts = tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
    return [text.strip() for text in texts]


right = []
for start in range(0, len(groups), 64):
    talks = dataset["test"]["messages"][start : start + 64]
    answers = answer([talk[0]["content"] for talk in talks])
    right += [said.casefold() == talk[-1]["content"].casefold() for said, talk in zip(answers, talks, strict=True)]
for group in sorted(set(groups)):
    of_group = [is_right for is_right, name in zip(right, groups, strict=True) if name == group]
    print(f"exact match, {group}: {sum(of_group) / len(of_group):.3f} (n = {len(of_group)})")

# Keep the adapter; and one plain model to serve, merged into the weights that it was trained beside: the rounded ones.
trainer.save_model(f"{options.output}/adapter")
base = AutoModelForCausalLM.from_pretrained(
    options.model, dtype=compute_dtype, quantization_config=nf4, use_safetensors=True
)
merged = PeftModel.from_pretrained(base.dequantize(), f"{options.output}/adapter").merge_and_unload()
weights = merged.state_dict()
with torch.device("meta"):  # GPT-2 keeps its weights turned (Conv1D), bitsandbytes does not: they are turned back
    as_saved = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(options.model))
turned = [f"{name}.weight" for name, layer in as_saved.named_modules() if isinstance(layer, Conv1D)]
weights.update({name: weights[name].T.contiguous() for name in turned})
merged.save_pretrained(f"{options.output}/merged", state_dict=weights)
tokenizer.save_pretrained(f"{options.output}/merged")
