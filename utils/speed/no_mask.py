"""Decoders without a padding mask."""


def without_mask(decoder):
    """Lets a causal `decoder` run without the attention mask that it is given, until the returned handle is removed.

    For batches that are padded on the right: no token looks ahead, so none sees padding, and the outputs of all tokens
    but padding are the same up to rounding. Without a mask, torch may choose kernels that take none. Use the handle in
    a `with` statement around training only: generation pads on the left.
    """
    return decoder.register_forward_pre_hook(_drop_mask, with_kwargs=True)


def _drop_mask(module, args, kwargs):
    kwargs = dict(kwargs)
    kwargs["attention_mask"] = None
    return args, kwargs
