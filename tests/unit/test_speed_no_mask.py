"""A decoder without a padding mask."""

import pytest
import torch
from transformers import OPTConfig, OPTForCausalLM

from utils.speed.no_mask import without_mask


@pytest.mark.parametrize(("side", "moves"), [("right", False), ("left", True)])
def test_padding_on_the_right_needs_no_mask_and_on_the_left_it_does(side, moves):
    torch.manual_seed(0)
    config = OPTConfig(vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, ffn_dim=64)
    model = OPTForCausalLM(config).eval()
    ids = torch.randint(5, 50, (2, 12))
    mask = torch.ones(2, 12, dtype=torch.long)
    padding = {"right": slice(8, None), "left": slice(None, 4)}[side]
    mask[0, padding] = 0
    ids[0, padding] = config.pad_token_id
    real = mask.bool()
    usual = model(input_ids=ids, attention_mask=mask).logits[real]
    with without_mask(model.model.decoder):
        unmasked = model(input_ids=ids, attention_mask=mask).logits[real]
    assert torch.allclose(usual, unmasked, atol=1e-6) is not moves
    again = model(input_ids=ids, attention_mask=mask).logits[real]
    assert torch.equal(again, usual), "behind the block the mask counts again"
