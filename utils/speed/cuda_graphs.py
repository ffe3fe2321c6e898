"""CUDA graphs: the GPU work of a training step, recorded once for each shape of batch and replayed in one call."""

import contextlib
import functools
import inspect
from unittest import mock

import torch
from torch.utils import _pytree
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import import_utils

from utils.errors import CourseError
from utils.training import out_of_memory

MOST = 32  # shapes that are recorded; each takes a second
_blocks = []  # of each block of `replay` that is entered: its records, and where they lie


@contextlib.contextmanager
def replay(module, on=True, compiled=False):
    """Inside the `with` block, `module` (a model of transformers, or a part of one) trains by CUDA graphs.

    The first batch of a shape is recorded, forward and backward; later ones replay the record: one call from Python
    instead of thousands, with the same kernels and random numbers (but a mask is made even if it hides nothing). So
    shapes should be few (`pad_to_multiple_of`). Those beyond the first MOST run as usual, and so do evaluation,
    generation, models with activation checkpointing, and everything where there is no GPU. Keys and values are not kept
    (use_cache=False); a `module` that returns what is no tensor is refused with CourseError. The memory of the records
    stays reserved until the block ends or `forget` is called. With `compiled`, layers are recorded as torch.compile
    fuses them, once for all lengths: that takes a minute, and the results are the usual ones up to rounding.
    Source: CUDAGraph and torch.cuda.graph of torch.
    """
    if not (on and torch.cuda.is_available()):
        yield
        return
    usual, records, own = module.forward, {}, "forward" in vars(module)
    no_cache = {"use_cache": False} if "use_cache" in inspect.signature(usual).parameters else {}
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    layers = [layer for layer in module.modules() if compiled and isinstance(layer, GradientCheckpointingLayer)]
    fused = {layer: layer.compile(dynamic=True) or vars(layer).pop("_compiled_call_impl") for layer in layers}
    torch.cuda.empty_cache()  # or what follows is put into large free pieces, which then cannot be given back
    # of all records, none of which is needed while another one runs
    place = [torch.cuda.MemPool(), torch.cuda.Stream(), [torch.empty_like(parameter) for parameter in trained]]

    @functools.wraps(usual)  # Trainer reads its signature
    def forward(*args, **kwargs):
        if over or not (module.training and torch.is_grad_enabled()):
            return usual(*args, **kwargs)
        leaves, form = _pytree.tree_flatten((args, kwargs | no_cache))
        tensors = [leaf for leaf in leaves if torch.is_tensor(leaf)]
        shape = (form, *((leaf.shape, leaf.dtype) if torch.is_tensor(leaf) else leaf for leaf in leaves))
        if any(x.requires_grad for x in tensors):
            return usual(*args, **kwargs)
        if shape not in records:
            if len(records) == MOST or getattr(module, "is_activation_checkpointing", False):
                return usual(*args, **kwargs)
            torch.cuda.empty_cache()  # what is free outside of the pool, the pool would not take
            with _stand_ins(module, trained) as parameters, _compiled(fused):
                recorded = _record(usual, leaves, form, parameters, *place)
            records[shape] = functools.partial(recorded, trained)
        return records[shape](tensors)

    if compiled:
        module.enable_input_require_grads()  # else the first layer, whose input needs none, is compiled by itself
    module.forward, over = forward, False
    _blocks.append((records, place))
    end_retry_callback = out_of_memory.on_retry(forget)
    try:
        yield
    finally:
        _blocks.pop()
        end_retry_callback()
        if compiled:
            module.disable_input_require_grads()
        over = True  # accelerate may have wrapped `forward` meanwhile, and goes on calling it
        if vars(module)["forward"] is forward:
            del module.forward
            vars(module).update({"forward": usual} if own else {})
        records.clear()
        place.clear()
        torch.cuda.empty_cache()


def forget():
    """Frees the memory of all records, when a step needs it; a shape that comes again is recorded anew."""
    for records, place in _blocks:
        records.clear()
        place[0] = torch.cuda.MemPool()


