"""CUDA graphs: the GPU work of a training step, captured once for each shape of batch and replayed in one call."""

import contextlib
import functools
import inspect
from dataclasses import dataclass
from unittest import mock

import torch
from torch.utils import _pytree
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import import_utils

from utils.errors import CourseError
from utils.training import out_of_memory

MAX_SHAPES = 32  # shapes of batches that are captured; each takes a second
_active = []  # one _GraphedModule for each `with replay(...)` block that is entered


@contextlib.contextmanager
def replay(module, on=True, compiled=False):
    """Inside the `with` block, `module` (a model of transformers, or a part of one) trains by CUDA graphs.

    The first batch of a shape is captured, forward and backward; later ones replay the captured graphs: one call from
    Python instead of thousands, with the same kernels and random numbers (but a mask is made even if it hides nothing).
    So shapes should be few (`pad_to_multiple_of`). Those beyond the first MAX_SHAPES run as usual, and so do
    evaluation, generation, models with activation checkpointing, and everything where there is no GPU. Keys and values
    are not kept (use_cache=False). The memory of the graphs stays reserved until the block ends or `forget` is called.

    on: False leaves the module as it is.
    compiled: layers are captured as torch.compile fuses them, once for all lengths. That takes a minute, and the
        results are the usual ones up to rounding.
    Raises CourseError if `module` returns something that is not a tensor.
    Source: torch.cuda.CUDAGraph and torch.cuda.graph.
    """
    if not (on and torch.cuda.is_available()):
        yield
        return
    graphed = _GraphedModule(module, compiled)
    if compiled:
        module.enable_input_require_grads()  # else the first layer, whose input needs none, is compiled by itself
    graphed.install()
    _active.append(graphed)
    end_retry_callback = out_of_memory.on_retry(forget)
    try:
        yield
    finally:
        _active.remove(graphed)
        end_retry_callback()
        if compiled:
            module.disable_input_require_grads()
        graphed.remove()


def forget():
    """Frees the memory of all captured graphs, when a step needs it; a shape that comes again is captured anew."""
    for graphed in _active:
        graphed.forget()


@functools.cache
def _capture_stream():
    """One stream for all captures of this process: cuBLAS keeps 65 MiB for each stream that it has worked on."""
    return torch.cuda.Stream()


@dataclass
class _SharedMemory:
    """What the graphs of all shapes use in turn: none of them needs it while another one runs."""

    pool: torch.cuda.MemPool
    stream: torch.cuda.Stream
    gradients: list[torch.Tensor]  # one buffer for each trained parameter


class _Arguments:
    """The arguments of a call as a flat list: tensors change from batch to batch, all else belongs to the shape."""

    def __init__(self, args, kwargs):
        self.leaves, self.structure = _pytree.tree_flatten((args, kwargs))

    def tensors(self):
        return [leaf for leaf in self.leaves if torch.is_tensor(leaf)]

    def shape(self):
        """A key that is equal for two calls if and only if the same captured graph serves both."""
        parts = [self.structure]
        for leaf in self.leaves:
            parts.append((leaf.shape, leaf.dtype) if torch.is_tensor(leaf) else leaf)
        return tuple(parts)

    def with_tensors(self, tensors):
        """(args, kwargs) of the same call with other tensors."""
        remaining = iter(tensors)
        leaves = [next(remaining) if torch.is_tensor(leaf) else leaf for leaf in self.leaves]
        return _pytree.tree_unflatten(leaves, self.structure)


