"""The forward pass of BertForSequenceClassification (models/bert/modeling_bert.py)."""

from functools import partial

from utils.planner.layers import AttentionShape


def bert(net, batch, length, target_length):
    """The loss of a classifier for `batch` rows of `length` tokens; `target_length` is for other families."""
    return Bert(net, batch, length).loss()


class Bert:
    """One forward pass."""

    def __init__(self, net, batch, length):
        self.net = net
        self.config = net.config
        self.width = net.config["hidden_size"]
        self.dropout = net.config["hidden_dropout_prob"]
        self.batch = batch
        self.length = length
        self.mask = None

    def loss(self):
        """Embeddings, layers, pooler, classifier."""
        net = self.net
        x = self.embeddings()
        net.stream_size = x.size
        self.mask = net.mask(self.batch, self.length, self.length, causal=False)
        for number in range(self.config["num_hidden_layers"]):
            x = net.tape.block(partial(self.layer, number=number), x)
        net.tape.kind = "logits and loss"
        x = net.first_token(x, self.batch * self.width)
        pooled = net.activation(net.linear(x, "bert.pooler.dense", self.width, self.width), "tanh")
        pooled = net.dropout(pooled, self.dropout)
        return net.loss(net.linear(pooled, "classifier", self.width, net.settings.num_labels))

    def embeddings(self):
        """The sum of three embeddings, normalized."""
        net = self.net
        config = self.config
        tokens = self.batch * self.length
        x = net.embedding("bert.embeddings.word_embeddings", config["vocab_size"], self.width, tokens)
        types = net.embedding("bert.embeddings.token_type_embeddings", config["type_vocab_size"], self.width, tokens)
        x = net.add(x, types)
        del types
        positions = net.embedding(
            "bert.embeddings.position_embeddings", config["max_position_embeddings"], self.width, self.length
        )
        x = net.add(x, positions)
        del positions
        return net.dropout(net.layer_norm(x, "bert.embeddings.LayerNorm", self.width), self.dropout)

    def layer(self, x, number):
        """Layer `number`."""
        net = self.net
        config = self.config
        name = f"bert.encoder.layer.{number}"
        attended = self.attention(x, f"{name}.attention")
        h = net.linear(attended, f"{name}.intermediate.dense", self.width, config["intermediate_size"])
        h = net.activation(h, config["hidden_act"])
        h = net.dropout(net.linear(h, f"{name}.output.dense", config["intermediate_size"], self.width), self.dropout)
        return net.layer_norm(net.add(h, attended), f"{name}.output.LayerNorm", self.width)

    def attention(self, x, name):
        """Self-attention, the sum with its input, and the norm of that."""
        net = self.net
        q = net.linear(x, f"{name}.self.query", self.width, self.width)
        k = net.linear(x, f"{name}.self.key", self.width, self.width)
        v = net.linear(x, f"{name}.self.value", self.width, self.width)
        shape = AttentionShape(self.batch, self.config["num_attention_heads"], self.length, self.length)
        a = net.attention(q, k, v, shape, self.config["attention_probs_dropout_prob"], mask=self.mask)
        del q, k, v
        a = net.dropout(net.linear(a, f"{name}.output.dense", self.width, self.width), self.dropout)
        return net.layer_norm(net.add(a, x), f"{name}.output.LayerNorm", self.width)
