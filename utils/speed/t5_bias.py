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
        attention_mask = _bias_and_mask(module, query, key, attention_mask, position_bias)
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def _bias_and_mask(module, query, key, attention_mask, position_bias):
    """The bias and the mask in one tensor, (rows, heads, queries, keys), made once for each bias and mask.

    It is an attribute of the bias, so it lives as long as that: for one forward pass.
    """
    joined = getattr(position_bias, "joined", None)
    if joined is not None:
        mask_of_joined, bias_and_mask = joined
        if mask_of_joined is attention_mask:
            return bias_and_mask
    is_causal = query.shape[2] > 1 and attention_mask is None and module.is_causal
    bias_and_mask = create_position_bias_mask(position_bias, attention_mask, is_causal, query, key).to(query.dtype)
    position_bias.joined = (attention_mask, bias_and_mask)
    return bias_and_mask
