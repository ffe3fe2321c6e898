"""FlashAttention inside compiled layers."""

import importlib.util

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from utils.errors import CourseError

FLASH = "fa4_compiled"  # transformers loads a package itself for a name with "flash" in it


def why_not():
    """Why FLASH does not run here, in a few words; an empty string where it does."""
    if not torch.cuda.is_available():
        return "no GPU here"
    if torch.cuda.get_device_capability()[0] < 9:
        return "the GPU is older than an H100"
    if not (importlib.util.find_spec("flash_attn") and importlib.util.find_spec("flash_attn.cute")):
        return "the package flash-attn-4 is not installed"
    return ""


def compiled_flash():
    """Registers FLASH as a value of `attn_implementation`, and returns it.

    It is transformers' "flash_attention_4", the same kernels, in a form that torch.compile can take into a layer as one
    operation. As it is, the compiler comes upon Python that it cannot trace, and cuts each layer into many pieces. For
    training and evaluation of decoders in bfloat16 or float16: padding on the right, no cache, no dropout. Anything
    else is refused: CourseError for a cache or dropout, RuntimeError for padding on the left.
    """
    AttentionInterface.register(FLASH, _attend_in_flash)
    AttentionMaskInterface.register(FLASH, _refuse_left_padding)
    return FLASH


def _refuse_left_padding(*args, attention_mask=None, **kwargs):
    """No mask: behind a causal mask, no token sees padding on its right. Asks the GPU without waiting for it."""
    if attention_mask is not None:
        message = f"{FLASH} needs padding on the right; set padding_side='right' in the tokenizer."
        never_rises = (attention_mask[:, 1:] <= attention_mask[:, :-1]).all()
        torch._assert_async(never_rises, message)


def _attend_in_flash(module, query, key, value, attention_mask, scaling, dropout=0.0, softcap=None, **kwargs):
    """Attention as transformers calls it: of (rows, heads, tokens, size) each; returns (rows, tokens, heads, size)."""
    tokens = key.shape[2]
    if dropout or query.shape[2] != tokens:
        raise CourseError(f"{FLASH} knows neither dropout nor a cache; set use_cache=False and attention_dropout=0.")
    window = kwargs.get("sliding_window") or 0
    if window >= tokens:
        window = 0  # as long as the row: no window
    query, key, value = (states.transpose(1, 2) for states in (query, key, value))
    attended, _ = torch.ops.course.flash(query, key, value, scaling, softcap or 0.0, window)
    return attended, None


@torch.library.custom_op("course::flash", mutates_args=(), device_types="cuda")
def _flash(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, scale: float, cap: float, window: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Causal attention; (rows, tokens, heads, size) as query, and the logarithms of the sums, (rows, heads, tokens).

    cap: c of c tanh(s / c), 0 for none. window: a token sees itself and window - 1 tokens before it, 0 for all.
    """
    from flash_attn.cute import flash_attn_func  # here: the package is there on few machines

    tokens_before = window - 1 if window else None
    tokens_behind = 0 if window else None
    return flash_attn_func(
        query,
        key,
        value,
        softmax_scale=scale,
        causal=True,
        softcap=cap,
        window_size=(tokens_before, tokens_behind),
        return_lse=True,
    )


@torch.library.custom_op("course::flash_backward", mutates_args=(), device_types="cuda")
def _flash_backward(
    output_gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    sums: torch.Tensor,
    scale: float,
    cap: float,
    window: int,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of query, key and value, from what `_flash` was given and returned."""
    from flash_attn.cute.interface import _flash_attn_bwd  # here: the package is there on few machines

    query_gradient, key_gradient, value_gradient, *_ = _flash_attn_bwd(
        query,
        key,
        value,
        output,
        output_gradient,
        sums,
        softmax_scale=scale,
        softcap=cap,
        causal=True,
        window_size_left=window - 1 if window else None,
        window_size_right=0 if window else None,
    )
    return query_gradient.contiguous(), key_gradient.contiguous(), value_gradient.contiguous()


@_flash.register_fake
def _shapes_of_flash(query, key, value, scale, cap, window):
    rows, tokens, heads, _ = query.shape
    return query.new_empty(query.shape), query.new_empty((rows, heads, tokens), dtype=torch.float32)


@_flash_backward.register_fake
def _shapes_of_flash_backward(output_gradient, query, key, value, output, sums, scale, cap, window):
    return query.new_empty(query.shape), key.new_empty(key.shape), value.new_empty(value.shape)


def _save_for_backward(ctx, inputs, output):
    query, key, value, *settings = inputs
    ctx.save_for_backward(query, key, value, *output)
    ctx.settings = settings  # scale, cap, window


def _backward(ctx, output_gradient, _):
    gradients = torch.ops.course.flash_backward(output_gradient.contiguous(), *ctx.saved_tensors, *ctx.settings)
    return *gradients, None, None, None


_flash.register_autograd(_backward, setup_context=_save_for_backward)
