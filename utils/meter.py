"""The meter: what a training took, and bytes of weights, optimizer states and saved tensors."""

import contextlib
import gc
import time
from types import SimpleNamespace

GIB = 2**30


def tensor_bytes(tensors):
    """Bytes of the distinct storages behind `tensors`: a weight used twice counts once."""
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def weight_bytes(model):
    """Bytes of all parameters of `model`, with the scales of 4-bit weights, which bitsandbytes keeps beside them."""
    tensors = list(model.parameters())
    for state in [p.quant_state for p in model.parameters() if getattr(p, "quant_state", None) is not None]:
        tensors += [state.absmax, state.code]
        tensors += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
    return tensor_bytes(tensors)


def optimizer_bytes(optimizer):
    """Bytes of all state tensors that `optimizer` holds, counted; zero before its first step."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Trainer's accelerate wraps it
    states = [v for state in optimizer.state.values() for v in state.values()]
    return tensor_bytes(v for v in states if hasattr(v, "untyped_storage"))


def saved_bytes(model, batch):
    """Bytes that autograd keeps for the backward pass of one training forward pass of `batch` (a dict of tensors),
    parameters and buffers left out; counted by hooks on the tensors that operations save."""
    import torch

    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}
    saved, was_training = {}, model.training

    def keep(tensor):  # returns nothing: a graph that held its own results this way would never be freed
        if tensor.untyped_storage().data_ptr() not in own:
            saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()  # held: no address is used twice

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        model(**{name: value.to(model.device) for name, value in batch.items()})
    model.train(was_training)
    return sum(storage.nbytes() for storage in saved.values())


@contextlib.contextmanager
def measure(model):
    """Meters the training inside the `with` block; what it yields is complete when the block ends: seconds; rows,
    real_tokens (attention mask 1) and padded_tokens (all positions) that went forward in training, evaluation left out;
    peak_bytes allocated on the GPU, or None where there is none. Clears away what nobody refers to any more first."""
    import torch

    gc.collect()
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