class _GraphedModule:
    """A module whose `forward` replays captured graphs, from `install` until `remove`."""

    def __init__(self, module, compiled):
        self.module = module
        self.usual_forward = module.forward
        self.had_own_forward = "forward" in vars(module)  # set on the object, not by its class
        self.takes_use_cache = "use_cache" in inspect.signature(module.forward).parameters
        self.trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.compiled_calls = _compile_layers(module) if compiled else {}
        self.graphs = {}  # shape of a call: the _CapturedStep that serves it
        self.removed = False
        torch.cuda.empty_cache()  # or what follows is put into large free pieces, which then cannot be given back
        self.memory = _SharedMemory(
            pool=torch.cuda.MemPool(),
            stream=_capture_stream(),
            gradients=[torch.empty_like(parameter) for parameter in self.trained],
        )

    def install(self):
        @functools.wraps(self.usual_forward)  # Trainer reads its signature
        def forward(*args, **kwargs):
            return self.forward(*args, **kwargs)

        self.installed_forward = forward
        self.module.forward = forward

    def remove(self):
        self.removed = True  # accelerate may have wrapped `forward` meanwhile, and goes on calling it
        if vars(self.module).get("forward") is self.installed_forward:
            del self.module.forward
            if self.had_own_forward:
                self.module.forward = self.usual_forward
        self.installed_forward = None  # it refers to this object, and both would wait for the garbage collector
        self.graphs.clear()
        self.memory = None
        torch.cuda.empty_cache()

    def forget(self):
        self.graphs.clear()
        self.memory.pool = torch.cuda.MemPool()

    def forward(self, *args, **kwargs):
        if self.removed or not (self.module.training and torch.is_grad_enabled()):
            return self.usual_forward(*args, **kwargs)
        capture_kwargs = dict(kwargs)
        if self.takes_use_cache:
            capture_kwargs["use_cache"] = False
        arguments = _Arguments(args, capture_kwargs)
        tensors = arguments.tensors()
        if any(tensor.requires_grad for tensor in tensors):
            return self.usual_forward(*args, **kwargs)
        shape = arguments.shape()
        if shape not in self.graphs:
            if not self.may_capture():
                return self.usual_forward(*args, **kwargs)
            self.graphs[shape] = self.capture(arguments)
        return self.graphs[shape].replay(self.trained, tensors)

    def may_capture(self):
        checkpointing = getattr(self.module, "is_activation_checkpointing", False)  # Trainer turns it on late
        return len(self.graphs) < MAX_SHAPES and not checkpointing

    def capture(self, arguments):
        torch.cuda.empty_cache()  # the pool does not take what is free outside of it
        with _stand_ins(self.module, self.trained) as parameters, _compiled_layers(self.compiled_calls):
            return _CapturedStep(self.usual_forward, arguments, parameters, self.memory)


def _compile_layers(module):
    """{layer: its compiled call} for each layer of a model of transformers; the layers themselves stay as they are."""
    compiled_calls = {}
    for layer in module.modules():
        if isinstance(layer, GradientCheckpointingLayer):
            layer.compile(dynamic=True)
            compiled_calls[layer] = vars(layer).pop("_compiled_call_impl")
    return compiled_calls


@contextlib.contextmanager
def _compiled_layers(compiled_calls):
    """Inside the block these layers, {layer: its compiled call}, are compiled; outside they are the usual ones."""
    for layer, compiled_call in compiled_calls.items():
        layer._compiled_call_impl = compiled_call
    try:
        yield
    finally:
        for layer in compiled_calls:
            del layer._compiled_call_impl


@contextlib.contextmanager
def _stand_ins(module, trained):
    """Inside the block `module` has other parameters in place of the trained ones, with the same memory; yields them.

    Autograd remembers on which stream it first met a parameter, as long as any earlier loss is kept somewhere; and what
    another stream waits for cannot be captured. It has not met these.
    """
    stand_ins = {id(parameter): torch.nn.Parameter(parameter.detach()) for parameter in trained}
    places = []  # (dict of a submodule's parameters, name, the trained parameter that stands there)
    for submodule in module.modules():
        for name, parameter in submodule._parameters.items():
            if id(parameter) in stand_ins:
                places.append((submodule._parameters, name, parameter))
    for parameters, name, parameter in places:
        parameters[name] = stand_ins[id(parameter)]
    try:
        yield list(stand_ins.values())
    finally:
        for parameters, name, parameter in places:
            parameters[name] = parameter


