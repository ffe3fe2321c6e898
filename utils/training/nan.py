"""Stops a run at the step whose loss is no number."""

import torch
from transformers import TrainerCallback

from utils.errors import CourseError


class StopOnNaN(TrainerCallback):
    """Raises CourseError at the step whose loss is NaN or infinite: step, learning rate, rows, and a remedy.

    The Trainer itself goes on, and by default (`logging_nan_inf_filter`) its log shows the last good loss instead. The
    optimizer has not moved yet when this stops the run; with gradient accumulation, the rows of the micro-batch at
    fault are named. Rows count from 0, as in trainer.train_dataset[0]; of rows with the same input_ids all are named,
    by the column id if the training data kept one. Cost: a step waits until its forward passes are done, while the last
    backward pass keeps the GPU busy. It needs a model that returns its loss, as those of transformers (and trl's fused
    head) do when the batch has labels, unless labels are smoothed.
    """

    hook, losses = None, []

    def on_train_begin(self, args, state, control, model=None, **kwargs):
        self.on_train_end(args, state, control)  # of a run that failed elsewhere, a hook may be left
        self.hook, self.losses = model.register_forward_hook(self.note, with_kwargs=True), []

    def note(self, module, inputs, batch, outputs):
        """Sends the loss of a forward pass to the CPU, for which nobody waits yet."""
        loss = getattr(outputs, "loss", None)
        if module.training and loss is not None:
            arrived, loss = torch.cuda.Event() if loss.is_cuda else None, loss.detach().mean()
            self.losses.append((loss.to("cpu", non_blocking=loss.is_cuda), arrived, batch))
            if arrived:
                arrived.record()

    def on_pre_optimizer_step(self, args, state, control, optimizer=None, train_dataloader=None, **kwargs):
        losses, self.losses = self.losses, []
        for loss, arrived, batch in losses:
            if arrived:
                arrived.synchronize()
            if not loss.isfinite():
                rate = optimizer.param_groups[0]["lr"] if optimizer else args.learning_rate
                rows = _rows(batch, train_dataloader.dataset)
                where = f"step {state.global_step + 1}, learning rate {rate:.2g}, rows {rows} of the training data"
                remedy = "look at these rows, lower learning_rate, or compute in bfloat16 or float32, not in float16"
                self.on_train_end(args, state, control)
                raise CourseError(f"{where}: the loss is {loss.item()}, so the run was stopped; {remedy}.")

    def on_train_end(self, args, state, control, **kwargs):
        if self.hook:
            self.hook.remove()
        self.hook = None


def _rows(batch, dataset):
    """The rows of `dataset` whose input_ids are those of `batch`, a dict of tensors (rows, length), padding aside."""
    ids, mask = batch.get("input_ids"), batch.get("attention_mask")
    columns = getattr(dataset, "column_names", None) or []
    if ids is None or mask is None or "input_ids" not in columns:
        return "unknown"
    wanted = {tuple(row[kept.bool()].tolist()) for row, kept in zip(ids, mask, strict=True)}
    found = [number for number, row in enumerate(dataset["input_ids"][:]) if tuple(map(int, row)) in wanted]
    names = [dataset["id"][number] for number in found[:40]] if "id" in columns else found[:40]
    return ", ".join(map(str, names)) or "unknown"
