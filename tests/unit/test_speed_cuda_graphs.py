"""CUDA graphs: what is captured and when. tests/gpu compares a replayed training with the usual one."""

import copy
import gc
import inspect
import weakref

import pytest
import torch
from small_models import BERT, bert_batch
from transformers import BertForSequenceClassification

from utils.errors import CourseError
from utils.speed import cuda_graphs


@pytest.fixture(autouse=True)
def forget_the_stream():
    """The stream of all captures is kept for the whole process; here it is a stand-in that no other test may meet."""
    cuda_graphs._capture_stream.cache_clear()
    yield
    cuda_graphs._capture_stream.cache_clear()


@pytest.fixture
def captures(monkeypatch):
    """One (shape of the batch, pool) for each capture, on a machine that is taken for one with a GPU."""
    captures = []

    class CapturedStep:
        def __init__(self, forward, arguments, parameters, memory):
            model = forward.__self__
            captures.append((arguments.leaves[0].shape, memory.pool))
            learning = {id(p) for p in model.parameters() if p.requires_grad}
            assert learning == {id(p) for p in parameters}

        def replay(self, trained, tensors):
            return "replayed"

    monkeypatch.setattr(cuda_graphs, "_CapturedStep", CapturedStep)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "MemPool", object)
    for name in ("Stream", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)
    return captures


@pytest.fixture
def model():
    return BertForSequenceClassification(BERT).train()


def is_compiled(layers):
    return [layer._compiled_call_impl is not None for layer in layers]


def test_each_shape_is_captured_once_and_only_training_is_replayed(captures, model):
    with cuda_graphs.replay(model):
        assert [model(**bert_batch(length=length)) for length in (8, 16, 8)] == ["replayed"] * 3
        assert len(captures) == 2
        with torch.no_grad():
            assert model(**bert_batch()).loss > 0
        assert model.eval()(**bert_batch()).loss > 0
        parameters = inspect.signature(model.forward).parameters
    assert "labels" in parameters  # by these, Trainer knows which columns the model takes
    assert model.train()(**bert_batch()).loss > 0
    assert len(captures) == 2


def test_what_is_no_tensor_belongs_to_the_shape(captures, model):
    batch = bert_batch()
    with cuda_graphs.replay(model):
        for flag in (True, False, True):
            model(**batch, output_hidden_states=flag)
        model(*batch.values())
    assert len(captures) == 3


def test_inputs_that_need_a_gradient_run_as_usual(captures, model):
    embedded = torch.randn(4, 8, 32, requires_grad=True)
    with cuda_graphs.replay(model):
        model(inputs_embeds=embedded, labels=torch.zeros(4, dtype=torch.long)).loss.backward()
    assert embedded.grad.abs().sum() > 0
    assert not captures


def test_beyond_the_most_shapes_it_runs_as_usual(captures, model, monkeypatch):
    monkeypatch.setattr(cuda_graphs, "MAX_SHAPES", 1)
    with cuda_graphs.replay(model):
        assert model(**bert_batch(length=8)) == "replayed"
        assert model(**bert_batch(length=9)).loss > 0
        assert model(**bert_batch(length=8)) == "replayed"


