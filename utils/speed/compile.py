"""Compiled layers inside checkpoints."""

import functools

import torch
from torch.utils.checkpoint import checkpoint


def compile_in_checkpoints(layers):
    """Compiles decoder layers of one kind, each inside a checkpoint: of each, only its input is kept.

    transformers checkpoints inside a layer's forward, so `layer.compile()` takes the checkpoint into what it compiles.
    There, torch 2.11 keeps what every multiplication with 4-bit weights gave all the same. Here the checkpoint stands
    around. Loss and gradients are those of `layer.compile()`, and Trainer's activation_checkpointing changes no
    more. No cache (use_cache=False): a checkpoint would fill it twice.
    """
    forward = type(layers[0]).forward
    compiled = torch.compile(getattr(forward, "__wrapped__", forward), dynamic=True)  # without transformers' checkpoint
    for layer in layers:
        layer.forward = functools.partial(checkpoint, compiled, layer, use_reentrant=False)
