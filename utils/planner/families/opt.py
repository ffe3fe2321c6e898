"""The forward pass of OPTForCausalLM and OPTForSequenceClassification (models/opt/modeling_opt.py)."""

from functools import partial

from utils.planner.families.head import decoder_head
from utils.planner.layers import AttentionShape


def opt(net, batch, length, target_length):
    """The loss for `batch` rows of `length` tokens; while generating, logits. `target_length` is for other families."""
    return Opt(net, batch, length).result()


class Opt:
    """One forward pass."""

    def __init__(self, net, batch, length):
        config = net.config
        self.net = net
        self.config = config
        self.width = config["hidden_size"]
        self.embedding_width = config.get("word_embed_proj_dim") or self.width  # OPT-350m's is narrower
        self.dropout = config["dropout"]
        self.norm_before = config.get("do_layer_norm_before", True)  # False in OPT-350m
        self.bias = config.get("enable_bias", True)
        self.batch = batch
        self.length = length
        self.keys = net.past + length
        self.mask = None

    def result(self):
        """Embeddings, layers, head."""
        net = self.net
        x = self.embeddings()
        net.stream_size = x.size
        self.mask = net.mask(self.batch, self.length, self.keys, causal=True)
        for number in range(self.config["num_hidden_layers"]):
            x = net.tape.block(partial(self.layer, number=number), x)
        net.tape.kind = "logits and loss"
        if self.norm_before:
            x = net.layer_norm(x, "model.decoder.final_layer_norm", self.width)
        if self.embedding_width != self.width:
            x = net.linear(x, "model.decoder.project_out", self.width, self.embedding_width, bias=False)
        table = "model.decoder.embed_tokens.weight"
        tokens = self.batch * self.length
        return decoder_head(net, x, table, self.embedding_width, tokens, self.batch, tied=True)

    def embeddings(self):
        """The sum of words and positions."""
        net = self.net
        config = self.config
        tokens = self.batch * self.length
        x = net.embedding("model.decoder.embed_tokens", config["vocab_size"], self.embedding_width, tokens)
        rows = config["max_position_embeddings"] + 2
        positions = net.embedding("model.decoder.embed_positions", rows, self.width, tokens)
        if self.embedding_width != self.width:
            x = net.linear(x, "model.decoder.project_in", self.embedding_width, self.width, bias=False)
        return net.add(x, positions)

    def layer(self, x, number):
        """Layer `number`: attention, then two linear layers, each added to its input."""
        name = f"model.decoder.layers.{number}"
        return self.feed_forward(self.attention(x, name), name)

    def attention(self, x, name):
        """Self-attention with its norm, added to its input."""
        net = self.net
        width = self.width
        residual = x
        if self.norm_before:
            x = net.layer_norm(x, f"{name}.self_attn_layer_norm", width)
        q = net.linear(x, f"{name}.self_attn.q_proj", width, width, self.bias)
        q = net.elementwise(q)  # times head size ** -0.5
        k = net.linear(x, f"{name}.self_attn.k_proj", width, width, self.bias)
        v = net.linear(x, f"{name}.self_attn.v_proj", width, width, self.bias)
        k, v = net.remember(name, k, v, self.batch * width)
        shape = AttentionShape(self.batch, self.config["num_attention_heads"], self.length, self.keys)
        dropout = self.config["attention_dropout"]
        x = net.attention(q, k, v, shape, dropout, mask=self.mask, softmax_in_float32=True)
        del q, k, v
        output = net.dropout(net.linear(x, f"{name}.self_attn.out_proj", width, width, self.bias), self.dropout)
        x = net.add(residual, output)
        del output
        if self.norm_before:
            return x
        return net.layer_norm(x, f"{name}.self_attn_layer_norm", width)

    def feed_forward(self, x, name):
        """Two linear layers with their norm, added to their input."""
        net = self.net
        config = self.config
        residual = x
        if self.norm_before:
            x = net.layer_norm(x, f"{name}.final_layer_norm", self.width)
        h = net.linear(x, f"{name}.fc1", self.width, config["ffn_dim"], self.bias)
        h = net.activation(h, config["activation_function"])
        del x
        output = net.dropout(net.linear(h, f"{name}.fc2", config["ffn_dim"], self.width, self.bias), self.dropout)
        x = net.add(residual, output)
        del output, h
        if self.norm_before:
            return x
        return net.layer_norm(x, f"{name}.final_layer_norm", self.width)