@contextlib.contextmanager
def _compiled(fused):
    """Inside the block these layers, {layer: its compiled call}, are compiled; outside they are the usual ones."""
    for layer, call in fused.items():
        layer._compiled_call_impl = call
    try:
        yield
    finally:
        for layer in fused:
            del layer._compiled_call_impl


@contextlib.contextmanager
def _stand_ins(module, trained):
    """Inside the block `module` has other parameters in place of the trained ones, with the same memory; yields them.

    Autograd remembers on which stream it first met a parameter, as long as any earlier loss is kept somewhere; and what
    another stream waits for cannot be recorded. It has not met these.
    """
    other = {id(parameter): torch.nn.Parameter(parameter.detach()) for parameter in trained}
    owners = [(part._parameters, name) for part in module.modules() for name in part._parameters]
    owners = [(own, name, own[name]) for own, name in owners if id(own[name]) in other]
    for own, name, parameter in owners:
        own[name] = other[id(parameter)]
    try:
        yield list(other.values())
    finally:
        for own, name, parameter in owners:
            own[name] = parameter


def _record(usual, leaves, form, parameters, pool, stream, gradients):
    """A function of the parameters and the tensors of a batch that replays usual(*args, **kwargs), recorded here."""
    inputs = [leaf.clone() for leaf in leaves if torch.is_tensor(leaf)]  # where a replay looks for its batch

    def run():
        given = iter(inputs)
        args, kwargs = _pytree.tree_unflatten([next(given) if torch.is_tensor(x) else x for x in leaves], form)
        found, shape = _pytree.tree_flatten(usual(*args, **kwargs))
        if strange := {type(x).__name__ for x in found if not torch.is_tensor(x)}:
            raise CourseError(f"{usual.__qualname__} returns {', '.join(strange)}; train without CUDA graphs.")
        return found, [x for x in found if x.requires_grad], shape

    def derive(learning, seeds):
        """Writes the gradients to where those of all shapes lie; says of each parameter whether it has one."""
        found = torch.autograd.grad(learning, parameters, seeds, allow_unused=True)
        for place, gradient in zip(gradients, found, strict=True):
            if gradient is not None:
                place.copy_(gradient)
        return [gradient is not None for gradient in found]

    half, forward, backward = torch.get_autocast_dtype("cuda"), torch.cuda.CUDAGraph(), torch.cuda.CUDAGraph()
    with torch.autocast("cuda", half, torch.is_autocast_enabled("cuda"), cache_enabled=False):
        stream.wait_stream(torch.cuda.current_stream())
        here = torch.random.fork_rng([torch.cuda.current_device()])
        masks = mock.patch.object(import_utils, "is_cuda_stream_capturing", return_value=True)  # as when recorded
        with here, masks, torch.cuda.stream(stream), torch.cuda.use_mem_pool(pool):
            _, learning, _ = run()  # once as usual: libraries choose and load their kernels
            derive(learning, [torch.zeros_like(x) for x in learning])
            del learning
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(forward, pool=pool.id, stream=stream):
            outputs, learning, shape = run()
        seeds = [torch.empty_like(x) for x in learning]
        with torch.cuda.graph(backward, pool=pool.id, stream=stream):
            has_one = derive(learning, seeds)
    learns = [x.requires_grad for x in outputs]
    outputs = [x.detach() for x in outputs]
    del learning

    class Replay(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *parameters):
            forward.replay()
            results = tuple(x.clone() for x in outputs)  # the next replay overwrites its own
            ctx.mark_non_differentiable(*(x for x, learning in zip(results, learns, strict=True) if not learning))
            return results

        @staticmethod
        def backward(ctx, *given):
            for seed, gradient in zip(seeds, (x for x, yes in zip(given, learns, strict=True) if yes), strict=True):
                seed.copy_(gradient)
            backward.replay()
            return tuple(x.clone() if has else None for x, has in zip(gradients, has_one, strict=True))

    def replayed(trained, tensors):
        for kept, new in zip(inputs, tensors, strict=True):
            kept.copy_(new)
        return _pytree.tree_unflatten(list(Replay.apply(*trained)), shape)

    return replayed
