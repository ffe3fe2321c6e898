"""speed.apply: finds where a lever belongs, says what is on, changes no result, and takes everything back."""

import contextlib
import subprocess
import sys

import flash_on_cpu
import pytest
import torch
from conftest import refusal
from peft import LoraConfig, get_peft_model
from small_models import BERT, gemma2_batch, gemma2_classifier, loss_logits_and_gradients
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    MT5Config,
    MT5ForConditionalGeneration,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from utils import meter, speed
from utils.paths import ROOT
from utils.speed import cuda_graphs, flash, last_token, proof, t5_bias
from utils.training import OutOfMemoryRetry

MODELS = ROOT / "data" / "models"


@pytest.fixture(autouse=True)
def forget_the_stream():
    """The stream of all captures is kept for the whole process; here it is a stand-in that no other test may meet."""
    cuda_graphs._capture_stream.cache_clear()
    yield
    cuda_graphs._capture_stream.cache_clear()


def tiny_t5(attention="sdpa"):
    model = AutoModelForSeq2SeqLM.from_pretrained(MODELS / "tiny-t5", attn_implementation=attention, dropout_rate=0.0)
    return model.train()


def tiny_opt():
    return AutoModelForCausalLM.from_pretrained(MODELS / "tiny-opt", dropout=0.0).train()


def tiny_gemma2():
    torch.manual_seed(0)  # of the head
    base = AutoModelForSequenceClassification.from_pretrained(
        MODELS / "tiny-gemma-2", num_labels=3, attn_implementation="eager", dtype=torch.float32
    )
    base.config.pad_token_id = 0
    return base.train()


def with_lora(base, task, *targets):
    torch.manual_seed(0)
    config = LoraConfig(task_type=task, r=4, target_modules=list(targets), init_lora_weights=False)
    return get_peft_model(base, config)


