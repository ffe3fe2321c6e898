"""The forward pass of ModernBertForSequenceClassification (models/modernbert/modeling_modernbert.py)."""

from functools import partial

from utils.planner.layers import AttentionShape
from utils.planner.tape import Tensor

SLIDING = "sliding_attention"


def modernbert(net, batch, length, target_length):
    """The loss of a classifier for `batch` rows of `length` tokens; `target_length` is for other families."""
    return ModernBert(net, batch, length).loss()


class ModernBert:
    """One forward pass."""

    def __init__(self, net, batch, length):
        config = net.config
        self.net = net
        self.config = config
        self.width = config["hidden_size"]
        self.inner = config["intermediate_size"]
        self.norm_bias = config["norm_bias"]
        self.batch = batch
        self.length = length
        self.masks = {}
        self.positions = {}

    def loss(self):
        """Embeddings, layers, pooling, prediction head, classifier."""
        net = self.net
        config = self.config
        x = net.embedding("model.embeddings.tok_embeddings", config["vocab_size"], self.width, self.batch * self.length)
        x = net.layer_norm(x, "model.embeddings.norm", self.width, self.norm_bias)
        x = net.dropout(x, config["embedding_dropout"])
        net.stream_size = x.size
        self.make_masks_and_positions()
        for number in range(config["num_hidden_layers"]):
            x = net.tape.block(partial(self.layer, number=number), x)
        net.tape.kind = "logits and loss"
        x = net.layer_norm(x, "model.final_norm", self.width, self.norm_bias)
        return net.loss(self.classifier(self.pool(x)))

    def make_masks_and_positions(self):
        """A mask, cosines and sines for each kind of layer."""
        net = self.net
        for kind in sorted(set(self.config["layer_types"])):
            window = self.config["local_attention"] // 2 if kind == SLIDING else None
            self.masks[kind] = net.mask(self.batch, self.length, self.length, causal=False, window=window)
            count = self.length * self.width // self.config["num_attention_heads"]
            size = net.stream_size
            self.positions[kind] = Tensor(net.tape, count, size), Tensor(net.tape, count, size)

    def layer(self, x, number):
        """Layer `number`: attention, then MLP, each with a norm before and added to its input."""
        net = self.net
        name = f"model.layers.{number}"
        kind = self.config["layer_types"][number]
        h = x
        if number > 0:
            h = net.layer_norm(x, f"{name}.attn_norm", self.width, self.norm_bias)
        x = net.add(x, self.attention(h, f"{name}.attn", kind))
        h = net.layer_norm(x, f"{name}.mlp_norm", self.width, self.norm_bias)
        return net.add(x, self.mlp(h, f"{name}.mlp"))

    def attention(self, x, name, kind):
        """Self-attention; queries, keys and values are views of one tensor."""
        net = self.net
        config = self.config
        bias = config["attention_bias"]
        qkv = net.linear(x, f"{name}.Wqkv", self.width, 3 * self.width, bias)
        q = self.view(qkv, qkv.count // 3)
        k = self.view(qkv, qkv.count // 3)
        v = self.view(qkv, qkv.count // 3)
        del qkv
        q, k = self.rotate(q, kind), self.rotate(k, kind)
        if net.settings.attention == "eager":
            v = net.elementwise(v)  # matmul copies what does not lie in one piece; then nothing needs the whole
        shape = AttentionShape(self.batch, config["num_attention_heads"], self.length, self.length)
        dropout = config["attention_dropout"]
        x = net.attention(q, k, v, shape, dropout, mask=self.masks[kind], softmax_in_float32=True)
        del q, k, v
        return net.dropout(net.linear(x, f"{name}.Wo", self.width, self.width, bias), dropout)

    def rotate(self, x, kind):
        """x * cos + rotate_half(x) * sin, in float32."""
        net = self.net
        cosines, sines = self.positions[kind]
        a = net.multiply(net.cast(x, 4), cosines)
        half = net.elementwise(net.cast(x, 4), work=2 * x.count)
        b = net.multiply(half, sines)
        del half
        return net.cast(net.add(a, b), x.size)

    def mlp(self, x, name):
        """Wo(act(input) * gate), where input and gate are views of one tensor."""
        net = self.net
        config = self.config
        both = net.linear(x, f"{name}.Wi", self.width, 2 * self.inner, config["mlp_bias"])
        h = self.view(both, both.count // 2)
        gate = self.view(both, both.count // 2)
        del both
        h = net.multiply(net.activation(h, config["hidden_activation"]), gate)
        del gate
        h = net.dropout(h, config["mlp_dropout"])
        return net.linear(h, f"{name}.Wo", self.inner, self.width, config["mlp_bias"])

    def view(self, x, count):
        """`count` elements of `x`, in the same memory."""
        return self.net.tape.op([x], count, x.size, view_of=x)

    def pool(self, x):
        """One vector a row: that of the first token, or the mean of all."""
        net = self.net
        if self.config["classifier_pooling"] == "cls":
            return self.view(x, self.batch * self.width)
        masked = net.elementwise(x)
        return net.tape.op([masked], self.batch * self.width, masked.size)

    def classifier(self, x):
        """The prediction head, then one linear layer."""
        net = self.net
        config = self.config
        x = net.linear(x, "head.dense", self.width, self.width, config["classifier_bias"])
        x = net.activation(x, config["classifier_activation"])
        x = net.layer_norm(x, "head.norm", self.width, self.norm_bias)
        x = net.dropout(x, config["classifier_dropout"])
        return net.linear(x, "classifier", self.width, net.settings.num_labels)
