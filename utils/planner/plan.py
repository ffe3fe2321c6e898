"""The planner: what a run will need, by component, before it starts."""

from utils.errors import CourseError, closest
from utils.planner.families import FAMILIES
from utils.planner.families.gated import gated
from utils.planner.families.opt import opt
from utils.planner.layers import Net
from utils.planner.settings import (
    CARDS,
    CHECKED,
    CONTEXT,
    PARTS,
    SIZES,
    SLACK,
    _config,
    _lora,
    _on_hopper,
    _quantization,
)
from utils.planner.simulate import _net, _state_bytes, simulate
from utils.planner.tape import Weight
from utils.units import GIB


class Plan(dict):
    """Bytes by component at the fullest instant of a run, and "total", their sum: the peak that torch will report.

    `peaks` holds the total of every moment, `note` what is not certain, `paged` the optimizer bytes that can move to
    the computer's own memory, `cache` the bytes of keys and values when generation ends. print() adds what each card
    of CARDS makes of it.
    """

    title, note, peaks, settings, paged, cache, net = "", "", {}, None, 0, 0, None

    def __str__(self):
        lines = [f"{part:20} {size / GIB:8.2f} GiB" for part, size in self.items()]
        if self.peaks:
            lines.append("moments: " + ", ".join(f"{name} {size / GIB:.2f}" for name, size in self.peaks.items()))
            lines += ["", f"{'card':16} {'needs GiB':>9} {'has':>6}  fits  largest batch"]
            for card, row in self.cards().items():
                lines.append(
                    f"{card:16} {row['needs']:9.1f} {row['has']:6.1f}  {row['fits']:4}  {row['largest batch']}"
                )
        return "\n".join([self.title, *lines, *([self.note] if self.note else [])])

    def cards(self):
        """{card: needs (GiB, with CUDA's own part and slack), has (GiB), fits ("yes" or "no"), largest batch}."""
        return {
            card: {
                "needs": _on_card(self["total"]) / GIB,
                "has": has,
                "fits": "yes" if _on_card(self["total"]) <= has * GIB else "no",
                "largest batch": self.largest_batch(has),
            }
            for card, has in CARDS.items()
        }

    def largest_batch(self, gib):
        """The largest batch of this plan that a card with `gib` GiB can train; 0 if none. Between two powers of two
        the need is taken as a straight line, which errs to the safe side."""

        def need(batch):
            if batch not in self.tried:
                settings = {**self.settings, "batch": batch, "eval_batch": batch}
                settings["evaluate"] = self.peaks["evaluation pass"] > 0.7 * self["total"]  # else it never decides
                if settings["generate"]:
                    often = self.peaks["generation"] > 0.7 * self["total"]
                    settings["generate"] = {**settings["generate"], "batch": batch} if often else None
                self.tried[batch] = _on_card(simulate(self.net, **settings).total)
            return self.tried[batch] / GIB

        batch = 1
        while batch < 4096 and need(2 * batch) <= gib:
            batch *= 2
        share = (gib - need(batch)) / (need(2 * batch) - need(batch))
        return int(batch * (1 + share)) if share >= 0 else 0


def _on_card(total):
    return total * (1 + SLACK) + CONTEXT


