"""Attention with less memory and time: T5 with one bias for all layers, a decoder without a padding mask, and
FlashAttention inside compiled layers, and these inside checkpoints."""

import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoConfig,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    OPTConfig,
    OPTForCausalLM,
)

from utils import meter
from utils.errors import CourseError
from utils.paths import ROOT
from utils.speed import compile, flash, last_token
from utils.speed.no_mask import without_mask
from utils.speed.t5_bias import share_position_bias

TINY = ROOT / "data" / "models" / "tiny-t5"


def load(attention, **settings):
    return AutoModelForSeq2SeqLM.from_pretrained(TINY, attn_implementation=attention, **settings)


def batch_of(*texts):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    batch = dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
    return batch | {"labels": batch["input_ids"][:, :9].contiguous()}


SHORT = "Taxi drivers may wait at Walnut Hill."
LONG = "All tour operators must switch off idle engines at Falcon Square. The duty starts on June 21, 2025."


@pytest.mark.parametrize("texts", [(SHORT, LONG), (LONG, LONG)], ids=["padded", "whole"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_sdpa(texts, checkpointing):
    found = []
    for kind in ("sdpa", share_position_bias()):
        torch.manual_seed(0)
        model = load(kind, dropout_rate=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(**batch_of(*texts)).loss
        loss.backward()
        found.append([loss.detach(), *(p.grad for p in model.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_it_generates_the_same_and_keeps_nothing_from_one_forward_pass_to_the_next():
    batch, settings = batch_of(SHORT, LONG), dict(max_new_tokens=12, do_sample=False)
    usual, shared = load("sdpa").eval(), load(share_position_bias()).eval()
    assert torch.equal(usual.generate(**batch, **settings), shared.generate(**batch, **settings))
    for other in (batch_of(LONG, SHORT), batch_of(SHORT, SHORT)):  # nothing is left of the mask before
        assert torch.equal(usual(**other).logits, shared(**other).logits)


def test_each_layer_no_longer_keeps_its_own():
    batch = batch_of(*[LONG] * 15, SHORT)
    usual, shared = (load(attention, dropout_rate=0.0) for attention in ("sdpa", share_position_bias()))
    for model in (usual, shared):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "SelfAttention.v" in name
    rows, queries = batch["input_ids"].shape
    one = rows * usual.config.num_heads * queries * queries * 4
    saved = meter.saved_bytes(usual, batch) - meter.saved_bytes(shared, batch)
    assert saved >= one * (usual.config.num_layers - 1)


@pytest.mark.parametrize(("side", "moves"), [("right", False), ("left", True)])
def test_padding_on_the_right_needs_no_mask_and_on_the_left_it_does(side, moves):
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64)
    model = OPTForCausalLM(config).eval()
    ids, mask = torch.randint(5, 50, (2, 12)), torch.ones(2, 12, dtype=torch.long)
    hidden = {"right": slice(8, None), "left": slice(None, 4)}[side]
    mask[0, hidden], ids[0, hidden] = 0, config.pad_token_id
    real, inputs = mask.bool(), dict(input_ids=ids, attention_mask=mask)
    usual = model(**inputs).logits[real]
    with without_mask(model.model.decoder):
        found = model(**inputs).logits[real]
    assert torch.allclose(usual, found, atol=1e-6) is not moves
    assert torch.equal(model(**inputs).logits[real], usual), "behind the block the mask counts again"


GEMMA = dict(vocab_size=64, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2)
GEMMA |= dict(intermediate_size=64, initializer_range=0.7, pad_token_id=0, num_labels=3, use_cache=False)


@pytest.mark.parametrize("window", [4096, 5], ids=["whole rows", "window"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_a_classifier_that_computes_only_the_last_token_answers_and_learns_the_same(
    window, side, checkpointing, monkeypatch
):
    ids = torch.randint(1, 64, (4, 20), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((12, 20, 3, 1)):
        ids[row, length:] = 0
    ids = ids.flip(1) if side == "left" else ids
    found, kept = [], []
    for change in (lambda model: model, last_token.read_last_token, last_token.read_last_token):
        if len(found) == 2:  # a negative control: one token earlier is another answer
            monkeypatch.setattr(last_token, "_find_last_token", earlier)
        torch.manual_seed(0)
        layers = 3 if window == 5 else 2  # a layer with a window, or one without, is the last
        config = AutoConfig.for_model("gemma2", **GEMMA | dict(num_hidden_layers=layers, sliding_window=window))
        model = change(AutoModelForSequenceClassification.from_config(config, attn_implementation="eager"))
        names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]
        lora = dict(target_modules=names, modules_to_save=["score"], init_lora_weights=False)
        model = get_peft_model(model, LoraConfig(task_type="SEQ_CLS", r=4, **lora)).train()
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": False})
        batch = dict(input_ids=ids, attention_mask=(ids > 0).long(), labels=torch.tensor([0, 1, 2, 0]))
        kept.append(meter.saved_bytes(model, batch))
        output = model(**batch)
        output.loss.backward()
        found.append([output.logits.detach(), *(p.grad for p in model.parameters() if p.requires_grad)])
    usual, last, wrong = found
    for one, other in zip(usual, last, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())
    assert not torch.allclose(usual[0], wrong[0], atol=1e-2)
    assert checkpointing or kept[1] < 0.85 * kept[0]


def earlier(decoder, args, kwargs, find=last_token._find_last_token):
    find(decoder, args, kwargs)
    last, hidden = decoder.layers[-1].last
    decoder.layers[-1].last = (last - 1).clamp(0), hidden


def kept_and_found(arrange):
    """Bytes of activations that a small Gemma-2 in 4 bits keeps for its backward pass with its layers arranged so, and
    the loss with all gradients."""
    torch.manual_seed(0)
    torch.compiler.reset()
    in_4_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    settings = dict(num_labels=3, quantization_config=in_4_bits, attn_implementation="eager")
    base = AutoModelForSequenceClassification.from_pretrained(TINY.parent / "tiny-gemma-2", **settings)
    base.config.use_cache = False
    model = get_peft_model(
        base, LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear", init_lora_weights=False)
    ).train()
    model.enable_input_require_grads()
    arrange(base.model.layers)
    ids = torch.randint(5, 500, (8, 64), generator=torch.Generator().manual_seed(0)).to(model.device)
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def look(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):  # a checkpoint has hooks of its own
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0] % 3).loss
    loss.backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return sum(size for place, size in kept.items() if place not in own), found | {"loss": loss.detach()}


def test_compiled_layers_in_checkpoints_keep_their_inputs_only(monkeypatch):
    compiler = functools.partial(torch.compile, backend="aot_eager")  # needs no compiler of C++
    monkeypatch.setattr(torch, "compile", compiler)

    def compiled(layers):
        for layer in layers:
            layer.forward = compiler(layer.forward, dynamic=True)

    (usual, right), (small, found) = (kept_and_found(way) for way in (compiled, compile.compile_in_checkpoints))
    assert small < 0.1 * usual
    assert len(right) > 40
    assert right.keys() == found.keys()
    for name, gradient in right.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-5)


on_hopper = torch.cuda.is_available() and flash.fastest() == flash.FLASH


def on_the_cpu():
    """Lets the two operations run on a CPU: what the kernels compute, written out."""

    def turn(*tensors):
        return (tensor.transpose(1, 2) for tensor in tensors)

    def scores_of(query, key, scale, cap, window):
        """The capped scores, and what the cap multiplies their gradients by."""
        scores = query @ key.transpose(2, 3) * scale
        scores = torch.tanh(scores / cap) * cap if cap else scores
        back = torch.arange(scores.shape[-1])[:, None] - torch.arange(scores.shape[-1])
        hidden = (back < 0) | ((back >= window) if window else False)
        return scores.masked_fill(hidden, float("-inf")), 1 - (scores / cap) ** 2 if cap else 1

    def forward(query, key, value, *settings):
        query, key, value = turn(query, *(some.repeat_interleave(2, 2) for some in (key, value)))
        scores, _ = scores_of(query, key, *settings)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), scores.logsumexp(-1)

    def backward(gradient, query, key, value, result, sums, scale, cap, window):
        wide = (query, *(some.repeat_interleave(2, 2) for some in (key, value)))
        gradient, result, query, key, value = turn(gradient, result, *wide)
        scores, slope = scores_of(query, key, scale, cap, window)
        p = (scores - sums[..., None]).exp()
        steps = p * (gradient @ value.transpose(2, 3) - (gradient * result).sum(-1, keepdim=True)) * slope * scale
        found = turn(steps @ key, steps.transpose(2, 3) @ query, p.transpose(2, 3) @ gradient)
        query, *others = (some.contiguous() for some in found)
        return query, *(some.unflatten(2, (-1, 2)).sum(3) for some in others)

    flash._flash.register_kernel("cpu")(forward)
    flash._flash_backward.register_kernel("cpu")(backward)


def judged(kind, batch, dtype=torch.float32, device="cpu", **changes):
    """Loss, logits and gradients of a small Gemma-2 with this attention."""
    config = AutoConfig.for_model("gemma2", **GEMMA | dict(head_dim=32) | changes)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=kind, dtype=dtype).to(device)
    output = model(**{name: tensor.to(device) for name, tensor in batch.items()})
    output.loss.backward()
    found = [output.loss.detach(), output.logits.detach(), *(p.grad for p in model.parameters())]
    return [tensor.float().cpu() for tensor in found]


def rows_of(length, left=False):
    ids = torch.randint(1, 64, (3, length), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, slice(0, 5) if left else slice(-5, None)] = 0
    return {"input_ids": ids * mask, "attention_mask": mask, "labels": torch.tensor([0, 1, 2])}


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 7}, {"attn_logit_softcapping": None}], ids=str)
def test_flash_in_compiled_layers_gets_what_eager_gets(changes):
    on_the_cpu()
    batch = rows_of(24)
    found = judged(flash.compiled_flash(), batch, **changes)
    for one, other in zip(found, judged("eager", batch, **changes), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    other = judged("eager", batch, sliding_window=7 if not changes.get("sliding_window") else 4096)
    assert (found[1] - other[1]).abs().max() > 0.01, "window and scores are too small to show"


def test_flash_is_one_operation_to_the_compiler():
    on_the_cpu()
    config = AutoConfig.for_model("gemma2", **GEMMA | dict(head_dim=32))
    kind = flash.compiled_flash()
    model = AutoModelForSequenceClassification.from_config(config, attn_implementation=kind)
    layer, x = model.model.layers[0], torch.randn(2, 12, 64)
    settings = dict(position_embeddings=model.model.rotary_emb(x, torch.arange(12)[None]), attention_mask=None)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)  # fails at a break
    torch.testing.assert_close(compiled(x, **settings), layer(x, **settings))


