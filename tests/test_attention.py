"""Attention with less memory and time: T5 with one bias for all layers, a decoder without a padding mask."""

import pytest
import torch
from transformers import AutoModelForSeq2SeqLM, AutoTokenizer, OPTConfig, OPTForCausalLM

from utils import memory
from utils.attention import share_position_bias, without_mask
from utils.environment import ROOT

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
    for attention in ("sdpa", share_position_bias()):
        torch.manual_seed(0)
        model = load(attention, dropout_rate=0.0).train()
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
    saved = memory.saved_bytes(usual, batch) - memory.saved_bytes(shared, batch)
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
