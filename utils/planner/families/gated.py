"""The forward pass of Decoders with rotary positions and a gated MLP: Gemma-2, Llama, Mistral, Qwen2."""

from utils.planner.families.head import _decoder_head
from utils.planner.tape import Tensor


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
