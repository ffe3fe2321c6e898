"""`training.prepare`, the one call before a training, with trainers of every kind."""

import pytest
import torch
from conftest import refusal
from peft import LoraConfig, get_peft_model
from tiny_trainers import (
    KINDS,
    PLAIN,
    RETRY,
    outcome,
    run_out_of_memory,
    same,
    trainer_of_even_rows,
    trainer_of_uneven_rows,
)
from transformers import RobertaConfig, RobertaForSequenceClassification

from utils import memory, training
from utils.training import adapters, checkpoints


def guards(trainer):
    return [callback for callback in trainer.callback_handler.callbacks if isinstance(callback, training.StopOnNaN)]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("classes", [RETRY, PLAIN], ids=["with the retry", "plain"])
def test_it_prepares_every_kind_of_trainer_and_changes_no_number(kind, classes, tmp_path):
    trainer = trainer_of_even_rows(kind, tmp_path / "prepared", classes)
    planned = memory.plan("bert-base-uncased", batch=1, length=8) if kind == "bert" else None
    assert training.prepare(trainer, planned) is None
    assert (tmp_path / "prepared" / checkpoints.RUN).exists()
    assert len(guards(trainer)) == 1
    assert getattr(trainer, "planned", planned) is planned
    assert same(outcome(trainer), outcome(trainer_of_even_rows(kind, tmp_path / "alone", PLAIN)), 0)


def test_a_guard_that_is_there_stays_the_only_one(tmp_path):
    trainer = trainer_of_even_rows("bert", tmp_path)
    guard = training.StopOnNaN()
    trainer.add_callback(guard)
    training.prepare(trainer)
    training.prepare(trainer)
    assert guards(trainer) == [guard]


def test_each_training_may_halve_once(tmp_path, capsys):
    trainer = trainer_of_even_rows("bert", tmp_path)
    training.prepare(trainer)
    run_out_of_memory(trainer, rows=2, times=1)
    trainer.train()
    assert trainer.rows_at_once == 2
    training.prepare(trainer)
    assert trainer.rows_at_once is None
    run_out_of_memory(trainer, rows=2, times=1)
    trainer.train()
    assert capsys.readouterr().out.count("out of memory with 4 rows at once") == 2


def test_it_hands_on_the_tokens_of_a_part(tmp_path):
    trainer, shapes = trainer_of_uneven_rows("bert", tmp_path)
    training.prepare(trainer, tokens_at_once=16)
    trainer.train()
    assert shapes == [(1, 8), (3, 5), (2, 8), (2, 8), (4, 3)]


def test_parts_of_no_tokens_or_for_a_trainer_that_knows_none_are_refused(tmp_path):
    for size in (0, -1):
        trainer, _ = trainer_of_uneven_rows("bert", tmp_path)
        message = refusal(lambda trainer=trainer, size=size: training.prepare(trainer, tokens_at_once=size))
        assert f"tokens_at_once is {size}, so no row would have a part; set it to" in message
    trainer = trainer_of_even_rows("bert", tmp_path, PLAIN)
    message = refusal(lambda: training.prepare(trainer, tokens_at_once=16))
    assert "tokens_at_once is set, and Trainer knows no parts; put training.OutOfMemoryRetry before it" in message


def test_a_summed_mean_is_refused_before_the_output_folder_is_touched(tmp_path):
    (tmp_path / "file of an earlier run").touch()
    trainer = trainer_of_even_rows("bert", tmp_path, gradient_accumulation_steps=2)
    trainer.loss_is_scaled_for_ga = None
    assert "is a mean over its rows" in refusal(training.prepare, trainer)
    assert [path.name for path in tmp_path.iterdir()] == ["file of an earlier run"]


@pytest.mark.parametrize("kind", ["t5", "opt"])
def test_an_adapter_is_saved_with_what_tells_its_base_from_others(kind, tmp_path):
    trainer = trainer_of_even_rows(kind, tmp_path / "run")
    trainer.save_model(tmp_path / "adapter")
    base = trainer.model.get_base_model()
    adapters.check_base(base, tmp_path / "adapter")
    torch.nn.init.normal_(base.get_input_embeddings().weight)
    assert "trained on another base" in refusal(adapters.check_base, base, tmp_path / "adapter")
    trainer.save_model(tmp_path / "checkpoint", _internal_call=True)
    assert not (tmp_path / "checkpoint" / adapters.FINGERPRINT).exists()


def test_a_model_without_an_adapter_is_saved_without(tmp_path):
    trainer_of_even_rows("bert", tmp_path / "run").save_model(tmp_path / "model")
    assert not (tmp_path / "model" / adapters.FINGERPRINT).exists()


def test_a_target_that_no_module_has_is_refused_before_training(tmp_path):
    trainer = trainer_of_even_rows("opt", tmp_path)
    training.prepare(trainer)
    config = trainer.model.peft_config["default"]
    config.target_modules = {*config.target_modules, "q_porj"}
    assert "'q_porj', which is no module of the model (closest: 'q_proj'" in refusal(training.prepare, trainer)


def test_a_training_of_few_steps_evaluates_at_its_end(tmp_path, capsys):
    trainer = trainer_of_even_rows("bert", tmp_path)
    trainer.args.eval_strategy, trainer.args.eval_steps, trainer.args.save_steps = "steps", 1000, 1000
    training.prepare(trainer)
    steps = trainer.args.eval_steps
    assert 1 <= steps < 1000
    assert trainer.args.save_steps == steps
    assert f"The training has {steps} steps, fewer than eval_steps = 1000" in capsys.readouterr().out


def test_all_linear_layers_are_no_wrong_target_where_the_head_is_trained_whole():
    """PEFT writes the layers that it found into the configuration, those of a head in `modules_to_save` among them."""
    config = RobertaConfig(
        vocab_size=30, hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
    )
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", modules_to_save=["classifier"])
    model = get_peft_model(RobertaForSequenceClassification(config), lora)
    adapters.check_targets(model, model.peft_config["default"])
    model.peft_config["default"].target_modules = {"quary"}
    assert "'quary'" in refusal(adapters.check_targets, model, model.peft_config["default"])
