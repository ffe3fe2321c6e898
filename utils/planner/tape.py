"""A training step on tensors that have a size but no numbers: counts the bytes alive at every moment."""

import sys
from collections import Counter

BLOCK = 512  # CUDA's caching allocator rounds every tensor up to this many bytes


class Buffer:
    """Bytes that are alive as long as Python remembers this object."""

    __slots__ = ("kind", "nbytes", "tape")

    def __init__(self, tape, nbytes, kind):
        self.tape, self.kind, self.nbytes = tape, kind, -(-int(nbytes) // BLOCK) * BLOCK
        tape.add(kind, self.nbytes)

    def __del__(self):
        self.tape.add(self.kind, -self.nbytes)


class Slot:
    """What autograd knows of a tensor after the forward pass has forgotten it: its size, and its gradient if any."""

    __slots__ = ("count", "grad", "needs_grad", "size")

    def __init__(self, count, size):
        self.count, self.size, self.needs_grad, self.grad = count, size, False, None


class Tensor:
    """`count` elements of `size` bytes each."""

    __slots__ = ("buffer", "count", "joined", "size", "slot")

    def __init__(self, tape, count, size):
        self.count, self.size, self.joined = count, size, None
        self.slot, self.buffer = Slot(count, size), Buffer(tape, count * size, tape.kind)

    @property
    def needs_grad(self):
        return self.slot.needs_grad


class Weight:
    """A parameter: `count` elements of `size` bytes, or 4-bit codes in one byte for two and their scales."""

    def __init__(self, name, count, size, trainable, quantized=None, kind="weights"):
        self.name, self.count, self.size, self.kind = name, count, size, kind
        self.trainable, self.quantized, self.grad, self.embedding = trainable, quantized, None, False

    @property
    def nbytes(self):
        if not self.quantized:
            return self.count * self.size
        blocks = -(-self.count // 64)  # one scale for 64 weights
        scales = blocks + 4 * -(-blocks // 256) + 4 + 4 * 256 if self.quantized == "double" else 4 * blocks
        return -(-self.count // 2) + scales + 4 * 16  # the table of the 16 levels


class Tape:
    """Records operations in the forward pass, plays them backwards, and keeps the fullest instant of each moment."""

    def __init__(self):
        self.alive, self.total, self.peaks = Counter(), 0, {}
        self.moment, self.kind = "forward pass", "activations"
        self.recording, self.keeping, self.checkpointing, self.nodes, self.cache = True, True, False, [], {}
        self.compiled, self.marked = False, None

    def add(self, kind, nbytes):
        self.alive[kind] += nbytes
        self.total += nbytes
        if nbytes > 0 and self.total > self.peaks.get(self.moment, (-1,))[0]:
            self.peaks[self.moment] = self.total, dict(self.alive)

    def spike(self, nbytes):
        """Work space that is free again after the operation."""
        Buffer(self, nbytes, "temporary")

    def op(self, inputs, count, size, saves=(), weights=(), work=0, back=0, passes=False, saves_result=False):
        """The result of an operation: a tensor of `count` elements of `size` bytes.

        saves: tensors that its backward keeps; saves_result: the result as well. weights: parameters that get a
        gradient from it. work, back: bytes of work space in its forward and backward pass. passes: its backward hands
        the gradient on without a copy.
        """
        if work:
            self.spike(work)
        result = Tensor(self, count, size)
        if not self.recording:
            return result
        needing = [tensor.slot for tensor in inputs if tensor.slot.needs_grad]
        trained = [weight for weight in weights if weight.trainable]
        if needing or trained:
            result.slot.needs_grad = True
            saves = [*saves, result] if saves_result else saves
            kept = [tensor.buffer for tensor in saves] if self.keeping else []
            self.nodes.append((needing, result.slot, kept, trained, back, passes))
        return result

    def mark(self, x):
        """Says that a compiled layer keeps `x` for its backward pass; what is not marked, it computes again there."""
        if self.marked is not None:
            self.marked.append(x.buffer)
        return x

    def block(self, layer, *inputs):
        """Runs one of a model's layers. Checkpointed, it keeps its inputs only, and the backward pass runs it again;
        compiled, it keeps what `mark` names as well."""
        if not (self.checkpointing or self.compiled) or not self.recording:
            return layer(*inputs)
        outer, self.nodes, self.keeping = self.nodes, [], False
        self.marked = [] if self.compiled and not self.checkpointing else None
        result = layer(*inputs)
        self.nodes, self.keeping, marked, self.marked = outer, True, self.marked, None
        if result.needs_grad:
            self.nodes.append((layer, result.slot, inputs, marked or (), 0, False))
        return result

    def backward(self, result):
        """Plays the tape backwards from `result`, the loss; leaves the gradients of the weights."""
        self.moment = "backward pass"
        result.slot.grad = Buffer(self, result.count * result.size, "temporary")
        self._unwind()

    def _unwind(self):
        while self.nodes:
            inputs, slot, kept, trained, back, passes = self.nodes.pop()
            gradient, slot.grad = slot.grad, None
            if gradient is None:
                continue
            if callable(inputs):  # a block
                outer, self.nodes, trained = self.nodes, [], None  # what was marked is part of what follows
                again = inputs(*kept)
                self.cache.clear()
                again.slot.grad, gradient = gradient, None
                del again
                self._unwind()
                self.nodes = outer
                continue
            if back:
                self.spike(back)
            for weight in trained:
                new = Buffer(self, weight.count * weight.size, "temporary" if weight.grad else "gradients")
                weight.grad = weight.grad or new
            for target in inputs:
                self._give(
                    target, gradient if passes and target.count * target.size == slot.count * slot.size else None
                )
            del gradient, kept

    def _give(self, slot, shared):
        """Adds a gradient to a tensor: `shared`, or a new one. A sum is made in place if nobody else reads it."""
        new = shared or Buffer(self, slot.count * slot.size, "temporary")
        if slot.grad is not None and sys.getrefcount(slot.grad) > 2:
            new = Buffer(self, slot.count * slot.size, "temporary")
            slot.grad = None
        slot.grad = slot.grad or new
