"""A loss that is NaN or infinite stops the run at its step."""

import math

import pytest
import tiny_trainers
import torch
from conftest import refusal
from tiny_trainers import BAD, KINDS
from transformers import TrainerCallback

from utils import training


def planted(kind, folder, plant=True, guarded=True, classes=tiny_trainers.PLAIN, **changes):
    """A trainer whose row 8 gives NaN: the embedding of one of its tokens does."""
    ids = [[5, 6, 7 + number, *[9] * (number % 3)] for number in range(12)]
    if plant:
        ids[8][1] = BAD
    trainer = tiny_trainers.make_trainer(kind, folder, tiny_trainers.rows_of(kind, ids), classes, **changes)
    if guarded:
        trainer.add_callback(training.StopOnNaN())

    def spoil(module, ids, embeddings):
        return embeddings.masked_fill((ids[0] == BAD).unsqueeze(-1), math.nan)

    for module in trainer.model.modules():
        if isinstance(module, torch.nn.Embedding) and module.num_embeddings == tiny_trainers.VOCABULARY:
            module.register_forward_hook(spoil)
    return trainer


class KeepWeights(TrainerCallback):
    """The trained weights as they are after the newest optimizer step."""

    weights = None

    def on_step_end(self, args, state, control, model=None, **kwargs):
        self.weights = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}


class Interrupt(TrainerCallback):
    """Ctrl-C after the first step."""

    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_a_planted_nan_stops_the_run_at_its_step(kind, tmp_path):
    trainer = planted(kind, tmp_path)
    kept = KeepWeights()
    trainer.add_callback(kept)
    message = refusal(trainer.train)
    assert "step 5, learning rate 0.00033, rows 8, 9 of the training data: the loss is nan" in message
    assert "lower learning_rate, or compute in bfloat16 or float32" in message
    assert trainer.state.global_step == 4
    assert kept.weights
    assert all(torch.equal(trainer.model.get_parameter(name), value) for name, value in kept.weights.items())
    assert all(value.isfinite().all() for value in kept.weights.values())
    assert not trainer.model._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_with_accumulation_the_rows_of_the_micro_batch_are_named(kind, tmp_path):
    trainer = planted(kind, tmp_path, per_device_train_batch_size=1, gradient_accumulation_steps=3, max_steps=4)
    assert "step 3, learning rate 0.0005, rows 8 of the training data" in refusal(trainer.train)
    assert trainer.state.global_step == 2


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_nan_the_run_ends_and_the_hook_is_gone(kind, tmp_path):
    trainer = planted(kind, tmp_path, plant=False)
    trainer.train()
    assert trainer.state.global_step == 6
    assert not trainer.model._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_without_the_guard_the_same_run_ends_as_if_all_was_well(kind, tmp_path):
    """The Trainer sees the NaN and hides it: this is why the guard exists."""
    trainer = planted(kind, tmp_path, guarded=False, logging_steps=1)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert trainer.state.global_step == len(losses) == 6
    assert all(math.isfinite(loss) for loss in losses)
    assert not all(p.isfinite().all() for p in trainer.model.parameters() if p.requires_grad)


def test_nobody_waits_for_a_loss_before_the_last_forward_pass_of_a_step(tmp_path):
    """On a GPU a look at each loss would stop Python in each forward pass."""
    trainer = planted("bert", tmp_path, plant=False, gradient_accumulation_steps=3, max_steps=1)
    guard = next(c for c in trainer.callback_handler.callbacks if isinstance(c, training.StopOnNaN))
    judge = guard.on_pre_optimizer_step
    seen = []

    def note_and_judge(*args, **kwargs):
        seen.append(len(guard.losses))
        return judge(*args, **kwargs)

    guard.on_pre_optimizer_step = note_and_judge
    trainer.train()
    assert seen == [3]
    assert guard.losses == [], "batches are kept alive"


def test_an_infinite_loss_is_refused_too_and_ids_are_named(tmp_path):
    trainer = planted("bert", tmp_path, plant=False, remove_unused_columns=False)
    ids = [f"row-{number:02}" for number in range(12)]
    trainer.train_dataset = trainer.train_dataset.add_column("id", ids)
    pad = trainer.data_collator

    def pad_without_ids(rows):
        return pad([{name: value for name, value in row.items() if name != "id"} for row in rows])

    trainer.data_collator = pad_without_ids
    forward = trainer.model.forward

    def overflow(**batch):
        outputs = forward(**batch)
        if trainer.state.global_step == 2:
            outputs.loss = outputs.loss * math.inf
        return outputs

    trainer.model.forward = overflow
    expected = "step 3, learning rate 0.00067, rows row-04, row-05 of the training data: the loss is inf"
    assert expected in refusal(trainer.train)


def test_a_run_that_failed_elsewhere_leaves_no_second_hook(tmp_path):
    trainer = planted("bert", tmp_path, plant=False)
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.remove_callback(Interrupt)
    trainer.train()
    assert not trainer.model._forward_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_of_a_lessons_trainer_that_failed_elsewhere_leaves_no_hook(kind, tmp_path):
    trainer = planted(kind, tmp_path, plant=False, classes=tiny_trainers.RETRY)
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not trainer.model._forward_hooks


def test_data_without_input_ids_names_no_rows(tmp_path):
    trainer = planted("bert", tmp_path, remove_unused_columns=False)
    trainer.train_dataset = trainer.train_dataset.rename_column("input_ids", "ids")
    pad = trainer.data_collator

    def pad_other_names(rows):
        return pad([{"input_ids": row.pop("ids"), **row} for row in rows])

    trainer.data_collator = pad_other_names
    assert "step 5, learning rate 0.00033, rows unknown of the training data" in refusal(trainer.train)
