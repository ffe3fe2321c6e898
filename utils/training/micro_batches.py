"""A batch in parts: of so many rows, or of so many tokens."""

import bisect
import itertools

import torch


def _parts(inputs, most, trainer=None):
    """A batch in parts of at most `most` rows; given a trainer, of at most `most` tokens, and without columns that hold
    nothing but padding."""
    rows, widths, mask = _rows_of(inputs), None, inputs.get("attention_mask")
    if trainer:
        length = mask.shape[1]
        multiple = getattr(trainer.data_collator, "pad_to_multiple_of", None) or 1
        last = (mask * torch.arange(1, length + 1, device=mask.device)).amax(dim=1).tolist()
        widths = [min(length, -(-end // multiple) * multiple) for end in last]
    by_row = {name for name, value in inputs.items() if torch.is_tensor(value) and value.shape[:1] == (rows,)}
    ends = _cuts(widths or [1] * rows, most)
    for begin, end in itertools.pairwise(ends):
        part = {name: value[begin:end] if name in by_row else value for name, value in inputs.items()}
        if widths:
            long = [name for name, value in inputs.items() if getattr(value, "shape", None) == mask.shape]
            long = [name for name in long if name != "labels" or not trainer.model.config.is_encoder_decoder]
            part |= {name: part[name][:, : max(widths[begin:end])] for name in long}
        yield part


def _cuts(widths, most):
    """Where to cut rows of these widths, so that parts (rows times the widest) are of `most` at most, as few as can be,
    and about as large as each other: what a part costs beside its tokens, it costs alike."""

    def cut(limit):
        ends = [0]
        for row in range(1, len(widths)):
            if (row + 1 - ends[-1]) * max(widths[ends[-1] : row + 1]) > limit:
                ends.append(row)
        return [*ends, len(widths)]

    few = len(cut(most))
    return cut(bisect.bisect_left(range(most), -few, key=lambda limit: -len(cut(limit))))


def _rows_of(inputs):
    return next(len(value) for value in inputs.values() if torch.is_tensor(value))
