"""The one call before a training."""

import math

from peft import LoraConfig

from utils.errors import CourseError
from utils.training import adapters, checkpoints
from utils.training.mean_loss import check_mean_loss
from utils.training.micro_batches import MicroBatches
from utils.training.nan import StopOnNaN
from utils.training.out_of_memory import OutOfMemoryRetry


def prepare(trainer, planned=None, *, resume=False, cold=False, tokens_at_once=None):
    """Prepares a training; returns the checkpoint to go on from, for `trainer.train`, or None to begin anew.

    It adds `StopOnNaN` to a trainer that has none, refuses a loss that would be added up although it is a mean, 4-bit
    layers that cannot be trained and names in a `LoraConfig` that no module has (see `adapters`), tells an
    `OutOfMemoryRetry` what was planned, lets a run of few steps evaluate at its end, and looks after the output folder
    (see `checkpoints.start`). Call it right before `trainer.train`, on an untrained model. A trainer of any class will
    do; without `OutOfMemoryRetry` no step is repeated.

    planned: the `memory.plan` of this run, for advice when memory runs out. resume: go on from the newest whole
    checkpoint. cold: also from one without optimizer and random states. tokens_at_once: a micro-batch goes through the
    model in parts of so many positions at most; see `MicroBatches`, which the trainer must have.
    Raises CourseError if something of this is amiss: one sentence with the remedy.
    """
    if tokens_at_once is not None:
        if tokens_at_once < 1:
            remedy = "set it to the tokens of the longest row, or more"
            raise CourseError(f"tokens_at_once is {tokens_at_once}, so no row would have a part; {remedy}.")
        if not isinstance(trainer, MicroBatches):
            remedy = "put training.OutOfMemoryRetry before it among the bases of a class of your own"
            raise CourseError(f"tokens_at_once is set, and {type(trainer).__name__} knows no parts; {remedy}.")
    check_mean_loss(trainer)
    check_adapter(trainer.model)
    evaluate_at_the_end(trainer)
    if isinstance(trainer, MicroBatches):
        trainer.tokens_at_once = tokens_at_once
        trainer.rows_at_once = None
    if isinstance(trainer, OutOfMemoryRetry):
        trainer.planned = planned
        trainer.has_halved = False
    if not any(isinstance(callback, StopOnNaN) for callback in trainer.callback_handler.callbacks):
        trainer.add_callback(StopOnNaN())
    return checkpoints.start(trainer, resume=resume, cold=cold)


def check_adapter(model):
    """Raises CourseError for 4-bit layers that cannot be trained, and for a LoraConfig that names no module."""
    if adapters.linear4bit(model):
        adapters.check_quantized(model)
    for config in getattr(model, "peft_config", {}).values():
        if isinstance(config, LoraConfig):
            adapters.check_targets(model, config)


def evaluate_at_the_end(trainer):
    """Lets a training that is shorter than its `eval_steps` evaluate, save and log at its last step; prints it."""
    args = trainer.args
    if args.eval_strategy != "steps" or args.eval_steps < 1:
        return
    steps = args.max_steps
    if steps <= 0:
        try:
            batches = len(trainer.get_train_dataloader())
        except TypeError:  # a stream has no length
            return
        steps = math.ceil(max(1, math.ceil(batches / args.gradient_accumulation_steps)) * args.num_train_epochs)
    if steps < args.eval_steps:
        print(f"The training has {steps} steps, fewer than eval_steps = {args.eval_steps:g}: it evaluates at its end.")
        args.eval_steps = steps
        for name in ("save_steps", "logging_steps"):
            setattr(args, name, min(steps, getattr(args, name)))
