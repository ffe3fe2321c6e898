"""FlashAttention inside compiled layers."""

import importlib.util

import torch
from transformers import AttentionInterface, AttentionMaskInterface

from utils.errors import CourseError

FLASH = "fa4_compiled"  # transformers loads a package itself for a name with "flash" in it


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
