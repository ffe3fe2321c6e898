"""A training step on tensors that have a size but no numbers: counts the bytes alive at every moment.

Bytes live as long as Python remembers the `Buffer` that stands for them: a buffer adds its bytes when it is made, and
takes them away when it is deleted. So a forward pass written on these tensors frees memory exactly where the original
would, by forgetting a variable. This relies on reference counting, which deletes an object at once when the last
reference to it goes: the planner needs CPython. (An interpreter that collects garbage later would plan too much.)
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

BLOCK = 512  # CUDA's caching allocator rounds every tensor up to this many bytes
QUANTIZED_BLOCK = 64  # bitsandbytes keeps one scale for so many 4-bit weights
DOUBLE_QUANTIZED_BLOCK = 256  # with double quantization, one float32 scale for so many 8-bit scales


class Buffer:
    """Bytes that are alive as long as Python remembers this object.

    kind: the part of a plan that they belong to. nbytes: rounded up as CUDA's allocator does it.
    holders: how many tensors have this buffer as their gradient, an operation that reads it right now included.
    """

    __slots__ = ("holders", "kind", "nbytes", "tape")

    def __init__(self, tape, nbytes, kind):
        self.tape = tape
        self.kind = kind
        self.nbytes = round_up(int(nbytes), BLOCK)
        self.holders = 0
        tape.add(kind, self.nbytes)

    def __del__(self):
        self.tape.add(self.kind, -self.nbytes)


class Slot:
    """What autograd knows of a tensor after the forward pass has forgotten it: its size, and its gradient if any.

    count: elements. size: bytes of each. needs_grad: as torch's requires_grad. grad: a Buffer, or None.
    """

    __slots__ = ("count", "grad", "needs_grad", "size")

    def __init__(self, count, size):
        self.count = count
        self.size = size
        self.needs_grad = False
        self.grad = None

    @property
    def nbytes(self):
        """Bytes of a tensor of this size, not rounded up."""
        return self.count * self.size


class Tensor:
    """`count` elements of `size` bytes each.

    storage: the tensor whose memory this one is a view of; None for memory of its own.
    joined: for T5's position bias alone, the mask and bias in one that all layers share.
    """

    __slots__ = ("buffer", "count", "joined", "size", "slot")

    def __init__(self, tape, count, size, storage=None):
        self.count = count
        self.size = size
        self.joined = None
        self.slot = Slot(count, size)
        self.buffer = Buffer(tape, count * size, tape.kind) if storage is None else storage.buffer

    @property
    def needs_grad(self):
        """Whether the backward pass computes a gradient for it."""
        return self.slot.needs_grad


class Weight:
    """A parameter: `count` elements of `size` bytes, or 4-bit codes in one byte for two and their scales.

    trainable: whether it gets a gradient. quantized: None, "single" or "double" (NF4 without or with quantized
    scales). kind: the part of a plan that it belongs to, "weights" or "adapters".
    """

    def __init__(self, name, count, size, trainable, quantized=None, kind="weights"):
        self.name = name
        self.count = count
        self.size = size
        self.trainable = trainable
        self.quantized = quantized
        self.kind = kind
        self.grad = None
        self.embedding = False

    @property
    def nbytes(self):
        """Bytes as it is stored, the scales of 4-bit codes included."""
        if not self.quantized:
            return self.count * self.size
        codes = divide_up(self.count, 2)
        scales = divide_up(self.count, QUANTIZED_BLOCK)
        levels = 4 * 16  # the table of the 16 levels, in float32
        if self.quantized == "single":
            return codes + 4 * scales + levels
        scales_of_scales = 4 * divide_up(scales, DOUBLE_QUANTIZED_BLOCK)
        offset = 4
        levels_of_scales = 4 * 256
        return codes + scales + scales_of_scales + offset + levels_of_scales + levels


@dataclass(slots=True)
class Operation:
    """What the backward pass needs of one operation.

    inputs: slots of those inputs that need a gradient. result: the slot of the result. saved: buffers that live until
    the backward pass has used them. trained: weights that get a gradient. work: bytes of work space in the backward
    pass. passes: whether the gradient is handed on without a copy.
    """

    inputs: list
    result: Slot
    saved: list
    trained: list
    work: int
    passes: bool


@dataclass(slots=True)
class Block:
    """A layer that the backward pass runs again: its function, its inputs, its result's slot, buffers that a compiled
    layer has kept (`Tape.mark`), and the part of the plan that its tensors belong to."""

    layer: Callable
    inputs: tuple
    result: Slot
    marked: list
    kind: str


@dataclass(slots=True)
class Peak:
    """The fullest instant of a moment: bytes in total, and by part."""

    total: int
    parts: dict


class Tape:
    """Records operations in the forward pass, plays them backwards, and keeps the fullest instant of each moment.

    alive: bytes by part. total: their sum. peaks: {moment: Peak}. moment, kind: where new bytes are booked.
    recording: False as inside torch.no_grad(). checkpointing, compiled: what `block` does with a layer.
    autocast_copies: 16-bit copies of trainable weights, which autocast keeps until the forward pass ends.
    """

    def __init__(self):
        self.alive = Counter()
        self.total = 0
        self.peaks = {}
        self.moment = "forward pass"
        self.kind = "activations"
        self.recording = True
        self.checkpointing = False
        self.compiled = False
        self.autocast_copies = {}
        self.nodes = []  # Operations and Blocks, in the order of the forward pass
        self._saving = True  # False inside a block: the backward pass runs it again
        self._marked = None  # a list inside a compiled block

    def add(self, kind, nbytes):
        """Books `nbytes`, negative when they are freed."""
        self.alive[kind] += nbytes
        self.total += nbytes
        if nbytes <= 0:
            return
        peak = self.peaks.get(self.moment)
        if peak is None or self.total > peak.total:
            self.peaks[self.moment] = Peak(self.total, dict(self.alive))

    def spike(self, nbytes):
        """Work space that is free again after the operation."""
        Buffer(self, nbytes, "temporary")

    def op(
        self,
        inputs,
        count,
        size,
        saves=(),
        weights=(),
        work=0,
        back=0,
        passes=False,
        saves_result=False,
        view_of=None,
    ):
        """The result of an operation: a tensor of `count` elements of `size` bytes.

        saves: tensors that its backward keeps; saves_result: the result as well. weights: parameters that get a
        gradient from it. work, back: bytes of work space in its forward and backward pass. passes: its backward hands
        the gradient on without a copy. view_of: the tensor whose memory the result shares.
        """
        if work:
            self.spike(work)
        result = Tensor(self, count, size, view_of)
        if not self.recording:
            return result
        needing = [tensor.slot for tensor in inputs if tensor.slot.needs_grad]
        trained = [weight for weight in weights if weight.trainable]
        if not needing and not trained:
            return result
        result.slot.needs_grad = True
        saved = []
        if self._saving:
            saved = [tensor.buffer for tensor in saves]
            if saves_result:
                saved.append(result.buffer)
        self.nodes.append(Operation(needing, result.slot, saved, trained, back, passes))
        return result

    def mark(self, x):
        """Says that a compiled layer keeps `x` for its backward pass; what is not marked, it computes again there."""
        if self._marked is not None:
            self._marked.append(x.buffer)
        return x

    def block(self, layer, *inputs):
        """Runs one of a model's layers. Checkpointed, it keeps its inputs only, and the backward pass runs it again;
        compiled, it keeps what `mark` names as well."""
        runs_again = self.checkpointing or self.compiled
        if not runs_again or not self.recording:
            return layer(*inputs)
        outer_nodes = self.nodes
        self.nodes = []
        self._saving = False
        if self.compiled and not self.checkpointing:
            self._marked = []
        result = layer(*inputs)
        marked = self._marked or []
        self._marked = None
        self._saving = True
        self.nodes = outer_nodes
        if result.needs_grad:
            self.nodes.append(Block(layer, inputs, result.slot, marked, self.kind))
        return result

    def backward(self, result):
        """Plays the tape backwards from `result`, the loss; leaves the gradients of the weights."""
        self.moment = "backward pass"
        gradient = Buffer(self, result.count * result.size, "temporary")
        gradient.holders = 1
        result.slot.grad = gradient
        del gradient
        self._unwind()

    def _unwind(self):
        weight_gradient = None
        while self.nodes:
            node = self.nodes.pop()
            if node.result.grad is None:
                continue
            if isinstance(node, Block):
                self._run_again(node)
                continue
            if node.work:
                self.spike(node.work)
            for weight in node.trained:  # autograd's engine holds the last one until the next is there
                weight_gradient = self._weight_gradient(weight)
            self._hand_on(node)
        del weight_gradient

    def _run_again(self, block):
        """The backward pass of a block: its forward pass once more, then backwards through that."""
        outer_nodes = self.nodes
        self.nodes = []
        block.marked = []  # what was kept is part of what follows
        outer_kind = self.kind
        self.kind = block.kind
        result = block.layer(*block.inputs)
        self.kind = outer_kind
        self.autocast_copies.clear()
        result.slot.grad = block.result.grad
        block.result.grad = None
        del result
        self._unwind()
        self.nodes = outer_nodes

    def _weight_gradient(self, weight):
        """A new gradient of `weight`: its first one, or one that is added to that."""
        if weight.grad is not None:
            return Buffer(self, weight.count * weight.size, "temporary")
        weight.grad = Buffer(self, weight.count * weight.size, "gradients")
        return weight.grad

    def _hand_on(self, operation):
        """Gives the inputs of `operation` their gradients, and takes that of its result away."""
        gradient = operation.result.grad
        operation.result.grad = None  # from here on this call holds it
        for slot in operation.inputs:
            if operation.passes and slot.nbytes == operation.result.nbytes:
                self._accumulate(slot, gradient)
            else:
                self._accumulate(slot, Buffer(self, slot.nbytes, "temporary"))
        gradient.holders -= 1

    def _accumulate(self, slot, gradient):
        """Adds `gradient` to that of a tensor, if it has one. The sum is made in place if nobody else reads it."""
        if slot.grad is None:
            gradient.holders += 1
            slot.grad = gradient
        elif slot.grad.holders > 1:
            total = Buffer(self, slot.nbytes, "temporary")
            total.holders = 1
            slot.grad.holders -= 1
            slot.grad = total


def divide_up(a, b):
    """a / b, rounded up to a whole number."""
    return -(-a // b)


def round_up(a, unit):
    """`a`, rounded up to a whole number of `unit`s."""
    return divide_up(a, unit) * unit
