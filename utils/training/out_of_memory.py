"""Lets a run survive memory that runs out: the step is repeated in halves."""

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from transformers import Trainer

from utils.errors import CourseError
from utils.meter import GIB
from utils.training.micro_batches import _parts, _rows_of


def halve_when_full(trainer, planned=None, tokens_at_once=None):
    """Lets `trainer` survive one lack of memory: the micro-batch is halved, accumulation doubled, the step repeated.

    Weights, data order and effective batch stay what they were, and random numbers are those of a run that had the
    smaller micro-batch from this step on. A second lack of memory raises CourseError with what `planned`, the Plan of
    this run, advises. (`auto_find_batch_size` of Trainer takes 0.9 of the batch, does not accumulate more, and begins
    again at step 0 with the weights of the step that failed.) Also raises CourseError if the loss of the model is a
    mean over the micro-batch while Trainer takes it for a share of the effective batch, and would add means up. An
    evaluation that finds too little memory is repeated with half of its rows at once, as often as need be.

    tokens_at_once: a micro-batch goes through the model in parts of so many positions at most (rows times the longest
    one of the part), as few and as equal as can be, but never less than a row. So short rows go many at a time.
    """
    if tokens_at_once is not None and tokens_at_once < 1:
        remedy = "set it to the tokens of the longest row, or more"
        raise CourseError(f"tokens_at_once is {tokens_at_once}, so no row would have a part; {remedy}.")
    if trainer.loss_is_scaled_for_ga is None and _averages(trainer):
        fault = f"the loss of {type(trainer.model).__name__} is a mean over its rows"
        remedy = "Trainer would add up those of accumulated micro-batches; set trainer.model_accepts_loss_kwargs"
        raise CourseError(f"{fault}, and {remedy} = False.")
    step, now, seen, state, most, halved = trainer.training_step, None, [], [], tokens_at_once, False

    def fits(do, *args, **kwargs):
        """What `do` returns, or None if memory ran out; then what it held is free when this returns."""
        try:
            return do(*args, **kwargs)
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                raise

    def in_parts(model, inputs, items):
        steps, rows, losses = trainer.current_gradient_accumulation_steps, _rows_of(inputs), []
        try:
            for part in _parts(inputs, most, trainer if tokens_at_once else None):
                trainer.current_gradient_accumulation_steps = steps * rows / _rows_of(part)  # what a mean is divided by
                losses.append(step(model, part, items))
        finally:
            trainer.current_gradient_accumulation_steps = steps
        return sum(losses)

    def training_step(model, inputs, num_items_in_batch=None):
        nonlocal most, halved, now
        if now != (now := (id(trainer.state), trainer.state.global_step)):
            seen.clear()  # the micro-batches of this step, to repeat them
            state[:] = _random_states()
        seen.append(inputs)
        if (loss := fits(in_parts if most else step, model, dict(inputs), num_items_in_batch)) is not None:
            return loss
        rows, unit = _rows_of(inputs), "tokens" if tokens_at_once else "rows"
        size = min(most or rows, inputs["input_ids"].numel() if tokens_at_once else rows)
        if halved or rows == 1:
            raise CourseError(_advice(size, unit, trainer, planned))
        most, halved = (size + 1) // 2, True
        place = f"step {trainer.state.global_step + 1}: out of memory with {size} {unit} at once"
        print(f"{place}, so it is repeated with {most} at once; the effective batch stays the same.")
        model.zero_grad()
        _make_room(*state)
        for batch in seen:
            if (loss := fits(in_parts, model, batch, num_items_in_batch)) is None:
                raise CourseError(_advice(most, unit, trainer, planned))
        return loss

    def evaluate(*args, **kwargs):
        before = _random_states()  # each try draws some
        while (found := fits(usual_evaluate, *args, **kwargs)) is None:
            if (size := trainer.args.per_device_eval_batch_size) == 1:
                remedy = "shorten max_length, or close what else uses the card"
                raise CourseError(f"out of memory in an evaluation of one row at a time; {remedy}.")
            trainer.args.per_device_eval_batch_size = size // 2
            print(f"Out of memory in an evaluation of {size} rows at once, so it is repeated with {size // 2} at once.")
            _make_room(*before)
        return found

    trainer.training_step, usual_evaluate, trainer.evaluate = training_step, trainer.evaluate, evaluate


def _random_states():
    return torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []


_retry_callbacks = []


def on_retry(callback):
    """Calls `callback()` before a step is repeated, so that it can free GPU memory; returns a function that ends this."""
    _retry_callbacks.append(callback)

    def remove():
        _retry_callbacks.remove(callback)

    return remove


def _make_room(cpu, gpus):
    """Frees what nobody uses any more; random numbers are drawn from these states again."""
    for callback in list(_retry_callbacks):
        callback()
    clear_device_cache(garbage_collection=True)
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)


def _averages(trainer):
    """Whether the model's loss ignores the number of items that Trainer hands to it; False if it gets none."""
    own = type(trainer).compute_loss is not Trainer.compute_loss or trainer.compute_loss_func is not None
    if own or not trainer.model_accepts_loss_kwargs:
        return False
    model, training = trainer.model, trainer.model.training
    with torch.random.fork_rng(devices=[]), torch.no_grad(), trainer.compute_loss_context_manager():
        batch = next(iter(trainer.get_eval_dataloader(trainer.train_dataset.select([0]))))
        batch = {name: value.to(trainer.args.device) for name, value in batch.items()}
        model.eval()
        one, two = (trainer.compute_loss(model, batch, num_items_in_batch=number).item() for number in (1, 2))
        model.train(training)
    return one == two


def _advice(size, unit, trainer, planned):
    """What to do when half of the micro-batch, or one row, is too much; size: its "rows" or "tokens"."""
    advice = [f"the plan of this run was {planned['total'] / GIB:.1f} GiB"] if planned else []
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0).total_memory / GIB
        card *= torch.cuda.get_per_process_memory_fraction()  # as a rehearsal for a smaller card sets it
        advice.append(f"this card has {card:.1f} GiB" + (" in all" if not planned else ""))
        advice += [f"enough for {planned.largest_batch(card)} rows at once by the plan"] if planned else []
    smaller = max(1, size // 2)
    remedy = f"set tokens_at_once to {smaller}"
    if unit == "rows":
        steps = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps // smaller
        remedy = f"set per_device_train_batch_size to {smaller} and gradient_accumulation_steps to {steps}"
    remedy += ", turn activation_checkpointing on" * (not trainer.args.activation_checkpointing)
    remedy += ", shorten max_length, or close what else uses the card"
    place = f"step {trainer.state.global_step + 1}: out of memory again, with {size} {unit} at once"
    return f"{place}; {', '.join(advice)}{'; ' * bool(advice)}{remedy}."
