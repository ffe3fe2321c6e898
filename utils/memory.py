"""The planner (what a run will need, by component) and the meter (what it took)."""

import contextlib
import time
from types import SimpleNamespace

import torch

GIB = 2**30


def tensor_bytes(tensors):
    """Bytes of the distinct storages behind `tensors`: a weight used twice counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def optimizer_bytes(optimizer):
    """Bytes of all state tensors that `optimizer` holds, counted; zero before its first step."""
    return tensor_bytes(v for state in optimizer.state.values() for v in state.values() if torch.is_tensor(v))


def plan(model, batch, autocast=None):
    """Bytes that AdamW training of `model` needs, by component, before the first step.

    Weights, gradients and optimizer states (two float32 values a trainable parameter) follow from the model.
    Activations are counted: one forward pass of `batch` (the longest rows, collated), in the dtype `autocast` if one is
    given, under autograd's hooks on tensors saved for backward. Not in it: the CUDA context (about 0.5 GiB), kernel
    work space, the allocator's reserve. An upper bound: not all parts are alive at one moment.
    """
    weights, saved = {p.untyped_storage().data_ptr() for p in model.parameters()}, {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage  # held, so that no address is used twice
        return tensor

    was_training = model.training
    model.train()
    in_type = torch.autocast(model.device.type, autocast, enabled=autocast is not None)
    with in_type, torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model(**{name: value.to(model.device) for name, value in batch.items()})
    model.train(was_training)
    trainable = [p for p in model.parameters() if p.requires_grad]
    parts = {
        "weights": tensor_bytes(model.parameters()),
        "gradients": sum(p.numel() * p.element_size() for p in trainable),
        "optimizer states": sum(p.numel() * 8 for p in trainable),
        "activations": sum(storage.nbytes() for storage in saved.values()),
    }
    return parts | {"total": sum(parts.values())}


@contextlib.contextmanager
def measure(model):
    """Meters the training inside the `with` block; what it yields is complete when the block ends: seconds; rows,
    real_tokens (attention mask 1) and padded_tokens (all positions) that went forward in training, evaluation left out;
    peak_bytes allocated on the GPU, or None where there is none."""
    cost = SimpleNamespace(rows=0, real_tokens=0, padded_tokens=0, peak_bytes=None)

    def count(module, args, inputs):
        if module.training:
            mask = inputs["attention_mask"]
            cost.rows += mask.shape[0]
            cost.real_tokens = cost.real_tokens + mask.sum()  # stays on the device: no wait in every step
            cost.padded_tokens += mask.numel()

    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    hook, started = model.register_forward_pre_hook(count, with_kwargs=True), time.perf_counter()
    yield cost
    hook.remove()
    cost.real_tokens = int(cost.real_tokens)
    cost.seconds = time.perf_counter() - started
    if torch.cuda.is_available():
        cost.peak_bytes = torch.cuda.max_memory_allocated()
