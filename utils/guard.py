"""Stops a training run at the first loss that is no number, before the weights take harm."""

import math

from transformers import TrainerCallback

from utils.checks import CourseError


class StopOnNaN(TrainerCallback):
    """Raises CourseError in the forward pass whose loss is NaN or infinite: step, learning rate, rows, and a remedy.

    The Trainer itself goes on, and by default (`logging_nan_inf_filter`) its log shows the last good loss instead. The
    optimizer has not moved yet when this stops the run; with gradient accumulation the micro-batch at fault is named.
    Rows count from 0, as in trainer.train_dataset[0]; of rows with the same input_ids all are named, by the column id
    if the training data kept one. Cost: one device synchronization a forward pass. It needs a model that returns its
    loss, as those of transformers (and trl's fused head) do when the batch has labels, unless labels are smoothed.
    """

    hook = None

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, optimizer=None, **kwargs):
        self.on_train_end(args, state, control)  # of a run that failed elsewhere, a hook may be left

        def look(module, inputs, keywords, outputs):
            loss = getattr(outputs, "loss", None)
            if not module.training or loss is None:
                return
            self.micro_batch += 1
            if not math.isfinite(value := loss.mean().item()):
                self.on_train_end(args, state, control)
                rate = optimizer.param_groups[0]["lr"] if optimizer else args.learning_rate
                place = f"step {state.global_step + 1}"
                if args.gradient_accumulation_steps > 1:
                    place += f" (micro-batch {self.micro_batch} of {args.gradient_accumulation_steps})"
                where = f"{place}, learning rate {rate:.2g}, rows {_rows(keywords, train_dataloader.dataset)}"
                remedy = "look at these rows, lower learning_rate, or compute in bfloat16 or float32, not in float16"
                raise CourseError(
                    f"{where} of the training data: the loss is {value}, so the run was stopped; {remedy}."
                )

        self.hook = model.register_forward_hook(look, with_kwargs=True)

    def on_step_begin(self, args, state, control, **kwargs):
        self.micro_batch = 0

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
