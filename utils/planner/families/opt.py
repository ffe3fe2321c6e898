"""The forward pass of OPT (models/opt/modeling_opt.py)."""

from utils.planner.families.head import _decoder_head


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
