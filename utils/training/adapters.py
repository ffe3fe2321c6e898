"""Checks around 4-bit base models and their adapters: what would fail late, or never, gets one sentence early."""

import functools
import hashlib
import json
import re
import sys
from pathlib import Path

import torch

from utils.errors import CourseError, closest
from utils.training.weight_files import refuse_pickles

FINGERPRINT = "base_fingerprint.json"
TOKENIZER = "tokenizer.json"
ADDED_BY_PEFT = {"classifier", "score"}  # to modules_to_save, for SEQ_CLS; a model has one of them


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
    new = [name for name, layer in layers.items() if getattr(layer.weight, "quant_state", None) is None]
    if new:
        remedy = f"pass llm_int8_skip_modules={new} to BitsAndBytesConfig, so that it stays a plain layer and can learn"
        raise CourseError(f"{new[0]}: the checkpoint has no weights for it, yet it is a 4-bit layer; {remedy}.")
    for name, layer in layers.items():
        if layer.support_avx512bf16_for_cpu and layer.weight.device.type == "cpu":
            problem = "an evaluation on this CPU would make it unfit for training"
            raise CourseError(f"{name}: {problem}; call adapters.keep_trainable() before you load it.")
    for name, layer in layers.items():
        if not unpacks_rightly(layer.in_features, layer.weight.device):
            remedy = "take a model whose widths are multiples of 64, or a GPU"
            problem = f"bitsandbytes unpacks rows of {layer.in_features} wrongly on this CPU"
            raise CourseError(f"{name}: {problem}; {remedy}.")
    return layers


@functools.cache
def unpacks_rightly(width, device):
    """Whether 4-bit rows of `width` come back as the same numbers do in rows of 64, which is one block a row."""
    from bitsandbytes.functional import dequantize_4bit, quantize_4bit

    rows = torch.linspace(-1, 1, 64 * width, device=device).sin().view(64, width)
    blocks = dequantize_4bit(*quantize_4bit(rows.view(-1, 64), quant_type="nf4"))
    return torch.equal(dequantize_4bit(*quantize_4bit(rows, quant_type="nf4")).view(-1, 64), blocks)


def keep_trainable():
    """Lets 4-bit layers that are made from now on train after an evaluation, on CPUs with AVX512-BF16.

    On such a CPU, bitsandbytes repacks the weights in the first evaluation, and the next training step fails: the
    packed form has no backward pass, and widths that are no multiple of 64 do not fit it at all. Each layer asks when
    it is made whether the CPU has these instructions; this answers no for it. Nothing changes on other machines, nor
    where bitsandbytes was not imported.
    """
    modules = sys.modules.get("bitsandbytes.nn.modules")
    if modules is not None:
        modules.has_avx512bf16 = lambda: False


def check_targets(model, lora_config):
    """Checks that each name in `target_modules` and `modules_to_save` is a module of `model`.

    PEFT itself says nothing while at least one name fits. Raises CourseError with the closest name that exists.
    model: the base, with or without its adapter.
    """
    if hasattr(model, "get_base_model"):
        model = model.get_base_model()
    modules = []
    linear = set()
    for full_name, module in model.named_modules():
        if "lora_" in full_name:
            continue
        name = re.sub(r"\.(modules_to_save\.\w+|original_module)\b", "", base_name(full_name))  # a head trained whole
        modules.append(name)
        if hasattr(module, "in_features"):
            linear.add(name.split(".")[-1])
    heads = {name for name, _ in model.named_children()}
    added_by_peft = ADDED_BY_PEFT if lora_config.task_type == "SEQ_CLS" else set()
    refuse_missing("target_modules", missing_names(lora_config.target_modules, modules), linear)
    refuse_missing("modules_to_save", missing_names(lora_config.modules_to_save, modules, added_by_peft), heads)


def refuse_missing(field, missing, candidates):
    """Raises CourseError for the first of the missing names of a field of LoraConfig, with the closest candidate."""
    for name in missing:
        hint = f"closest: {closest(name, sorted(candidates))!r}; there are: {', '.join(sorted(candidates)[:12])}"
        raise CourseError(f"LoraConfig: {field} names {name!r}, which is no module of the model ({hint}).")


def missing_names(wanted, modules, added_by_peft=frozenset()):
    """Those of the wanted names that no module has, sorted.

    wanted: a list of names or of their ends, a pattern for whole names, "all-linear", or None. modules: full names.
    """
    if not wanted or wanted == "all-linear":
        return []
    if isinstance(wanted, str):  # a pattern
        matches = any(re.fullmatch(wanted, name) for name in modules)
        return [] if matches or wanted in added_by_peft or is_module(wanted, modules) else [wanted]
    return sorted(name for name in set(wanted) - added_by_peft if not is_module(name, modules))


def is_module(name, modules):
    """Whether a name, or the end of it behind a dot, is that of a module."""
    return any(full == name or full.endswith(f".{name}") for full in modules)


