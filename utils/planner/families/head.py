"""What decoders have on top: scores of classes, or logits over the vocabulary."""


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