def padded_batch(labels_for_each_token):
    """Three rows, the second with padding on the right."""
    ids = torch.randint(5, 60, (3, 24), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    ids[1, 15:] = 0
    labels = torch.tensor([0, 1, 2])
    if labels_for_each_token:
        labels = ids.masked_fill(mask == 0, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def loss_and_gradients(model, batch):
    model.zero_grad()
    loss = model(**batch).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    gradients["loss"] = loss.detach()
    return gradients


def assert_same(one, other, **tolerance):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, msg=name, **tolerance)


def attentions(model):
    """The attention of the model and of all its parts that have a configuration."""
    return {part.config._attn_implementation for part in model.modules() if hasattr(part, "config")}


@pytest.fixture
def gpu(monkeypatch):
    """A machine that is taken for one with a GPU."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "MemPool", object)
    for name in ("Stream", "empty_cache"):
        monkeypatch.setattr(torch.cuda, name, lambda: None)


def test_importing_it_imports_no_lever():
    code = "import sys, utils.speed; print([name for name in sys.modules if name.startswith('utils.speed.')])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_an_unknown_name_is_refused_with_the_closest(capsys):
    message = refusal(speed.apply, torch.nn.Linear(1, 1), ["cuda_graph"])
    assert message.startswith(
        "speed: 'cuda_graph' is not known (closest: 'cuda_graphs'); choose from: shared_position_bias,"
    )
    assert capsys.readouterr().out == ""


def test_two_ways_to_run_layers_are_refused():
    message = refusal(speed.apply, torch.nn.Linear(1, 1), ["cuda_graphs", "compiled_layers"])
    assert message.startswith("speed: compiled_layers and cuda_graphs exclude each other;")
    assert '"compiled_graphs"' in message


def test_no_names_say_nothing_and_one_name_needs_no_list(capsys):
    with speed.apply(tiny_opt(), []):
        assert capsys.readouterr().out == ""
    with speed.apply(tiny_opt(), "no_padding_mask"):
        assert capsys.readouterr().out == "Speed levers on: no_padding_mask.\n"


def test_one_line_says_what_is_on_and_what_is_not_and_why(capsys):
    model = BertForSequenceClassification(BERT)
    before = dict(vars(model))
    with speed.apply(model, speed.LEVERS.keys() - set(speed.ONE_OF) | {"cuda_graphs"}):
        assert vars(model) == before
    assert capsys.readouterr().out == (
        "Speed levers on: none; not on: shared_position_bias (only T5 has a position bias that all layers share), "
        "flash_attention (not a causal decoder), last_token (only for classifiers of Gemma-2), "
        "no_padding_mask (not a causal decoder), cuda_graphs (no GPU here).\n"
    )
    with speed.apply(tiny_gemma2(), ["flash_attention", "last_token", "compiled_layers"]):
        assert capsys.readouterr().out == (
            "Speed levers on: last_token; not on: flash_attention (no GPU here), compiled_layers (no GPU here).\n"
        )


@pytest.mark.parametrize("fails", [False, True])
def test_the_order_is_fixed_and_everything_is_taken_back_also_after_an_error(fails, monkeypatch):
    calls = []

    def lever(name):
        @contextlib.contextmanager
        def note(base):
            if fails and name == "cuda_graphs":
                raise ZeroDivisionError
            calls.append(name)
            try:
                yield
            finally:
                calls.append(f"{name} back")

        return note

    names = ["cuda_graphs", "no_padding_mask", "shared_position_bias"]
    monkeypatch.setattr(speed, "LEVERS", {name: lever(name) for name in speed.LEVERS})
    monkeypatch.setattr(speed, "REPLACE_A_PART", ())  # there is no model to prove them on
    if fails:
        with pytest.raises(ZeroDivisionError):
            speed.apply(torch.nn.Linear(1, 1), names)
        on = ["shared_position_bias", "no_padding_mask"]
    else:
        levers = speed.apply(torch.nn.Linear(1, 1), names)
        on = ["shared_position_bias", "no_padding_mask", "cuda_graphs"]
        assert calls == on
        levers.close()
    assert calls == on + [f"{name} back" for name in reversed(on)]


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_shared_bias_on_a_loaded_model_is_as_if_it_had_been_loaded_with_it(wrapped, monkeypatch):
    joined = []
    create = t5_bias.create_position_bias_mask
    monkeypatch.setattr(t5_bias, "create_position_bias_mask", lambda *given: joined.append(1) or create(*given))
    batch = padded_batch(labels_for_each_token=True)
    models = {"sdpa": tiny_t5(), "applied": tiny_t5(), "loaded": tiny_t5(t5_bias.share_position_bias())}
    if wrapped:
        models = {name: with_lora(model, "SEQ_2_SEQ_LM", "q", "v") for name, model in models.items()}
    usual = loss_and_gradients(models["sdpa"], batch)
    loaded = loss_and_gradients(models["loaded"], batch)
    joined_by_loaded = len(joined)
    with speed.apply(models["applied"], ["shared_position_bias"]):
        joined.clear()  # without those of the proof
        assert attentions(models["applied"]) == attentions(models["loaded"]) == {t5_bias.SHARED_BIAS}
        applied = loss_and_gradients(models["applied"], batch)
        assert len(joined) == joined_by_loaded > 0
        bytes_applied = meter.saved_bytes(models["applied"], batch)
    assert_same(loaded, applied, rtol=0, atol=0)
    assert_same(usual, applied, rtol=1e-4, atol=1e-6)
    assert bytes_applied == meter.saved_bytes(models["loaded"], batch) < meter.saved_bytes(models["sdpa"], batch)
    assert attentions(models["applied"]) == {"sdpa"}
    assert_same(usual, loss_and_gradients(models["applied"], batch), rtol=0, atol=0)


def test_mt5_shares_its_bias_too(capsys):
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 64,
        "d_model": 32,
        "d_kv": 16,
        "d_ff": 64,
        "num_layers": 3,
        "num_heads": 2,
        "dropout_rate": 0.0,
    }
    model = MT5ForConditionalGeneration(MT5Config(**sizes)).train()
    batch = padded_batch(labels_for_each_token=True)
    usual = loss_and_gradients(model, batch)
    with speed.apply(model, ["shared_position_bias"]):
        assert_same(usual, loss_and_gradients(model, batch), rtol=1e-4, atol=1e-6)
    assert capsys.readouterr().out == "Speed levers on: shared_position_bias.\n"


def test_flash_attention_on_a_loaded_model_is_as_if_it_had_been_loaded_with_it(monkeypatch):
    flash_on_cpu.register()
    monkeypatch.setattr(flash, "why_not", lambda: "")
    batch = gemma2_batch(24)
    usual = loss_logits_and_gradients(gemma2_classifier("eager", head_dim=32), batch)
    loaded = loss_logits_and_gradients(gemma2_classifier(flash.compiled_flash(), head_dim=32), batch)
    model = gemma2_classifier("eager", head_dim=32, use_cache=True)
    with speed.apply(model, ["flash_attention"]):
        assert attentions(model) == {flash.FLASH}
        applied = loss_logits_and_gradients(model, batch)
        with pytest.raises(RuntimeError, match="needs padding on the right"):
            model(**gemma2_batch(24, left=True))
    for one, same, close in zip(applied, loaded, usual, strict=True):
        assert torch.equal(one, same)
        torch.testing.assert_close(one, close, rtol=1e-3, atol=1e-4)
    assert attentions(model) == {"eager"}
    assert model.config.use_cache is True


def test_flash_attention_is_not_for_a_model_with_dropout_in_its_attention(capsys, monkeypatch):
    monkeypatch.setattr(flash, "why_not", lambda: "")
    with speed.apply(gemma2_classifier("eager", attention_dropout=0.1), ["flash_attention"]):
        assert "flash_attention (attention_dropout is not 0)" in capsys.readouterr().out


@pytest.mark.parametrize("wrapped", [False, True])
def test_without_a_padding_mask_loss_and_gradients_are_the_same(wrapped):
    model = tiny_opt()
    if wrapped:
        model = with_lora(model, "CAUSAL_LM", "q_proj", "v_proj")
    batch = padded_batch(labels_for_each_token=True)
    seen = []
    decoder = (model.get_base_model() if wrapped else model).model.decoder
    forward = decoder.forward

    def look(*args, **kwargs):
        seen.append(kwargs["attention_mask"])
        return forward(*args, **kwargs)

    decoder.forward = look
    usual = loss_and_gradients(model, batch)
    levers = speed.apply(model, ["no_padding_mask"])
    del seen[1:]  # those of the proof
    assert_same(usual, loss_and_gradients(model, batch), rtol=1e-4, atol=1e-6)
    levers.close()
    assert_same(usual, loss_and_gradients(model, batch), rtol=0, atol=0)
    assert [mask is None for mask in seen] == [False, True, False]


@pytest.mark.parametrize("names", [["last_token"], ["no_padding_mask", "last_token"]], ids=str)
def test_the_last_token_alone_gives_the_same_loss_and_gradients_behind_peft_too(names):
    model = with_lora(tiny_gemma2(), "SEQ_CLS", "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj")
    batch = padded_batch(labels_for_each_token=False)
    usual = loss_and_gradients(model, batch)
    usual_bytes = meter.saved_bytes(model, batch)
    with speed.apply(model, names):
        applied = loss_and_gradients(model, batch)
        assert meter.saved_bytes(model, batch) < usual_bytes
    assert_same(usual, applied, rtol=1e-3, atol=1e-5)
    assert_same(usual, loss_and_gradients(model, batch), rtol=0, atol=0)
    assert not isinstance(model.get_base_model().model.layers[-1], last_token.LastTokenLayer)
    assert model.get_base_model().config.use_cache is True


@pytest.mark.parametrize("name", ["compiled_layers", "compiled_checkpoints"])
def test_all_layers_are_compiled_but_for_one_that_computes_the_last_token_only(name, gpu, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: compiled.append(function) or function)
    model = with_lora(tiny_gemma2(), "SEQ_CLS", "q_proj", "v_proj")
    layers = model.get_base_model().model.layers
    batch = padded_batch(labels_for_each_token=False)
    usual = loss_and_gradients(model, batch)
    with speed.apply(model, ["last_token", name]):
        changed = [layer for layer in layers if "_compiled_call_impl" in vars(layer) or "forward" in vars(layer)]
        assert changed == list(layers[:-1])
        assert_same(usual, loss_and_gradients(model, batch), rtol=1e-3, atol=1e-5)
    assert compiled
    assert not [layer for layer in layers if "_compiled_call_impl" in vars(layer) or "forward" in vars(layer)]
    assert_same(usual, loss_and_gradients(model, batch), rtol=0, atol=0)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(("name", "compiled"), [("cuda_graphs", False), ("compiled_graphs", True)])
def test_graphs_go_around_all_but_the_loss(name, compiled, wrapped, gpu, monkeypatch, capsys):
    graphed = []

    @contextlib.contextmanager
    def replay(module, on=True, compiled=False):
        graphed.append((module, on, compiled))
        yield

    monkeypatch.setattr(cuda_graphs, "replay", replay)
    opt, t5, bert = tiny_opt(), tiny_t5(), BertForSequenceClassification(BERT)
    models = [opt, t5, bert]
    if wrapped:
        models = [
            with_lora(opt, "CAUSAL_LM", "q_proj"),
            with_lora(t5, "SEQ_2_SEQ_LM", "q"),
            with_lora(bert, "SEQ_CLS", "query"),
        ]
    for model in models:
        with speed.apply(model, [name]):
            assert capsys.readouterr().out == f"Speed levers on: {name}.\n"
    assert graphed == [(opt.model, True, compiled), (t5, True, compiled), (bert, True, compiled)]


def test_a_model_trains_by_the_graphs_until_they_are_taken_back(gpu, monkeypatch):
    class CapturedStep:
        def __init__(self, *arguments):
            pass

        def replay(self, trained, tensors):
            return "replayed"

    monkeypatch.setattr(cuda_graphs, "_CapturedStep", CapturedStep)
    model = BertForSequenceClassification(BERT).train()
    batch = {"input_ids": torch.ones(2, 4, dtype=torch.long), "labels": torch.tensor([0, 1])}
    levers = speed.apply(model, ["cuda_graphs"])
    assert model(**batch) == "replayed"
    levers.close()
    assert model(**batch).loss > 0


# ---- the proof on the reader's own model


def test_a_lever_that_changes_the_answers_is_not_applied(monkeypatch, capsys):
    """The fault that the proof is for: a Gemma 3 that is run by the layer of a Gemma-2."""
    from transformers.models.gemma2 import modeling_gemma2

    monkeypatch.setattr(modeling_gemma2, "eager_attention_forward", answers_of_another_model)
    base = tiny_gemma2()
    usual = base.eval()(**padded_batch(False)).logits
    layer = type(base.model.layers[-1])
    speed.apply(base, ["last_token"])
    line = capsys.readouterr().out
    assert line.startswith("Speed levers on: none; not on: last_token (with it this model answers differently: by ")
    assert type(base.model.layers[-1]) is layer
    assert torch.equal(base.eval()(**padded_batch(False)).logits, usual)


def answers_of_another_model(module, query, key, value, mask, **kwargs):
    """Attention that forgets to cap its scores where there is one query a row."""
    from transformers.models.llama.modeling_llama import eager_attention_forward

    scaling = kwargs["scaling"] * (3 if query.shape[2] == 1 else 1)
    return eager_attention_forward(module, query, key, value, mask, scaling=scaling, dropout=0.0)


def test_the_proof_leaves_nothing_behind():
    base = tiny_opt()
    base.model.decoder.layers[0].eval()
    modes = [module.training for module in base.modules()]
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with speed.apply(base, ["no_padding_mask"]):
        assert [module.training for module in base.modules()] == modes
    assert torch.rand(1) == expected
    assert all(parameter.grad is None for parameter in base.parameters())


@pytest.mark.parametrize("build", [tiny_opt, tiny_t5, tiny_gemma2])
def test_the_proof_compares_answers_of_real_tokens(build):
    """The same model twice gives the same numbers, another one does not, and padding is left out."""
    one = build()
    numbers = proof.outputs(one)
    assert proof.difference(numbers, proof.outputs(build())) < 1e-5
    if numbers.dim() == 2 and numbers.shape[0] != proof.ROWS:
        assert numbers.shape[0] == proof.ROWS * proof.TOKENS - proof.PADDING
    with torch.no_grad():
        next(one.parameters()).mul_(1.5)
    assert proof.difference(numbers, proof.outputs(one)) > proof.tolerance(one)


def test_the_proof_runs_where_a_head_in_float32_stands_on_a_base_in_16_bits():
    """As after prepare_model_for_kbit_training or with PEFT's modules_to_save: it works in mixed precision only."""
    base = tiny_gemma2().to(torch.bfloat16)
    base.score.float()
    with pytest.raises(RuntimeError, match="same dtype"):
        base.eval()(**padded_batch(False))
    with speed.apply(base, ["last_token"]):
        assert type(base.model.layers[-1]).__name__ == "LastTokenLayer"


# ---- the callback


def trained(levers, tmp_path, fails=False):
    """A Gemma-2 classifier after two steps with these levers, and what was on in the first one."""
    model = gemma2_classifier("eager")
    seen = []

    class Look(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            seen.append(type(model.model.layers[-1]).__name__)
            if fails:
                raise RuntimeError("on purpose")

    rows = [{name: tensor[row] for name, tensor in gemma2_batch(20).items()} for row in range(3)]
    args = TrainingArguments(
        tmp_path, max_steps=2, per_device_train_batch_size=3, report_to="none", use_cpu=True, save_strategy="no"
    )

    class Retry(OutOfMemoryRetry, Trainer):
        pass

    trainer = Retry(model=model, args=args, train_dataset=rows, callbacks=[speed.DuringTraining(levers), Look()])
    if fails:
        with pytest.raises(RuntimeError, match="on purpose"):
            trainer.train()
    else:
        trainer.train()
    return model, seen


def test_levers_are_on_while_a_training_runs_and_change_no_weight(tmp_path):
    usual, seen = trained([], tmp_path)
    assert seen == ["Gemma2DecoderLayer"] * 2
    fast, seen = trained(["last_token"], tmp_path)
    assert seen == ["LastTokenLayer"] * 2
    assert type(fast.model.layers[-1]).__name__ == "Gemma2DecoderLayer"
    for one, other in zip(usual.parameters(), fast.parameters(), strict=True):
        torch.testing.assert_close(one, other, atol=2e-4, rtol=0)


def test_a_training_that_fails_leaves_no_lever(tmp_path):
    model, seen = trained(["last_token"], tmp_path, fails=True)
    assert seen == ["LastTokenLayer"]
    assert type(model.model.layers[-1]).__name__ == "Gemma2DecoderLayer"


def test_the_callback_refuses_an_unknown_name_at_once():
    assert "closest: 'last_token'" in refusal(speed.DuringTraining, ["last_tokens"])
