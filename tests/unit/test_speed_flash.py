"""FlashAttention inside compiled layers, without its kernels: what they compute is written out. tests/gpu has them."""

import flash_on_cpu
import pytest
import torch
from small_models import gemma2_batch, gemma2_classifier, loss_logits_and_gradients

from utils import speed
from utils.errors import CourseError
from utils.speed import flash


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    flash_on_cpu.register()


def computed(attention, batch, **changes):
    return loss_logits_and_gradients(gemma2_classifier(attention, head_dim=32, **changes), batch)


@pytest.mark.parametrize("changes", [{}, {"sliding_window": 7}, {"attn_logit_softcapping": None}], ids=str)
def test_flash_in_compiled_layers_gets_what_eager_gets(changes):
    batch = gemma2_batch(24)
    fast = computed(flash.compiled_flash(), batch, **changes)
    for one, other in zip(fast, computed("eager", batch, **changes), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
    other_window = 4096 if changes.get("sliding_window") else 7
    logits = fast[1]
    other_logits = computed("eager", batch, **{**changes, "sliding_window": other_window})[1]
    assert (logits - other_logits).abs().max() > 0.01, "window and scores are too small to show"


def test_flash_is_one_operation_to_the_compiler():
    model = gemma2_classifier(flash.compiled_flash(), head_dim=32)
    layer = model.model.layers[0]
    states = torch.randn(2, 12, 64)
    position_embeddings = model.model.rotary_emb(states, torch.arange(12)[None])
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True, dynamic=True)  # fails at a break
    torch.testing.assert_close(
        compiled(states, position_embeddings=position_embeddings, attention_mask=None),
        layer(states, position_embeddings=position_embeddings, attention_mask=None),
    )


def test_flash_refuses_what_it_would_compute_wrongly():
    with pytest.raises(RuntimeError, match="needs padding on the right"):
        computed(flash.compiled_flash(), gemma2_batch(24, left=True))
    with pytest.raises(CourseError, match="neither dropout nor a cache"):
        computed(flash.compiled_flash(), gemma2_batch(24), attention_dropout=0.1)


@pytest.mark.parametrize("installed", [False, True])
@pytest.mark.parametrize("capability", [8, 9])
def test_it_needs_the_package_and_the_card(installed, capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: installed or None)
    works = installed and capability == 9
    assert (flash.why_not() == "") == works
    assert speed.has_flash_attention() == works


def test_without_a_gpu_it_does_not_run(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert flash.why_not() == "no GPU here"
    assert not speed.has_flash_attention()