def fingerprint(model):
    """{name: shape, mean, std and some values} of weights of the base model.

    They are embeddings and norms, which stay unquantized, and linear layers of its numbered layers, unpacked if they
    are in 4 bits ("rounded").
    """
    samples = {}
    unquantized = unquantized_weights(model)
    names = list(unquantized)
    for name in names[:4] + names[-4:]:
        samples[name] = sample_of(unquantized[name], 8)
    linear = linear_layers(model)
    names = list(linear)
    for name in names[:: max(1, len(names) // 4)]:
        samples[name] = sample_of(unpacked(linear[name]), 64)
        samples[name]["rounded"] = True
    return samples


def unquantized_weights(model):
    """{name in the base model: weight} of embeddings and norms, those of adapters and of a head they train left out."""
    weights = {}
    for name, parameter in model.named_parameters():
        is_unquantized = re.search("embed|norm|shared", name, re.IGNORECASE)
        is_of_adapter = re.search(r"lora_|modules_to_save|original_module", name)
        if is_unquantized and not is_of_adapter:
            weights[base_name(name)] = parameter.detach()
    return weights


def linear_layers(model):
    """{name of its weight in the base model: layer} of the linear layers inside numbered layers."""
    layers = {}
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and re.search(r"\.\d+\.", name) and "lora_" not in name:
            layers[f"{base_name(name)}.weight"] = module
    return layers


def base_name(name):
    """The name that a part of a PEFT model has in its base model."""
    return re.sub(r"^base_model\.model\.", "", name).replace(".base_layer", "")


def unpacked(layer):
    """The weights of a linear layer, as numbers also if it is in 4 bits."""
    state = getattr(layer.weight, "quant_state", None)
    if state is None:
        return layer.weight.detach()
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(layer.weight.detach(), state)


def sample_of(weight, count):
    """Shape, mean, std and `count` values of a weight, evenly spread."""
    values = weight.flatten()
    places = torch.linspace(0, len(values) - 1, count, dtype=torch.double).long()
    chosen = values[places].double().tolist()
    values = values[: 2**20].double()  # enough; a copy of all of a large embedding would not fit everywhere
    return {
        "shape": list(weight.shape),
        "mean": values.mean().item(),
        "std": values.std().item(),
        "values": chosen,
    }


def save_fingerprint(model, folder):
    """Writes what tells the base of `model`, and the tokenizer in the adapter's `folder`, from others into it."""
    folder = Path(folder)
    samples = fingerprint(model)
    samples[TOKENIZER] = digest_of(folder / TOKENIZER)
    (folder / FINGERPRINT).write_text(json.dumps(samples, indent=1) + "\n", encoding="utf-8")


def digest_of(file):
    """The SHA-256 of a file in hexadecimal, or None if there is none."""
    if not file.exists():
        return None
    return hashlib.sha256(file.read_bytes()).hexdigest()


def check_base(model, folder):
    """Raises CourseError if `model`, quantized or not, is not the base on which the adapter in `folder` was trained.

    Values may differ by rounding (bfloat16, float16, 4 bits) only; weights of another model are refused, equal shapes
    too. So are an adapter that is not in the safetensors format, and another tokenizer than it was saved with.
    """
    refuse_pickles(folder)
    path = Path(folder) / FINGERPRINT
    if not path.exists():
        remedy = "save it beside the adapter with adapters.save_fingerprint(model, folder)"
        raise CourseError(f"{path}: not found, so nobody knows which base this adapter belongs to; {remedy}.")
    saved = json.loads(path.read_text("utf-8"))
    tokenizer = digest_of(Path(folder) / TOKENIZER)
    saved_tokenizer = saved.pop(TOKENIZER, tokenizer)  # an older fingerprint does not know it
    if tokenizer != saved_tokenizer:
        remedy = "its words have other numbers; restore it, or train anew and save with save_fingerprint"
        raise CourseError(f"{folder}: tokenizer.json is not the one that this adapter was saved with; {remedy}.")
    unquantized = unquantized_weights(model)
    linear = linear_layers(model)
    for name, sample in saved.items():
        here = None
        if sample.get("rounded") and name in linear:
            here = sample_of(unpacked(linear[name]), len(sample["values"]))
        elif name in unquantized:
            here = sample_of(unquantized[name], len(sample["values"]))
        if not is_same_weight(here, sample):
            remedy = "load the base that adapter_config.json names, in the version used for training"
            raise CourseError(f"{folder}: this adapter was trained on another base ({name} differs); {remedy}.")


def is_same_weight(sample, saved):
    """Whether two samples of `fingerprint` are of the same weight, up to rounding; sample: None if there is no such."""
    if sample is None or sample["shape"] != saved["shape"]:
        return False
    if saved.get("rounded"):
        return are_alike_in_4_bits(sample["values"], saved["values"])
    scale = saved["std"] + abs(saved["mean"]) + 1e-12
    values = [*sample["values"], sample["mean"], sample["std"]]
    saved_values = [*saved["values"], saved["mean"], saved["std"]]
    for value, saved_value in zip(values, saved_values, strict=True):
        tolerance = 1e-2 * max(abs(saved_value), 0.01 * scale)
        is_close = abs(value - saved_value) <= tolerance  # False for NaN
        if not is_close:
            return False
    return True


def are_alike_in_4_bits(values, saved_values):
    """Whether one list of values may be the other after rounding to 4 bits: they correlate, or are equal."""
    pair = torch.tensor([values, saved_values])
    return bool(torch.corrcoef(pair)[0, 1] > 0.9) or torch.equal(*pair)
