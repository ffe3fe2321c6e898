"""The meter: what a training took, and bytes of weights, optimizer states and saved tensors."""

import gc
import time

import torch

from utils.training.hooks import ForwardHookCallback


class Meter(ForwardHookCallback):
    """Callback that meters a training; its attributes are complete when `trainer.train()` is done.

    seconds: from the beginning of the training to its end, with evaluations and checkpoints. rows, real_tokens
    (attention mask 1) and padded_tokens (all positions): what went forward in training, evaluation left out. A packed
    batch has no mask; its rows are the texts in it.
    peak_bytes: the most that was allocated on the GPU at once, None where there is no GPU. optimizer_bytes: all states
    of the optimizer at the end.
    A second training is metered anew.
    """

    def __init__(self):
        self._begin_at_zero()

    def _begin_at_zero(self):
        self.rows = 0
        self.real_tokens = 0
        self.padded_tokens = 0
        self.seconds = None
        self.peak_bytes = None
        self.optimizer_bytes = None
        self._started = None

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        """Clears away what nobody refers to any more, and begins to count."""
        gc.collect()
        self._begin_at_zero()
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        super().on_train_begin(args, state, control, model=model, **kwargs)
        self._started = time.perf_counter()

    def add_hook(self, model):
        """Looks at what each forward pass of `model` is given."""
        return model.register_forward_pre_hook(self.count, with_kwargs=True)

    def count(self, module, args, inputs):
        """Counts the rows and tokens of a batch, unless it is one of an evaluation."""
        if not module.training:
            return
        positions = inputs["input_ids"].numel()
        self.padded_tokens += positions
        mask = inputs.get("attention_mask")
        if mask is not None:
            self.rows += mask.shape[0]
            self.real_tokens = self.real_tokens + mask.sum()  # stays on the device: no wait in every step
        else:  # packed: no padding, and a text begins wherever the positions do
            self.rows = self.rows + (inputs["position_ids"] == 0).sum()
            self.real_tokens = self.real_tokens + positions

    def on_train_end(self, args, state, control, optimizer=None, **kwargs):
        """Ends the count; from now on the attributes are plain numbers."""
        super().on_train_end(args, state, control, optimizer=optimizer, **kwargs)
        self.rows = int(self.rows)
        self.real_tokens = int(self.real_tokens)
        self.seconds = time.perf_counter() - self._started
        if torch.cuda.is_available():
            self.peak_bytes = torch.cuda.max_memory_allocated()
        if optimizer is not None:
            self.optimizer_bytes = optimizer_bytes(optimizer)


def tensor_bytes(tensors):
    """Bytes of the distinct storages behind `tensors`: a weight used twice counts once."""
    storages = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def weight_bytes(model):
    """Bytes of all parameters of `model`, with the scales of 4-bit weights, which bitsandbytes keeps beside them."""
    tensors = list(model.parameters())
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is None:
            continue
        tensors += [state.absmax, state.code]
        if state.nested:  # the scales are in 8 bits and have scales of their own
            tensors += [state.offset, state.state2.absmax, state.state2.code]
    return tensor_bytes(tensors)


def optimizer_bytes(optimizer):
    """Bytes of all state tensors that `optimizer` holds, counted; zero before its first step."""
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Trainer's accelerate wraps it
    tensors = []
    for state in optimizer.state.values():
        tensors += [value for value in state.values() if torch.is_tensor(value)]
    return tensor_bytes(tensors)


def saved_bytes(model, batch):
    """Bytes that autograd keeps for the backward pass of one training forward pass of `batch`, a dict of tensors.

    Parameters and buffers are left out. They are counted by hooks on the tensors that operations save.
    """
    weights = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    saved = {}  # address: storage, which is held so that no address is used twice

    def keep(tensor):  # returns nothing: a graph that held its own results this way would never be freed
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage

    was_training = model.training
    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda nothing: nothing):
        model(**{name: value.to(model.device) for name, value in batch.items()})
    model.train(was_training)
    return sum(storage.nbytes() for storage in saved.values())
