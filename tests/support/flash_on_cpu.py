"""What FlashAttention's kernels compute, written out for a CPU, with two query heads for each head of keys."""

import torch

from utils.speed import flash


def register():
    """Lets the two operations of utils/speed/flash.py run on a CPU."""
    flash._flash.register_kernel("cpu")(forward)
    flash._flash_backward.register_kernel("cpu")(backward)


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