def test_flash_refuses_what_it_would_compute_wrongly():
    on_the_cpu()
    with pytest.raises(RuntimeError, match="needs padding on the right"):
        judged(flash.compiled_flash(), rows_of(24, left=True))
    with pytest.raises(CourseError, match="neither dropout nor a cache"):
        judged(flash.compiled_flash(), rows_of(24), attention_dropout=0.1)


def test_without_the_package_or_the_card_the_fastest_is_the_usual_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for there in (False, True):
        monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name, there=there: there or None)
        for capability in (8, 9):
            monkeypatch.setattr(torch.cuda, "get_device_capability", lambda capability=capability: (capability, 0))
            runs = there and capability == 9
            assert flash.fastest() == (flash.FLASH if runs else "eager")
            assert flash.fastest(8192, flash=11_264) == (11_264 if runs else 8192)


@pytest.mark.skipif(not on_hopper, reason="needs a GPU of capability 9 and the package flash-attn-4")
@pytest.mark.parametrize("changes", [{}, {"sliding_window": 70}], ids=str)
def test_the_kernels_compute_what_eager_does(changes):
    shape = dict(head_dim=256, initializer_range=0.1, device="cuda", dtype=torch.bfloat16)
    batch = rows_of(200)
    exact = judged("eager", batch, **shape | changes | dict(dtype=torch.float32))
    fast, eager = (judged(kind, batch, **shape | changes) for kind in (flash.FLASH, "eager"))
    for right, one, other in zip(exact, fast, eager, strict=True):
        assert (one - right).norm() <= 2 * (other - right).norm() + 1e-6, "further off than eager in bfloat16"
