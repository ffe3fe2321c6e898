"""The forward pass of BERT (models/bert/modeling_bert.py)."""


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
