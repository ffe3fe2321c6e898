"""T5 with one position bias for all layers."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

from utils import meter
from utils.paths import ROOT
from utils.speed.t5_bias import share_position_bias

TINY = ROOT / "data" / "models" / "tiny-t5"
SHORT = "Taxi drivers may wait at Walnut Hill."
LONG = "All tour operators must switch off idle engines at Falcon Square. The duty starts on June 21, 2025."


def load(attention, **settings):
    return AutoModelForSeq2SeqLM.from_pretrained(TINY, attn_implementation=attention, **settings)


def batch_of(*texts):
    tokenizer = AutoTokenizer.from_pretrained(TINY)
    batch = dict(tokenizer(list(texts), padding=True, return_tensors="pt"))
    batch["labels"] = batch["input_ids"][:, :9].contiguous()
    return batch


@pytest.mark.parametrize("texts", [(SHORT, LONG), (LONG, LONG)], ids=["padded", "whole"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_loss_and_gradients_are_those_of_sdpa(texts, checkpointing):
    def loss_and_gradients(attention):
        torch.manual_seed(0)
        model = load(attention, dropout_rate=0.0).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss = model(**batch_of(*texts)).loss
        loss.backward()
        return [loss.detach(), *(parameter.grad for parameter in model.parameters())]

    usual, shared = loss_and_gradients("sdpa"), loss_and_gradients(share_position_bias())
    for one, other in zip(usual, shared, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_it_generates_the_same_and_keeps_nothing_from_one_forward_pass_to_the_next():
    batch = batch_of(SHORT, LONG)
    usual, shared = load("sdpa").eval(), load(share_position_bias()).eval()
    written = [model.generate(**batch, max_new_tokens=12, do_sample=False) for model in (usual, shared)]
    assert torch.equal(*written)
    for other in (batch_of(LONG, SHORT), batch_of(SHORT, SHORT)):  # nothing is left of the mask before
        assert torch.equal(usual(**other).logits, shared(**other).logits)


def test_each_layer_no_longer_keeps_its_own():
    batch = batch_of(*[LONG] * 15, SHORT)
    usual = load("sdpa", dropout_rate=0.0)
    shared = load(share_position_bias(), dropout_rate=0.0)
    for model in (usual, shared):
        for name, parameter in model.named_parameters():
            parameter.requires_grad = "SelfAttention.v" in name
    rows, queries = batch["input_ids"].shape
    bytes_of_one = rows * usual.config.num_heads * queries * queries * 4
    saved = meter.saved_bytes(usual, batch) - meter.saved_bytes(shared, batch)
    assert saved >= bytes_of_one * (usual.config.num_layers - 1)
