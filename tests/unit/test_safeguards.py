"""What is saved is all that was trained: at the end and in each checkpoint, adapters and whole models."""

import pytest
import tiny_trainers
from conftest import refusal
from peft import PeftModel
from transformers import PreTrainedModel

CLASS = {"bert": PreTrainedModel, "t5": PeftModel, "opt": PeftModel}


def part_of(model):
    """The state of a model without the matrices B or the head, as if they had got other names on the way."""
    state = model.state_dict()
    return {name: state[name].contiguous() for name in state if "lora_B" not in name and "classifier" not in name}


@pytest.mark.parametrize("kind", tiny_trainers.KINDS)
@pytest.mark.parametrize("is_checkpoint", [False, True])
def test_a_model_of_which_a_part_is_missing_is_not_taken_for_saved(kind, is_checkpoint, tmp_path, monkeypatch):
    rows = tiny_trainers.rows_of(kind, [[5, 6, 7, 9]] * 4)
    strategy = "steps" if is_checkpoint else "no"
    trainer = tiny_trainers.make_trainer(kind, tmp_path, rows, max_steps=1, save_steps=1, save_strategy=strategy)
    trainer.train()
    trainer.save_model(tmp_path / "whole")
    save = CLASS[kind].save_pretrained

    def save_a_part(model, folder, state_dict=None, **options):
        return save(model, folder, state_dict=part_of(model), **options)

    monkeypatch.setattr(CLASS[kind], "save_pretrained", save_a_part)
    message = refusal(trainer.train if is_checkpoint else trainer.save_model)
    assert "numbers were trained, but" in message
    assert str(tmp_path) in message
