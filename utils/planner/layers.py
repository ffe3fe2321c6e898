"""The layers of which the forward passes in `families` are made, on tensors without numbers.

Shapes are counted, not stored: a tensor of 8 rows, 128 tokens and width 768 has 8 * 128 * 768 elements. `width`,
`n_in` and `n_out` are sizes of the last dimension, `keys` the positions that attention looks at.
"""

import re
from dataclasses import dataclass

from utils.planner.tape import Tensor, Weight

HEADS = ("classifier", "score", "lm_head", "qa_outputs")  # what a task puts on top of a base model


@dataclass(slots=True)
class KeyValues:
    """Keys and values of one attention layer while a model writes.

    keys, values: Tensors. position_size: elements of one position, or None if there will be no more positions.
    window: how many positions a sliding window sees, or None.
    """

    keys: Tensor
    values: Tensor
    position_size: int | None
    window: int | None


class Net:
    """The layers of one model in one set-up, and the weights that they have asked for so far.

    config: the model's configuration, a dict. settings: a PlanSettings, completed. tape: the Tape of this pass.
    training: as torch's. autocast_size: bytes of autocast's type, or None without autocast. stream_size: bytes of an
    element between the layers. While generating, writing is True, past the positions in the cache, key_values {layer:
    KeyValues}, and encoder_states what a decoder reads of its encoder.
    """

    def __init__(self, config, settings):
        self.config = config
        self.settings = settings
        self.weights = {}
        self.tape = None
        self.training = True
        self.autocast_size = settings.autocast_size
        self.stream_size = None
        self.writing = False
        self.past = 0
        self.key_values = None
        self.encoder_states = None
        self.held_scores = None  # see _eager_attention

    # ---- parameters ----

    def weight(self, name, count, linear=False):
        """The weight `name`, made at its first use, in the type in which it will really be stored.

        linear: whether it belongs to a linear layer, the only kind that is quantized.
        """
        if name not in self.weights:
            self._make_weight(name, count, linear)
        return self.weights.get(f"{name} (copy)", self.weights[name])

    def _make_weight(self, name, count, linear):
        settings = self.settings
        parts = set(name.split("."))
        in_float32 = bool(parts & set(settings.keep_in_fp32))
        quantized = None
        if settings.quantization and linear and not in_float32 and not parts & settings.quantization.skip:
            quantized = settings.quantization.scales
        size = settings.dtype_size
        if settings.prepare and not quantized:
            size = 4
        if in_float32 and settings.dtype != "bfloat16":
            size = 4
        trainable = not settings.lora and not settings.quantization
        self.weights[name] = Weight(name, count, size, trainable, quantized)
        if settings.lora and parts & set(settings.lora.modules_to_save):  # PEFT trains a copy
            copy = f"{name} (copy)"
            self.weights[copy] = Weight(name, count, size, True, None, "adapters")

    def targeted(self, name):
        """Whether the set-up puts LoRA on the linear layer `name`, by peft's rules."""
        lora = self.settings.lora
        if not lora or not lora.transforms_layer(_layer_number(name)):
            return False
        parts = set(name.split("."))
        if parts & set(lora.modules_to_save):
            return False
        targets = lora.target_modules
        if targets == "all-linear":
            return not parts & set(HEADS)
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith(f".{target}") for target in targets)

    # ---- operations ----

    def cast(self, x, size):
        """`x` in a type of `size` bytes; `x` itself if it has that already."""
        if x.size == size:
            return x
        return self.tape.op([x], x.count, size)

    def cast_to_autocast(self, x):
        """What autocast does with an input of a matrix product: 16 bits instead of 32."""
        if self.autocast_size and x.size == 4:
            return self.cast(x, self.autocast_size)
        return x

    def elementwise(self, x, saves=(), work=0):
        """An element-wise operation on one tensor."""
        return self.tape.op([x], x.count, x.size, saves, work=work)

    def add(self, a, b):
        """a + b, where the smaller one is spread over the larger one."""
        larger = a if a.count >= b.count else b
        return self.tape.op([a, b], larger.count, max(a.size, b.size), passes=True)

    def multiply(self, a, b):
        """a * b, where b has as many elements or is spread over a."""
        return self.tape.op([a, b], a.count, max(a.size, b.size), _factors_to_save(a, b))

    def dropout(self, x, p):
        """Dropout with probability `p`; keeps a mask of one byte an element, as on a GPU."""
        if not self.training or not p:
            return x
        if not self.tape.recording:
            return self.elementwise(x)
        mask = Tensor(self.tape, x.count, 1)
        return self.elementwise(x, saves=[mask] if x.needs_grad else [])

    def embedding(self, name, rows, width, tokens):
        """`tokens` rows of the table `name`, which has `rows` rows of `width`."""
        weight = self.weight(f"{name}.weight", rows * width)
        weight.embedding = True
        result = self.tape.op([], tokens * width, weight.size, weights=[weight])
        if self.tape.checkpointing and self.tape.recording:  # transformers' enable_input_require_grads
            result.slot.needs_grad = True
        return result

    def first_token(self, x, count):
        """`count` elements of `x`, those of one token a row: a view, which keeps the whole alive."""
        whole = x.buffer
        x = self.tape.op([x], count, x.size)
        x.buffer = whole
        return x

    def linear(self, x, name, n_in, n_out, bias=True):
        """The linear layer `name`, quantized and with LoRA where the set-up has it so."""
        weight = self.weight(f"{name}.weight", n_in * n_out, linear=True)
        if weight.quantized:
            y = self._quantized_linear(x, name, n_in, n_out, bias)
        else:
            y = self.plain_linear(x, name, n_in, n_out, bias)
        if not self.targeted(name):
            return self.tape.mark(y)
        size = y.size
        if weight.quantized:
            y = self.elementwise(y)  # peft clones the result
        x = self._lora_branch(x, name, n_in, n_out, weight.quantized)
        if weight.quantized and not self.autocast_size:
            x = self.cast(x, size)
        return self.tape.mark(self.cast(self.add(y, x), size))

    def plain_linear(self, x, name, n_in, n_out, bias=True, weight=None):
        """torch.nn.functional.linear, under autocast if that is on. weight: another one than `name`'s own."""
        weight = weight or self.weight(f"{name}.weight", n_in * n_out, linear=True)
        weights = [weight]
        if bias:
            weights.append(self.weight(f"{name}.bias", n_out))
        x = self.cast_to_autocast(x)
        saves = [x] if weight.trainable else []
        back = 0
        if self.autocast_size and weight.size == 4:
            copy = self.tape.autocast_copies.get(weight.name) or Tensor(self.tape, weight.count, 2)
            if weight.trainable:  # autocast keeps its copies of trainable weights until the forward pass ends
                self.tape.autocast_copies[weight.name] = copy
                back = weight.count * 2
            if x.needs_grad:
                saves.append(copy)
        size = self.autocast_size or weight.size
        return self.tape.op([x], x.count // n_in * n_out, size, saves, weights, back=back)

    def _quantized_linear(self, x, name, n_in, n_out, bias):
        """bitsandbytes' Linear4bit: computes in its own type, keeps no input, unpacks the weight twice."""
        compute_size = self.settings.quantization.compute_size
        if bias:  # the first forward pass puts it into the type of computation
            self.weight(f"{name}.bias", n_out).size = compute_size
        input_size = x.size
        unpacked = n_in * n_out * 2
        x = self.cast(x, compute_size)
        y = self.tape.op([x], x.count // n_in * n_out, x.size, work=unpacked, back=unpacked)
        return self.cast(y, input_size)

    def _lora_branch(self, x, name, n_in, n_out, quantized):
        """lora_B(lora_A(dropout(x))) * scaling, as peft computes it."""
        lora = self.settings.lora
        if self.settings.cast_inputs and (not quantized or not self.autocast_size):
            x = self.cast(x, 4)
        x = self.dropout(x, lora.dropout)
        x = self._lora_matrix(x, f"{name}.lora_A", n_in, lora.rank)
        self.tape.mark(x)
        x = self._lora_matrix(x, f"{name}.lora_B", lora.rank, n_out)
        return self.elementwise(x)  # times alpha / r

    def _lora_matrix(self, x, name, n_in, n_out):
        weight_name = f"{name}.weight"
        if weight_name not in self.weights:
            self.weights[weight_name] = Weight(weight_name, n_in * n_out, 4, True, None, "adapters")
        return self.plain_linear(x, name, n_in, n_out, bias=False, weight=self.weights[weight_name])

    def layer_norm(self, x, name, width, bias=True):
        """torch's layer norm; in float32 under autocast."""
        weights = [self.weight(f"{name}.weight", width)]
        if bias:
            weights.append(self.weight(f"{name}.bias", width))
        if self.autocast_size:
            x = self.cast(x, 4)
        statistics = Tensor(self.tape, 2 * x.count // width, 4)
        saves = [x, statistics] if x.needs_grad or weights[0].trainable else []
        return self.tape.op([x], x.count, x.size, saves, weights)

    def rms_norm(self, x, name, width, style):
        """Root mean square norm over the last dimension, of `width`.

        style: "gemma" multiplies with the weight in float32, "llama" in x's type, "t5" in the weight's type.
        """
        weight = self.weight(f"{name}.weight", width)
        input_size = x.size
        if self.settings.liger:  # one kernel: it keeps its input and a number a row
            return self.tape.op([x], x.count, input_size, [x, Tensor(self.tape, x.count // width, 4)], [weight])
        x32 = self.cast(x, 4)
        # pow, mean, rsqrt
        scale = self.tape.op([x32], x32.count // width, 4, [x32], work=4 * x32.count, back=4 * x32.count)
        in_16_bits = style == "t5" and input_size == 2
        y = self.multiply(x if in_16_bits else x32, scale)
        del x32, x
        if style == "gemma":
            size = 4
        else:
            y = self.cast(y, weight.size if style == "t5" else input_size)
            size = max(y.size, weight.size)
        saves = [y] if weight.trainable else []
        y = self.tape.op([y], y.count, size, saves, [weight], back=4 * y.count)
        return self.cast(y, input_size) if style == "gemma" else y

    def activation(self, x, kind):
        """gelu, silu and their kin keep their input, relu and tanh their output."""
        if kind in ("relu", "tanh"):
            return self.tape.op([x], x.count, x.size, saves_result=True)
        return self.elementwise(x, saves=[x])

    def softmax(self, x):
        """torch's softmax; in float32 under autocast."""
        size = 4 if self.autocast_size else x.size
        return self.tape.op([self.cast(x, size)], x.count, size, saves_result=True)

    def matmul(self, a, b, count):
        """A matrix product with `count` elements, under autocast if that is on."""
        a = self.cast_to_autocast(a)
        b = self.cast_to_autocast(b)
        return self.tape.op([a, b], count, max(a.size, b.size), _factors_to_save(a, b))

    # ---- attention ----

    def attention(self, q, k, v, shape, dropout=0.0, bias=None, mask=None, softcap=None, softmax_in_float32=False):
        """Softmax attention by the kernel of the set-up.

        q, k, v: queries, keys and values. shape: an AttentionShape. bias: T5's position bias. mask: as `mask` makes it.
        softcap: Gemma-2's cap of the scores. softmax_in_float32: whether eager attention asks for that.
        """
        self.held_scores = None
        if self.settings.attention == "eager":
            return self._eager_attention(q, k, v, shape, dropout, bias, mask, softcap, softmax_in_float32)
        return self._fused_attention(q, k, v, shape, bias, mask)

    def _eager_attention(self, q, k, v, shape, dropout, bias, mask, softcap, softmax_in_float32):
        """Attention in single operations: keeps the scores of all pairs of positions."""
        w = self.elementwise(self.tape.mark(self.matmul(q, k, shape.scores)))  # q k / sqrt(d)
        if softcap:
            w = self.elementwise(self.activation(self.elementwise(w), "tanh"))
        if bias:
            w = self.add(w, bias)
        if mask:
            w = self.add(w, mask)
        if softmax_in_float32:
            w = self.cast(self.softmax(self.cast(w, 4)), q.size)
        else:
            w = self.softmax(w)
        w = self.tape.mark(self.dropout(w, dropout))
        result = self.tape.mark(self.matmul(w, v, q.count))
        if self.writing:  # without autograd, the layer's own frame keeps them to its end
            self.held_scores = w
        del w
        return self.elementwise(result)  # transpose, contiguous

    def _fused_attention(self, q, k, v, shape, bias, mask):
        """sdpa, flex_attention, flash: keeps q, k, v, the result and one sum a query (log-sum-exp)."""
        q = self.cast_to_autocast(q)
        k = self.cast_to_autocast(k)
        v = self.cast_to_autocast(v)
        inputs = [q, k, v]
        saves = []
        if bias:
            added = self._bias_with_mask(bias, mask, shape)
            inputs.append(added)
            saves.append(added)
        elif mask and self.settings.attention == "sdpa":  # a boolean mask becomes one of numbers
            saves.append(Tensor(self.tape, mask.count, q.size))
        log_sum = Tensor(self.tape, shape.queries, 4)
        saves += [q, k, v, log_sum]
        self.tape.mark(log_sum)
        return self.tape.mark(self.tape.op(inputs, q.count, q.size, saves, back=q.count * 4, saves_result=True))

    def _bias_with_mask(self, bias, mask, shape):
        """torch.where(mask, bias, ...): one tensor a layer, or one for all layers (utils/speed/t5_bias.py)."""
        if bias.joined:
            return bias.joined
        both = self.tape.op([bias], shape.scores if mask else bias.count, bias.size)
        both = self.cast_to_autocast(both)
        if self.settings.attention == "sdpa_shared_bias":
            bias.joined = both  # for the next layers
        return both

    def remember(self, name, k, v, position_size=None, window=None):
        """Keys and values of the positions so far, joined as DynamicCache does it; of a sliding window, the last ones.

        position_size: elements of one position, or None if there will be no more, as on the encoder's side.
        Returns `k` and `v` as they are when nothing is generated.
        """
        if self.key_values is None:
            return k, v
        if name not in self.key_values:
            self.key_values[name] = KeyValues(None, None, position_size, window)
        kept = self.key_values[name]
        kept.keys = self._join(kept.keys, k, position_size, window)
        kept.values = self._join(kept.values, v, position_size, window)
        return kept.keys, kept.values  # the old ones lived until these were full

    def _join(self, old, new, position_size, window):
        count = old.count if old else 0
        if window:
            count = min(count, position_size * (window - 1))
        return Tensor(self.tape, count + new.count, new.size)

    def mask(self, batch, length, keys, causal, window=None):
        """The mask as transformers makes it: booleans for sdpa, numbers for eager, none if nothing is hidden.

        batch, length, keys: rows, queries and positions. window: of sliding attention, where it has its own mask.
        """
        eager = self.settings.attention == "eager"
        hides_far_keys = bool(window) and keys >= window
        if not self.settings.padded and not (eager and causal) and not hides_far_keys:
            return None
        return Tensor(self.tape, batch * length * keys, self.stream_size if eager else 1)

    # ---- losses ----

    def cross_entropy(self, logits):
        """torch's cross entropy: keeps the logarithms of all probabilities."""
        x = self.cast(logits, 4) if self.autocast_size else logits
        return self.tape.op([self.tape.op([x], x.count, x.size, saves_result=True)], 1, 4)

    def loss(self, logits, shifted=False):
        """The loss of transformers, and accelerate's float32 copy of the logits beside it.

        shifted: whether it is that of next tokens, which transformers computes in float32.
        """
        used = self.cast(logits, 4) if shifted else logits
        result = self.cross_entropy(used)
        del used
        if self.autocast_size:
            self.cast(logits, 4)
        return result

    def fused_head(self, x, width, tokens, vocabulary):
        """TRL's loss of next tokens (ChunkedLogProbFunction): never all logits, but tiles of 4,096 by 4,096, which its
        backward computes again; it collects the gradient of x in float32."""
        tile = min(tokens, 4096) * min(vocabulary, 4096) * (self.autocast_size or x.size)
        sums = Tensor(self.tape, 4 * tokens, 4)
        return self.tape.op([x], tokens, 4, [x, sums], work=tile, back=tile + 4 * tokens * width)


@dataclass(frozen=True, slots=True)
class AttentionShape:
    """Sizes of one attention layer: rows, heads, positions that ask, and positions that are looked at."""

    batch: int
    heads: int
    length: int
    keys: int

    @property
    def queries(self):
        """How many queries there are."""
        return self.batch * self.heads * self.length

    @property
    def scores(self):
        """How many pairs of a query and a key there are."""
        return self.queries * self.keys


def _factors_to_save(a, b):
    """What the backward pass of a product keeps: each factor, if the other one needs a gradient."""
    saves = []
    if a.needs_grad:
        saves.append(b)
    if b.needs_grad:
        saves.append(a)
    return saves


def _layer_number(name):
    """The first number in a module's name: of which of the model's layers it is; None for none."""
    for part in name.split("."):
        if part.isdigit():
            return int(part)
    return None
