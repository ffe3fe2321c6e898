"""The forward pass of decoders with rotary positions and a gated MLP.

Gemma-2, Gemma 3 (its text model), Llama, Mistral, Qwen2, Qwen3 and SmolLM3 (models/*/modeling_*.py).
"""

from dataclasses import dataclass
from functools import partial

from utils.planner.families.head import decoder_head
from utils.planner.layers import AttentionShape
from utils.planner.tape import Tensor

SLIDING = "sliding_attention"
FULL = "full_attention"


@dataclass(frozen=True)
class Variant:
    """What one of these families does in its own way, where its configuration does not say."""

    norm: str = "llama"
    """How a norm multiplies with its weight; see Net.rms_norm."""
    norms_after: bool = False
    """Whether a second norm follows attention and MLP, before they are added to their input."""
    scaled_embedding: bool = False
    """Whether embeddings are multiplied with the root of their width."""
    tied: bool = False
    """Whether logits use the table of embeddings."""
    attention_bias: bool = False
    """Whether the layers of queries, keys and values have a bias."""
    query_key_norm: bool = False
    """Whether queries and keys are normalized, head by head."""
    layer_kinds: tuple = (SLIDING,)
    """Kinds of layers in turn, for a configuration without layer_types."""
    mask_a_kind: bool = False
    """Whether the plan has a mask and a table of positions for each kind of layer, as transformers makes them. Plans
    of the other families were measured without."""


VARIANTS = {
    "gemma2": Variant(norm="gemma", norms_after=True, scaled_embedding=True, tied=True, layer_kinds=(SLIDING, FULL)),
    "gemma3_text": Variant(
        norm="gemma", norms_after=True, scaled_embedding=True, tied=True, query_key_norm=True, mask_a_kind=True
    ),
    "llama": Variant(),
    "mistral": Variant(),
    "qwen2": Variant(attention_bias=True),
    "qwen3": Variant(query_key_norm=True, mask_a_kind=True),
    "smollm3": Variant(tied=True, mask_a_kind=True),
}


def gated(net, batch, length, target_length):
    """The loss for `batch` rows of `length` tokens; while generating, logits. `target_length` is for other families."""
    return GatedDecoder(net, batch, length).result()


