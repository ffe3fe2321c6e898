"""A micro-batch in parts: of so many rows, or of so many tokens."""

import itertools

import torch


class MicroBatches:
    """Trainer mixin: a micro-batch goes through the model in parts, whose gradients are added up.

    The step stays that of the whole micro-batch: same rows, same weights afterwards up to rounding, less memory. It
    stands before the trainer among the bases: `class LessonTrainer(MicroBatches, Trainer)`.

    tokens_at_once: the most positions of a part (rows times the longest one of the part). Parts are as few and as
    equal as can be, but never less than a row: so short rows go many at a time. None: not by tokens.
    rows_at_once: the most rows of a part, where tokens_at_once is None. None: the whole micro-batch at once.
    """

    tokens_at_once = None
    rows_at_once = None

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As Trainer's: the loss of a micro-batch, a dict of tensors (rows, length), with its backward pass done."""
        if self.tokens_at_once is None and self.rows_at_once is None:
            return super().training_step(model, inputs, num_items_in_batch)
        accumulation_steps = self.current_gradient_accumulation_steps
        rows = number_of_rows(inputs)
        loss = 0
        try:
            for part in self.parts(inputs):
                # Trainer divides a mean loss by this number, and a part weighs as much as its share of the rows
                self.current_gradient_accumulation_steps = accumulation_steps * rows / number_of_rows(part)
                loss = loss + super().training_step(model, part, num_items_in_batch)
        finally:
            self.current_gradient_accumulation_steps = accumulation_steps
        return loss

    def parts(self, inputs):
        """The parts of a micro-batch, by tokens if tokens_at_once is set, else by rows."""
        if self.tokens_at_once is None:
            return parts_by_rows(inputs, self.rows_at_once)
        multiple = getattr(self.data_collator, "pad_to_multiple_of", None) or 1
        return parts_by_tokens(inputs, self.tokens_at_once, multiple, self.model.config.is_encoder_decoder)


def number_of_rows(batch):
    """How many rows a batch has: the length of the first of its tensors."""
    return next(len(value) for value in batch.values() if torch.is_tensor(value))


def parts_by_rows(batch, rows_at_once):
    """Yields `batch` in parts of at most `rows_at_once` rows."""
    widths = [1] * number_of_rows(batch)
    for begin, end in itertools.pairwise(split_evenly(widths, rows_at_once)):
        yield rows_between(batch, begin, end)


def parts_by_tokens(batch, tokens_at_once, multiple=1, is_encoder_decoder=False):
    """Yields `batch` in parts of at most `tokens_at_once` positions, without columns that hold nothing but padding.

    multiple: lengths stay multiples of this number, as the data collator pads them. is_encoder_decoder: labels are then
    texts of their own, of another length, and stay as they are.
    """
    mask = batch["attention_mask"]
    length = mask.shape[1]
    last_positions = (mask * torch.arange(1, length + 1, device=mask.device)).amax(dim=1).tolist()
    widths = []
    for last in last_positions:
        multiples = -(-last // multiple)  # rounded up
        widths.append(min(length, multiples * multiple))
    padded = []  # names of tensors that are as long as the texts
    for name, value in batch.items():
        is_as_long = getattr(value, "shape", None) == mask.shape
        if is_as_long and not (name == "labels" and is_encoder_decoder):
            padded.append(name)
    for begin, end in itertools.pairwise(split_evenly(widths, tokens_at_once)):
        part = rows_between(batch, begin, end)
        for name in padded:
            part[name] = part[name][:, : max(widths[begin:end])]
        yield part


def rows_between(batch, begin, end):
    """The rows `begin` to `end` of a batch; what has no rows, such as a number, stays whole."""
    rows = number_of_rows(batch)
    part = {}
    for name, value in batch.items():
        has_rows = torch.is_tensor(value) and value.shape[:1] == (rows,)
        part[name] = value[begin:end] if has_rows else value
    return part


def split_greedily(widths, limit):
    """Row numbers at which to cut, so that rows times widest row of each part is at most `limit`."""
    boundaries = [0]
    for row in range(1, len(widths)):
        start = boundaries[-1]
        tokens_with_this_row = (row + 1 - start) * max(widths[start : row + 1])
        if tokens_with_this_row > limit:
            boundaries.append(row)
    boundaries.append(len(widths))
    return boundaries


def split_evenly(widths, limit):
    """As few parts as `limit` allows; of all such splits the one with the smallest limit, so that parts are alike.

    What a part costs beside its tokens, it costs alike. widths: the length of each row. Returns row numbers, from 0 to
    len(widths).
    """
    fewest = len(split_greedily(widths, limit))
    low = 0
    high = limit
    while low < high:  # binary search for the smallest limit that needs no more parts
        middle = (low + high) // 2
        if len(split_greedily(widths, middle)) <= fewest:
            high = middle
        else:
            low = middle + 1
    return split_greedily(widths, low)
