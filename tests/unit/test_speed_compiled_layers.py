"""Compiled layers, with and without checkpoints."""

import functools

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import gemma2_batch, gemma2_classifier, loss_logits_and_gradients
from transformers import AutoModelForSequenceClassification, BitsAndBytesConfig

from utils.paths import ROOT
from utils.speed import compiled_layers

TINY = ROOT / "data" / "models" / "tiny-gemma-2"


def gemma2_in_4_bits():
    torch.manual_seed(0)
    in_4_bits = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForSequenceClassification.from_pretrained(
        TINY, num_labels=3, quantization_config=in_4_bits, attn_implementation="eager"
    )
    base.config.use_cache = False
    lora = LoraConfig(task_type="SEQ_CLS", r=8, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, lora).train()
    model.enable_input_require_grads()
    return model


def bytes_and_gradients(model):
    """Bytes of activations that a model keeps for its backward pass; its loss and all gradients."""
    ids = torch.randint(5, 500, (8, 64), generator=torch.Generator().manual_seed(0)).to(model.device)
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept = {}

    def look(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(look, lambda tensor: tensor):  # a checkpoint has hooks of its own
        loss = model(input_ids=ids, attention_mask=torch.ones_like(ids), labels=ids[:, 0] % 3).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients["loss"] = loss.detach()
    return sum(size for address, size in kept.items() if address not in weights), gradients


def test_compiled_layers_in_checkpoints_keep_their_inputs_only(monkeypatch):
    compiler = functools.partial(torch.compile, backend="aot_eager")  # needs no compiler of C++
    monkeypatch.setattr(torch, "compile", compiler)
    torch.compiler.reset()
    usual = gemma2_in_4_bits()
    for layer in usual.get_base_model().model.layers:
        layer.forward = torch.compile(layer.forward, dynamic=True)
    usual_bytes, usual_gradients = bytes_and_gradients(usual)

    torch.compiler.reset()
    checkpointed = gemma2_in_4_bits()
    compiled_layers.compile_in_checkpoints(checkpointed.get_base_model().model.layers)
    few_bytes, gradients = bytes_and_gradients(checkpointed)

    assert few_bytes < 0.1 * usual_bytes
    assert len(usual_gradients) > 40
    assert usual_gradients.keys() == gradients.keys()
    for name, gradient in usual_gradients.items():
        torch.testing.assert_close(gradients[name], gradient, rtol=1e-3, atol=1e-5)


@pytest.fixture
def calls(monkeypatch):
    """The calls of what was compiled; the compiler itself, which takes a minute, only counts."""
    calls = []

    def compiler(function, *, dynamic):
        assert dynamic, "one compilation for all lengths"

        def compiled(*args, **kwargs):
            calls.append(function)
            return function(*args, **kwargs)

        return compiled

    monkeypatch.setattr(torch, "compile", compiler)
    return calls


@pytest.mark.parametrize("way", [compiled_layers.compiled, compiled_layers.compiled_in_checkpoints])
def test_inside_the_block_layers_are_compiled_and_behind_it_they_are_the_usual_ones(way, calls):
    batch = gemma2_batch(24)
    usual = loss_logits_and_gradients(gemma2_classifier("eager"), batch)
    model = gemma2_classifier("eager")
    layers = model.model.layers
    with way(model, layers):
        computed = loss_logits_and_gradients(model, batch)
    assert len(calls) >= len(layers)
    for one, other in zip(usual, computed, strict=True):
        torch.testing.assert_close(one, other)
    calls.clear()
    model.zero_grad()
    again = loss_logits_and_gradients(model, batch)
    assert not calls
    assert not model.get_input_embeddings()._forward_hooks, "inputs need no gradient any more"
    for one, other in zip(usual, again, strict=True):
        assert torch.equal(one, other)


def test_a_forward_that_somebody_had_set_on_a_layer_comes_back(calls):
    model = gemma2_classifier("eager")
    layer = model.model.layers[0]
    layer.forward = earlier = functools.partial(layer.forward)
    with compiled_layers.compiled_in_checkpoints(model, model.model.layers):
        assert layer.forward is not earlier
    assert layer.forward is earlier
