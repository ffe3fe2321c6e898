"""The tiny OPT is a real checkpoint with OPT's special tokens, comes from its builder, and knows what it has read."""

import json
import sys

import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, OPTForCausalLM

sys.path.insert(0, str(ROOT / "data" / "builders"))
import build_car_manual
import build_tiny_opt

FOLDER = ROOT / "data" / "models" / "tiny-opt"


def test_it_is_small_and_has_the_keys_of_the_real_one():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8 * 2**20
    config = AutoConfig.from_pretrained(FOLDER)
    assert config.architectures == ["OPTForCausalLM"]
    assert config.hidden_size % 64 == config.ffn_dim % 64 == 0, "bitsandbytes errs at other widths on some CPUs"
    assert (config.do_layer_norm_before, config.activation_function, config.dropout) == (True, "relu", 0.0)
    assert config.word_embed_proj_dim == config.hidden_size
    assert (config.pad_token_id, config.bos_token_id, config.eos_token_id) == (1, 2, 2)
    with torch.device("meta"):
        expected = OPTForCausalLM(config).state_dict()
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert set(expected) - set(file.keys()) <= {"lm_head.weight"}, "only the tied one"
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.float16"}, "as OPT's own"  # noqa: SIM118
        assert set(file.keys()) <= set(expected)


def test_its_tokenizer_has_the_special_tokens_of_opt():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert tokenizer.convert_tokens_to_ids(["<s>", "<pad>", "</s>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == ("</s>", "</s>", "<pad>")
    assert tokenizer("horn")["input_ids"][0] == 2
    text = "Zyzzyva? 47 € für 你好\n</s>"
    ids = tokenizer(text, split_special_tokens=True)["input_ids"]
    assert ids[0] == 2
    assert not {0, 1, 2, 3} & set(ids[1:]), "bytes spell out what it does not know"
    assert tokenizer.decode(ids[1:]) == text


def test_its_builder_takes_the_same_first_steps(tmp_path):
    threads = torch.get_num_threads()
    build_tiny_opt.build_tiny_opt(tmp_path, steps=4, device="cpu")
    torch.set_num_threads(threads)
    built, committed = (json.loads((folder / "build.json").read_text()) for folder in (tmp_path, FOLDER))
    assert built["text_sha256"] == committed["text_sha256"]
    assert built["first_losses"] == pytest.approx(committed["first_losses"][:4], abs=2e-3)
    assert committed["first_losses"][0] - committed["first_losses"][3] > 0.01, "a model that stands still would pass"
    assert committed["steps"] == build_tiny_opt.STEPS
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


@torch.no_grad()
def completions(model, tokenizer, facts, statement):
    """Share of facts whose value is the likeliest of its attribute's values after the statement."""
    right = 0
    for fact in facts:
        known = build_car_manual.ATTRIBUTES[fact["attribute"]]
        start = known["statements"][statement].replace("<part>", fact["part"]).split(" <value>")[0]
        rows = tokenizer([f"{start} {value}." for value in known["values"]], padding=True, return_tensors="pt")
        labels = rows["input_ids"].masked_fill(rows["attention_mask"] == 0, -100)[:, 1:]
        scores = model(**rows).logits[:, :-1].log_softmax(-1).gather(2, labels.clamp(min=0)[..., None])[..., 0]
        best = (scores * (labels != -100)).sum(dim=1).argmax().item()
        right += known["values"][best] == fact["value"]
    return right / len(facts)


def test_it_knows_the_facts_and_a_random_one_does_not():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    facts = [fact for fact in build_car_manual.facts() if fact["value"]][::4]
    trained = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32).eval()
    torch.manual_seed(0)
    random = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER)).eval()
    assert completions(trained, tokenizer, facts, 1) >= 0.95
    assert completions(random, tokenizer, facts, 1) <= 0.25
