"""Stops a run at the step whose loss is NaN or infinite."""

import torch

from utils.errors import CourseError
from utils.training.hooks import ForwardHookCallback

MOST_ROWS = 40  # that an error names


class StopOnNaN(ForwardHookCallback):
    """Raises CourseError at the step whose loss is NaN or infinite: step, learning rate, rows, and a remedy.

    The Trainer itself goes on, and by default (`logging_nan_inf_filter`) its log shows the last good loss instead. The
    optimizer has not moved yet when this stops the run; with gradient accumulation, the rows of the micro-batch whose
    loss it was are named. Rows count from 0, as in trainer.train_dataset[0]; of rows with the same input_ids all are
    named, by the column id if the training data kept one. Cost: a step waits until its forward passes are done, while
    the last backward pass keeps the GPU busy. It needs a model that returns its loss, as those of transformers (and
    trl's fused head) do when the batch has labels, unless labels are smoothed.
    """

    def __init__(self):
        self.losses = []  # of the forward passes of this step: (loss on the CPU, event of its copy or None, batch)

    def add_hook(self, model):
        """Looks at what each forward pass of `model` returns."""
        self.losses = []
        return model.register_forward_hook(self.note_loss, with_kwargs=True)

    def note_loss(self, module, inputs, batch, outputs):
        """Sends the loss of a forward pass to the CPU, for which nobody waits yet."""
        loss = getattr(outputs, "loss", None)
        if loss is None or not module.training:
            return
        loss = loss.detach().mean()
        if not loss.is_cuda:
            self.losses.append((loss.to("cpu"), None, batch))
            return
        copied = torch.cuda.Event()
        self.losses.append((loss.to("cpu", non_blocking=True), copied, batch))
        copied.record()

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, train_dataloader=None, **kwargs):
        """Looks at the losses of all micro-batches of this step, before the optimizer moves."""
        losses = self.losses
        self.losses = []
        for loss, copied, batch in losses:
            if copied is not None:
                copied.synchronize()
            if not loss.isfinite():
                self.remove_hook()
                rate = optimizer.param_groups[0]["lr"] if optimizer else args.learning_rate
                rows = rows_of(batch, train_dataloader.dataset)
                where = f"step {state.global_step + 1}, learning rate {rate:.2g}, rows {rows} of the training data"
                remedy = "look at these rows, lower learning_rate, or compute in bfloat16 or float32, not in float16"
                raise CourseError(f"{where}: the loss is {loss.item()}, so the run was stopped; {remedy}.")


def rows_of(batch, dataset):
    """The rows of `dataset` that are in `batch`, in words: numbers, ids if it has a column of them, or "unknown".

    They are found by their input_ids, padding aside. batch: a dict of tensors of shape (rows, length).
    """
    input_ids = batch.get("input_ids")
    attention_mask = batch.get("attention_mask")
    columns = getattr(dataset, "column_names", None) or []
    if input_ids is None or attention_mask is None or "input_ids" not in columns:
        return "unknown"
    texts_of_batch = set()
    for row, mask in zip(input_ids, attention_mask, strict=True):
        texts_of_batch.add(tuple(row[mask.bool()].tolist()))
    numbers = []
    for number, row in enumerate(dataset["input_ids"][:]):
        if tuple(int(token) for token in row) in texts_of_batch:
            numbers.append(number)
    names = numbers[:MOST_ROWS]
    if "id" in columns:
        names = [dataset["id"][number] for number in names]
    return ", ".join(str(name) for name in names) or "unknown"
