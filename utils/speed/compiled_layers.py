"""Compiled layers: torch.compile fuses the small steps between the multiplications of each layer."""

import contextlib
import functools

import torch
from torch.utils.checkpoint import checkpoint


@contextlib.contextmanager
def compiled(model, layers):
    """Inside the `with` block each of the `layers` of `model` runs compiled, once for all lengths.

    The first step takes about a minute. The results are the usual ones up to rounding. It needs a GPU and a C compiler.
    For layers that are compiled from beginning to end; with activation checkpointing, see `compile_in_checkpoints`.
    Source: torch.nn.Module.compile.
    """
    model.enable_input_require_grads()  # so that the first layer, whose input needs no gradient, is like the others
    for layer in layers:
        layer.compile(dynamic=True)
    try:
        yield
    finally:
        model.disable_input_require_grads()
        for layer in layers:
            del layer._compiled_call_impl  # what `compile` sets; below it stands the class's None


def compile_in_checkpoints(layers):
    """Compiles decoder layers of one kind, each inside a checkpoint: of each, only its input is kept.

    transformers checkpoints inside a layer's forward, so `layer.compile()` takes the checkpoint into what it compiles.
    There, torch 2.11 keeps what every multiplication with 4-bit weights gave all the same. Here the checkpoint stands
    around. Loss and gradients are those of `layer.compile()`, and Trainer's activation_checkpointing changes no
    more. No cache (use_cache=False): a checkpoint would fill it twice.
    """
    forward = type(layers[0]).forward
    forward = getattr(forward, "__wrapped__", forward)  # without transformers' own checkpoint
    compiled_forward = torch.compile(forward, dynamic=True)
    for layer in layers:
        layer.forward = functools.partial(checkpoint, compiled_forward, layer, use_reentrant=False)


@contextlib.contextmanager
def compiled_in_checkpoints(model, layers):
    """Inside the `with` block the layers of a decoder are compiled as `compile_in_checkpoints` does it."""
    earlier_forwards = {layer: vars(layer).get("forward") for layer in layers}  # if somebody has set one on the object
    model.enable_input_require_grads()  # so that the first layer, whose input needs no gradient, is like the others
    compile_in_checkpoints(layers)
    try:
        yield
    finally:
        model.disable_input_require_grads()
        for layer, earlier_forward in earlier_forwards.items():
            del layer.forward
            if earlier_forward is not None:
                layer.forward = earlier_forward