def test_the_parameters_are_back_after_a_capture_also_if_it_fails(captures, model, monkeypatch):
    before = dict(model.named_parameters())
    with cuda_graphs.replay(model):
        model(**bert_batch())
        monkeypatch.setattr(cuda_graphs, "_CapturedStep", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            model(**bert_batch(length=9))
    assert all(parameter is before[name] for name, parameter in model.named_parameters())


def test_what_is_forgotten_is_captured_anew_in_new_memory(captures, model):
    with cuda_graphs.replay(model):
        model(**bert_batch(length=8))
        model(**bert_batch(length=9))
        cuda_graphs.forget()
        model(**bert_batch(length=8))
        model(**bert_batch(length=8))
    assert [shape[1] for shape, _ in captures] == [8, 9, 8]
    pools = [pool for _, pool in captures]
    assert pools[0] is pools[1]
    assert pools[1] is not pools[2]
    cuda_graphs.forget()  # nothing is captured


def test_an_error_leaves_the_model_as_it_was(captures, model):
    with pytest.raises(ZeroDivisionError), cuda_graphs.replay(model):
        1 / 0  # noqa: B018 (it stands for a training that fails)
    assert "forward" not in vars(model)


def test_a_forward_that_somebody_had_set_comes_back(captures, model):
    usual = model.forward

    def forward(**inputs):
        return usual(**inputs)

    model.forward = forward
    with cuda_graphs.replay(model):
        assert model.forward is not forward
    assert model.forward is forward


def test_behind_the_block_nothing_keeps_the_model_alive(captures):
    model = BertForSequenceClassification(BERT).train()
    with cuda_graphs.replay(model):
        model(**bert_batch())
    gc.collect()
    gc.disable()  # what waits for the garbage collector waits with its memory
    try:
        alive = weakref.ref(model)
        del model
        assert alive() is None
    finally:
        gc.enable()


def test_layers_are_compiled_for_the_capture_only(captures, model, monkeypatch):
    layers = model.bert.encoder.layer
    seen = []
    captured_step = cuda_graphs._CapturedStep

    def look(*arguments):
        seen.extend(is_compiled(layers))
        return captured_step(*arguments)

    monkeypatch.setattr(cuda_graphs, "_CapturedStep", look)
    with cuda_graphs.replay(model, compiled=True):
        model(**bert_batch())
        assert is_compiled(layers) == [False, False]
    assert seen == [True, True]
    assert is_compiled(layers) == [False, False]


def test_what_wrapped_it_meanwhile_stays_and_nothing_is_replayed_any_more(captures, model):
    with cuda_graphs.replay(model):
        inner = model.forward
        model.forward = lambda **inputs: ["wrapped", inner(**inputs)]  # as accelerate does for autocast
        assert model(**bert_batch()) == ["wrapped", "replayed"]
    name, output = model(**bert_batch())
    assert name == "wrapped"
    assert output.loss > 0


def test_off_without_gpu_or_with_checkpointing_nothing_is_captured(captures, model, monkeypatch):
    with cuda_graphs.replay(model, on=False):
        assert model(**bert_batch()).loss > 0
    checkpointed = copy.deepcopy(model)
    with cuda_graphs.replay(checkpointed):
        checkpointed.gradient_checkpointing_enable()  # as Trainer does, when it begins to train
        assert checkpointed(**bert_batch()).loss > 0
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with cuda_graphs.replay(model):
        assert model(**bert_batch()).loss > 0
    assert not captures


class NoGraph:
    """Stands for torch.cuda.CUDAGraph: a machine without a GPU captures nothing, and computes while it captures."""

    def replay(self):
        pass


class NoContext:
    """Stands for what torch.cuda offers as context managers."""

    def __init__(self, *args, **kwargs):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return False


class NoStream:
    def wait_stream(self, stream):
        pass


class NoPool:
    id = (0, 0)


def test_a_step_is_taken_apart_and_put_together_again(monkeypatch, model):
    """All but the GPU: a step returns the outputs of its capture, and the true parameters get its gradients."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", NoGraph)
    monkeypatch.setattr(torch.cuda, "MemPool", NoPool)
    monkeypatch.setattr(torch.cuda, "Stream", NoStream)
    for name in ("stream", "use_mem_pool", "graph"):
        monkeypatch.setattr(torch.cuda, name, NoContext)
    monkeypatch.setattr(torch.cuda, "current_stream", NoStream)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    monkeypatch.setattr(torch, "autocast", NoContext)
    monkeypatch.setattr(torch.random, "fork_rng", NoContext)
    monkeypatch.setattr(torch, "empty_like", torch.ones_like)  # the gradients of the outputs while it is captured
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    batch = bert_batch()
    usual = model(**batch)
    (usual.loss + usual.logits.sum()).backward()
    expected = {name: parameter.grad for name, parameter in model.named_parameters()}
    model.zero_grad()
    with cuda_graphs.replay(model):
        output = model(**batch)
        assert torch.equal(output.loss, usual.loss)
        assert torch.equal(output.logits, usual.logits)
        output.loss.backward()
    assert any(gradient is not None and gradient.abs().sum() > 0 for gradient in expected.values())
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, expected[name])


def test_what_is_no_tensor_is_refused_before_it_is_captured(monkeypatch, model):
    usual = model.forward
    model.forward = lambda **inputs: (usual(**inputs).loss, object())
    step = object.__new__(cuda_graphs._CapturedStep)
    step.usual_forward = model.forward
    step.arguments = cuda_graphs._Arguments((), bert_batch())
    step.inputs = step.arguments.tensors()
    with pytest.raises(CourseError, match=r"returns object; train without CUDA graphs\.$"):
        step._run()
