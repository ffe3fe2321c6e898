"""The meter of a training: it counts what went forward in it, and leaves nothing behind."""

import pytest
import torch
from tiny_trainers import KINDS, PLAIN, RETRY, trainer_of_even_rows, trainer_of_uneven_rows
from transformers import TrainerCallback

from utils.meter import Meter


class Interrupt(TrainerCallback):
    """Ctrl-C after the first step."""

    def on_step_end(self, args, state, control, **kwargs):
        raise KeyboardInterrupt


@pytest.mark.parametrize("kind", KINDS)
def test_it_counts_the_rows_and_tokens_of_the_training_only(kind, tmp_path):
    trainer, _ = trainer_of_uneven_rows(kind, tmp_path)
    hooks = len(trainer.model._forward_pre_hooks)
    trainer.eval_dataset = trainer.train_dataset
    trainer.args.eval_strategy = "steps"
    trainer.args.eval_steps = 1
    cost = Meter()
    trainer.add_callback(cost)
    trainer.train()
    assert (cost.rows, cost.real_tokens, cost.padded_tokens) == (12, 8 + 5 + 4 + 3 + 4 * 8 + 4 * 3, 4 * (8 + 8 + 3))
    assert len(trainer.model._forward_pre_hooks) == hooks
    assert type(cost.real_tokens) is int
    assert cost.seconds > 0
    assert (cost.peak_bytes is None) == (not torch.cuda.is_available())
    trainer.evaluate()
    batch = trainer.data_collator([trainer.train_dataset[0], trainer.train_dataset[1]])
    trainer.model.train()(**batch)
    assert cost.rows == 12, "the meter must stop with the training"


def test_a_second_training_is_metered_anew(tmp_path):
    trainer = trainer_of_even_rows("bert", tmp_path)
    cost = Meter()
    trainer.add_callback(cost)
    trainer.train()
    trainer.train()
    assert cost.rows == 20
    assert not trainer.model._forward_pre_hooks


def test_it_counts_a_resumed_training_from_its_checkpoint_on(tmp_path):
    settings = {"save_strategy": "steps", "save_steps": 3}
    trainer_of_even_rows("opt", tmp_path, **settings).train()
    trainer = trainer_of_even_rows("opt", tmp_path, **settings)
    cost = Meter()
    trainer.add_callback(cost)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-3"))
    assert cost.rows == 2 * 4
    assert not trainer.model._forward_pre_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_a_training_that_fails_leaves_no_hook(kind, tmp_path):
    trainer = trainer_of_even_rows(kind, tmp_path, RETRY)
    trainer.add_callback(Meter())
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert not trainer.model._forward_pre_hooks
    trainer = trainer_of_even_rows(kind, tmp_path, PLAIN)  # the control: Trainer alone tells nobody that it failed
    trainer.add_callback(Meter())
    trainer.add_callback(Interrupt())
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    assert len(trainer.model._forward_pre_hooks) == 1
    trainer.remove_callback(Interrupt)
    trainer.train()
    assert not trainer.model._forward_pre_hooks


def test_the_peak_is_that_of_the_training(tmp_path, monkeypatch):
    """The highest mark of the card is set back when the training begins, after a collection, and read when it ends."""
    events = []
    trainer = trainer_of_even_rows("bert", tmp_path, max_steps=1)

    def note_pass(module, args):
        events.append("pass")

    def peak():
        events.append("peak")
        return 77

    trainer.model.register_forward_pre_hook(note_pass)
    cost = Meter()
    trainer.add_callback(cost)
    monkeypatch.setattr("utils.meter.gc.collect", lambda: events.append("collect"))
    monkeypatch.setattr("utils.meter.torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("utils.meter.torch.cuda.reset_peak_memory_stats", lambda: events.append("reset"))
    monkeypatch.setattr("utils.meter.torch.cuda.max_memory_allocated", peak)
    cost.on_train_begin(trainer.args, trainer.state, trainer.control, model=trainer.model)
    trainer.model(**trainer.data_collator([trainer.train_dataset[0]]))
    cost.on_train_end(trainer.args, trainer.state, trainer.control)
    assert events == ["collect", "reset", "pass", "peak"]
    assert cost.peak_bytes == 77
    assert cost.rows == 1


def test_a_packed_batch_has_no_mask_and_as_many_rows_as_texts():
    cost = Meter()
    module = torch.nn.Linear(1, 1).train()
    ids = torch.zeros((1, 7), dtype=torch.long)
    cost.count(module, (), {"input_ids": ids, "position_ids": torch.tensor([[0, 1, 2, 0, 1, 0, 1]])})
    assert (int(cost.rows), int(cost.real_tokens), cost.padded_tokens) == (3, 7, 7)
