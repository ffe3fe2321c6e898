"""A Gemma-2 classifier whose last layer computes only what is read."""

import pytest
import torch
from peft import LoraConfig, get_peft_model
from small_models import gemma2_classifier, loss_logits_and_gradients

from utils import meter
from utils.speed import last_token

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj"]


def with_lora(classifier, checkpointing):
    config = LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        target_modules=TARGETS,
        modules_to_save=["score"],
        init_lora_weights=False,
    )
    torch.manual_seed(0)
    model = get_peft_model(classifier, config).train()
    if checkpointing:
        model.enable_input_require_grads()
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def padded_batch(side):
    ids = torch.randint(1, 64, (4, 20), generator=torch.Generator().manual_seed(0))
    for row, length in enumerate((12, 20, 3, 1)):
        ids[row, length:] = 0
    if side == "left":
        ids = ids.flip(1)
    return {"input_ids": ids, "attention_mask": (ids > 0).long(), "labels": torch.tensor([0, 1, 2, 0])}


def one_token_earlier(decoder, args, kwargs, find_last_token=last_token._find_last_token):
    find_last_token(decoder, args, kwargs)
    last, hidden = decoder.layers[-1].last
    decoder.layers[-1].last = (last - 1).clamp(0), hidden


@pytest.mark.parametrize("window", [4096, 5], ids=["whole rows", "window"])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_it_answers_and_learns_the_same(window, side, checkpointing, monkeypatch):
    batch = padded_batch(side)
    layers = 3 if window == 5 else 2  # a layer with a window, or one without, is the last

    def classifier():
        return gemma2_classifier("eager", num_hidden_layers=layers, sliding_window=window)

    model = with_lora(classifier(), checkpointing)
    usual_bytes = meter.saved_bytes(model, batch)
    usual = loss_logits_and_gradients(model, batch)

    base = classifier()
    model = with_lora(base, checkpointing)
    with last_token.reading_last_token(base):
        last_bytes = meter.saved_bytes(model, batch)
        last = loss_logits_and_gradients(model, batch)

    monkeypatch.setattr(last_token, "_find_last_token", one_token_earlier)
    base = classifier()
    model = with_lora(base, checkpointing)
    with last_token.reading_last_token(base):
        wrong = loss_logits_and_gradients(model, batch)

    for one, other in zip(usual, last, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4 * one.abs().max().item())
    usual_logits, wrong_logits = usual[1], wrong[1]
    assert not torch.allclose(usual_logits, wrong_logits, atol=1e-2), "the control: one token earlier is another answer"
    assert checkpointing or last_bytes < 0.85 * usual_bytes
