"""The checks around 4-bit bases and adapters: each against the fault of the real stack that it is there to prevent."""

import json

import bitsandbytes.functional
import pytest
import torch
from bitsandbytes.functional import has_avx512bf16
from bitsandbytes.nn import Linear4bit
from conftest import ROOT, refusal
from peft import LoraConfig, get_peft_model, prepare_model_for_kbit_training
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BitsAndBytesConfig

from utils import session
from utils.training import adapters

TINY = ROOT / "data" / "models" / "tiny-bert"
BATCH = {"input_ids": torch.arange(5, 29).reshape(2, 12), "attention_mask": torch.ones(2, 12, dtype=torch.long)}
BATCH |= {"labels": torch.tensor([0, 1])}
TARGETS = ["query", "key", "value", "dense"]
repacks = pytest.mark.skipif(not has_avx512bf16(), reason="only CPUs with AVX512-BF16 repack 4-bit weights")


def quantized(folder=TINY, skip=("classifier",), dtype=torch.float32, keep=True):
    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.float32,
        llm_int8_skip_modules=list(skip) or None,
    )
    load = AutoModelForSequenceClassification.from_pretrained
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitsandbytes.nn.modules, "has_avx512bf16", has_avx512bf16)
        if keep:
            adapters.keep_trainable()
        return load(folder, num_labels=5, quantization_config=config, dtype=dtype)


def adapter(model, **changes):
    model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    return get_peft_model(model, LoraConfig(**{"task_type": "SEQ_CLS", "target_modules": TARGETS} | changes))


def test_a_quantized_head_is_refused_and_the_cure_works():
    broken = quantized(skip=())
    assert isinstance(broken.classifier, Linear4bit)
    with pytest.raises(AssertionError):
        broken(**BATCH)
    assert "llm_int8_skip_modules=['classifier']" in refusal(adapters.check_quantized, broken)
    cured = quantized()
    layers = adapters.check_quantized(cured)
    assert len(layers) == 6 * cured.config.num_hidden_layers + 1  # and the pooler
    assert not isinstance(cured.classifier, Linear4bit)
    assert cured(**BATCH).loss > 0


def test_a_model_without_4_bits_is_refused():
    model = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=5, dtype=torch.float32)
    assert "quantization_config" in refusal(adapters.check_quantized, model)


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """A checkpoint whose widths are no multiples of 64: repacking fails in the evaluation already."""
    folder = tmp_path_factory.mktemp("narrow")
    config = AutoConfig.for_model(
        "bert", hidden_size=96, num_hidden_layers=1, num_attention_heads=2, intermediate_size=160, vocab_size=64
    )
    AutoModelForSequenceClassification.from_config(config).base_model.save_pretrained(folder)
    return folder


def train_evaluate_train(model):
    model.train()(**BATCH).loss.backward()
    with torch.no_grad():
        model.eval()(**BATCH)
    model.train()(**BATCH).loss.backward()


def test_training_goes_on_after_an_evaluation(narrow):
    for folder in (TINY, narrow):
        train_evaluate_train(adapter(quantized(folder)))


def test_no_layer_repacks_its_weights():
    for layer in adapters.linear4bit(quantized()).values():
        assert not layer.support_avx512bf16_for_cpu


@repacks
def test_without_the_helper_it_does_not(narrow):
    model = quantized(keep=False)
    assert "keep_trainable" in refusal(adapters.check_quantized, model)
    with pytest.raises(RuntimeError):
        train_evaluate_train(adapter(model))
    with pytest.raises(RuntimeError, match="invalid for input of size"), torch.no_grad():
        quantized(narrow, keep=False).eval()(**BATCH)


def by_hand(packed, state):
    """Dequantization that counts blocks of 64 through the whole matrix, as quantization does."""
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten()[: state.shape.numel()]
    return (state.code[codes.int()] * state.absmax.repeat_interleave(64)[: len(codes)]).view(state.shape)


@pytest.mark.parametrize("width", [32, 48, 64, 80, 96, 128, 160, 192, 320, 768, 1008, 1024])
def test_wrong_widths_are_found_by_comparison(width):
    weights = torch.randn(64, width, generator=torch.Generator().manual_seed(0))
    packed, state = bitsandbytes.functional.quantize_4bit(weights, quant_type="nf4")
    right = torch.equal(bitsandbytes.functional.dequantize_4bit(packed, state), by_hand(packed, state))
    assert adapters.unpacks_rightly(width, torch.device("cpu")) == right
    assert right or width % 64 != 0, "all widths of the course are multiples of 64"


def test_a_width_that_comes_back_wrong_is_refused(monkeypatch):
    model = quantized()
    monkeypatch.setattr(adapters, "unpacks_rightly", lambda width, device: width != 768)
    assert "rows of 768 wrongly" in refusal(adapters.check_quantized, model)
    assert "multiples of 64" in refusal(adapters.check_quantized, model)


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"target_modules": ["q_proj"]}, ["'q_proj'", "query", "value"]),
        ({"target_modules": ["query", "valu"]}, ["'valu'", "closest: 'value'"]),  # PEFT alone says nothing here
        ({"target_modules": TARGETS, "modules_to_save": ["decode_head"]}, ["'decode_head'", "classifier"]),  # nor here
        ({"target_modules": ".*attention.self.q"}, [".*attention.self.q"]),
    ],
)
def test_names_that_no_module_has_are_refused(changes, parts):
    model = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=5)
    message = refusal(adapters.check_targets, model, LoraConfig(task_type="SEQ_CLS", **changes))
    assert not [part for part in parts if part not in message], message


