"""Checks around 4-bit base models and their adapters: what would fail late, or never, gets one sentence early."""

import functools
import json
import re
from pathlib import Path

import torch

from utils.checkpoints import safe_weights
from utils.checks import CourseError, closest

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
            raise CourseError(
                f"{name}: bitsandbytes unpacks rows of {layer.in_features} wrongly on this CPU; {remedy}."
            )
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
    """{name: shape, mean, std and 8 values} of some embeddings and norms of the base model, which stay unquantized."""
    plain = {}
    for name, parameter in model.named_parameters():
        name = re.sub(r"^base_model\.model\.", "", name)
        if re.search("embed|norm|shared", name, re.IGNORECASE) and not re.search(r"lora_|modules_to_save", name):
            plain[name.replace("base_layer.", "")] = parameter.detach()
    found = {}
    for name in [*plain][:4] + [*plain][-4:]:
        values = plain[name].flatten()
        some = values[torch.linspace(0, len(values) - 1, 8, dtype=torch.double).long()].double().tolist()
        values = values[: 2**20].double()  # enough; a copy of all of a large embedding would not fit everywhere
        found[name] = {"shape": [*plain[name].shape], "mean": values.mean().item(), "std": values.std().item()}
        found[name]["values"] = some
    return found


def save_fingerprint(model, folder):
    """Writes what tells the base of `model` from others into the adapter's `folder`."""
    (Path(folder) / FINGERPRINT).write_text(json.dumps(fingerprint(model), indent=1) + "\n", encoding="utf-8")


def check_base(model, folder):
    """Raises CourseError if `model`, quantized or not, is not the base on which the adapter in `folder` was trained.

    Values may differ by rounding (bfloat16, float16) only; weights of another model are refused, equal shapes too.
    An adapter that is not in the safetensors format is refused as well.
    """
    safe_weights(folder)
    path = Path(folder) / FINGERPRINT
    if not path.exists():
        remedy = "save it beside the adapter with adapters.save_fingerprint(model, folder)"
        raise CourseError(f"{path}: not found, so nobody knows which base this adapter belongs to; {remedy}.")
    saved, here = json.loads(path.read_text("utf-8")), fingerprint(model)
    for name, want in saved.items():
        have = here.get(name)
        if same := have is not None and have["shape"] == want["shape"]:
            scale = want["std"] + abs(want["mean"]) + 1e-12
            a, b = ([*found["values"], found["mean"], found["std"]] for found in (have, want))
            same = all(abs(x - y) <= 1e-2 * max(abs(y), 0.01 * scale) for x, y in zip(a, b, strict=True))
        if not same:
            remedy = "load the base that adapter_config.json names, in the version used for training"
            raise CourseError(f"{folder}: this adapter was trained on another base ({name} differs); {remedy}.")
