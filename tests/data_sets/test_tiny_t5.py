"""The tiny T5 is a real checkpoint with a Unigram tokenizer, and its builder takes the same first steps."""

import hashlib
import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from datasets import load_dataset
from safetensors import safe_open
from transformers import AutoConfig, AutoTokenizer, T5ForConditionalGeneration

sys.path.insert(0, str(ROOT / "data" / "builders"))
import build_tiny_t5

FOLDER = ROOT / "data" / "models" / "tiny-t5"


def test_it_is_small_and_has_the_keys_of_the_real_one():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8 * 2**20
    config = AutoConfig.from_pretrained(FOLDER)
    for width in (config.d_model, config.d_ff, config.d_kv * config.num_heads):
        assert width % 64 == 0, "bitsandbytes errs at others on some CPUs"
    assert config.tie_word_embeddings
    assert config.dense_act_fn == "relu"
    with torch.device("meta"):
        expected = set(T5ForConditionalGeneration(config).state_dict())
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert set(file.keys()) <= expected
        tied = {"lm_head.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"}
        assert expected - set(file.keys()) <= tied


def test_the_tokenizer_is_unigram_and_knows_the_bills():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert json.loads((FOLDER / "tokenizer.json").read_text())["model"]["type"] == "Unigram"
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id) == (0, 1, 2)
    assert len([token for token in tokenizer.get_vocab() if token.startswith("<extra_id_")]) == 100
    assert tokenizer.tokenize("a fine of $250.") == ["▁a", "▁fine", "▁of", "▁$250", "."]
    assert tokenizer.unk_token_id not in tokenizer("Zyzzyva costs 47 quid, ok?")["input_ids"]
    texts = load_dataset(str(ROOT / "data" / "toy_bills"), split="test")["text"][:]
    for text, ids in zip(texts, tokenizer(texts)["input_ids"], strict=True):
        assert tokenizer.unk_token_id not in ids
        assert len(ids) <= 1.6 * len(text.split()), "words fall apart into letters"


def test_the_text_is_that_of_which_it_comes():
    text = json.dumps(build_tiny_t5.world_bills(build_tiny_t5.DOCUMENTS)).encode()
    assert hashlib.sha256(text).hexdigest() == json.loads((FOLDER / "build.json").read_text())["text_sha256"]


@pytest.mark.slow
def test_its_builder_takes_the_same_first_steps(tmp_path):
    builder = ROOT / "data" / "builders" / "build_models.py"
    command = [sys.executable, str(builder), "--only", "tiny-t5", "--steps", "3", "--out", str(tmp_path)]
    subprocess.run(command, check=True)
    built, committed = (json.loads((f / "build.json").read_text()) for f in (tmp_path / "tiny-t5", FOLDER))
    assert built["text_sha256"] == committed["text_sha256"]
    assert built["first_losses"] == pytest.approx(committed["first_losses"][:3], abs=3e-3)
    assert committed["first_losses"][0] - committed["first_losses"][2] > 0.03, "a model that stands still would pass"
    assert committed["last_loss"] < 0.3
    assert (tmp_path / "tiny-t5" / "tokenizer.json").read_bytes() == (FOLDER / "tokenizer.json").read_bytes()
