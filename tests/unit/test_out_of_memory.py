"""When memory runs out, the micro-batch is halved once, and only that; evaluations in halves as often as need be."""

from types import SimpleNamespace

import pytest
import torch
from conftest import refusal
from tiny_trainers import (
    FULL,
    KINDS,
    PLAIN,
    outcome,
    run_out_of_memory,
    same,
    trainer_of_even_rows,
    trainer_of_uneven_rows,
    without_dropout,
)

from utils import memory
from utils.training import out_of_memory


@pytest.mark.parametrize("kind", KINDS)
def test_it_becomes_the_run_with_the_smaller_micro_batch(kind, tmp_path, capsys, monkeypatch):
    """From the first step on, dropout included, which draws its random numbers micro-batch by micro-batch."""
    freed = []
    monkeypatch.setattr(out_of_memory, "_retry_callbacks", [lambda: freed.append(True)])
    trainer = trainer_of_even_rows(kind, tmp_path)
    passes = run_out_of_memory(trainer, rows=0, times=1, backward_of=1)  # the forward pass has drawn its numbers
    halved = outcome(trainer)
    assert passes == [4] + [2] * 10
    assert freed == [True]  # captured CUDA graphs hold memory, too
    assert "step 1: out of memory with 4 rows at once, so it is repeated with 2 at once" in capsys.readouterr().out
    smaller = trainer_of_even_rows(kind, tmp_path, per_device_train_batch_size=2, gradient_accumulation_steps=2)
    assert same(halved, outcome(smaller))
    other = trainer_of_even_rows(kind, tmp_path, per_device_train_batch_size=2)
    assert not same(halved, outcome(other), 1e-3), "all runs are alike"