@pytest.mark.parametrize("targets", [TARGETS, "all-linear", ".*attention.self.(query|value)", ["self.query"]])
def test_names_that_exist_are_accepted(targets):
    model = AutoModelForSequenceClassification.from_pretrained(TINY, num_labels=5)
    config = LoraConfig(task_type="SEQ_CLS", target_modules=targets, modules_to_save=["classifier"])
    adapters.check_targets(model, config)
    get_peft_model(model, config)
    assert "score" in config.modules_to_save  # PEFT put it there, and BERT has none
    adapters.check_targets(model, config)


def test_the_fingerprint_knows_its_base_in_every_type_and_refuses_others(tmp_path):
    model = adapter(quantized(dtype=torch.bfloat16))
    adapters.save_fingerprint(model, tmp_path)
    load = AutoModelForSequenceClassification.from_pretrained
    for same in (
        quantized(dtype=torch.float16),
        load(TINY, num_labels=2, dtype=torch.float32),  # the head is not part of it
        adapter(quantized(), r=2),
        get_peft_model(load(TINY, dtype=torch.float32), LoraConfig(target_modules="all-linear", r=1)),
    ):
        adapters.check_base(same, tmp_path)
    config = AutoConfig.from_pretrained(TINY, num_labels=5)
    torch.manual_seed(1)
    assert "another base" in refusal(
        adapters.check_base, AutoModelForSequenceClassification.from_config(config), tmp_path
    )
    for name in ("word_embeddings.weight", "output.LayerNorm.bias"):  # equal but for one tensor
        other = load(TINY, num_labels=5, dtype=torch.float32)
        changed = [p for n, p in other.named_parameters() if n.endswith(name)][-1]
        changed.data += 0.1 * changed.std()
        assert name in refusal(adapters.check_base, other, tmp_path)
    other = load(TINY, dtype=torch.float32)
    for module in other.bert.encoder.modules():
        if isinstance(module, torch.nn.Linear):
            # embeddings and norms stay right
            module.weight.data = module.weight.data.flatten()[torch.randperm(module.weight.numel())].view_as(
                module.weight
            )
    assert "query.weight differs" in refusal(adapters.check_base, other, tmp_path)
    config.hidden_size, config.intermediate_size = config.hidden_size * 2, 64
    small = AutoModelForSequenceClassification.from_config(config)
    assert "another base" in refusal(adapters.check_base, small, tmp_path)


def test_another_tokenizer_beside_an_adapter_is_refused(tmp_path):
    model = adapter(quantized())
    AutoTokenizer.from_pretrained(TINY).save_pretrained(tmp_path)
    adapters.save_fingerprint(model, tmp_path)
    adapters.check_base(model, tmp_path)
    vocabulary = json.loads((tmp_path / "tokenizer.json").read_text())
    words = vocabulary["model"]["vocab"]  # as many words, the same numbers, two of them exchanged
    one, two = [*words][-2:]
    words[one], words[two] = words[two], words[one]
    (tmp_path / "tokenizer.json").write_text(json.dumps(vocabulary))
    assert "tokenizer.json is not the one" in refusal(adapters.check_base, model, tmp_path)


def test_training_does_not_change_the_fingerprint():
    model = adapter(quantized())
    before = adapters.fingerprint(model)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()(**BATCH).loss.backward()
    optimizer.step()
    assert adapters.fingerprint(model) == before
    assert len(json.dumps(before)) < 20_000


def test_a_fingerprint_of_more_values_than_float32_can_count():
    model = torch.nn.Module()
    model.embed = torch.nn.Parameter(torch.zeros(2**24 + 4), requires_grad=False)
    model.embed[-1] = 7.0
    assert adapters.fingerprint(model)["embed"]["values"] == [0.0] * 7 + [7.0]


def test_a_missing_fingerprint_is_a_sentence(tmp_path):
    assert "save_fingerprint" in refusal(adapters.check_base, quantized(), tmp_path)


@pytest.mark.parametrize(
    ("card", "dtype", "part"),
    [
        (None, "float16", 'PROFILE = "tiny"'),
        (None, "bfloat16", 'PROFILE = "tiny"'),
        ((7, 5), "bfloat16", 'PROFILE = "colab"'),
        (None, "float32", ""),
        ((7, 5), "float16", ""),
        ((8, 0), "bfloat16", ""),
    ],
)
def test_the_compute_type_is_judged_by_the_generation_of_the_card(monkeypatch, card, dtype, part):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: card is not None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *args: True)  # torch says so of a T4 as well
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: card)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    if part:
        assert part in refusal(session.check_dtype, dtype)
    else:
        session.check_dtype(dtype)
