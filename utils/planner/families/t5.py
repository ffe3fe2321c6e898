"""The forward pass of T5ForConditionalGeneration (models/t5/modeling_t5.py)."""

from functools import partial

from utils.planner.layers import AttentionShape
from utils.planner.tape import Tensor, Weight


def t5(net, batch, length, target_length):
    """The loss for `batch` rows of `length` tokens in and `target_length` out; while generating, logits.

    A target_length of 0 runs the encoder alone, and returns what it found.
    """
    model = T5(net, batch, length, target_length)
    states = net.encoder_states or Encoder(model).result()
    if not target_length:
        return states
    return model.head(Decoder(model, states).result())


class T5:
    """Sizes of one forward pass, and the layers that encoder and decoder share."""

    def __init__(self, net, batch, length, target_length):
        config = net.config
        self.net = net
        self.config = config
        self.width = config["d_model"]
        self.heads = config["num_heads"]
        self.inner = config["num_heads"] * config["d_kv"]
        self.dropout = config["dropout_rate"]
        feed_forward = config.get("feed_forward_proj", "relu")
        self.gated = feed_forward.startswith("gated-")
        self.activation = feed_forward.removeprefix("gated-")
        self.batch = batch
        self.length = length
        self.target_length = target_length

    def embedding(self, positions):
        """Embeddings of `positions` tokens a row, with dropout."""
        net = self.net
        x = net.embedding("shared", self.config["vocab_size"], self.width, self.batch * positions)
        return net.dropout(x, self.dropout)

    def position_bias(self, stack, queries, keys):
        """The bias of all layers of a stack: a value for each head and pair of positions, looked up by distance."""
        net = self.net
        buckets = net.weight(
            f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight",
            self.config.get("relative_attention_num_buckets", 32) * self.heads,
        )
        work = 24 * queries * keys
        return net.tape.op([], self.heads * queries * keys, buckets.size, weights=[buckets], work=work)

    def self_attention(self, x, name, bias, mask, queries, keys):
        """Attention of `x` to itself, with norm and dropout, added to `x`."""
        net = self.net
        residual = x
        x = self.norm_before(x, name)
        q = net.linear(x, f"{name}.q", self.width, self.inner, bias=False)
        k = net.linear(x, f"{name}.k", self.width, self.inner, bias=False)
        v = net.linear(x, f"{name}.v", self.width, self.inner, bias=False)
        k, v = net.remember(name, k, v, self.batch * self.inner)
        shape = AttentionShape(self.batch, self.heads, queries, keys)
        a = net.attention(q, k, v, shape, self.dropout, bias=bias, mask=mask)
        del q, k, v, x
        a = net.linear(a, f"{name}.o", self.inner, self.width, bias=False)
        return net.add(residual, net.dropout(a, self.dropout))

    def cross_attention(self, x, states, name, bias, mask, queries):
        """Attention of `x` to the encoder's `states`, with norm and dropout, added to `x`."""
        net = self.net
        residual = x
        x = self.norm_before(x, name)
        q = net.linear(x, f"{name}.q", self.width, self.inner, bias=False)
        if net.key_values and name in net.key_values:
            kept = net.key_values[name]
            k, v = kept.keys, kept.values
        else:
            k = net.linear(states, f"{name}.k", self.width, self.inner, bias=False)
            v = net.linear(states, f"{name}.v", self.width, self.inner, bias=False)
            k, v = net.remember(name, k, v)
        shape = AttentionShape(self.batch, self.heads, queries, self.length)
        a = net.attention(q, k, v, shape, self.dropout, bias=bias, mask=mask)
        del q, k, v, x
        a = net.linear(a, f"{name}.o", self.inner, self.width, bias=False)
        return net.add(residual, net.dropout(a, self.dropout))

    def norm_before(self, x, name):
        """The norm that precedes the attention or MLP `name`, in the same sublayer."""
        sublayer = name.rsplit(".", 1)[0]
        return self.net.rms_norm(x, f"{sublayer}.layer_norm", self.width, "t5")

    def feed_forward(self, x, name):
        """The linear layers `name`, with norm and dropout, added to `x`."""
        net = self.net
        inner = self.config["d_ff"]
        residual = x
        x = self.norm_before(x, name)
        h = net.linear(x, f"{name}.wi_0" if self.gated else f"{name}.wi", self.width, inner, bias=False)
        h = net.activation(h, self.activation)
        if self.gated:
            h = net.multiply(h, net.linear(x, f"{name}.wi_1", self.width, inner, bias=False))
        del x
        h = net.dropout(h, self.dropout)
        wo = net.weight(f"{name}.wo.weight", inner * self.width, linear=True)
        if not wo.quantized:
            h = net.cast(h, wo.size)
        output = net.dropout(net.linear(h, f"{name}.wo", inner, self.width, bias=False), self.dropout)
        return net.add(residual, output)

    def final_norm(self, x, stack):
        """The norm after the last layer of a stack, with dropout."""
        return self.net.dropout(self.net.rms_norm(x, f"{stack}.final_layer_norm", self.width, "t5"), self.dropout)

    def head(self, x):
        """The loss of what the decoder found; while generating, its logits."""
        net = self.net
        net.tape.kind = "logits and loss"
        vocabulary = self.config["vocab_size"]
        if self.config.get("tie_word_embeddings", True):
            x = net.elementwise(x)  # times d ** -0.5
            table = self.tied_table()
            logits = net.plain_linear(x, "lm_head", self.width, vocabulary, bias=False, weight=table)
        else:
            logits = net.linear(x, "lm_head", self.width, vocabulary, bias=False)
        return net.loss(logits) if net.key_values is None else logits

    def tied_table(self):
        """The table of embeddings, or the copy of it that PEFT trains."""
        net = self.net
        shared = net.weights["shared.weight"]
        lora = net.settings.lora
        if not lora or "lm_head" not in lora.modules_to_save:
            return shared
        name = "lm_head (copy)"
        if name not in net.weights:
            net.weights[name] = Weight(name, shared.count, shared.size, True, None, "adapters")
        return net.weights[name]


