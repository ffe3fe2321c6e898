"""Whether Unsloth caps the attention scores of Gemma-2: a small model whose scores are far above the cap, on a GPU.

python benchmarks/check_cap.py --unsloth FOLDER [--out cap.json]   (a folder with Unsloth and its pins)

The same weights, the same tokens: logits of transformers in float32 with the cap of 50 and without it, in bfloat16 with
it, and Unsloth's in bfloat16, with LoRA and in training mode as in bench.py, as it comes and with two attentions named.
Who caps is near the first, who does not is near the second.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

TOKENIZER = Path(__file__).resolve().parents[1] / "data" / "models" / "tiny-gemma-2"
SHAPE = dict(vocab_size=1024, hidden_size=1024, intermediate_size=2048, num_hidden_layers=2, num_attention_heads=4)
SHAPE |= dict(num_key_value_heads=2, head_dim=256, query_pre_attn_scalar=256, sliding_window=4096, num_labels=3)
WAYS = {"unsloth": {}, "unsloth, flex": {"attn_implementation": "flex_attention"}}
WAYS |= {"unsloth, eager": {"attn_implementation": "eager"}}


def answers(model):
    """The logits of a model for the same tokens each time."""
    import torch

    ids = torch.randint(5, 1000, (4, 512), generator=torch.manual_seed(0)).cuda()
    model.config.pad_token_id = 0
    return model(input_ids=ids, attention_mask=ids.new_ones(ids.shape)).logits.float().tolist()


def reference(folder):
    """Writes the model; its logits with the cap, without it, and with it in bfloat16."""
    import shutil

    import torch
    from transformers import AutoModelForSequenceClassification, Gemma2Config, Gemma2ForSequenceClassification

    torch.manual_seed(0)
    model = Gemma2ForSequenceClassification(Gemma2Config(**SHAPE, attn_logit_softcapping=50.0, pad_token_id=0))
    for name, weight in model.named_parameters():
        if "q_proj" in name or "k_proj" in name:
            weight.data *= 8  # scores far above 50
    model.to(torch.bfloat16).save_pretrained(folder / "model")
    for file in TOKENIZER.glob("tokenizer*"):
        shutil.copy(file, folder / "model")
    found = {}
    ways = {"with the cap": ("float32", 50.0), "without it": ("float32", None), "in bfloat16": ("bfloat16", 50.0)}
    for name, (dtype, cap) in ways.items():
        settings = dict(dtype=dtype, attn_implementation="eager", attn_logit_softcapping=cap)
        found[name] = answers(AutoModelForSequenceClassification.from_pretrained(folder / "model", **settings).cuda())
    return found


def unsloth(folder):
    """Unsloth's logits for that model, loaded and wrapped as in bench.py."""
    import torch
    import unsloth  # noqa: I001 (before transformers, which it patches)
    from transformers import AutoModelForSequenceClassification

    os.chdir(folder)  # it writes compiled code where it is started
    kind = dict(auto_model=AutoModelForSequenceClassification, num_labels=3, load_in_4bit=False, dtype=torch.bfloat16)
    kind |= dict(max_seq_length=1024, use_gradient_checkpointing=False)
    lora = dict(r=64, lora_alpha=32, lora_dropout=0, bias="none", target_modules=["q_proj"], task_type="SEQ_CLS")
    found, attention = {}, {}
    for name, settings in WAYS.items():
        model, _ = unsloth.FastModel.from_pretrained(str(folder / "model"), **kind, **settings)
        model = unsloth.FastModel.get_peft_model(model, use_gradient_checkpointing=False, **lora).train()
        with torch.autocast("cuda", torch.bfloat16):
            found[name] = answers(model)
        attention[name] = model.config._attn_implementation
    return found | {"attention": attention}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--unsloth", type=Path, required=True, help="folder with Unsloth and its pins")
    parser.add_argument("--out", type=Path, help="file of the result")
    parser.add_argument("--child", choices=["reference", "unsloth"], help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        found = {"reference": reference, "unsloth": unsloth}[args.child](args.folder)
        return (args.folder / f"{args.child}.json").write_text(json.dumps(found), encoding="utf-8")
    import numpy as np

    with tempfile.TemporaryDirectory(prefix="cap-") as folder:
        again, found = [sys.executable, __file__, "--unsloth", str(args.unsloth.resolve()), "--folder", folder], {}
        for child in ("reference", "unsloth"):
            paths = [str(args.unsloth.resolve())] * (child == "unsloth") + [os.environ.get("PYTHONPATH", "")]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths)}
            subprocess.run([*again, "--child", child], check=True, env=environment)
            found |= json.loads((Path(folder) / f"{child}.json").read_text("utf-8"))
    attention = found.pop("attention")
    logits = {name: np.array(values) for name, values in found.items()}
    size, record = np.abs(logits["with the cap"]).mean(), {"attention": attention}
    pairs = [("with the cap", other) for other in ("without it", "in bfloat16", *WAYS)]
    for one, other in [*pairs, *(("without it", way) for way in WAYS)]:  # mean distances, in shares of a logit
        record[f"{one} | {other}"] = float(np.abs(logits[one] - logits[other]).mean() / size)
    print(json.dumps(record, indent=2), flush=True)
    if args.out:
        args.out.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
