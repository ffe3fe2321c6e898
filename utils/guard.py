"""Stops a training run at the first loss that is no number, before the weights take harm."""

import math

from transformers import TrainerCallback

from utils.checks import CourseError


class StopOnNaN(TrainerCallback):
    """Raises CourseError in the forward pass whose loss is NaN or infinite: step, learning rate, rows, and a remedy.

    The Trainer itself goes on, and by default (`logging_nan_inf_filter`) its log shows the last good loss instead. The
    optimizer has not moved yet when this stops the run; with gradient accumulation the micro-batch at fault is named.
    Rows count from 0, as in trainer.train_dataset[0]. Cost: one device synchronization a step. It needs a model that
    returns its loss, as all models of transformers do when the batch has labels.
    """

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, optimizer=None, **kwargs):
        def look(module, inputs, keywords, outputs):
            loss = getattr(outputs, "loss", None)
            if module.training and loss is not None and not math.isfinite(loss.item()):
                rows = _rows(keywords.get("input_ids"), train_dataloader.dataset)
                rate = optimizer.param_groups[0]["lr"] if optimizer else args.learning_rate
                where = f"step {state.global_step + 1}, learning rate {rate:.2g}, rows {rows} of the training data"
                remedy = "look at these rows, lower learning_rate, or compute in bfloat16 or float32, not in float16"
                raise CourseError(f"{where}: the loss is {loss.item()}, so the run was stopped; {remedy}.")

        self.on_train_end(args, state, control)
        self.hook = model.register_forward_hook(look, with_kwargs=True)

    def on_train_end(self, args, state, control, **kwargs):
        if hook := getattr(self, "hook", None):
            hook.remove()
        self.hook = None


def _rows(batch, dataset):
    """The numbers of the rows of `dataset` whose input_ids are those of `batch` (rows, length), padding aside."""
    if batch is None:
        return "unknown"
    wanted = {" ".join(map(str, row)) + " " for row in batch.tolist()}
    found = []
    for number, ids in enumerate(dataset["input_ids"][:]):
        text = " ".join(map(str, ids)) + " "
        found += [number] * any(row.startswith(text) or row.endswith(f" {text}") for row in wanted)
    return ", ".join(map(str, found[:40])) or "unknown"
