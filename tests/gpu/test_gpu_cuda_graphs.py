"""CUDA graphs on a GPU: a replayed training is the usual one, bit by bit, and its memory comes back."""

import gc

import pytest
import torch
from small_models import BERT, bert_batch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from utils import training
from utils.errors import CourseError
from utils.speed import cuda_graphs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def bert(**changes):
    return BertForSequenceClassification(BertConfig(**{**BERT.to_dict(), **changes})).cuda().train()


def gpu_batch(*size):
    return {name: value.cuda() for name, value in bert_batch(*size).items()}


def rows_of_length(length, count=1):
    return [{name: value[0] for name, value in bert_batch(1, length).items()} for _ in range(count)]


def train(folder, on, accumulation=1, autocast=True, seed=1, compiled=False, **changes):
    """The loss of each step, and the parameters that six steps on batches of two lengths lead to."""
    torch.manual_seed(0)
    model = bert(**changes)
    rows = []
    for row in range(48):
        rows += rows_of_length(8 + 8 * (row // 4 % 2))
    args = TrainingArguments(
        folder,
        max_steps=6,
        per_device_train_batch_size=4,
        train_sampling_strategy="sequential",
        gradient_accumulation_steps=accumulation,
        bf16=autocast,
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = RetryTrainer(model, args, torch.utils.data.default_collate, train_dataset=rows)
    torch.manual_seed(seed)  # of dropout
    with cuda_graphs.replay(model, on, compiled):
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, [parameter.detach().cpu() for parameter in model.parameters()]


@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_replayed_training_is_the_usual_one_dropout_included(tmp_path, accumulation, autocast):
    usual_losses, usual_parameters = train(tmp_path, False, accumulation, autocast)
    losses, parameters = train(tmp_path, True, accumulation, autocast)
    assert losses == usual_losses
    for parameter, usual in zip(parameters, usual_parameters, strict=True):
        assert torch.equal(parameter, usual)


def test_the_comparison_tells_another_training_from_it(tmp_path):
    losses, _ = train(tmp_path, False)
    other_losses, _ = train(tmp_path, False, seed=2)
    assert losses != other_losses


def test_compiled_layers_train_the_same_up_to_rounding(tmp_path):
    settings = {"autocast": False, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    usual_losses, usual_parameters = train(tmp_path, False, **settings)
    losses, parameters = train(tmp_path, True, compiled=True, **settings)
    assert losses == pytest.approx(usual_losses, abs=1e-4)
    for parameter, usual in zip(parameters, usual_parameters, strict=True):
        torch.testing.assert_close(parameter, usual, rtol=1e-3, atol=1e-4)


def test_an_earlier_loss_that_is_still_held_does_not_matter():
    model = bert()
    batch = gpu_batch()
    held = model(**batch).loss
    held.backward()
    model.zero_grad()
    with cuda_graphs.replay(model):
        model(**batch).loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_what_is_no_tensor_is_refused_with_a_remedy():
    model = bert()
    usual = model.forward
    model.forward = lambda **inputs: (usual(**inputs).loss, object())
    with cuda_graphs.replay(model), pytest.raises(CourseError, match="without CUDA graphs"):
        model(**gpu_batch())


def reserved_by(model, lengths):
    """Bytes that torch reserves at most while `model` trains on 64 rows of each length."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    with cuda_graphs.replay(model):
        for length in lengths:
            model(**gpu_batch(64, length)).loss.backward()
    return torch.cuda.max_memory_reserved()


def test_all_shapes_share_their_memory():
    model = bert()
    one_shape = reserved_by(model, [512])
    four_shapes = reserved_by(model, [512, 504, 496, 488])
    assert four_shapes < 2 * one_shape  # each for itself, they would take nearly four times as much


def test_only_what_is_forgotten_gives_its_memory_back():
    def reserved():
        gc.collect()
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    model = bert()
    batch = gpu_batch(64, 512)
    before = reserved()  # cuBLAS keeps its work space for good
    with cuda_graphs.replay(model):
        loss = model(**batch).loss.detach()
        captured = torch.cuda.memory_reserved() - before
        kept = reserved() - before
        cuda_graphs.forget()
        forgotten = reserved() - before
        assert model(**batch).loss.isfinite()
    assert loss.isfinite()
    assert kept > 0.9 * captured
    assert forgotten < 0.3 * captured


class RetryTrainer(training.OutOfMemoryRetry, Trainer):
    """As in the lessons."""


def test_out_of_memory_it_goes_on_with_half_of_the_rows(tmp_path, capsys):
    """64 rows take 2.5 GiB by the plan, 32 take 1.3; of 2.3, one is reserved before by what nobody uses any more."""
    torch.manual_seed(0)
    model = bert(hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8)
    args = TrainingArguments(
        tmp_path,
        per_device_train_batch_size=64,
        max_steps=2,
        report_to="none",
        save_strategy="no",
    )
    trainer = RetryTrainer(model, args, train_dataset=rows_of_length(256, count=64))
    trainer.model_accepts_loss_kwargs = False
    torch.empty(2**30, dtype=torch.uint8, device="cuda")
    card = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2.3 * 2**30 / card)
    try:
        with cuda_graphs.replay(model):
            trainer.train()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "out of memory with 64 rows at once, so it is repeated with 32 at once" in capsys.readouterr().out