class Encoder:
    """The encoder's part of one forward pass."""

    def __init__(self, model):
        self.model = model
        self.bias = None
        self.mask = None

    def result(self):
        """What the encoder found: a vector for each token."""
        model = self.model
        net = model.net
        x = model.embedding(model.length)
        net.stream_size = x.size
        keys = net.past + model.length
        self.mask = net.mask(model.batch, model.length, keys, causal=False)
        self.bias = model.position_bias("encoder", model.length, keys)
        for number in range(model.config["num_layers"]):
            x = net.tape.block(partial(self.layer, number=number), x)
        return model.final_norm(x, "encoder")

    def layer(self, x, number):
        """Layer `number`."""
        model = self.model
        name = f"encoder.block.{number}.layer"
        x = model.self_attention(x, f"{name}.0.SelfAttention", self.bias, self.mask, model.length, model.length)
        return model.feed_forward(x, f"{name}.1.DenseReluDense")


class Decoder:
    """The decoder's part of one forward pass. states: what the encoder found."""

    def __init__(self, model, states):
        self.model = model
        self.states = states
        self.keys = model.net.past + model.target_length
        self.bias = None
        self.mask = None
        self.cross_bias = None
        self.cross_mask = None

    def result(self):
        """What the decoder found: a vector for each token of the answer."""
        model = self.model
        net = model.net
        queries = model.target_length
        x = model.embedding(queries)
        net.stream_size = x.size
        self.mask = net.mask(model.batch, queries, self.keys, causal=True)
        self.bias = model.position_bias("decoder", queries, self.keys)
        self.cross_mask = net.mask(model.batch, queries, model.length, causal=False)
        size = net.autocast_size or net.stream_size
        self.cross_bias = Tensor(net.tape, model.heads * queries * model.length, size)
        self.cross_bias.slot.needs_grad = net.tape.checkpointing
        unused_cache = []
        for number in range(model.config.get("num_decoder_layers") or model.config["num_layers"]):
            if not net.training and net.key_values is None:  # an evaluation pass keeps keys and values, too
                unused_cache.append(Tensor(net.tape, 2 * model.batch * (queries + model.length) * model.inner, size))
            x = net.tape.block(partial(self.layer, number=number), x, self.states)
        return model.final_norm(x, "decoder")

    def layer(self, x, states, number):
        """Layer `number`."""
        model = self.model
        queries = model.target_length
        name = f"decoder.block.{number}.layer"
        x = model.self_attention(x, f"{name}.0.SelfAttention", self.bias, self.mask, queries, self.keys)
        x = model.cross_attention(x, states, f"{name}.1.EncDecAttention", self.cross_bias, self.cross_mask, queries)
        return model.feed_forward(x, f"{name}.2.DenseReluDense")
