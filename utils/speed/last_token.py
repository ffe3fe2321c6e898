"""A last layer that computes only what is read."""

import contextlib

import torch
from transformers.models.gemma2 import modeling_gemma2 as gemma2


@contextlib.contextmanager
def reading_last_token(classifier):
    """Inside the `with` block the last layer of a Gemma-2 classifier computes what is read of it: one token a row.

    The head reads only the last token of each row. The queries, attention and feed-forward steps of the others in the
    last layer change nothing, so only their keys and values are computed there. Logits and gradients are the same up to
    rounding; in last_hidden_state all tokens are the last one. No cache. `classifier` is the model of transformers:
    without PEFT, or what `get_base_model()` of PEFT's model returns.
    """
    decoder = classifier.base_model
    layer = decoder.layers[-1]
    usual_class = layer.__class__
    with decoder.register_forward_pre_hook(_find_last_token, with_kwargs=True):
        layer.__class__ = LastTokenLayer
        try:
            yield
        finally:
            layer.__class__ = usual_class


def _find_last_token(decoder, args, kwargs):
    """Tells the last layer which token is the last of each row, and which ones this token does not see."""
    ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    positions = torch.arange(ids.shape[1], device=ids.device)
    last = (positions * (ids != decoder.config.pad_token_id)).argmax(dim=1)  # as the classifier finds it
    hidden = positions > last[:, None]
    mask = kwargs.get("attention_mask")
    if mask is not None:
        hidden = hidden | (mask == 0)
    decoder.layers[-1].last = last, hidden


class LastTokenLayer(gemma2.Gemma2DecoderLayer):
    """A layer of Gemma-2 with one query a row.

    Its attribute `last` holds where the query of each row stands, (rows,), and which tokens it does not see, (rows,
    tokens); `_find_last_token` sets it before each forward pass.
    """

    def forward(self, hidden_states, position_embeddings, **kwargs):
        """(rows, tokens, size), in which all tokens of a row are what the layer makes of the last one."""
        rows, tokens, _ = hidden_states.shape
        last, hidden = self.last
        last_of_each_row = (torch.arange(rows, device=last.device), last)
        attended = self.attend(self.input_layernorm(hidden_states), position_embeddings, last_of_each_row, hidden)
        states = hidden_states[last_of_each_row][:, None] + self.post_attention_layernorm(attended)
        feed_forward = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(states)))
        return (states + feed_forward).expand(-1, tokens, -1)

    def attend(self, states, position_embeddings, last_of_each_row, hidden):
        """The attention of the last tokens, (rows, 1, size), to all `states`, (rows, tokens, size)."""
        attention = self.self_attn
        rows, tokens, _ = states.shape
        query = _split_heads(attention.q_proj(states[last_of_each_row][:, None]), attention.head_dim)
        key = _split_heads(attention.k_proj(states), attention.head_dim)
        value = _split_heads(attention.v_proj(states), attention.head_dim)
        cos, sin = (table.expand(rows, -1, -1) for table in position_embeddings)
        query, _ = gemma2.apply_rotary_pos_emb(
            query, query, cos[last_of_each_row][:, None], sin[last_of_each_row][:, None]
        )
        key, _ = gemma2.apply_rotary_pos_emb(key, key, cos, sin)
        if attention.sliding_window:
            _, last = last_of_each_row
            positions = torch.arange(tokens, device=last.device)
            hidden = hidden | (positions <= last[:, None] - attention.sliding_window)
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill(hidden, -torch.inf)
        attended, _ = gemma2.eager_attention_forward(
            attention,
            query,
            key,
            value,
            mask[:, None, None],
            scaling=attention.scaling,
            softcap=attention.attn_logit_softcapping,
        )
        return attention.o_proj(attended.reshape(rows, 1, -1))


def _split_heads(states, head_size):
    """(rows, tokens, heads times size) as (rows, heads, tokens, size)."""
    return states.unflatten(-1, (-1, head_size)).transpose(1, 2)
