"""What a plan is made of: cards, sizes of number types, and the settings of model, adapter and quantization."""

import json
import sys
from pathlib import Path

from utils.errors import CourseError, closest
from utils.paths import ROOT
from utils.planner.layers import HEADS
from utils.units import GIB

PARTS = ("weights", "adapters", "gradients", "optimizer states", "activations", "logits and loss", "temporary")
PARTS += ("CUDA libraries",)
CARDS = {  # GiB that torch finds on them
    "T4 16 GB": 14.7,
    "RTX 3060 12 GB": 11.7,
    "RTX 4090 24 GB": 23.6,
    "A100 40 GB": 39.4,
    "A100 80 GB": 79.2,
    "H200 141 GB": 139.8,
}
CONTEXT = int(0.75 * GIB)  # what CUDA itself takes, outside of torch's allocator: measured on an H200
SLACK = 0.05  # share of the peak that the allocator holds in pieces too small to use
SIZES = {"float32": 4, "bfloat16": 2, "float16": 2, None: 0}
CHECKED = ("bert", "t5", "opt", "gemma2")  # against benchmarks/receipts/memory.json
TARGETS = {"bert": ["query", "value"], "t5": ["q", "v"]}  # peft's own choice; q_proj and v_proj for the others


def _on_hopper():
    torch = sys.modules.get("torch")  # not imported for this
    return bool(torch) and torch.cuda.is_available() and torch.cuda.get_device_capability()[0] == 9


def _config(model):
    """The configuration as a dict, with num_labels if it is one of a classifier, and a name for it."""
    config, name = _read(getattr(model, "config", model))
    kinds = [type(model).__name__, *(config.get("architectures") or [])]
    if any(kind.endswith("ForSequenceClassification") for kind in kinds):
        config.setdefault("num_labels", len(config.get("id2label") or "01"))
    return config, name


def _read(model):
    if hasattr(model, "to_dict"):
        return dict(model.to_dict()), getattr(model, "name_or_path", "") or model.model_type
    if isinstance(model, dict):
        return dict(model), model["model_type"]
    shipped = json.loads((ROOT / "data" / "models" / "full_size.json").read_text("utf-8"))
    names = {short: id for id in shipped for short in (id, id.split("/")[-1], id.removesuffix("-it"))}
    folder = Path(str(model))
    if (folder / "config.json").exists():
        return json.loads((folder / "config.json").read_text("utf-8")), folder.name
    if str(model) in names:
        return dict(shipped[names[str(model)]]), names[str(model)]
    try:
        from transformers import AutoConfig  # asks the hub

        return AutoConfig.from_pretrained(str(model)).to_dict(), str(model)
    except (OSError, ValueError) as error:
        like = closest(model, names)
        remedy = f"correct the name (closest that ships with the course: {like!r}), or go online"
        raise CourseError(f"{str(model)!r}: no configuration found, here or on the hub; {remedy}.") from error


def _field(config, name, default=None):
    value = config.get(name) if isinstance(config, dict) else getattr(config, name, None)
    return default if value is None else value


def _lora(lora, family, num_labels):
    if lora is None:
        return None
    targets = _field(lora, "target_modules", TARGETS.get(family, ["q_proj", "v_proj"]))
    saved = list(_field(lora, "modules_to_save", []))
    if family == "bert" or num_labels or "SEQ_CLS" in str(_field(lora, "task_type", "")):
        saved += ["classifier", "score"]
    return {
        "r": _field(lora, "r", 8),
        "dropout": _field(lora, "lora_dropout", 0.0),
        "target_modules": targets if isinstance(targets, str) else list(targets),
        "layers_to_transform": _field(lora, "layers_to_transform"),
        "modules_to_save": saved,
    }


def _quantization(config):
    if config is None:
        return None
    if _field(config, "load_in_8bit", False):
        raise CourseError("the planner knows 4-bit quantization only; set load_in_4bit=True.")
    double = _field(config, "bnb_4bit_use_double_quant", isinstance(config, dict))
    compute = str(_field(config, "bnb_4bit_compute_dtype", "bfloat16")).removeprefix("torch.")
    skip = {*_field(config, "llm_int8_skip_modules", []), *HEADS}
    return {"kind": "double" if double else "single", "compute": SIZES[compute], "skip": skip}
