"""The forward passes of the model families that the planner knows, written on tensors without numbers (utils.tape).

Each follows its file in transformers (models/*/modeling_*.py), line by line where a line allocates; linear layers
follow peft (tuners/lora) and bitsandbytes (autograd/_functions.py); types under autocast follow torch's list for CUDA.
"""

import re

from utils.tape import Tensor, Weight

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


def bert(net, batch, length, target):
    """BertForSequenceClassification (models/bert/modeling_bert.py)."""
    c = net.config
    d, tokens, p = c["hidden_size"], batch * length, c["hidden_dropout_prob"]
    e = "bert.embeddings."
    x = net.embedding(e + "word_embeddings", c["vocab_size"], d, tokens)
    x = net.add(x, net.embedding(e + "token_type_embeddings", c["type_vocab_size"], d, tokens))
    x = net.add(x, net.embedding(e + "position_embeddings", c["max_position_embeddings"], d, length))
    x = net.dropout(net.layer_norm(x, e + "LayerNorm", d), p)
    net.stream = x.size
    mask = net.mask(batch, length, length, causal=False)

    def layer(x, i):
        n = f"bert.encoder.layer.{i}."
        q, k, v = (net.linear(x, f"{n}attention.self.{name}", d, d) for name in ("query", "key", "value"))
        a = net.attention(
            q, k, v, batch, c["num_attention_heads"], length, length, c["attention_probs_dropout_prob"], mask=mask
        )
        del q, k, v
        a = net.dropout(net.linear(a, n + "attention.output.dense", d, d), p)
        a = net.layer_norm(net.add(a, x), n + "attention.output.LayerNorm", d)
        h = net.activation(net.linear(a, n + "intermediate.dense", d, c["intermediate_size"]), c["hidden_act"])
        h = net.dropout(net.linear(h, n + "output.dense", c["intermediate_size"], d), p)
        return net.layer_norm(net.add(h, a), n + "output.LayerNorm", d)

    for i in range(c["num_hidden_layers"]):
        x = net.tape.block(lambda x, i=i: layer(x, i), x)
    net.tape.kind = "logits and loss"
    whole = x.buffer
    x = net.tape.op([x], batch * d, x.size)  # the vector of the first token, a view: it keeps the whole alive
    x.buffer = whole
    x = net.dropout(net.activation(net.linear(x, "bert.pooler.dense", d, d), "tanh"), p)
    return net.loss(net.linear(x, "classifier", d, c["num_labels"]))


def t5(net, batch, length, target):
    """T5ForConditionalGeneration (models/t5/modeling_t5.py)."""
    c = net.config
    d, inner, heads, p = c["d_model"], c["num_heads"] * c["d_kv"], c["num_heads"], c["dropout_rate"]
    gated = c.get("feed_forward_proj", "relu").startswith("gated-")
    kind = c.get("feed_forward_proj", "relu").removeprefix("gated-")

    def attend(x, states, name, queries, keys, bias, mask):
        given, cross = x, states is not None
        x = net.rms_norm(x, name.rsplit(".", 1)[0] + ".layer_norm", d, wide=False)
        states = x if states is None else states
        q = net.linear(x, name + ".q", d, inner, bias=False)
        if cross and name in (net.cache or ()):
            k, v = net.cache[name][:2]
        else:
            k, v = (net.linear(states, f"{name}.{part}", d, inner, bias=False) for part in "kv")
            k, v = net.remember(name, k, v, None if cross else batch * inner)
        a = net.attention(q, k, v, batch, heads, queries, keys, p, bias=bias, mask=mask)
        del q, k, v, x, states
        a = net.linear(a, name + ".o", inner, d, bias=False)
        return net.add(given, net.dropout(a, p))

    def feed(x, name):
        given, n = x, name + ".DenseReluDense."
        x = net.rms_norm(x, name + ".layer_norm", d, wide=False)
        if gated:
            h = net.activation(net.linear(x, n + "wi_0", d, c["d_ff"], bias=False), kind)
            h = net.multiply(h, net.linear(x, n + "wi_1", d, c["d_ff"], bias=False))
        else:
            h = net.activation(net.linear(x, n + "wi", d, c["d_ff"], bias=False), kind)
        del x
        h = net.dropout(h, p)
        wo = net.weight(n + "wo.weight", c["d_ff"] * d, linear=True)
        h = h if wo.quantized else net.cast(h, wo.size)
        return net.add(given, net.dropout(net.linear(h, n + "wo", c["d_ff"], d, bias=False), p))

    def stack(name, layers, queries, states=None):
        x = net.dropout(net.embedding("shared", c["vocab_size"], d, batch * queries), p)
        net.stream = x.size
        keys = net.past + queries
        mask = net.mask(batch, queries, keys, causal=states is not None)
        buckets = net.weight(
            f"{name}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            c.get("relative_attention_num_buckets", 32) * heads,
        )
        bias = net.tape.op([], heads * queries * keys, buckets.size, weights=[buckets], work=24 * queries * keys)
        cache, cross_bias, cross_mask = [], None, None
        if states is not None:
            cross_mask = net.mask(batch, queries, length, causal=False)
            cross_bias = Tensor(net.tape, heads * queries * length, net.half or net.stream)
            cross_bias.slot.needs_grad = net.tape.checkpointing

        def block(x, states, i):
            n = f"{name}.block.{i}.layer."
            x = attend(x, None, n + "0.SelfAttention", queries, keys, bias, mask)
            if states is not None:
                x = attend(x, states, n + "1.EncDecAttention", queries, length, cross_bias, cross_mask)
            return feed(x, n + ("1" if states is None else "2"))

        for i in range(layers):
            given = (x,) if states is None else (x, states)
            if states is not None and not net.training and net.cache is None:  # an evaluation pass keeps them, too
                cache.append(Tensor(net.tape, 2 * batch * (queries + length) * inner, net.half or net.stream))
            x = net.tape.block(lambda x, states=None, i=i: block(x, states, i), *given)
        return net.dropout(net.rms_norm(x, f"{name}.final_layer_norm", d, wide=False), p)

    states = net.states or stack("encoder", c["num_layers"], length)
    if not target:
        return states
    x = stack("decoder", c.get("num_decoder_layers") or c["num_layers"], target, states)
    net.tape.kind = "logits and loss"
    if c.get("tie_word_embeddings", True):
        x = net.same(x)  # times d ** -0.5
        shared = net.weights["shared.weight"]
        saved = net.setup["lora"] and "lm_head" in net.setup["lora"]["modules_to_save"]
        if saved:  # PEFT trains a copy of the tied matrix
            copy = Weight("lm_head (copy)", shared.count, shared.size, True, None, "adapters")
            shared = net.weights.setdefault(copy.name, copy)
        logits = net.plain(x, "lm_head", d, c["vocab_size"], bias=False, kept=shared)
    else:
        logits = net.linear(x, "lm_head", d, c["vocab_size"], bias=False)
    return net.loss(logits) if net.cache is None else logits


