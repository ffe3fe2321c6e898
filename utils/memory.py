"""The planner (what a run will need, by component, before it starts) and the meter (what it took)."""

import contextlib
import gc
import json
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from utils.architectures import FAMILIES, HEADS, Net, gated, opt
from utils.checks import CourseError, closest
from utils.tape import Buffer, Tape, Tensor, Weight

GIB = 2**30
ROOT = Path(__file__).resolve().parents[1]
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
    attention: "eager", "sdpa", "flex_attention", or "sdpa_shared_bias" (T5; utils/attention.py).
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


def _state_bytes(weight, optimizer):
    """Bytes of the optimizer states of one weight on the card, and of those in paged memory."""
    count, name = weight.count, optimizer.lower()
    if name.startswith("sgd"):
        return 0, 0
    if "8bit" in name and count >= 4096 and not weight.embedding:  # Trainer keeps embeddings at 32 bits
        states = 2 * (count + 4 * -(-count // 256))  # one byte a value, one float32 scale for 256 values
    else:
        states = 2 * count * (4 if "bit" in name else weight.size)
    paged = "paged" in name and count >= 100_000  # bitsandbytes pages nothing smaller
    return (0, states) if paged else (states, 0)


def _net(s):
    """The network of settings as `plan` completes them, with all its weights: one forward pass of one token."""
    names = ("attention", "lora", "quantization", "prepare", "padded", "num_labels")
    setup = {name: s[name] for name in (*names, "liger", "fused_head", "cast_inputs")}
    setup |= {"dtype": SIZES[s["dtype"]], "dtype_name": s["dtype"], "autocast": SIZES[s["autocast"]]}
    net = Net(s["config"], setup | {"keep_in_fp32": set(s["keep_in_fp32"])})
    net.tape = Tape()
    FAMILIES[s["config"]["model_type"]](net, 1, 1, 1)
    return net


def simulate(net, evaluate=True, **s):
    """One optimizer step and one evaluation batch of `net` on utils.tape, for settings as `plan` completes them.

    Returns total and parts at the fullest instant, moments {moment: its total}, saved (bytes kept for the backward
    pass), paged (optimizer bytes that can leave the card) and cache (bytes of keys and values at generation's end).
    """
    forward, net.training = FAMILIES[s["config"]["model_type"]], True
    tape = net.tape = Tape()
    workspace = 2 * (32 if s["hopper"] else 8.125) * 2**20  # cuBLAS: one for the forward pass, one for the backward
    trained, static, paged = [w for w in net.weights.values() if w.trainable], [Buffer(tape, workspace, PARTS[-1])], 0
    static += [Buffer(tape, weight.nbytes, weight.kind) for weight in net.weights.values()]
    for weight in trained:
        here, there = _state_bytes(weight, s["optimizer"])
        static.append(Buffer(tape, here, "optimizer states"))
        paged += there
        weight.grad = Buffer(tape, weight.count * weight.size, "gradients") if s["accumulation"] > 1 else None
    tape.checkpointing, tape.compiled = s["checkpointing"], s["compiled"]
    loss = forward(net, s["batch"], s["length"], s["target_length"])
    saved = tape.alive["activations"] + tape.alive["logits and loss"]
    tape.cache.clear()
    if trained:
        tape.backward(loss)
    tape.nodes, loss = [], None
    tape.moment = "optimizer step"
    # without "fused", torch takes the root of all second moments at once, into new tensors
    tape.spike(1 + sum(w.count * w.size for w in trained if s["optimizer"] == "adamw_torch"))
    for weight in trained:
        weight.grad = None
    tape.moment, tape.kind, tape.recording, net.training = "evaluation pass", "activations", False, False
    tape.spike(1)
    if evaluate:
        forward(net, s["eval_batch"] or s["batch"], s["length"], s["target_length"])
        tape.cache.clear()
    cache = _generate(net, forward, s, **s["generate"]) if s["generate"] else 0
    total, parts = max(tape.peaks.values(), key=lambda peak: peak[0])
    moments = {moment: peak[0] for moment, peak in tape.peaks.items()}
    return SimpleNamespace(total=total, parts=parts, moments=moments, saved=saved, paged=paged, cache=cache)


def _generate(net, forward, s, batch, length, max_new_tokens, num_beams):
    """Generation as transformers does it (generation/utils.py): the prompt and its first new token, then the last one.

    accelerate wraps the forward pass of the model itself into autocast: the encoder runs without it, and so does all
    of a model that PEFT has wrapped. Returns the bytes of keys and values when the last token is there.
    """
    tape, half, rows, kind = net.tape, net.half, batch * num_beams, s["config"]["model_type"]
    tape.moment, net.half, net.writing, past = "generation", None, True, length
    if kind == "t5":
        past, states = 1, forward(net, batch, length, 0)  # past: the decoder's start token
        net.states = Tensor(tape, states.count * num_beams, states.size) if num_beams > 1 else states
        del states
    net.half, net.cache, held = None if s["lora"] else half, {}, []
    held.append(Buffer(tape, rows * (past + max_new_tokens) * (8 if num_beams == 1 else 100), "logits and loss"))  # ids
    for done in range(0, max_new_tokens, max(1, max_new_tokens - 1)):  # tokens that are there: none, all but one
        if done:
            net.past = past + done - 1
            for kept in net.cache.values():
                *_, each, window = kept
                for i in range(2) if each else ():
                    size, kept[i] = kept[i].size, None
                    kept[i] = Tensor(tape, each * min(net.past, window or net.past), size)
        tape.kind = "activations"
        logits = forward(net, rows, length if kind == "t5" or not done else 1, 1)
        tape.cache.clear()
        logits = net.cast(logits, 4) if net.half else logits  # accelerate
        scores = [Tensor(tape, logits.count, 4)]  # those of the step before live until all of these are there
        tape.spike(scores[0].count * 4)  # a logits processor works on a copy
        if num_beams > 1:
            scores.append(Tensor(tape, scores[0].count, 4))  # log_softmax
            tape.spike(scores[0].count * 4)  # plus the score of the beam so far
        held[1:], logits = scores, None
        for kept in net.cache.values() if num_beams > 1 else ():  # keys and values follow their beams
            for i, most in enumerate([kept[2] * (kept[3] - 1) if kept[3] else kept[0].count] * 2):
                kept[i] = Tensor(tape, min(kept[i].count, most), kept[i].size)
    cache = sum(tensor.count * tensor.size for kept in net.cache.values() for tensor in kept[:2])
    net.cache = net.states = net.held = None
    net.past, net.half, net.writing = 0, half, False
    return cache


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


def tensor_bytes(tensors):
    """Bytes of the distinct storages behind `tensors`: a weight used twice counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def weight_bytes(model):
    """Bytes of all parameters of `model`, with the scales of 4-bit weights, which bitsandbytes keeps beside them."""
    tensors = list(model.parameters())
    for state in [p.quant_state for p in model.parameters() if getattr(p, "quant_state", None) is not None]:
        tensors += [state.absmax, state.code]
        tensors += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return tensor_bytes(tensors)


def optimizer_bytes(optimizer):
    """Bytes of all state tensors that `optimizer` holds, counted; zero before its first step."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Trainer's accelerate wraps it
    states = [v for state in optimizer.state.values() for v in state.values()]
    return tensor_bytes(v for v in states if hasattr(v, "untyped_storage"))


def saved_bytes(model, batch):
    """Bytes that autograd keeps for the backward pass of one training forward pass of `batch` (a dict of tensors),
    parameters and buffers left out; counted by hooks on the tensors that operations save."""
    import torch

    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved, was_training = {}, model.training

    def keep(tensor):  # returns nothing: a graph that held its own results this way would never be freed
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held: no address is used twice

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        model(**{name: value.to(model.device) for name, value in batch.items()})
    model.train(was_training)
    return sum(storage.nbytes() for storage in saved.values())


@contextlib.contextmanager
def measure(model):
    """Meters the training inside the `with` block; what it yields is complete when the block ends: seconds; rows,
    real_tokens (attention mask 1) and padded_tokens (all positions) that went forward in training, evaluation left out;
    peak_bytes allocated on the GPU, or None where there is none. Clears away what nobody refers to any more first."""
    import torch

    gc.collect()
    cost = SimpleNamespace(rows=0, real_tokens=0, padded_tokens=0, peak_bytes=None)

    def count(module, args, inputs):
        if module.training:
            mask = inputs["attention_mask"]
            cost.rows += mask.shape[0]
            cost.real_tokens = cost.real_tokens + mask.sum()  # stays on the device: no wait in every step
            cost.padded_tokens += mask.numel()

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    hook, started = model.register_forward_pre_hook(count, with_kwargs=True), time.perf_counter()
    yield cost
    hook.remove()
    cost.real_tokens = int(cost.real_tokens)
    cost.seconds = time.perf_counter() - started
    if torch.cuda.is_available():
        cost.peak_bytes = torch.cuda.max_memory_allocated()