class GatedDecoder:
    """One forward pass."""

    def __init__(self, net, batch, length):
        config = net.config
        self.net = net
        self.config = config
        self.variant = VARIANTS[config["model_type"]]
        self.width = config["hidden_size"]
        self.heads = config["num_attention_heads"]
        self.key_heads = config.get("num_key_value_heads") or self.heads
        self.head_size = config.get("head_dim") or self.width // self.heads
        self.batch = batch
        self.length = length
        self.window = config.get("sliding_window") if config.get("use_sliding_window", True) else None
        self.masks = {}
        self.positions = {}

    def result(self):
        """Embeddings, layers, head."""
        net = self.net
        tokens = self.batch * self.length
        x = net.embedding("model.embed_tokens", self.config["vocab_size"], self.width, tokens)
        if self.variant.scaled_embedding:
            x = net.elementwise(x)
        net.stream_size = x.size
        self.make_masks_and_positions()
        for number in range(self.config["num_hidden_layers"]):
            x = net.tape.block(partial(self.layer, number=number), x)
        net.tape.kind = "logits and loss"
        x = net.rms_norm(x, "model.norm", self.width, self.variant.norm)
        tied = self.variant.tied
        return decoder_head(net, x, "model.embed_tokens.weight", self.width, tokens, self.batch, tied)

    def kind(self, number):
        """Whether layer `number` sees a sliding window or all positions."""
        kinds = self.config.get("layer_types") or self.variant.layer_kinds
        return kinds[number % len(kinds)]

    def make_masks_and_positions(self):
        """The mask and the cosines and sines of rotary positions: one for all layers, or one for each kind of layer."""
        net = self.net
        keys = net.past + self.length
        if not self.variant.mask_a_kind:
            mask = net.mask(self.batch, self.length, keys, causal=True)
            table = self.table_of_positions()
            self.masks = {SLIDING: mask, FULL: mask}
            self.positions = {SLIDING: table, FULL: table}
            return
        for kind in sorted({self.kind(number) for number in range(self.config["num_hidden_layers"])}):
            window = self.window if kind == SLIDING else None
            seen = min(keys, window + self.length - 1) if window else keys
            self.masks[kind] = net.mask(self.batch, self.length, seen, causal=True, window=window)
            self.positions[kind] = self.table_of_positions()

    def table_of_positions(self):
        """Cosines and sines."""
        count = self.length * self.head_size
        size = self.net.stream_size
        return Tensor(self.net.tape, count, size), Tensor(self.net.tape, count, size)

    def layer(self, x, number):
        """Layer `number`: attention, then MLP, each with its norms and added to its input."""
        net = self.net
        variant = self.variant
        name = f"model.layers.{number}"
        residual = x
        # nested, so that attention can forget the normalized vectors
        x = self.attention(net.rms_norm(x, f"{name}.input_layernorm", self.width, variant.norm), number)
        if variant.norms_after:
            x = net.rms_norm(x, f"{name}.post_attention_layernorm", self.width, variant.norm)
        x = net.tape.mark(net.add(residual, x))
        residual = x
        norm = "pre_feedforward_layernorm" if variant.norms_after else "post_attention_layernorm"
        x = net.rms_norm(x, f"{name}.{norm}", self.width, variant.norm)
        x = self.mlp(x, f"{name}.mlp")
        if variant.norms_after:
            x = net.rms_norm(x, f"{name}.post_feedforward_layernorm", self.width, variant.norm)
        return net.add(residual, x)

    def attention(self, x, number):
        """Self-attention in layer `number`."""
        net = self.net
        kind = self.kind(number)
        name = f"model.layers.{number}.self_attn"
        bias = self.config.get("attention_bias", self.variant.attention_bias)
        q = self.heads_of(x, name, "q", self.heads, bias)
        k = self.heads_of(x, name, "k", self.key_heads, bias)
        v = net.linear(x, f"{name}.v_proj", self.width, self.key_heads * self.head_size, bias)
        if self.has_rotary_positions(number):
            q, k = self.rotate(q, kind), self.rotate(k, kind)  # at once: both are there until both are rotated
        window = self.window if kind == SLIDING else None
        k, v = net.remember(number, k, v, self.batch * self.key_heads * self.head_size, window)
        keys = k.count // (self.batch * self.key_heads * self.head_size)
        mask = self.masks[kind]
        if self.repeats_keys(mask):
            k, v = self.repeat(k), self.repeat(v)
        shape = AttentionShape(self.batch, self.heads, self.length, keys)
        cap = self.config.get("attn_logit_softcapping")
        x = net.attention(q, k, v, shape, mask=mask, softcap=cap, softmax_in_float32=True)
        del q, k, v
        bias = self.config.get("attention_bias", False)
        return net.linear(x, f"{name}.o_proj", self.heads * self.head_size, self.width, bias)

    def heads_of(self, x, name, part, heads, bias):
        """The queries ("q") or keys ("k") of `x`, normalized head by head where the family does that."""
        net = self.net
        y = net.linear(x, f"{name}.{part}_proj", self.width, heads * self.head_size, bias)
        if self.variant.query_key_norm:
            y = net.rms_norm(y, f"{name}.{part}_norm", self.head_size, self.variant.norm)
        return y

    def has_rotary_positions(self, number):
        """False for every fourth layer of SmolLM3."""
        layers = self.config.get("no_rope_layers")  # 1 where there are positions, in spite of its name
        return bool(layers[number]) if layers else True

    def rotate(self, x, kind):
        """x * cos + rotate_half(x) * sin."""
        net = self.net
        if net.settings.liger:
            return net.elementwise(x)
        cosines, sines = self.positions[kind]
        a = net.multiply(x, cosines)
        half_of_it = x.count * x.size // 2
        b = net.multiply(net.elementwise(x, work=half_of_it), sines)
        return net.add(a, b)

    def repeats_keys(self, mask):
        """Whether keys and values are copied for each head that shares them (repeat_kv)."""
        if self.key_heads == self.heads:
            return False
        attention = self.net.settings.attention
        return attention == "eager" or (attention == "sdpa" and mask is not None)

    def repeat(self, x):
        """`x`, once for each of the heads that share it."""
        net = self.net
        return net.tape.mark(net.tape.op([x], x.count * self.heads // self.key_heads, x.size))

    def mlp(self, x, name):
        """down(act(gate(x)) * up(x)); with Liger, act and product are one kernel."""
        net = self.net
        config = self.config
        inner = config["intermediate_size"]
        bias = config.get("mlp_bias", False)
        activation = config.get("hidden_activation") or config.get("hidden_act", "silu")
        h = net.linear(x, f"{name}.gate_proj", self.width, inner, bias)
        if not net.settings.liger:
            h = net.activation(h, activation)
        up = net.linear(x, f"{name}.up_proj", self.width, inner, bias)
        if net.settings.liger:
            h = net.tape.op([h, up], h.count, h.size, [h, up])
        else:
            h = net.multiply(h, up)
        del up
        return net.linear(h, f"{name}.down_proj", inner, self.width, bias)
