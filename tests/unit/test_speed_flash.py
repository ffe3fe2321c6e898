"""FlashAttention inside compiled layers, without its kernels: what they compute is written out. tests/gpu has them."""

import pytest
import torch
from small_models import gemma2_batch, gemma2_classifier, loss_logits_and_gradients

from utils.errors import CourseError
from utils.speed import flash


@pytest.fixture(scope="module", autouse=True)
def on_the_cpu():
    """Lets the two operations run on a CPU."""

    def turn(*tensors):
        return [tensor.transpose(1, 2) for tensor in tensors]

    def for_each_query_head(*tensors):
        return [tensor.repeat_interleave(2, 2) for tensor in tensors]

    def scores_of(query, key, scale, cap, window):
        """The capped scores, and what the cap multiplies their gradients by."""
        scores = query @ key.transpose(2, 3) * scale
        slope = 1
        if cap:
            scores = torch.tanh(scores / cap) * cap
            slope = 1 - (scores / cap) ** 2
        tokens = torch.arange(scores.shape[-1])
        distance = tokens[:, None] - tokens
        hidden = distance < 0
        if window:
            hidden = hidden | (distance >= window)
        return scores.masked_fill(hidden, float("-inf")), slope

    def forward(query, key, value, *settings):
        query, key, value = turn(query, *for_each_query_head(key, value))
        scores, _ = scores_of(query, key, *settings)
        return (scores.softmax(-1) @ value).transpose(1, 2).contiguous(), scores.logsumexp(-1)

    def backward(gradient, query, key, value, output, sums, scale, cap, window):
        gradient, output, query, key, value = turn(gradient, output, query, *for_each_query_head(key, value))
        scores, slope = scores_of(query, key, scale, cap, window)
        weights = (scores - sums[..., None]).exp()
        to_weights = gradient @ value.transpose(2, 3) - (gradient * output).sum(-1, keepdim=True)
        to_scores = weights * to_weights * slope * scale
        gradients = turn(to_scores @ key, to_scores.transpose(2, 3) @ query, weights.transpose(2, 3) @ gradient)
        query_gradient, key_gradient, value_gradient = (tensor.contiguous() for tensor in gradients)
        key_gradient = key_gradient.unflatten(2, (-1, 2)).sum(3)
        value_gradient = value_gradient.unflatten(2, (-1, 2)).sum(3)
        return query_gradient, key_gradient, value_gradient

    flash._flash.register_kernel("cpu")(forward)
    flash._flash_backward.register_kernel("cpu")(backward)


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
def test_without_the_package_or_the_card_the_fastest_is_the_usual_one(installed, capability, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (capability, 0))
    monkeypatch.setattr(flash.importlib.util, "find_spec", lambda name: installed or None)
    if installed and capability == 9:
        assert flash.why_not() == ""
        assert flash.fastest() == flash.FLASH
        assert flash.fastest(8192, flash=11_264) == 11_264
    else:
        assert flash.why_not() != ""
        assert flash.fastest() == "eager"
        assert flash.fastest(8192, flash=11_264) == 8192


def test_without_a_gpu_it_is_the_usual_one_too(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert flash.why_not() == "no GPU here"
    assert flash.fastest() == "eager"
