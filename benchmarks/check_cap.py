"""Whether Unsloth caps the attention scores of Gemma-2: a small model whose scores are far above the cap, on a GPU.

python -m benchmarks.check_cap --unsloth FOLDER [--out cap.json]   (a folder with Unsloth and its pins)

The same weights, the same tokens: logits of transformers in float32 with the cap of 50 and without it, in bfloat16 with
it, and Unsloth's in bfloat16, with LoRA and in training mode as in recipes/unsloth_05.py, as it comes and with two
attentions named. Who caps is near the first, who does not is near the second.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from utils import paths

TOKENIZER = paths.ROOT / "data" / "models" / "tiny-gemma-2"
CAP = 50.0
SHAPE = {
    "vocab_size": 1024,
    "hidden_size": 1024,
    "intermediate_size": 2048,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "num_labels": 3,
}

# {what is compared: (data type, cap)} of transformers; None: no cap
REFERENCES = {
    "with the cap": ("float32", CAP),
    "without it": ("float32", None),
    "in bfloat16": ("bfloat16", CAP),
}

# {what is compared: the attention that Unsloth is told to use}; None: it chooses
UNSLOTHS = {
    "unsloth": None,
    "unsloth, flex": "flex_attention",
    "unsloth, eager": "eager",
}


def logits_of(model):
    """The logits of a model on the GPU for the same tokens each time, as lists."""
    import torch

    ids = torch.randint(5, 1000, (4, 512), generator=torch.manual_seed(0)).cuda()
    model.config.pad_token_id = 0
    return model(input_ids=ids, attention_mask=ids.new_ones(ids.shape)).logits.float().tolist()


def write_model(folder):
    """Writes the small model, its scores far above the cap, and a tokenizer."""
    import torch
    from transformers import Gemma2Config, Gemma2ForSequenceClassification

    torch.manual_seed(0)
    model = Gemma2ForSequenceClassification(Gemma2Config(**SHAPE, attn_logit_softcapping=CAP, pad_token_id=0))
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 8  # scores far above 50
    model.to(torch.bfloat16).save_pretrained(folder)
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder)


def logits_of_references(folder):
    """Writes the model into `folder`/model; returns {what is compared: logits} of transformers."""
    from transformers import AutoModelForSequenceClassification

    write_model(folder / "model")
    logits = {}
    for name, (dtype, cap) in REFERENCES.items():
        model = AutoModelForSequenceClassification.from_pretrained(
            folder / "model", dtype=dtype, attn_implementation="eager", attn_logit_softcapping=cap
        )
        logits[name] = logits_of(model.cuda())
    return {"logits": logits}


def logits_of_unsloth(folder):
    """{what is compared: logits} of Unsloth for that model, loaded and wrapped as in the recipe, and its attentions."""
    import torch
    import unsloth  # before transformers, which it patches
    from transformers import AutoModelForSequenceClassification

    os.chdir(folder)  # it writes compiled code where it is started
    logits, attentions = {}, {}
    for name, attention in UNSLOTHS.items():
        chosen_attention = {}
        if attention is not None:
            chosen_attention["attn_implementation"] = attention
        model, _ = unsloth.FastModel.from_pretrained(
            str(folder / "model"),
            auto_model=AutoModelForSequenceClassification,
            num_labels=3,
            load_in_4bit=False,
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
            target_modules=["q_proj"],
        )
        model = model.train()
        with torch.autocast("cuda", torch.bfloat16):
            logits[name] = logits_of(model)
        attentions[name] = model.config._attn_implementation
    return {"logits": logits, "attention": attentions}


def logits_in_a_child(which, options, folder):
    """What one of the two functions above returns, from a process of its own: Unsloth patches transformers."""
    search_path = [os.environ.get("PYTHONPATH", "")]
    unsloth_folder = str(options.unsloth.resolve())
    if which == "unsloth":
        search_path.insert(0, unsloth_folder)
    environment = dict(os.environ)
    environment["PYTHONPATH"] = os.pathsep.join(search_path)
    command = [sys.executable, "-m", "benchmarks.check_cap", "--unsloth", unsloth_folder]
    command += ["--folder", str(folder), "--child", which]
    subprocess.run(command, check=True, env=environment, cwd=paths.ROOT)
    return json.loads((folder / f"{which}.json").read_text("utf-8"))


def distances(logits):
    """{"one | other": mean distance} of logits, in shares of the mean size of those with the cap."""
    import numpy as np

    arrays = {name: np.array(values) for name, values in logits.items()}
    size = np.abs(arrays["with the cap"]).mean()
    pairs = [("with the cap", other) for other in ("without it", "in bfloat16", *UNSLOTHS)]
    pairs += [("without it", way) for way in UNSLOTHS]
    return {f"{one} | {other}": float(np.abs(arrays[one] - arrays[other]).mean() / size) for one, other in pairs}


def main():
    """Compares, prints the result, and writes it to the file of --out."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--unsloth", type=Path, required=True, help="folder with Unsloth and its pins")
    parser.add_argument("--out", type=Path, help="file of the result")
    parser.add_argument("--child", choices=["reference", "unsloth"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        compute = logits_of_references if options.child == "reference" else logits_of_unsloth
        text = json.dumps(compute(options.folder))
        (options.folder / f"{options.child}.json").write_text(text, encoding="utf-8")
        return

    with tempfile.TemporaryDirectory(prefix="cap-") as folder:
        reference = logits_in_a_child("reference", options, Path(folder))
        unsloth = logits_in_a_child("unsloth", options, Path(folder))
    record = {"attention": unsloth["attention"]}
    record.update(distances({**reference["logits"], **unsloth["logits"]}))
    print(json.dumps(record, indent=2), flush=True)
    if options.out:
        options.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
