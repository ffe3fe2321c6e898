"""The proof that a lever changes nothing: the reader's own model answers the same with it and without it."""

import contextlib

import torch

ROWS = 3
TOKENS = 12
PADDING = 5  # of the second row, on its right
TOLERANCE = 1e-4  # relative to the size of the outputs, where all is in float32
TOLERANCE_16_BITS = 2e-2  # roundings of bfloat16 and float16 add up over the layers of a large model


def outputs(model):
    """What `model` answers to three short random rows, of which the second is padded; float32, one number a place.

    model: a classifier, a language model or a bare encoder or decoder of transformers, with any weights. The places are
    those of real tokens, or the rows if the model is a classifier. No gradients, no dropout; random states and the
    model's mode are left as they were.
    """
    batch = _batch(model)
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    types_of_16_bits = types & {torch.bfloat16, torch.float16}
    if types_of_16_bits and len(types) > 1:  # a head in float32 on a base in 16 bits works in mixed precision only
        precision = torch.autocast(model.device.type, types_of_16_bits.pop())
    else:
        precision = contextlib.nullcontext()
    was_training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        with torch.no_grad(), precision:
            answer = model(**batch)
    finally:
        for module in was_training:
            module.training = True
    values = answer.logits if "logits" in answer else answer.last_hidden_state
    mask = batch.get("decoder_attention_mask", batch["attention_mask"])
    if values.dim() == 3:
        values = values[mask.bool()]
    return values.float()


def difference(one, other):
    """How far `other` is from `one`, as a part of the size of `one`; both as `outputs` returns them."""
    return ((other - one).norm() / one.norm()).item()


def tolerance(model):
    """The difference that rounding alone may make, for the types in which the model computes."""
    types = {parameter.dtype for parameter in model.parameters() if parameter.is_floating_point()}
    return TOLERANCE_16_BITS if types & {torch.bfloat16, torch.float16} else TOLERANCE


def _batch(model):
    config = model.config.get_text_config()
    pad = config.pad_token_id or 0
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, config.vocab_size, (ROWS, TOKENS), generator=generator)
    ids[ids == pad] = pad + 1  # a model may find the end of a row by its padding
    mask = torch.ones_like(ids)
    mask[1, -PADDING:] = 0
    ids[mask == 0] = pad
    batch = {"input_ids": ids, "attention_mask": mask}
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = ids.flip(0)
        batch["decoder_attention_mask"] = mask.flip(0)
    return {name: tensor.to(model.device) for name, tensor in batch.items()}
