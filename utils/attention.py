"""Attention with less memory and time: one position bias for all layers of T5, decoders without a padding mask,
FlashAttention inside compiled layers, these inside checkpoints, and a last layer that computes only what is read."""

import functools
import importlib.util

import torch
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import create_position_bias_mask, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask
from transformers.models.gemma2 import modeling_gemma2 as gemma2

from utils.checks import CourseError

SHARED_BIAS = "sdpa_shared_bias"
FLASH = "fa4_compiled"  # transformers loads a package itself for a name with "flash" in it


def share_position_bias():
    """Registers SHARED_BIAS as a value of `attn_implementation`, and returns it.

    T5 computes its position bias in the first layer, (1, heads, queries, keys), and hands it on. Each layer of "sdpa"
    joins it with the mask to a tensor of (rows, heads, queries, keys), and keeps that for its backward pass. Here the
    first layer does, and the others take the same tensor. The results are the same.
    """
    AttentionInterface.register(SHARED_BIAS, _attend)
    AttentionMaskInterface.register(SHARED_BIAS, sdpa_mask)
    return SHARED_BIAS


def _attend(module, query, key, value, attention_mask, position_bias=None, **kwargs):
    if position_bias is not None:
        known = getattr(position_bias, "joined", None)  # lives as long as the bias: one forward pass
        if known is None or known[0] is not attention_mask:
            causal = query.shape[2] > 1 and attention_mask is None and module.is_causal
            both = create_position_bias_mask(position_bias, attention_mask, causal, query, key)
            known = position_bias.joined = (attention_mask, both.to(query.dtype))
        attention_mask = known[1]
    return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)


def without_mask(decoder):
    """Lets a causal `decoder` run without the attention mask that it is given, until the returned handle is removed.

    For batches that are padded on the right: no token looks ahead, so none sees padding, and the outputs of all tokens
    but padding are the same up to rounding. Without a mask, torch may choose kernels that take none. Use the handle in
    a `with` statement around training only: generation pads on the left.
    """
    return decoder.register_forward_pre_hook(_drop_mask, with_kwargs=True)


def _drop_mask(module, args, kwargs):
    return args, kwargs | {"attention_mask": None}


def fastest(otherwise="eager", flash=FLASH):
    """The value of `attn_implementation` for a decoder that is trained with compiled layers: FLASH, registered, where
    it runs (a GPU of compute capability 9 or higher and the package flash-attn-4), else "eager". Or whatever else
    depends on it: `flash` in the first case, `otherwise` in the second."""
    has_package = importlib.util.find_spec("flash_attn") and importlib.util.find_spec("flash_attn.cute")
    if not has_package or not torch.cuda.is_available() or torch.cuda.get_device_capability()[0] < 9:
        return otherwise
    compiled_flash()
    return flash


def compiled_flash():
    """Registers FLASH as a value of `attn_implementation`, and returns it.

    It is transformers' "flash_attention_4", the same kernels, in a form that torch.compile can take into a layer as one
    operation. As it is, the compiler comes upon Python that it cannot trace, and cuts each layer into many pieces. For
    training and evaluation of decoders in bfloat16 or float16: padding on the right, no cache, no dropout.
    """
    AttentionInterface.register(FLASH, _attend_in_flash)
    AttentionMaskInterface.register(FLASH, _refuse_left_padding)
    return FLASH


def _refuse_left_padding(*args, attention_mask=None, **kwargs):
    """No mask: behind a causal mask, no token sees padding on its right. Asks the GPU without waiting for it."""
    if attention_mask is not None:
        message = f"{FLASH} needs padding on the right; set padding_side='right' in the tokenizer."
        torch._assert_async((attention_mask[:, 1:] <= attention_mask[:, :-1]).all(), message)


def _attend_in_flash(module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **kwargs):
    if dropout or query.shape[2] != key.shape[2]:
        raise CourseError(f"{FLASH} knows neither dropout nor a cache; set use_cache=False and attention_dropout=0.")
    window = kwargs.get("sliding_window") or 0
    window = window if window < key.shape[2] else 0  # as long as the row: no window
    states = (states.transpose(1, 2) for states in (query, key, value))
    return torch.ops.course.flash(*states, scaling, softcap or 0.0, window)[0], None


@torch.library.custom_op("course::flash", mutates_args=(), device_types="cuda")
def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, cap: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention; (rows, tokens, heads, size) as query, and the logarithms of the sums, (rows, heads, tokens).

    cap: c of c tanh(s / c), 0 for none. window: a token sees itself and window - 1 tokens before it, 0 for all.
    """
    from flash_attn.cute import flash_attn_func

    sees = (window - 1, 0) if window else (None, None)
    settings = dict(softmax_scale=scale, causal=True, softcap=cap, window_size=sees, return_lse=True)
    return flash_attn_func(query, key, value, **settings)


@torch.library.custom_op("course::flash_backward", mutates_args=(), device_types="cuda")
def _flash_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    result: torch.Tensor,
    sums: torch.Tensor,
    scale: float,
    cap: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    from flash_attn.cute.interface import _flash_attn_bwd

    left, right = (window - 1, 0) if window else (None, None)
    sees = dict(causal=True, window_size_left=left, window_size_right=right)
    found = _flash_attn_bwd(query, key, value, result, gradient, sums, softmax_scale=scale, softcap=cap, **sees)
    return tuple(states.contiguous() for states in found[:3])


@_flash.register_fake
def _(query, key, value, scale, cap, window):
    rows, tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((rows, heads, tokens), dtype=torch.float32)


@_flash_backward.register_fake
def _(gradient, query, key, value, result, sums, scale, cap, window):
    return tuple(states.new_empty(states.shape) for states in (query, key, value))


def _keep(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:3], *output)
    ctx.settings = inputs[3:]


def _go_back(ctx, gradient, _):
    return *torch.ops.course.flash_backward(gradient.contiguous(), *ctx.saved_tensors, *ctx.settings), None, None, None


_flash.register_autograd(_go_back, setup_context=_keep)


def compile_in_checkpoints(layers):
    """Compiles decoder layers of one kind, each inside a checkpoint: of each, only its input is kept.

    transformers checkpoints inside a layer's forward, so `layer.compile()` takes the checkpoint into what it compiles.
    There, torch 2.11 keeps what every multiplication with 4-bit weights gave all the same. Here the checkpoint stands
    around. Loss and gradients are those of `layer.compile()`, and Trainer's activation_checkpointing changes no
    more. No cache (use_cache=False): a checkpoint would fill it twice.
    """
    forward = type(layers[0]).forward
    compiled = torch.compile(getattr(forward, "__wrapped__", forward), dynamic=True)  # without transformers' checkpoint
    for layer in layers:
        layer.forward = functools.partial(checkpoint, compiled, layer, use_reentrant=False)


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
