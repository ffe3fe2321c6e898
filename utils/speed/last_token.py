"""A last layer that computes only what is read."""

import torch
from transformers.models.gemma2 import modeling_gemma2 as gemma2


def read_last_token(classifier):
    """Lets the last layer of a Gemma-2 classifier compute what is read of it, the last token of each row; returns it.

    The head reads no other token: their queries, attention and feed-forward steps in the last layer change nothing, and
    only their keys and values are computed there. Logits and gradients are the same up to rounding; of
    last_hidden_state all tokens are the last one. No cache. Call it before PEFT wraps the model.
    """
    decoder = classifier.base_model
    decoder.register_forward_pre_hook(_find_last_token, with_kwargs=True)
    decoder.layers[-1].__class__ = LastTokenLayer
    return classifier


def _find_last_token(decoder, args, kwargs):
    ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
    places = torch.arange(ids.shape[1], device=ids.device)
    last = (places * (ids != decoder.config.pad_token_id)).argmax(dim=1)  # as the classifier finds it
    hidden, mask = places > last[:, None], kwargs.get("attention_mask")
    decoder.layers[-1].last = last, hidden if mask is None else hidden | (mask == 0)


class LastTokenLayer(gemma2.Gemma2DecoderLayer):
    """A layer with one query a row, at `last`: (rows,) places, (rows, tokens) of what they do not see."""

    def forward(self, hidden_states, position_embeddings, **kwargs):
        attention, (rows, tokens, _), (last, hidden) = self.self_attn, hidden_states.shape, self.last
        at, normed = (torch.arange(rows, device=last.device), last), self.input_layernorm(hidden_states)
        states = attention.q_proj(normed[at][:, None]), attention.k_proj(normed), attention.v_proj(normed)
        query, key, value = (some.unflatten(-1, (-1, attention.head_dim)).transpose(1, 2) for some in states)
        cos, sin = (table.expand(rows, -1, -1) for table in position_embeddings)
        query, _ = gemma2.apply_rotary_pos_emb(query, query, cos[at][:, None], sin[at][:, None])
        key, _ = gemma2.apply_rotary_pos_emb(key, key, cos, sin)
        if attention.sliding_window:
            far = torch.arange(tokens, device=last.device) <= last[:, None] - attention.sliding_window
            hidden = hidden | far
        mask = torch.zeros(hidden.shape, dtype=query.dtype, device=query.device).masked_fill(hidden, -torch.inf)
        settings = dict(scaling=attention.scaling, softcap=attention.attn_logit_softcapping)
        found, _ = gemma2.eager_attention_forward(attention, query, key, value, mask[:, None, None], **settings)
        answer = attention.o_proj(found.reshape(rows, 1, -1))
        states = hidden_states[at][:, None] + self.post_attention_layernorm(answer)
        more = self.post_feedforward_layernorm(self.mlp(self.pre_feedforward_layernorm(states)))
        return (states + more).expand(-1, tokens, -1)
