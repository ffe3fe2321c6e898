"""One position bias for all layers of T5."""

from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

SHARED_BIAS = "sdpa_shared_bias"


def share_position_bias():
    """Registers SHARED_BIAS as a value of `attn_implementation`, and returns it.

    T5 computes its position bias in the first layer, (1, heads, queries, keys), and hands it on. Each layer of "sdpa"
    joins it with the mask to a tensor of (rows, heads, queries, keys), and keeps that for its backward pass. Here the
    first layer does, and the others take the same tensor. The results are the same.
    """
    AttentionInterface.register(SHARED_BIAS, _attend)
    AttentionMaskInterface.register(SHARED_BIAS, sdpa_mask)
    return SHARED_BIAS


def _attend(module, query, key, value, attention_mask, position_bias=None, **kwargs):
    if position_bias is not None:
        known = getattr(position_bias, "joined", None)  # lives as long as the bias: one forward pass
        if known is None or known[0] is not attention_mask:
            causal = query.shape[2] > 1 and attention_mask is None and module.is_causal
            both = create_position_bias_mask(position_bias, attention_mask, causal, query, key)
            known = position_bias.joined = (attention_mask, both.to(query.dtype))
        attention_mask = known[1]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