def opt(net, batch, length, target):
    """OPTForCausalLM and OPTForSequenceClassification (models/opt/modeling_opt.py)."""
    c = net.config
    d, f, tokens, p, n = c["hidden_size"], c["ffn_dim"], batch * length, c["dropout"], "model.decoder."
    inner = c.get("word_embed_proj_dim") or d
    x = net.embedding(n + "embed_tokens", c["vocab_size"], inner, tokens)
    positions = net.embedding(n + "embed_positions", c["max_position_embeddings"] + 2, d, tokens)
    if inner != d:
        x = net.linear(x, n + "project_in", inner, d, bias=False)
    x = net.add(x, positions)
    del positions
    net.stream = x.size
    keys = net.past + length
    mask = net.mask(batch, length, keys, causal=True)
    before, affine = c.get("do_layer_norm_before", True), c.get("enable_bias", True)

    def layer(x, i):
        m, residual = f"{n}layers.{i}.", x
        x = net.layer_norm(x, m + "self_attn_layer_norm", d) if before else x
        q = net.same(net.linear(x, m + "self_attn.q_proj", d, d, affine))  # times head size ** -0.5
        k, v = (net.linear(x, f"{m}self_attn.{name}_proj", d, d, affine) for name in "kv")
        k, v = net.remember(i, k, v, batch * d)
        x = net.attention(
            q, k, v, batch, c["num_attention_heads"], length, keys, c["attention_dropout"], mask=mask, wide=True
        )
        del q, k, v
        x = net.add(residual, net.dropout(net.linear(x, m + "self_attn.out_proj", d, d, affine), p))
        x = x if before else net.layer_norm(x, m + "self_attn_layer_norm", d)
        residual = x
        x = net.layer_norm(x, m + "final_layer_norm", d) if before else x
        x = net.activation(net.linear(x, m + "fc1", d, f, affine), c["activation_function"])
        x = net.add(residual, net.dropout(net.linear(x, m + "fc2", f, d, affine), p))
        return x if before else net.layer_norm(x, m + "final_layer_norm", d)

    for i in range(c["num_hidden_layers"]):
        x = net.tape.block(lambda x, i=i: layer(x, i), x)
    net.tape.kind = "logits and loss"
    x = net.layer_norm(x, n + "final_layer_norm", d) if before else x
    x = x if inner == d else net.linear(x, n + "project_out", d, inner, bias=False)
    return _decoder_head(net, x, n + "embed_tokens.weight", inner, tokens, batch)


