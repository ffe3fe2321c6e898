"""Compute every published number of the five reference notebooks that needs no weights, and their table.

python -m benchmarks.published_numbers      rewrites the table in docs/published-numbers.md

Models are built from their configurations on the meta device, which knows shapes and holds no values.
"""

import json
import math
from dataclasses import dataclass

import torch
import transformers
from peft import LoraConfig, get_peft_model

from tools.tables import markdown_table, put_into_page
from utils import paths


@dataclass(frozen=True)
class PublishedNumber:
    """A number of a reference notebook, beside the same number computed here."""

    what: str
    published: int
    here: int
    why: str = ""
    """why they differ, or what the number is made of"""


def build(model_id, model_class, **changes):
    """The model of a configuration that ships with the course, on the meta device.

    changes: of the configuration, such as num_labels.
    """
    configurations = json.loads((paths.ROOT / "data" / "models" / "full_size.json").read_text("utf-8"))
    config = transformers.AutoConfig.for_model(**configurations[model_id], **changes)
    with torch.device("meta"):
        return model_class.from_config(config)


def count_parameters(model):
    """(trainable, all) parameters; a tied one counts once."""
    trainable, total = 0, 0
    for parameter in model.parameters():
        total += parameter.numel()
        if parameter.requires_grad:
            trainable += parameter.numel()
    return trainable, total


def linear_layers(model, skip=()):
    """{name: module} of the linear layers, without those whose last name is in `skip`."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and name.split(".")[-1] not in skip:
            layers[name] = module
    return layers


def packed_bytes(module):
    """Bytes of a layer's weight once bitsandbytes has packed two 4-bit codes into each."""
    return math.ceil(module.weight.numel() / 2)


def bert_for_sequences(model_id):
    """A BERT with a head for five classes."""
    return build(model_id, transformers.AutoModelForSequenceClassification, num_labels=5)


def bert_base():
    """(trainable, all) parameters of lesson 01's model."""
    return count_parameters(bert_for_sequences("google-bert/bert-base-uncased"))


def bert_large_in_nf4():
    """(trainable, all) by numel() before LoRA: two 4-bit weights share a byte, and the biases freeze with them."""
    model = bert_for_sequences("google-bert/bert-large-uncased")
    _, total = count_parameters(model)
    quantized = linear_layers(model, skip=["classifier"]).values()
    weights = sum(module.weight.numel() for module in quantized)
    biases = sum(module.bias.numel() for module in quantized)
    packed = sum(packed_bytes(module) for module in quantized)
    not_quantized = total - weights
    return not_quantized - biases, not_quantized + packed


def bert_large_lora(old_peft=False):
    """(trainable, all) with LoRA r = 12 on query and value. An old peft also left the original head trainable."""
    model = bert_for_sequences("google-bert/bert-large-uncased")
    model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=12, lora_alpha=32, lora_dropout=0.1))
    model.base_model.model.classifier.original_module.requires_grad_(old_peft)
    return count_parameters(model)


def t5():
    """T5-3b as lesson 03 has it."""
    return build("google-t5/t5-3b", transformers.AutoModelForSeq2SeqLM)


def t5_float32():
    """Bytes of T5-3b in float32."""
    return sum(parameter.numel() * 4 for parameter in t5().parameters())


def t5_in_nf4(wo_too=False):
    """Bytes by get_memory_footprint: `wo` in float32, the other linear layers packed, the rest in float16.

    wo_too: `wo` packed as well. The scales of NF4 are left out, as get_memory_footprint leaves them out.
    """
    model = t5()
    packed, float32, not_float16 = 0, 0, 0
    for name, module in linear_layers(model, skip=["lm_head"]).items():
        not_float16 += module.weight.numel()
        if name.endswith(".wo") and not wo_too:
            float32 += 4 * module.weight.numel()
        else:
            packed += packed_bytes(module)
    _, total = count_parameters(model)
    return packed + float32 + 2 * (total - not_float16)


def t5_lora():
    """(trainable, all) parameters of T5-3b with the published adapters."""
    lora_config = LoraConfig(task_type="SEQ_2_SEQ_LM", r=32, target_modules=["v", "o"], modules_to_save=["lm_head"])
    return count_parameters(get_peft_model(t5(), lora_config))


def opt_lora(rank=16):
    """(trainable, all) parameters of OPT-1.3b with the published adapters."""
    model = build("facebook/opt-1.3b", transformers.AutoModelForCausalLM)
    return count_parameters(get_peft_model(model, LoraConfig(r=rank)))


def gemma_lora():
    """(trainable, all) parameters of Gemma-2-9b with the published adapters."""
    model = build("google/gemma-2-9b-it", transformers.AutoModelForSequenceClassification, num_labels=3)
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
    return count_parameters(get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=64, target_modules=targets)))


def numbers():
    """Every PublishedNumber, computed."""
    bert_large_trainable, bert_large_all = bert_large_in_nf4()
    lora_trainable, lora_all = bert_large_lora()
    head = bert_large_lora(old_peft=True)[0] - lora_trainable
    t5_trainable, t5_all = t5_lora()
    opt_trainable, opt_all = opt_lora()
    gemma_trainable, gemma_all = gemma_lora()
    return [
        PublishedNumber("BERT-base, 5 classes: parameters, all trainable", 109_486_085, bert_base()[1]),
        PublishedNumber("BERT-large in NF4: `numel()` of all", 183_627_781, bert_large_all, "two weights share a byte"),
        PublishedNumber(
            "BERT-large in NF4: trainable before LoRA",
            31_886_341,
            bert_large_trainable,
            "what is not quantized, less the biases of quantized layers",
        ),
        PublishedNumber("BERT-large + LoRA r = 12: all", 336_331_786, lora_all),
        PublishedNumber(
            "BERT-large + LoRA r = 12: trainable",
            1_189_898,
            lora_trainable,
            f"an old peft also trained the original head: {head:,} parameters, counted twice",
        ),
        PublishedNumber("T5-3b in float32: bytes", 11_406_393_344, t5_float32()),
        PublishedNumber(
            "T5-3b in NF4: bytes",
            4_293_910_528,
            t5_in_nf4(),
            f"three quarters are `wo` in float32; with `wo` in NF4 it is {t5_in_nf4(wo_too=True):,}",
        ),
        PublishedNumber(
            "T5-3b + LoRA r = 32: trainable",
            56_492_032,
            t5_trainable,
            "32,899,072 of them are a copy of the output head",
        ),
        PublishedNumber("T5-3b + LoRA r = 32: all", 2_908_090_368, t5_all),
        PublishedNumber("OPT-1.3b + LoRA r = 16: trainable", 3_145_728, opt_trainable),
        PublishedNumber("OPT-1.3b + LoRA r = 16: all", 1_318_903_808, opt_all),
        PublishedNumber("Gemma-2-9b + LoRA r = 64: trainable", 119_745_024, gemma_trainable),
        PublishedNumber("Gemma-2-9b + LoRA r = 64: all", 9_361_461_760, gemma_all),
    ]


def table():
    """The table of docs/published-numbers.md."""
    rows = []
    for number in numbers():
        here = f"{number.here:,}"
        if number.here == number.published:
            here = "the same"
        rows.append(
            {
                "number": number.what,
                "published": f"{number.published:,}",
                "here": here,
                "why they differ, or what it is made of": number.why,
            }
        )
    return markdown_table(rows)


def main():
    """Writes the table."""
    put_into_page("docs/published-numbers.md", "published", table())


if __name__ == "__main__":
    main()
