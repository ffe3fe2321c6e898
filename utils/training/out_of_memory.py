"""Lets a run survive memory that runs out: the step is repeated in halves."""

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from utils.errors import CourseError
from utils.training.hooks import remove_hooks
from utils.training.micro_batches import MicroBatches, number_of_rows
from utils.units import GIB

_retry_callbacks = []


def on_retry(callback):
    """Calls `callback()` before a step is repeated, so that it can free GPU memory; returns what ends this."""
    _retry_callbacks.append(callback)

    def remove():
        _retry_callbacks.remove(callback)

    return remove


class OutOfMemoryRetry(MicroBatches):
    """Trainer mixin: when memory runs out, the micro-batch is halved once, accumulation doubled, the step repeated.

    It stands before the trainer among the bases: `class LessonTrainer(OutOfMemoryRetry, Trainer)`, and before
    Seq2SeqTrainer or SFTTrainer likewise. Weights, data order and effective batch stay what they were, and random
    numbers are those of a run that had the smaller micro-batch from this step on. When memory runs out a second time,
    CourseError says what the plan of this run advises. An evaluation for which memory is too short is repeated with
    half of its rows at once, as often as need be. (`auto_find_batch_size` of Trainer takes 0.9 of the batch, does not
    accumulate more, and begins again at step 0 with the weights of the step that failed.)

    planned: the `memory.plan` of this run, for advice; None: not known.
    """

    planned = None
    has_halved = False  # whether the micro-batch was halved already

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._current_step = None
        self._batches_of_step = []  # the micro-batches of the current step, to repeat them
        self._random_states = None  # those with which the current step began

    def train(self, *args, **kwargs):
        """As Trainer's; a run that fails leaves no batch in memory and no hook of a callback on the model."""
        try:
            return super().train(*args, **kwargs)
        finally:
            self._batches_of_step.clear()
            remove_hooks(self.callback_handler.callbacks)

    def training_step(self, model, inputs, num_items_in_batch=None):
        """As Trainer's: the loss of a micro-batch, with its backward pass done."""
        step = (id(self.state), self.state.global_step)
        if step != self._current_step:
            self._current_step = step
            self._batches_of_step.clear()
            self._random_states = random_states()
        self._batches_of_step.append(inputs)
        loss = self._try_training_step(model, inputs, num_items_in_batch)
        if loss is not None:
            return loss
        self._halve(inputs)
        model.zero_grad()
        make_room(self._random_states)
        for batch in self._batches_of_step:
            loss = self._try_training_step(model, batch, num_items_in_batch)
            if loss is None:
                raise CourseError(advice(self, self.tokens_at_once or self.rows_at_once))
        return loss

    def evaluate(self, *args, **kwargs):
        """As Trainer's; each attempt draws the same random numbers."""
        states = random_states()
        metrics = self._try_evaluation(*args, **kwargs)
        while metrics is None:
            rows = self.args.per_device_eval_batch_size
            if rows == 1:
                remedy = "shorten max_length, or close what else uses the card"
                raise CourseError(f"out of memory in an evaluation of one row at a time; {remedy}.")
            half = rows // 2
            self.args.per_device_eval_batch_size = half
            print(f"Out of memory in an evaluation of {rows} rows at once, so it is repeated with {half} at once.")
            make_room(states)
            metrics = self._try_evaluation(*args, **kwargs)
        return metrics

    def _try_training_step(self, model, inputs, num_items_in_batch):
        """The loss of a micro-batch, or None if memory ran out.

        The error, and with it all that the failed attempt held, is gone when this returns.
        """
        try:
            return super().training_step(model, dict(inputs), num_items_in_batch)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _try_evaluation(self, *args, **kwargs):
        """The metrics of an evaluation, or None if memory ran out."""
        try:
            return super().evaluate(*args, **kwargs)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return None

    def _halve(self, inputs):
        """Halves what goes through the model at once; raises CourseError if it was halved before or is one row."""
        rows = number_of_rows(inputs)
        if self.tokens_at_once is not None:
            unit = "tokens"
            size = min(self.tokens_at_once, inputs["input_ids"].numel())
        else:
            unit = "rows"
            size = min(self.rows_at_once or rows, rows)
        if self.has_halved or rows == 1:
            raise CourseError(advice(self, size))
        half = (size + 1) // 2
        self.has_halved = True
        if self.tokens_at_once is not None:
            self.tokens_at_once = half
        else:
            self.rows_at_once = half
        place = f"step {self.state.global_step + 1}: out of memory with {size} {unit} at once"
        print(f"{place}, so it is repeated with {half} at once; the effective batch stays the same.")


def is_out_of_memory(error):
    """Whether a RuntimeError says that memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)


def random_states():
    """The states of torch's random numbers: (CPU, [each GPU])."""
    if torch.cuda.is_available():
        return torch.get_rng_state(), torch.cuda.get_rng_state_all()
    return torch.get_rng_state(), []


def make_room(states):
    """Frees what nobody uses any more; random numbers are drawn from these states again."""
    for callback in list(_retry_callbacks):
        callback()
    clear_device_cache(garbage_collection=True)
    cpu, gpus = states
    torch.set_rng_state(cpu)
    torch.cuda.set_rng_state_all(gpus)


def advice(trainer, size):
    """What to do when half of the micro-batch, or one row, is too much: a sentence.

    trainer: an OutOfMemoryRetry. size: the rows that were at once in memory, or the tokens if it has tokens_at_once.
    """
    unit = "rows" if trainer.tokens_at_once is None else "tokens"
    sentence = f"step {trainer.state.global_step + 1}: out of memory again, with {size} {unit} at once; "
    facts = facts_of_memory(trainer.planned)
    if facts:
        sentence += ", ".join(facts) + "; "
    return sentence + ", ".join(remedies(trainer, size)) + "."


def facts_of_memory(planned):
    """What the plan of the run and the card have to say, in words; an empty list if there is neither."""
    facts = []
    if planned is not None:
        facts.append(f"the plan of this run was {planned['total'] / GIB:.1f} GiB")
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0).total_memory / GIB
        card *= torch.cuda.get_per_process_memory_fraction()  # as a rehearsal for a smaller card sets it
        if planned is None:
            facts.append(f"this card has {card:.1f} GiB in all")
        else:
            facts.append(f"this card has {card:.1f} GiB")
            facts.append(f"enough for {planned.largest_batch(card)} rows at once by the plan")
    return facts


def remedies(trainer, size):
    """What the reader can change, in words."""
    smaller = max(1, size // 2)
    if trainer.tokens_at_once is not None:
        first = f"set tokens_at_once to {smaller}"
    else:
        steps = trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps // smaller
        first = f"set per_device_train_batch_size to {smaller} and gradient_accumulation_steps to {steps}"
    words = [first]
    if not trainer.args.activation_checkpointing:
        words.append("turn activation_checkpointing on")
    words.append("shorten max_length, or close what else uses the card")
    return words
