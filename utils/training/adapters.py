"""Checks around 4-bit base models and their adapters: what would fail late, or never, gets one sentence early."""

import functools
import hashlib
import json
import re
from pathlib import Path

import torch

from utils.errors import CourseError, closest
from utils.training.weight_files import safe_weights

FINGERPRINT = "base_fingerprint.json"


def linear4bit(model):
    """{name: module} of the 4-bit layers of `model`."""
    from bitsandbytes.nn import Linear4bit  # not above: importing this module stays cheap

    return {name: module for name, module in model.named_modules() if isinstance(module, Linear4bit)}


def check_quantized(model):
    """Checks a model as `from_pretrained` returned it with a 4-bit `quantization_config`; returns its 4-bit layers.

    Raises CourseError if nothing is in 4 bits, if a layer that the checkpoint lacks was made a 4-bit layer (its weights
    are then not packed, and the first forward pass fails), or if bitsandbytes unpacks rows of a layer's width wrongly
    on this machine: 0.50.2 does on CPUs with AVX-512 for some widths that are no multiple of 64, without an error.
    """
    layers = linear4bit(model)
    if not layers:
        raise CourseError("no layer of the model is in 4 bits; pass quantization_config to from_pretrained.")
    if new := [name for name, layer in layers.items() if getattr(layer.weight, "quant_state", None) is None]:
        remedy = f"pass llm_int8_skip_modules={new} to BitsAndBytesConfig, so that it stays a plain layer and can learn"
        raise CourseError(f"{new[0]}: the checkpoint has no weights for it, yet it is a 4-bit layer; {remedy}.")
    for name, layer in layers.items():
        if layer.support_avx512bf16_for_cpu and layer.weight.device.type == "cpu":
            fault = "an evaluation on this CPU would make it unfit for training"
            raise CourseError(f"{name}: {fault}; call adapters.keep_trainable(model) first.")
    for name, layer in layers.items():
        if not unpacks_rightly(layer.in_features, layer.weight.device):
            remedy = "take a model whose widths are multiples of 64, or a GPU"
            fault = f"bitsandbytes unpacks rows of {layer.in_features} wrongly on this CPU"
            raise CourseError(f"{name}: {fault}; {remedy}.")
    return layers