class _CapturedStep:
    """The forward and the backward pass of `forward` for batches of one shape, as two CUDA graphs.

    forward: the usual forward method of a module.
    arguments: those of the first call of this shape.
    parameters: what learns, as the module has it while it is captured.
    memory: a _SharedMemory.
    Raises CourseError if the module returns something that is not a tensor.
    """

    def __init__(self, forward, arguments, parameters, memory):
        self.usual_forward = forward
        self.arguments = arguments
        self.inputs = [tensor.clone() for tensor in arguments.tensors()]  # where a replay looks for its batch
        self.gradients = memory.gradients
        self.forward_graph = torch.cuda.CUDAGraph()
        self.backward_graph = torch.cuda.CUDAGraph()
        precision = torch.get_autocast_dtype("cuda")
        with torch.autocast("cuda", precision, torch.is_autocast_enabled("cuda"), cache_enabled=False):
            self._warm_up(parameters, memory)
            self._capture(parameters, memory)
        del self.usual_forward, self.arguments  # a replay needs neither the module nor its first batch

    def _warm_up(self, parameters, memory):
        """Runs both passes once as usual, in the graphs' memory: libraries choose and load their kernels."""
        memory.stream.wait_stream(torch.cuda.current_stream())
        same_random_numbers = torch.random.fork_rng([torch.cuda.current_device()])
        masks_as_when_captured = mock.patch.object(import_utils, "is_cuda_stream_capturing", return_value=True)
        on_stream, in_pool = torch.cuda.stream(memory.stream), torch.cuda.use_mem_pool(memory.pool)
        with same_random_numbers, masks_as_when_captured, on_stream, in_pool:
            outputs, _ = self._run()
            differentiable = [output for output in outputs if output.requires_grad]
            del outputs
            self._write_gradients(differentiable, parameters, [torch.zeros_like(output) for output in differentiable])
            del differentiable
        torch.cuda.current_stream().wait_stream(memory.stream)

    def _capture(self, parameters, memory):
        with torch.cuda.graph(self.forward_graph, pool=memory.pool.id, stream=memory.stream):
            outputs, self.output_structure = self._run()
        differentiable = [output for output in outputs if output.requires_grad]
        self.output_gradients = [torch.empty_like(output) for output in differentiable]
        with torch.cuda.graph(self.backward_graph, pool=memory.pool.id, stream=memory.stream):
            self.has_gradient = self._write_gradients(differentiable, parameters, self.output_gradients)
        self.is_differentiable = [output.requires_grad for output in outputs]
        self.outputs = [output.detach() for output in outputs]

    def _run(self):
        """The forward pass on `self.inputs`: its output tensors, and how they lie in what the module returns."""
        args, kwargs = self.arguments.with_tensors(self.inputs)
        outputs, structure = _pytree.tree_flatten(self.usual_forward(*args, **kwargs))
        others = {type(output).__name__ for output in outputs if not torch.is_tensor(output)}
        if others:
            name = self.usual_forward.__qualname__
            raise CourseError(f"{name} returns {', '.join(others)}; train without CUDA graphs.")
        return outputs, structure

    def _write_gradients(self, outputs, parameters, output_gradients):
        """The backward pass, into the buffers that all shapes share; returns for each parameter whether it has one."""
        gradients = torch.autograd.grad(outputs, parameters, output_gradients, allow_unused=True)
        for buffer, gradient in zip(self.gradients, gradients, strict=True):
            if gradient is not None:
                buffer.copy_(gradient)
        return [gradient is not None for gradient in gradients]

    def replay(self, trained, tensors):
        """What the module returns for a batch of these tensors; its gradients reach the `trained` parameters."""
        for buffer, tensor in zip(self.inputs, tensors, strict=True):
            buffer.copy_(tensor)
        outputs = _Replay.apply(self, *trained)
        return _pytree.tree_unflatten(list(outputs), self.output_structure)


class _Replay(torch.autograd.Function):
    """One node of autograd's graph for all that a _CapturedStep does."""

    @staticmethod
    def forward(ctx, step, *parameters):
        ctx.step = step
        step.forward_graph.replay()
        outputs = tuple(output.clone() for output in step.outputs)  # the next replay overwrites its own
        pairs = zip(outputs, step.is_differentiable, strict=True)
        ctx.mark_non_differentiable(*(output for output, differentiable in pairs if not differentiable))
        return outputs

    @staticmethod
    def backward(ctx, *output_gradients):
        step = ctx.step
        pairs = zip(output_gradients, step.is_differentiable, strict=True)
        wanted = [gradient for gradient, differentiable in pairs if differentiable]
        for buffer, gradient in zip(step.output_gradients, wanted, strict=True):
            buffer.copy_(gradient)
        step.backward_graph.replay()
        gradients = []
        for gradient, has_gradient in zip(step.gradients, step.has_gradient, strict=True):
            gradients.append(gradient.clone() if has_gradient else None)
        return None, *gradients