@pytest.mark.parametrize("kind", KINDS)
def test_in_the_middle_of_a_step_nothing_is_lost_or_counted_twice(kind, tmp_path):
    """It happens in the backward pass of the second micro-batch of step 2; the last micro-batch has two rows only."""
    settings = {"per_device_train_batch_size": 5, "gradient_accumulation_steps": 2, "max_steps": 4}
    trainer = without_dropout(trainer_of_even_rows(kind, tmp_path, **settings))
    passes = run_out_of_memory(trainer, rows=0, times=1, backward_of=5)
    halved = outcome(trainer)
    assert passes[:9] == [5, 5, 2, 5, 5, 3, 2, 3, 2]
    undisturbed = without_dropout(trainer_of_even_rows(kind, tmp_path, **settings))
    assert same(halved, outcome(undisturbed), 1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_where_memory_suffices_the_retry_changes_nothing(kind, tmp_path):
    trainer = trainer_of_even_rows(kind, tmp_path, gradient_accumulation_steps=2)
    with_retry = outcome(trainer)
    assert trainer._batches_of_step == [], "batches are kept alive"
    plain = outcome(trainer_of_even_rows(kind, tmp_path, classes=PLAIN, gradient_accumulation_steps=2))
    assert same(with_retry, plain, 0)


def test_the_second_time_it_ends_with_advice(tmp_path, monkeypatch):
    trainer = trainer_of_even_rows("bert", tmp_path, gradient_accumulation_steps=2)
    planned = memory.plan(trainer.model, batch=4, length=4)
    trainer.planned = planned
    passes = run_out_of_memory(trainer, rows=1)
    message = refusal(trainer.train)
    assert passes == [4, 2]
    assert "step 1: out of memory again, with 2 rows at once; the plan of this run was " in message
    assert "set per_device_train_batch_size to 1 and gradient_accumulation_steps to 8, turn activation_ch" in message
    card = SimpleNamespace(total_memory=8 * memory.GIB)
    share = 1.0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    monkeypatch.setattr(torch.cuda, "get_per_process_memory_fraction", lambda: share)
    expected = f"this card has 8.0 GiB, enough for {planned.largest_batch(8)} rows at once"
    assert expected in out_of_memory.advice(trainer, 2)
    trainer.planned = None
    assert "this card has 8.0 GiB in all; set per_device" in out_of_memory.advice(trainer, 2)
    share = 0.5  # a process that may use half of the card
    assert "this card has 4.0 GiB in all; set per_device" in out_of_memory.advice(trainer, 2)
    trainer.args.activation_checkpointing = True
    assert "turn activation_checkpointing on" not in out_of_memory.advice(trainer, 2)


@pytest.mark.parametrize("kind", KINDS)
def test_later_steps_end_with_advice_too_and_one_row_cannot_be_halved(kind, tmp_path):
    trainer = trainer_of_even_rows(kind, tmp_path)
    passes = run_out_of_memory(trainer, rows=2)
    run_out_of_memory(trainer, rows=0, times=1, backward_of=5)
    assert "step 3: out of memory again, with 2 rows at once; set per_device" in refusal(trainer.train)
    assert passes[:5] == [4, 2, 2, 2, 2]
    trainer = trainer_of_even_rows(kind, tmp_path, per_device_train_batch_size=1)
    run_out_of_memory(trainer, rows=0)
    assert "step 1: out of memory again, with 1 rows at once; set per_device" in refusal(trainer.train)


def test_other_errors_pass_and_without_the_retry_the_run_ends(tmp_path):
    trainer = trainer_of_even_rows("bert", tmp_path)
    run_out_of_memory(trainer, rows=2, message="another error")
    trainer.model.register_forward_hook(lambda module, args, outputs: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trainer.train()
    trainer = trainer_of_even_rows("bert", tmp_path, classes=PLAIN)
    run_out_of_memory(trainer, rows=2)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.train()


@pytest.mark.parametrize("kind", KINDS)
def test_parts_by_tokens_are_halved_too(kind, tmp_path, capsys):
    wanted = outcome(trainer_of_uneven_rows(kind, tmp_path)[0])
    trainer, shapes = trainer_of_uneven_rows(kind, tmp_path)
    trainer.tokens_at_once = 32
    run_out_of_memory(trainer, rows=2, times=1)
    assert same(wanted, outcome(trainer), 1e-5)
    assert shapes == [(4, 8), (1, 8), (3, 5), (2, 8), (2, 8), (4, 3)]
    assert "step 1: out of memory with 32 tokens at once, so it is repeated with 16 at once" in capsys.readouterr().out
    trainer, shapes = trainer_of_uneven_rows(kind, tmp_path)
    trainer.tokens_at_once = 16  # it happens in a part
    run_out_of_memory(trainer, rows=1, times=1)
    assert same(wanted, outcome(trainer), 1e-5)
    assert shapes == [(1, 8), (3, 5), (1, 8), (1, 5), (2, 4), *[(1, 8)] * 4, (2, 3), (2, 3)]
    trainer, shapes = trainer_of_uneven_rows(kind, tmp_path)
    trainer.tokens_at_once = 1000  # more than the batch has
    run_out_of_memory(trainer, rows=1)
    assert "out of memory again, with 16 tokens at once; set tokens_at_once to 8, turn" in refusal(trainer.train)


def too_small_for(trainer, rows):
    """Evaluations of more than `rows` rows at once run out of memory; returns a list of the rows of each pass."""
    passes = []

    def forward(module, args, inputs):
        if not module.training:
            passes.append(len(inputs["input_ids"]))
            if passes[-1] > rows:
                raise torch.OutOfMemoryError(FULL)

    trainer.model.register_forward_pre_hook(forward, with_kwargs=True)
    return passes


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_is_repeated_in_halves_until_it_fits(kind, tmp_path, capsys, monkeypatch):
    freed = []
    outcomes = []
    losses = []
    monkeypatch.setattr(out_of_memory, "_retry_callbacks", [lambda: freed.append(True)])
    for rows in (12, 3):
        trainer = trainer_of_even_rows(kind, tmp_path, per_device_eval_batch_size=12, disable_tqdm=False)
        trainer.eval_dataset = trainer.train_dataset
        trainer.args.eval_strategy = "steps"
        trainer.args.eval_steps = 2
        passes = too_small_for(trainer, rows)
        outcomes.append(outcome(trainer))
        losses.append([entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry])
    assert same(*outcomes)  # the training takes no notice
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert passes == [12, 6] + [3] * 12  # 12 rows, three times
    assert freed == [True] * 2
    assert "evaluation of 6 rows at once, so it is repeated with 3 at once" in capsys.readouterr().out


def test_an_evaluation_that_cannot_be_halved_or_has_another_error_ends(tmp_path):
    trainer = trainer_of_even_rows("bert", tmp_path, per_device_eval_batch_size=2)
    passes = too_small_for(trainer, rows=0)
    message = refusal(trainer.evaluate, trainer.train_dataset)
    assert "in an evaluation of one row at a time; shorten max_length" in message
    assert passes == [2, 1]
    trainer = trainer_of_even_rows("bert", tmp_path, per_device_eval_batch_size=2)
    trainer.model.register_forward_pre_hook(lambda module, args: torch.ones(2) @ torch.ones(3))
    with pytest.raises(RuntimeError, match="inconsistent tensor size"):
        trainer.evaluate(trainer.train_dataset)


def test_who_can_free_memory_is_asked_until_the_returned_function_is_called(monkeypatch):
    monkeypatch.setattr(out_of_memory, "_retry_callbacks", [])
    asked = []
    end = out_of_memory.on_retry(lambda: asked.append(True))
    out_of_memory.make_room(out_of_memory.random_states())
    end()
    out_of_memory.make_room(out_of_memory.random_states())
    assert asked == [True]


def test_why_trainers_own_way_will_not_do(tmp_path):
    """If this fails, the library has changed: look again whether it does our part."""
    trainer = trainer_of_even_rows("bert", tmp_path, classes=PLAIN, auto_find_batch_size=True)
    run_out_of_memory(trainer, rows=3)
    trainer.train()
    sizes = (trainer._train_batch_size, trainer.args.gradient_accumulation_steps)
    assert sizes == (3, 1), "another effective batch"
