"""CUDA graphs: what is recorded when; and, on a GPU, that a replayed training is the usual one, bit by bit."""

import copy
import gc
import inspect

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments

from utils import training
from utils.errors import CourseError
from utils.speed import cuda_graphs

CONFIG = BertConfig(vocab_size=99, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def batch(rows=4, length=8):
    ids = torch.randint(5, 99, (rows, length))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(rows, dtype=torch.long)}


@pytest.fixture
def recorded(monkeypatch):
    """The shapes that were recorded, on a machine that is taken for one with a GPU."""
    shapes = []

    def record(usual, leaves, form, parameters, *place):
        shapes.append(leaves[0].shape)
        model, optimized = usual.__self__, {id(p) for p in parameters}
        assert {id(p) for p in model.parameters() if p.requires_grad} == optimized
        return lambda trained, tensors: "replayed"

    monkeypatch.setattr(cuda_graphs, "_record", record)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "MemPool", object)
    for name in ("Stream", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return shapes


def test_each_shape_is_recorded_once_and_only_training_is_replayed(recorded):
    model = BertForSequenceClassification(CONFIG).train()
    with cuda_graphs.replay(model):
        assert [model(**batch(length=n)) for n in (8, 16, 8)] == ["replayed"] * 3
        assert len(recorded) == 2
        with torch.no_grad():
            assert model(**batch()).loss > 0
        assert model.eval()(**batch()).loss > 0
        parameters = inspect.signature(model.forward).parameters
    assert "labels" in parameters  # by these, Trainer knows which columns the model takes
    assert model.train()(**batch()).loss > 0
    assert len(recorded) == 2


def test_beyond_the_most_shapes_it_runs_as_usual(recorded, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MOST", 1)
    model = BertForSequenceClassification(CONFIG).train()
    with cuda_graphs.replay(model):
        assert model(**batch(length=8)) == "replayed"
        assert model(**batch(length=9)).loss > 0
        assert model(**batch(length=8)) == "replayed"


def test_the_parameters_are_back_after_a_recording_also_if_it_fails(recorded, monkeypatch):
    model = BertForSequenceClassification(CONFIG).train()
    before = dict(model.named_parameters())
    with cuda_graphs.replay(model):
        model(**batch())
        monkeypatch.setattr(cuda_graphs, "_record", lambda *given: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**batch(length=9))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_what_is_forgotten_is_recorded_anew_in_new_memory(recorded, monkeypatch):
    model, pools, record = BertForSequenceClassification(CONFIG).train(), [], cuda_graphs._record
    monkeypatch.setattr(cuda_graphs, "_record", lambda *given: pools.append(given[4]) or record(*given))
    with cuda_graphs.replay(model):
        model(**batch(length=8)), model(**batch(length=9))
        cuda_graphs.forget()
        model(**batch(length=8)), model(**batch(length=8))
    assert [length for _, length in recorded] == [8, 9, 8]
    assert pools[0] is pools[1] is not pools[2]
    cuda_graphs.forget()  # nothing is recorded


def test_an_error_leaves_the_model_as_it_was(recorded):
    model = BertForSequenceClassification(CONFIG)
    with pytest.raises(ZeroDivisionError), cuda_graphs.replay(model):
        1 / 0  # noqa: B018
    assert "forward" not in vars(model)


def test_layers_are_compiled_for_the_recording_only(recorded, monkeypatch):
    model, seen = BertForSequenceClassification(CONFIG).train(), []
    layers = model.bert.encoder.layer
    record = cuda_graphs._record
    monkeypatch.setattr(cuda_graphs, "_record", lambda *given: seen.extend(compiled(layers)) or record(*given))
    with cuda_graphs.replay(model, compiled=True):
        model(**batch())
        assert compiled(layers) == [False, False]
    assert seen == [True, True]
    assert compiled(layers) == [False, False]


def compiled(layers):
    return [layer._compiled_call_impl is not None for layer in layers]


def test_what_wrapped_it_meanwhile_stays_and_nothing_is_replayed_any_more(recorded):
    model = BertForSequenceClassification(CONFIG).train()
    with cuda_graphs.replay(model):
        inner = model.forward
        model.forward = lambda **inputs: ["wrapped", inner(**inputs)]  # as accelerate does for autocast
        assert model(**batch()) == ["wrapped", "replayed"]
    name, found = model(**batch())
    assert name == "wrapped"
    assert found.loss > 0


def test_off_without_gpu_or_with_checkpointing_nothing_is_recorded(recorded, monkeypatch):
    model = BertForSequenceClassification(CONFIG).train()
    with cuda_graphs.replay(model, on=False):
        assert model(**batch()).loss > 0
    checkpointed = copy.deepcopy(model)
    with cuda_graphs.replay(checkpointed):
        checkpointed.gradient_checkpointing_enable()  # as Trainer does, when it begins to train
        assert checkpointed(**batch()).loss > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with cuda_graphs.replay(model):
        assert model(**batch()).loss > 0
    assert not recorded


def train(folder, on, accumulation=1, autocast=True, seed=1, compiled=False, **changes):
    torch.manual_seed(0)
    model = BertForSequenceClassification(BertConfig(**CONFIG.to_dict() | changes)).cuda()
    rows = [{name: value[0] for name, value in batch(1, 8 + 8 * (i // 4 % 2)).items()} for i in range(48)]
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
    trainer = Trainer(model, args, torch.utils.data.default_collate, train_dataset=rows)
    torch.manual_seed(seed)  # of dropout
    with cuda_graphs.replay(model, on, compiled):
        trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return losses, [p.detach().cpu() for p in model.parameters()]


@GPU
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_replayed_training_is_the_usual_one_dropout_included(tmp_path, accumulation, autocast):
    usual = train(tmp_path, False, accumulation, autocast)
    replayed = train(tmp_path, True, accumulation, autocast)
    assert usual[0] == replayed[0]
    assert all(torch.equal(one, other) for one, other in zip(usual[1], replayed[1], strict=True))


@GPU
def test_the_comparison_tells_another_training_from_it(tmp_path):
    assert train(tmp_path, False)[0] != train(tmp_path, False, seed=2)[0]


@GPU
def test_compiled_layers_train_the_same_up_to_rounding(tmp_path):
    settings = dict(autocast=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
    usual, compiled = train(tmp_path, False, **settings), train(tmp_path, True, compiled=True, **settings)
    assert usual[0] == pytest.approx(compiled[0], abs=1e-4)
    for one, other in zip(usual[1], compiled[1], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@GPU
def test_an_earlier_loss_that_is_still_held_does_not_matter():
    model = BertForSequenceClassification(CONFIG).cuda().train()
    inputs = {name: value.cuda() for name, value in batch().items()}
    held = model(**inputs).loss
    held.backward()
    model.zero_grad()
    with cuda_graphs.replay(model):
        model(**inputs).loss.backward()
    assert all(p.grad is not None for p in model.parameters())


@GPU
def test_what_is_no_tensor_is_refused_with_a_remedy():
    model = BertForSequenceClassification(CONFIG).cuda().train()
    usual = model.forward
    model.forward = lambda **inputs: (usual(**inputs).loss, object())
    inputs = {name: value.cuda() for name, value in batch().items()}
    with cuda_graphs.replay(model), pytest.raises(CourseError, match="without CUDA graphs"):
        model(**inputs)


@GPU
def test_all_shapes_share_their_memory():
    model = BertForSequenceClassification(CONFIG).cuda().train()
    taken = []
    for lengths in ((512,), (512, 504, 496, 488)):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        with cuda_graphs.replay(model):
            for length in lengths:
                inputs = {name: value.cuda() for name, value in batch(64, length).items()}
                model(**inputs).loss.backward()
        taken.append(torch.cuda.max_memory_reserved())
    assert taken[1] < 2 * taken[0]  # each for itself, they would take nearly four times as much


@GPU
def test_only_what_is_forgotten_gives_its_memory_back():
    model = BertForSequenceClassification(CONFIG).cuda().train()
    inputs = {name: value.cuda() for name, value in batch(64, 512).items()}
    with cuda_graphs.replay(model):
        loss = model(**inputs).loss.detach()
        reserved = [torch.cuda.memory_reserved()]
        for free in (lambda: None, cuda_graphs.forget):
            free()
            gc.collect()
            torch.cuda.empty_cache()
            reserved.append(torch.cuda.memory_reserved())
        assert model(**inputs).loss.isfinite()
    assert loss.isfinite()
    assert reserved[1] > 0.9 * reserved[0]
    assert reserved[2] < 0.3 * reserved[0]


class RetryTrainer(training.OutOfMemoryRetry, Trainer):
    """As in the lessons."""


@GPU
def test_out_of_memory_it_goes_on_with_half_of_the_rows(tmp_path, capsys):
    """64 rows take 2.5 GiB by the plan, 32 take 1.3; of 2.3, one is reserved before by what nobody uses any more."""
    torch.manual_seed(0)
    shape = dict(hidden_size=512, intermediate_size=2048, num_hidden_layers=4, num_attention_heads=8)
    model = BertForSequenceClassification(BertConfig(**CONFIG.to_dict() | shape)).cuda()
    rows = [{name: value[0] for name, value in batch(1, 256).items()} for _ in range(64)]
    settings = dict(per_device_train_batch_size=64, max_steps=2, report_to="none", save_strategy="no")
    trainer = RetryTrainer(model, TrainingArguments(tmp_path, **settings), train_dataset=rows)
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