def plan(model, method="full", *, batch=8, length=512, **settings):
    """What one training run needs, from the configuration alone: no weights, no network, no GPU; a Plan.

    model: a configuration, a model, a folder with config.json, a name the course knows, or a hub id (asks the hub).
    method: "full", "lora" (r = 16 on all linear layers), "qlora" (the same on NF4 with double quantization).
    batch, length: rows and tokens a row, padding included. Optional settings:
    target_length: tokens a row of the decoder's side (T5; length // 8). num_labels: classes, for a classifier.
    lora: a peft LoraConfig, or a dict with some of its fields. quantization: a BitsAndBytesConfig, or such a dict.
    dtype: the type of weights that are not quantized. autocast: "bfloat16", "float16" or None, as with bf16=True.
    attention: "eager", "sdpa", "flex_attention", or "sdpa_shared_bias" (T5; utils/speed/t5_bias.py).
    checkpointing: gradient checkpointing. accumulation: steps a gradient.
    optimizer: a name of TrainingArguments.optim. prepare: whether prepare_model_for_kbit_training is called.
    keep_in_fp32: modules that transformers does not quantize, and keeps in float32 unless dtype is bfloat16.
    liger: Liger's fused kernels for norms, rotary positions and the gated MLP; other families have none.
    compiled: whether each layer is compiled: it keeps what it multiplies and computes the rest again (decoders only).
    cast_inputs: whether PEFT casts what goes into an adapter to float32; not inside disable_input_dtype_casting.
    fused_head: TRL's loss in pieces, as SFTTrainer computes it, instead of all logits at once.
    eval_batch: rows of an evaluation batch. padded: whether rows differ in length. hopper: whether the card is one.
    generate: a dict if the evaluation generates, as with predict_with_generate: max_new_tokens (target_length), batch
    (eval_batch), length (tokens of the prompt, or of the encoder's side; length), num_beams (1).
    """
    config, name = _config(model)
    family = config["model_type"]
    known = {"target_length", "num_labels", "lora", "quantization", "dtype", "autocast", "attention", "checkpointing"}
    known |= {"accumulation", "optimizer", "prepare", "eval_batch", "padded", "hopper", "keep_in_fp32", "generate"}
    known |= {"liger", "fused_head", "compiled", "cast_inputs"}
    written = {"max_new_tokens", "batch", "length", "num_beams"}
    for given, names in ((settings, known), (settings.get("generate") or {}, written)):
        for key in set(given) - names:
            raise CourseError(f"memory.plan has no setting {key!r} (closest: {closest(key, names)!r}); correct it.")
    if method not in ("full", "lora", "qlora"):
        raise CourseError(f"method {method!r} is not known; write 'full', 'lora' or 'qlora'.")
    lora = settings.pop("lora", None) or ({"target_modules": "all-linear", "r": 16} if method != "full" else None)
    quantization = settings.pop("quantization", None) or ({} if method == "qlora" else None)
    half = {"dtype": "bfloat16", "autocast": "bfloat16"}
    defaults = {"dtype": "float32", "autocast": None} if method == "full" and not lora else half
    defaults |= {"attention": "eager" if family == "gemma2" else "sdpa", "checkpointing": False, "accumulation": 1}
    defaults |= {"optimizer": "adamw_torch_fused", "prepare": False, "padded": True, "hopper": _on_hopper()}
    defaults |= {"target_length": max(1, length // 8), "eval_batch": None, "num_labels": config.get("num_labels")}
    defaults |= {"generate": None, "liger": False, "fused_head": False, "compiled": False, "cast_inputs": True}
    defaults["keep_in_fp32"] = ["wo"] if family == "t5" else []
    s = defaults | settings | {"batch": batch, "length": length, "config": config}
    for key in ("dtype", "autocast"):
        s[key] = str(s[key]).removeprefix("torch.") if s[key] else None
        if s[key] not in SIZES:
            raise CourseError(f"{key} {s[key]!r} is not known; write 'float32', 'bfloat16' or 'float16'.")
    s["liger"] = bool(s["liger"]) and FAMILIES.get(family) is gated
    if s["compiled"] and FAMILIES.get(family) not in (gated, opt):
        raise CourseError(f"{name}: what compiled layers keep is known of decoders only; leave out compiled.")
    s["lora"] = _lora(lora, family, s["num_labels"] if isinstance(lora, dict) else None)
    s["quantization"] = _quantization(quantization)
    if family == "bert":
        config["num_labels"] = s["num_labels"] or 2
    if family not in FAMILIES:
        return _weights_only(s, name)
    if s["generate"] is not None:
        if family == "bert" or s["num_labels"]:
            raise CourseError(f"{name}: a classifier writes no text; leave out generate.")
        own = {"max_new_tokens": s["target_length"], "batch": s["eval_batch"] or batch, "length": length}
        s["generate"] = own | {"num_beams": 1} | s["generate"]
        for key, value in s["generate"].items():
            if not isinstance(value, int) or value < 1:
                raise CourseError(f"generate: {key} is {value!r}; write a whole number from 1.")
    net = _net(s)
    done = simulate(net, **s)
    found = Plan({part: done.parts.get(part, 0) for part in PARTS} | {"total": done.total})
    found.title = f"{name}, batch {batch}, length {length}: planned memory at the fullest instant"
    found.peaks, found.settings, found.paged, found.tried, found.net = done.moments, s, done.paged, {}, net
    found.cache = done.cache
    if done.paged:
        found.note = (
            f"{done.paged / GIB:.2f} GiB of optimizer states are paged: they can move to the computer's memory."
        )
    if family not in CHECKED:
        found.note += f" The layers of {family!r} follow transformers, but were never measured on a card."
    return found


def _weights_only(s, name):
    """The plan for an architecture whose forward pass is not known: what follows from its parameters alone."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(**{k: v for k, v in s["config"].items() if v is not None})
    kinds = [transformers.AutoModelForCausalLM, transformers.AutoModelForSeq2SeqLM, transformers.AutoModel]
    kinds = [transformers.AutoModelForSequenceClassification] * bool(s["num_labels"]) + kinds
    kind = next((kind for kind in kinds if type(config) in kind._model_mapping), None)
    if kind is None:
        raise CourseError(f"{name}: transformers has no text model for {config.model_type!r}; choose another model.")
    with torch.device("meta"):
        model = kind.from_config(config)
    net = Net(s["config"], s | {"keep_in_fp32": set(), "dtype": SIZES[s["dtype"]], "dtype_name": s["dtype"]})
    for parameter, tensor in model.named_parameters():
        net.weight(parameter, tensor.numel(), linear=tensor.ndim == 2 and "embed" not in parameter)
    for layer, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and net.targeted(layer):
            count = s["lora"]["r"] * (module.in_features + module.out_features)
            net.weights[f"{layer}.lora"] = Weight(f"{layer}.lora", count, 4, True, None, "adapters")
    trained = [w for w in net.weights.values() if w.trainable]
    sums = Plan({part: sum(w.nbytes for w in net.weights.values() if w.kind == part) for part in PARTS[:2]})
    sums["gradients"] = sum(w.count * w.size for w in trained)
    sums["optimizer states"] = sum(_state_bytes(w, s["optimizer"])[0] for w in trained)
    sums["total"] = sum(sums.values())
    sums.title = f"{name}: planned memory of the parameters"
    known = ", ".join(FAMILIES)
    sums.note = (
        f"The forward pass of {config.model_type!r} is not known here (known: {known}): activations, logits and work "
        "space are NOT in this total."
    )
    return sums
