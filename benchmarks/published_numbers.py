"""Compute every published number of the five reference notebooks that needs no weights, and their table.

python -m benchmarks.published_numbers      rewrites the table in docs/published-numbers.md

Models are built from their configurations on the meta device, which knows shapes and holds no values.
"""

import json
from pathlib import Path

import torch
import transformers
from peft import LoraConfig, get_peft_model

from utils.results import put_into_page

ROOT = Path(__file__).resolve().parents[1]


def build(model_id, kind, **changes):
    """The model of a configuration that ships with the course, on the meta device."""
    config = json.loads((ROOT / "data" / "models" / "full_size.json").read_text("utf-8"))[model_id]
    with torch.device("meta"):
        return kind.from_config(transformers.AutoConfig.for_model(**config, **changes))


def counts(model):
    """(trainable, all) parameters; a tied one counts once."""
    sizes = [(p.numel(), p.requires_grad) for p in model.parameters()]
    return sum(n for n, trainable in sizes if trainable), sum(n for n, _ in sizes)


def linear(model, skip):
    """{name: module} of the linear layers that transformers puts into 4 bits."""
    modules = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    return {name: module for name, module in modules.items() if name.split(".")[-1] not in skip}


def packed(module):
    """Elements of its weight once bitsandbytes has packed two 4-bit codes into a byte."""
    return -(-module.weight.numel() // 2)


def bert_base():
    return counts(build("google-bert/bert-base-uncased", transformers.AutoModelForSequenceClassification, num_labels=5))


def bert_large_in_nf4():
    """(trainable, all) by numel() before LoRA: two 4-bit weights share a byte, and the biases freeze with them."""
    model = build("google-bert/bert-large-uncased", transformers.AutoModelForSequenceClassification, num_labels=5)
    layers, total = linear(model, ["classifier"]).values(), counts(model)[1]
    half = sum(module.weight.numel() for module in layers)
    biases = sum(module.bias.numel() for module in layers)
    return total - half - biases, total - half + sum(map(packed, layers))


def bert_large_lora(old_peft=False):
    """(trainable, all) with LoRA r = 12 on query and value. An old peft also left the original head trainable."""
    model = build("google-bert/bert-large-uncased", transformers.AutoModelForSequenceClassification, num_labels=5)
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=12, lora_alpha=32, lora_dropout=0.1))
    model.base_model.model.classifier.original_module.requires_grad_(old_peft)
    return counts(model)


def t5_float32():
    model = build("google-t5/t5-3b", transformers.AutoModelForSeq2SeqLM)
    return sum(p.numel() * 4 for p in model.parameters())


def t5_in_nf4(wo_too=False):
    """Bytes by get_memory_footprint: `wo` in float32, the rest of the linear layers packed, the others in float16.

    wo_too: `wo` packed as well. The scales of NF4 are left out, as get_memory_footprint leaves them out.
    """
    model = build("google-t5/t5-3b", transformers.AutoModelForSeq2SeqLM)
    four = linear(model, ["lm_head"] if wo_too else ["lm_head", "wo"])
    wide = {} if wo_too else {n: m for n, m in linear(model, ["lm_head"]).items() if n.endswith(".wo")}
    rest = counts(model)[1] - sum(m.weight.numel() for m in [*four.values(), *wide.values()])
    return sum(map(packed, four.values())) + sum(4 * m.weight.numel() for m in wide.values()) + 2 * rest


def t5_lora():
    model = build("google-t5/t5-3b", transformers.AutoModelForSeq2SeqLM)
    lora = LoraConfig(task_type="SEQ_2_SEQ_LM", r=32, target_modules=["v", "o"], modules_to_save=["lm_head"])
    return counts(get_peft_model(model, lora))


def opt_lora():
    return counts(get_peft_model(build("facebook/opt-1.3b", transformers.AutoModelForCausalLM), LoraConfig(r=16)))


def gemma_lora():
    model = build("google/gemma-2-9b-it", transformers.AutoModelForSequenceClassification, num_labels=3)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
    return counts(get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=64, target_modules=targets)))


def rows():
    """(what, published, here, why they differ) of each number, computed."""
    head = bert_large_lora(old_peft=True)[0] - bert_large_lora()[0]
    return [
        ("BERT-base, 5 classes: parameters, all trainable", 109_486_085, bert_base()[1], ""),
        ("BERT-large in NF4: `numel()` of all", 183_627_781, bert_large_in_nf4()[1], "two weights share a byte"),
        (
            "BERT-large in NF4: trainable before LoRA",
            31_886_341,
            bert_large_in_nf4()[0],
            "what is not quantized, less the biases of quantized layers",
        ),
        ("BERT-large + LoRA r = 12: all", 336_331_786, bert_large_lora()[1], ""),
        (
            "BERT-large + LoRA r = 12: trainable",
            1_189_898,
            bert_large_lora()[0],
            f"an old peft also trained the original head: {head:,} parameters, counted twice",
        ),
        ("T5-3b in float32: bytes", 11_406_393_344, t5_float32(), ""),
        (
            "T5-3b in NF4: bytes",
            4_293_910_528,
            t5_in_nf4(),
            f"three quarters are `wo` in float32; with `wo` in NF4 it is {t5_in_nf4(wo_too=True):,}",
        ),
        (
            "T5-3b + LoRA r = 32: trainable",
            56_492_032,
            t5_lora()[0],
            "32,899,072 of them are a copy of the output head",
        ),
        ("T5-3b + LoRA r = 32: all", 2_908_090_368, t5_lora()[1], ""),
        ("OPT-1.3b + LoRA r = 16: trainable", 3_145_728, opt_lora()[0], ""),
        ("OPT-1.3b + LoRA r = 16: all", 1_318_903_808, opt_lora()[1], ""),
        ("Gemma-2-9b + LoRA r = 64: trainable", 119_745_024, gemma_lora()[0], ""),
        ("Gemma-2-9b + LoRA r = 64: all", 9_361_461_760, gemma_lora()[1], ""),
    ]


def table():
    """The table of docs/published-numbers.md."""
    lines = ["| number | published | here | why they differ, or what it is made of |", "|---|---|---|---|"]
    for what, published, here, why in rows():
        lines.append(f"| {what} | {published:,} | {'the same' if here == published else f'{here:,}'} | {why} |")
    return "\n".join(lines)


def main():
    put_into_page("docs/published-numbers.md", "published", table())


if __name__ == "__main__":
    main()
