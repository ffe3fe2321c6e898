"""Memory and time of LoRA on a base in 4, 8, 16 and 32 bits, at full size with random weights.

    python -m benchmarks.int8_and_nf4                                 BERT-large, 64 rows of 32 tokens
    python -m benchmarks.int8_and_nf4 --steps 3 --layers 2            a small part of it, for a CPU

Times a training step (forward, backward, optimizer) of rank 12 on all linear layers, for each way to store the base,
and writes benchmarks/receipts/int8_and_nf4_<device>.json, which lesson 02 shows. Random weights give no score; lesson
02 has the scores of the tiny model.
"""

import argparse
import gc
import json
import statistics
import tempfile
import time

import torch
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoModelForSequenceClassification, BertConfig, BitsAndBytesConfig, logging

from utils import meter, paths, results, session
from utils.training import adapters

RECEIPTS = paths.ROOT / "benchmarks" / "receipts"
WARM_UP_STEPS = 3
BASES = ("float32", "bfloat16", "int8", "nf4")


def load(folder, base, device):
    """The model in `folder` with LoRA, its base stored as `base` says, on the device."""
    quantization_config = None
    if base == "nf4":
        quantization_config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if device == "cuda" else torch.float32,
            llm_int8_skip_modules=["classifier"],
        )
    elif base == "int8":
        quantization_config = BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=["classifier"])
    adapters.keep_trainable()
    model = AutoModelForSequenceClassification.from_pretrained(
        folder,
        dtype=torch.float32 if base == "float32" else torch.bfloat16,
        quantization_config=quantization_config,
    )
    if quantization_config is not None:
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    lora_config = LoraConfig(
        task_type="SEQ_CLS", r=12, lora_alpha=32, target_modules="all-linear", modules_to_save=["classifier"]
    )
    return get_peft_model(model, lora_config).to(device)


def measure(model, device, options):
    """{name: value} of a few training steps: seconds of a step, bytes of the weights and at the peak."""
    learns = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(learns, lr=1e-4)
    ids = torch.randint(5, 30_000, (options.batch, options.length), device=device)
    labels = torch.zeros(options.batch, dtype=torch.long, device=device)
    model.train()
    seconds = []
    for step in range(WARM_UP_STEPS + options.steps):
        if step == WARM_UP_STEPS and device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        started = time.perf_counter()
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        loss.item()  # waits for the GPU
        if step >= WARM_UP_STEPS:
            seconds.append(time.perf_counter() - started)
    found = {"seconds a step": statistics.median(seconds), "weights, MiB": meter.weight_bytes(model) / 2**20}
    if device == "cuda":
        found["peak, MiB"] = torch.cuda.max_memory_allocated() / 2**20
    return found


def main():
    """Measures every base and writes the receipt."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--length", type=int, default=32)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--bases", nargs="*", choices=BASES, default=list(BASES))
    options = parser.parse_args()
    logging.set_verbosity_error()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    config = BertConfig(
        hidden_size=1024,
        num_hidden_layers=options.layers,
        num_attention_heads=16,
        intermediate_size=4096,
        num_labels=5,
    )
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(folder)
        for base in options.bases:
            model = load(folder, base, device)
            rows.append({"base": base, **measure(model, device, options)})
            print(rows[-1], flush=True)
            del model
            gc.collect()
    receipt = {
        "model": f"BERT-large, {options.layers} of 24 layers, random weights",
        "batch": options.batch,
        "length": options.length,
        "steps": options.steps,
        **session.facts(),
        "rows": rows,
    }
    name = results.card(receipt).lower().replace(" ", "_").replace(":", "")
    path = RECEIPTS / f"int8_and_nf4_{name}.json"
    path.write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
