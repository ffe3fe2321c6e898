"""What decoders have on top: scores of classes, or logits over the vocabulary."""


def decoder_head(net, x, embedding, width, tokens, batch, tied):
    """The loss of a decoder; while generating, the logits of the last position.

    x: what the last layer found, `tokens` vectors of `width`. embedding: the name of the table of word embeddings.
    tied: whether logits use that table, where the configuration does not say.
    A classifier scores every position, of which one a row counts.
    """
    config = net.config
    settings = net.settings
    if settings.num_labels:
        scores = net.linear(x, "score", width, settings.num_labels, bias=False)
        return net.loss(net.tape.op([scores], batch * settings.num_labels, scores.size))
    generates = net.key_values is not None
    if generates:  # it asks for the last position only
        x = net.first_token(x, batch * width)
    elif settings.fused_head:
        return net.fused_head(x, width, tokens, config["vocab_size"])
    table = net.weights[embedding] if config.get("tie_word_embeddings", tied) else None
    logits = net.plain_linear(x, "lm_head", width, config["vocab_size"], bias=False, weight=table)
    del x
    if config.get("final_logit_softcapping"):
        logits = net.elementwise(net.activation(net.elementwise(logits), "tanh"))
    if generates:
        return logits
    return net.loss(logits, shifted=True)