def gated(net, batch, length, target):
    """Decoders with rotary positions and a gated MLP: Gemma-2, Llama, Mistral, Qwen2 (models/*/modeling_*.py)."""
    c, kind = net.config, net.config["model_type"]
    d, f, tokens = c["hidden_size"], c["intermediate_size"], batch * length
    heads, groups = c["num_attention_heads"], c.get("num_key_value_heads") or c["num_attention_heads"]
    size = c.get("head_dim") or d // heads
    gemma = kind == "gemma2"
    x = net.embedding("model.embed_tokens", c["vocab_size"], d, tokens)
    x = net.same(x) if gemma else x  # times sqrt(d)
    net.stream = x.size
    mask = net.mask(batch, length, net.past + length, causal=True)
    cos, sin = (Tensor(net.tape, length * size, x.size) for _ in range(2))
    act = c.get("hidden_activation") or c.get("hidden_act", "silu")
    bias = c.get("attention_bias", kind == "qwen2")

    window = c.get("sliding_window") if c.get("use_sliding_window", True) else None
    kinds = c.get("layer_types") or ["sliding_attention", "full_attention"][: 1 + gemma]

    def rotate(t):
        if net.setup["liger"]:
            return net.tape.op([t], t.count, t.size)
        a = net.multiply(t, cos)
        b = net.multiply(net.same(t, work=t.count * t.size // 2), sin)
        return net.add(a, b)

    def layer(x, i):
        n, residual = f"model.layers.{i}.", x
        x = net.rms_norm(x, n + "input_layernorm", d, wide=gemma)
        a = n + "self_attn."
        q = net.linear(x, a + "q_proj", d, heads * size, bias)
        k, v = (net.linear(x, f"{a}{name}_proj", d, groups * size, bias) for name in "kv")
        q, k = rotate(q), rotate(k)
        k, v = net.remember(i, k, v, batch * groups * size, window if "sliding" in kinds[i % len(kinds)] else None)
        keys = k.count // (batch * groups * size)
        wide = net.setup["attention"] == "eager" or (net.setup["attention"] == "sdpa" and mask)
        if groups != heads and wide:  # repeat_kv
            k, v = (net.tape.mark(net.tape.op([t], t.count * heads // groups, t.size)) for t in (k, v))
        cap = c.get("attn_logit_softcapping")
        x = net.attention(q, k, v, batch, heads, length, keys, mask=mask, softcap=cap, wide=True)
        del q, k, v
        x = net.linear(x, a + "o_proj", heads * size, d, c.get("attention_bias", False))
        x = net.rms_norm(x, n + "post_attention_layernorm", d, wide=True) if gemma else x
        residual = x = net.tape.mark(net.add(residual, x))
        x = net.rms_norm(x, n + ("pre_feedforward_layernorm" if gemma else "post_attention_layernorm"), d, wide=gemma)
        h = net.linear(x, n + "mlp.gate_proj", d, f, bias=False)
        h = h if net.setup["liger"] else net.activation(h, act)
        up = net.linear(x, n + "mlp.up_proj", d, f, bias=False)
        h = net.tape.op([h, up], h.count, h.size, [h, up]) if net.setup["liger"] else net.multiply(h, up)
        del up
        x = net.linear(h, n + "mlp.down_proj", f, d, bias=False)
        del h
        x = net.rms_norm(x, n + "post_feedforward_layernorm", d, wide=True) if gemma else x
        return net.add(residual, x)

    for i in range(c["num_hidden_layers"]):
        x = net.tape.block(lambda x, i=i: layer(x, i), x)
    net.tape.kind = "logits and loss"
    x = net.rms_norm(x, "model.norm", d, wide=gemma)
    return _decoder_head(net, x, "model.embed_tokens.weight", d, tokens, batch)


def _decoder_head(net, x, embedding, width, tokens, batch):
    """Scores of every position for the classes, of which one position a row counts; or logits over the vocabulary."""
    c = net.config
    if net.setup["num_labels"]:
        scores = net.linear(x, "score", width, net.setup["num_labels"], bias=False)
        return net.loss(net.tape.op([scores], batch * net.setup["num_labels"], scores.size))
    if net.cache is not None:  # generation asks for the last position only, a view: it keeps the whole alive
        whole, x = x.buffer, net.tape.op([x], batch * width, x.size)
        x.buffer = whole
    if net.setup["fused_head"] and net.cache is None:
        return net.fused_head(x, width, tokens, c["vocab_size"])
    kept = net.weights[embedding] if c.get("tie_word_embeddings", c["model_type"] in ("opt", "gemma2")) else None
    logits = net.plain(x, "lm_head", width, c["vocab_size"], bias=False, kept=kept)
    del x
    if c.get("final_logit_softcapping"):
        logits = net.same(net.activation(net.same(logits), "tanh"))
    return net.loss(logits, shifted=True) if net.cache is None else logits


FAMILIES = {"bert": bert, "t5": t5, "opt": opt, "gemma2": gated, "llama": gated, "mistral": gated, "qwen2": gated}
