"""The layers of which the forward passes in `families` are made, on tensors without numbers."""

import re

from utils.planner.tape import Tensor, Weight

HEADS = ("classifier", "score", "lm_head", "qa_outputs")  # what a task puts on top of a base model


class Net:
    """The layers of one model in one set-up, and the weights that they have asked for so far."""

    def __init__(self, config, setup):
        self.config, self.setup, self.weights, self.tape, self.training = config, setup, {}, None, True
        self.half = 2 if setup["autocast"] else None
        self.cache = self.states = None  # while generating: keys and values by layer; what the encoder found
        self.past, self.held, self.writing = 0, None, False  # positions in the cache; see attention()

    # ---- parameters ----

    def weight(self, name, count, linear=False):
        """The weight `name`, made at its first use, in the type in which it will really be stored."""
        if name not in self.weights:
            s, head = self.setup, name.removesuffix(".weight").removesuffix(".bias").split(".")[-1]
            quantization, lora, parts = s["quantization"], s["lora"], set(name.split("."))
            skipped, kept_wide = parts & (quantization or {"skip": set()})["skip"], parts & s["keep_in_fp32"]
            quantized = quantization["kind"] if linear and quantization and not skipped | kept_wide else None
            wide = (s["prepare"] and not quantized) or (kept_wide and s["dtype_name"] != "bfloat16")
            size = 4 if wide else s["dtype"]
            trained = not lora and not quantization
            saved = bool(lora) and head in lora["modules_to_save"]
            self.weights[name] = Weight(name, count, size, trained, quantized)
            if saved:  # PEFT trains a copy
                self.weights[name + " (copy)"] = Weight(name, count, size, True, None, "adapters")
        return self.weights.get(name + " (copy)", self.weights[name])

    def targeted(self, name):
        """Whether the set-up puts LoRA on the linear layer `name`, by peft's rules."""
        lora = self.setup["lora"]
        if not lora or name.split(".")[-1] in lora["modules_to_save"]:
            return False
        targets, layers = lora["target_modules"], lora["layers_to_transform"]
        number = next((int(part) for part in name.split(".") if part.isdigit()), None)
        if layers is not None and number not in ([layers] if isinstance(layers, int) else layers):
            return False
        if targets == "all-linear":
            return name.split(".")[-1] not in HEADS
        if isinstance(targets, str):
            return re.fullmatch(targets, name) is not None
        return any(name == target or name.endswith("." + target) for target in targets)

    # ---- operations ----

    def cast(self, x, size):
        return x if x.size == size else self.tape.op([x], x.count, size)

    def same(self, x, saves=(), work=0):
        """An element-wise operation on one tensor."""
        return self.tape.op([x], x.count, x.size, saves, work=work)

    def add(self, a, b):
        big = a if a.count >= b.count else b
        return self.tape.op([a, b], big.count, max(a.size, b.size), passes=True)

    def multiply(self, a, b):
        """a * b, where b has as many elements or is spread over a."""
        saves = ([b] if a.needs_grad else []) + ([a] if b.needs_grad else [])
        return self.tape.op([a, b], a.count, max(a.size, b.size), saves)

    def dropout(self, x, p):
        if not (self.training and p):
            return x
        mask = Tensor(self.tape, x.count, 1) if self.tape.recording else None
        return self.tape.op([x], x.count, x.size, [mask] if mask and x.needs_grad else [])

    def embedding(self, name, rows, width, tokens):
        weight = self.weight(f"{name}.weight", rows * width)
        weight.embedding = True
        result = self.tape.op([], tokens * width, weight.size, weights=[weight])
        if self.tape.checkpointing and self.tape.recording:  # transformers' enable_input_require_grads
            result.slot.needs_grad = True
        return result

    def plain(self, x, name, n_in, n_out, bias=True, kept=None):
        """torch.nn.functional.linear, under autocast if that is on."""
        weight = kept or self.weight(f"{name}.weight", n_in * n_out, linear=True)
        biases = [self.weight(f"{name}.bias", n_out)] if bias else []
        x = self.cast(x, self.half) if self.half and x.size == 4 else x
        used, back = [], 0
        if self.half and weight.size == 4:
            used = [self.tape.cache.get(weight.name) or Tensor(self.tape, weight.count, 2)]
            if weight.trainable:  # autocast keeps its copies of trainable weights until the forward pass ends
                self.tape.cache[weight.name] = used[0]
                back = weight.count * 2
        saves = ([x] if weight.trainable else []) + (used if x.needs_grad else [])
        size = self.half or weight.size
        return self.tape.op([x], x.count // n_in * n_out, size, saves, [weight, *biases], back=back)

    def quantized(self, x, name, n_in, n_out, bias, weight):
        """bitsandbytes' Linear4bit: computes in its own type, keeps no input, unpacks the weight twice."""
        if bias:  # the first forward pass puts it into the type of computation
            self.weight(f"{name}.bias", n_out).size = self.setup["quantization"]["compute"]
        given, unpacked = x.size, n_in * n_out * 2
        x = self.cast(x, self.setup["quantization"]["compute"])
        y = self.tape.op([x], x.count // n_in * n_out, x.size, work=unpacked, back=unpacked)
        return self.cast(y, given)

    def linear(self, x, name, n_in, n_out, bias=True):
        weight = self.weight(f"{name}.weight", n_in * n_out, linear=True)
        if weight.quantized:
            y = self.quantized(x, name, n_in, n_out, bias, weight)
        else:
            y = self.plain(x, name, n_in, n_out, bias)
        if not self.targeted(name):
            return self.tape.mark(y)
        rank, size = self.setup["lora"]["r"], y.size
        if weight.quantized:
            y = self.same(y)  # peft clones the result
        if (not weight.quantized or not self.half) and self.setup["cast_inputs"]:
            x = self.cast(x, 4)
        x = self.dropout(x, self.setup["lora"]["dropout"])
        for part, (a, b) in {"lora_A": (n_in, rank), "lora_B": (rank, n_out)}.items():
            full = f"{name}.{part}.weight"
            kept = self.weights.setdefault(full, Weight(full, a * b, 4, True, None, "adapters"))
            x = self.plain(x, full, a, b, bias=False, kept=kept)
            if part == "lora_A":
                self.tape.mark(x)
        x = self.same(x)  # times alpha / r
        if weight.quantized and not self.half:
            x = self.cast(x, size)
        return self.tape.mark(self.cast(self.add(y, x), size))

    def layer_norm(self, x, name, width):
        parts = [self.weight(f"{name}.{part}", width) for part in ("weight", "bias")]
        x = self.cast(x, 4) if self.half else x
        stats = Tensor(self.tape, 2 * x.count // width, 4)
        saves = [x, stats] if x.needs_grad or parts[0].trainable else []
        return self.tape.op([x], x.count, x.size, saves, parts)

    def rms_norm(self, x, name, width, wide):
        """Root mean square norm. wide: multiply with the weight in float32 (Gemma), else in x's type (Llama, T5)."""
        weight, given = self.weight(f"{name}.weight", width), x.size
        if self.setup["liger"]:  # one kernel: it keeps its input and a number a row
            return self.tape.op([x], x.count, given, [x, Tensor(self.tape, x.count // width, 4)], [weight])
        xf = self.cast(x, 4)
        r = self.tape.op([xf], x.count // width, 4, [xf], work=4 * x.count, back=4 * x.count)  # pow, mean, rsqrt
        y = self.multiply(x if not wide and given == 2 and self.config["model_type"] == "t5" else xf, r)
        del xf, x
        y = y if wide else self.cast(y, weight.size if self.config["model_type"] == "t5" else given)
        saves = [y] if weight.trainable else []
        y = self.tape.op([y], y.count, max(y.size, 4 if wide else weight.size), saves, [weight], back=4 * y.count)
        return self.cast(y, given) if wide else y

    def activation(self, x, kind):
        """gelu, silu and their kin keep their input, relu and tanh their output."""
        if kind in ("relu", "tanh"):
            return self.tape.op([x], x.count, x.size, saves_result=True)
        return self.same(x, saves=[x])

    def softmax(self, x):
        size = 4 if self.half else x.size
        return self.tape.op([self.cast(x, size)], x.count, size, saves_result=True)

    def matmul(self, a, b, count):
        a, b = (self.cast(t, 2) if self.half and t.size == 4 else t for t in (a, b))
        saves = ([b] if a.needs_grad else []) + ([a] if b.needs_grad else [])
        return self.tape.op([a, b], count, max(a.size, b.size), saves)

    def attention(
        self, q, k, v, batch, heads, length, keys, dropout=0.0, bias=None, mask=None, softcap=None, wide=False
    ):
        """Softmax attention of `heads` heads over queries of `length` and `keys` positions, by the chosen kernel.

        eager keeps the scores of all pairs of positions; sdpa and flex_attention keep q, k, v, the result and a sum.
        """
        scores, self.held = batch * heads * length * keys, None
        if self.setup["attention"] == "eager":
            w = self.same(self.tape.mark(self.matmul(q, k, scores)))  # q k / sqrt(d)
            if softcap:
                w = self.same(self.activation(self.same(w), "tanh"))
            w = self.add(w, bias) if bias else w
            w = self.add(w, mask) if mask else w
            w = self.cast(self.softmax(self.cast(w, 4)), q.size) if wide else self.softmax(w)
            w = self.tape.mark(self.dropout(w, dropout if self.training else 0))
            result = self.tape.mark(self.matmul(w, v, q.count))
            self.held = w if self.writing else None  # without autograd, the layer's own frame keeps them to its end
            del w
            return self.same(result)  # transpose, contiguous
        q, k, v = (self.cast(t, 2) if self.half and t.size == 4 else t for t in (q, k, v))
        saves, inputs = [], [q, k, v]
        if bias:
            both = bias.joined
            if not both:
                both = self.tape.op([bias], scores if mask else bias.count, bias.size)  # torch.where(mask, bias, ...)
                both = self.cast(both, 2) if self.half and both.size == 4 else both
            if self.setup["attention"] == "sdpa_shared_bias":
                bias.joined = both  # for the next layers
            saves, inputs = [both], [q, k, v, both]
        elif mask and self.setup["attention"] == "sdpa":  # a boolean mask becomes one of numbers
            saves = [Tensor(self.tape, mask.count, q.size)]
        lse = Tensor(self.tape, batch * heads * length, 4)
        saves += [q, k, v, lse]
        self.tape.mark(lse)
        return self.tape.mark(self.tape.op(inputs, q.count, q.size, saves, back=q.count * 4, saves_result=True))

    def cross_entropy(self, logits):
        x = self.cast(logits, 4) if self.half else logits
        return self.tape.op([self.tape.op([x], x.count, x.size, saves_result=True)], 1, 4)

    def remember(self, name, k, v, each=None, window=None):
        """Keys and values of the positions so far, joined as DynamicCache does it; of a sliding window, the last ones.

        each: elements of one position, or None if there will be no more positions, as on the encoder's side.
        """
        if self.cache is None:
            return k, v
        kept = self.cache.setdefault(name, [None, None, each, window])
        for i, new in enumerate((k, v)):
            old = kept[i].count if kept[i] else 0
            kept[i] = Tensor(self.tape, min(old, each * (window - 1) if window else old) + new.count, new.size)
        return kept[:2]  # the old ones lived until these were full

    def mask(self, batch, length, keys, causal):
        """The mask as transformers makes it: booleans for sdpa, numbers for eager, none if nothing is hidden."""
        eager = self.setup["attention"] == "eager"
        if not self.setup["padded"] and not (eager and causal):
            return None
        return Tensor(self.tape, batch * length * keys, self.stream if eager else 1)

    def loss(self, logits, shifted=False):
        """The loss of transformers, and accelerate's float32 copy of the logits beside it."""
        with_float = self.cast(logits, 4) if shifted else logits
        result = self.cross_entropy(with_float)
        del with_float
        self.cast(logits, 4) if self.half else None
        return result

    def fused_head(self, x, width, tokens, vocabulary):
        """TRL's loss of next tokens (ChunkedLogProbFunction): never all logits, but tiles of 4,096 by 4,096, which its
        backward computes again; it collects the gradient of x in float32."""
        tile = min(tokens, 4096) * min(vocabulary, 4096) * (self.half or x.size)
        sums = Tensor(self.tape, 4 * tokens, 4)
        return self.tape.op([x], tokens, 4, [x, sums], work=tile, back=tile + 4 * tokens * width)