@functools.cache
def unpacks_rightly(width, device):
    """Whether 4-bit rows of `width` come back as the same numbers do in rows of 64, which is one block a row."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    rows = torch.linspace(-1, 1, 64 * width, device=device).sin().view(64, width)
    blocks = dequantize_4bit(*quantize_4bit(rows.view(-1, 64), quant_type="nf4"))
    return torch.equal(dequantize_4bit(*quantize_4bit(rows, quant_type="nf4")).view(-1, 64), blocks)


def keep_trainable(model):
    """Lets a 4-bit model train after an evaluation on a CPU with AVX512-BF16; elsewhere this changes nothing.

    On such a CPU, bitsandbytes repacks the weights in the first evaluation, and the next training step fails: the
    packed form has no backward pass, and widths that are no multiple of 64 do not fit it at all. Call it right after
    `from_pretrained`.
    """
    for layer in linear4bit(model).values():
        layer.support_avx512bf16_for_cpu = False


def check_targets(model, lora_config):
    """Checks that each name in `target_modules` and `modules_to_save` is a module of `model`; PEFT itself says nothing
    while at least one name fits. Raises CourseError with the closest name that exists."""
    modules = dict(model.named_modules())
    linear = {name.split(".")[-1] for name, module in modules.items() if hasattr(module, "in_features")}
    heads = {name for name, _ in model.named_children()}
    for field, known in (("target_modules", linear), ("modules_to_save", heads)):
        wanted = getattr(lora_config, field) or ()
        if isinstance(wanted, str):  # a pattern for whole names, or "all-linear"
            wanted = {wanted} - {"all-linear", *(wanted for name in modules if re.fullmatch(wanted, name))}
        # PEFT itself adds both of these for SEQ_CLS, and a model has one of them
        own = {"classifier", "score"} if lora_config.task_type == "SEQ_CLS" and known is heads else set()
        for name in sorted(set(wanted) - own):
            if not any(f".{full}".endswith(f".{name}") for full in modules):
                hint = f"closest: {closest(name, sorted(known))!r}; there are: {', '.join(sorted(known)[:12])}"
                raise CourseError(f"LoraConfig: {field} names {name!r}, which is no module of the model ({hint}).")


def fingerprint(model):
    """{name: shape, mean, std and some values} of weights of the base model: embeddings and norms, which stay
    unquantized, and linear layers of its numbered layers, unpacked if they are in 4 bits ("rounded")."""
    plain = {}
    for name, parameter in model.named_parameters():
        if re.search("embed|norm|shared", name, re.IGNORECASE) and not re.search(r"lora_|modules_to_save", name):
            plain[_base_name(name)] = parameter.detach()
    found = {name: _sample(plain[name], 8) for name in [*plain][:4] + [*plain][-4:]}
    linear = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and re.search(r"\.\d+\.", name) and "lora_" not in name:
            linear[f"{_base_name(name)}.weight"] = module
    for name in [*linear][:: max(1, len(linear) // 4)]:
        found[name] = _sample(_unpacked(linear[name]), 64) | {"rounded": True}
    return found


def _base_name(name):
    """The name that a part of a PEFT model has in its base model."""
    return re.sub(r"^base_model\.model\.", "", name).replace(".base_layer", "")


def _unpacked(layer):
    """The weights of a linear layer, as numbers also if it is in 4 bits."""
    if (state := getattr(layer.weight, "quant_state", None)) is None:
        return layer.weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.detach(), state)


def _sample(weight, count):
    """Shape, mean, std and `count` values of a weight, evenly spread."""
    values = weight.flatten()
    some = values[torch.linspace(0, len(values) - 1, count, dtype=torch.double).long()].double().tolist()
    values = values[: 2**20].double()  # enough; a copy of all of a large embedding would not fit everywhere
    return {"shape": [*weight.shape], "mean": values.mean().item(), "std": values.std().item(), "values": some}


def save_fingerprint(model, folder):
    """Writes what tells the base of `model`, and the tokenizer in the adapter's `folder`, from others into it."""
    found = fingerprint(model) | {"tokenizer.json": _digest(Path(folder) / "tokenizer.json")}
    (Path(folder) / FINGERPRINT).write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def _digest(file):
    return hashlib.sha256(file.read_bytes()).hexdigest() if file.exists() else None


def check_base(model, folder):
    """Raises CourseError if `model`, quantized or not, is not the base on which the adapter in `folder` was trained.

    Values may differ by rounding (bfloat16, float16, 4 bits) only; weights of another model are refused, equal shapes
    too. So are an adapter that is not in the safetensors format, and another tokenizer than it was saved with.
    """
    safe_weights(folder)
    path = Path(folder) / FINGERPRINT
    if not path.exists():
        remedy = "save it beside the adapter with adapters.save_fingerprint(model, folder)"
        raise CourseError(f"{path}: not found, so nobody knows which base this adapter belongs to; {remedy}.")
    saved, here = json.loads(path.read_text("utf-8")), fingerprint(model)
    tokenizer = _digest(Path(folder) / "tokenizer.json")
    if tokenizer != saved.pop("tokenizer.json", tokenizer):  # an older fingerprint does not know it
        remedy = "its words have other numbers; restore it, or train anew and save with save_fingerprint"
        raise CourseError(f"{folder}: tokenizer.json is not the one that this adapter was saved with; {remedy}.")
    for name, want in saved.items():
        have = here.get(name)
        if (same := have is not None and have["shape"] == want["shape"]) and want.get("rounded"):
            pair = torch.tensor([have["values"], want["values"]])
            same = bool(torch.corrcoef(pair)[0, 1] > 0.9) or torch.equal(*pair)
        elif same:
            scale = want["std"] + abs(want["mean"]) + 1e-12
            a, b = ([*found["values"], found["mean"], found["std"]] for found in (have, want))
            same = all(abs(x - y) <= 1e-2 * max(abs(y), 0.01 * scale) for x, y in zip(a, b, strict=True))
        if not same:
            remedy = "load the base that adapter_config.json names, in the version used for training"
            raise CourseError(f"{folder}: this adapter was trained on another base ({name} differs); {remedy}.")
