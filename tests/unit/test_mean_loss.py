"""A loss that is a mean must not be added up over accumulated micro-batches."""

import pytest
import torch
from conftest import refusal
from tiny_trainers import KINDS, PLAIN, outcome, trainer_of_even_rows, without_dropout

from utils.training.mean_loss import check_mean_loss


@pytest.mark.parametrize("kind", KINDS)
def test_a_mean_that_trainer_would_add_up_is_refused(kind, tmp_path):
    trainer = trainer_of_even_rows(kind, tmp_path, gradient_accumulation_steps=2)
    trainer.loss_is_scaled_for_ga = None  # as Trainer has it
    before = torch.get_rng_state()
    if kind == "opt":
        check_mean_loss(trainer)
    else:
        message = refusal(check_mean_loss, trainer)
        assert "is a mean over its rows, and Trainer would add up" in message
        assert "set trainer.model_accepts_loss_kwargs = False." in message
    assert torch.equal(torch.get_rng_state(), before), "the check would change the run that it looks at"
    trainer.model_accepts_loss_kwargs = False
    check_mean_loss(trainer)


@pytest.mark.parametrize("kind", KINDS)
def test_without_accumulation_the_trainer_is_told_and_nothing_is_refused(kind, tmp_path):
    """A step that is repeated in parts accumulates after all."""
    trainer = trainer_of_even_rows(kind, tmp_path)
    trainer.loss_is_scaled_for_ga = None
    check_mean_loss(trainer)
    assert trainer.model_accepts_loss_kwargs == (kind == "opt"), "opt divides by the number of items itself"


def test_trainer_alone_adds_means_up(tmp_path):
    """If this fails, the library has changed: look again whether it does our part."""
    settings = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2}
    added_up = without_dropout(trainer_of_even_rows("bert", tmp_path, classes=PLAIN, **settings))
    added_up.loss_is_scaled_for_ga = None
    at_once = without_dropout(trainer_of_even_rows("bert", tmp_path, classes=PLAIN))
    first_losses = [outcome(trainer)[0][0, 0].item() for trainer in (added_up, at_once)]
    assert first_losses[0] == pytest.approx(2 * first_losses[1], rel=1e-4)
