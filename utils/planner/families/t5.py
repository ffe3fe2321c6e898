"""The forward pass of T5 (models/t5/modeling_t5.py)."""

from utils.planner.tape import Tensor, Weight


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
