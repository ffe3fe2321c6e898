"""Refuses a loss that Trainer would add up although it is a mean."""

import torch
from transformers import Trainer

from utils.errors import CourseError


def check_mean_loss(trainer):
    """Raises CourseError if the model's loss is a mean over its micro-batch while Trainer takes it for a share.

    With gradient accumulation, Trainer hands the number of items of the whole batch to a model that accepts it, and
    adds up the losses it gets. A model that accepts the number and ignores it returns a mean each time, and the sum is
    too large by the number of micro-batches. Without accumulation there is no sum, unless a step has to be repeated in
    parts: then the trainer is told here that the loss is a mean, and nothing is refused.
    """
    if trainer.loss_is_scaled_for_ga is None and ignores_number_of_items(trainer):
        if trainer.args.gradient_accumulation_steps == 1:
            trainer.model_accepts_loss_kwargs = False
            return
        problem = f"the loss of {type(trainer.model).__name__} is a mean over its rows"
        remedy = "Trainer would add up those of accumulated micro-batches; set trainer.model_accepts_loss_kwargs"
        raise CourseError(f"{problem}, and {remedy} = False.")


def ignores_number_of_items(trainer):
    """Whether the model gets the number of items and its loss does not depend on it; draws no random number."""
    has_its_own_loss = type(trainer).compute_loss is not Trainer.compute_loss or trainer.compute_loss_func is not None
    if has_its_own_loss or not trainer.model_accepts_loss_kwargs:
        return False
    model = trainer.model
    was_training = model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.compute_loss_context_manager():
        batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset.select([0]))))
        batch = {name: value.to(trainer.args.device) for name, value in batch.items()}
        model.eval()
        loss_for_one = trainer.compute_loss(model, batch, num_items_in_batch=1).item()
        loss_for_two = trainer.compute_loss(model, batch, num_items_in_batch=2).item()
        model.train(was_training)
    return loss_for_one == loss_for_two
