"""The tiny BERT is a real checkpoint, comes from its builder, and what it learned there is worth something."""

import json
import subprocess
import sys

import pytest
import torch
from conftest import ROOT
from datasets import load_dataset
from safetensors import safe_open
from test_data import tfidf_score
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, BertForPreTraining, set_seed

FOLDER = ROOT / "data" / "models" / "tiny-bert"


def test_it_is_small_and_has_the_keys_of_the_real_one():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8 * 2**20
    config = AutoConfig.from_pretrained(FOLDER)
    assert config.hidden_size % 64 == config.intermediate_size % 64 == 0, "bitsandbytes errs at others on some CPUs"
    with torch.device("meta"):
        expected = BertForPreTraining(config).state_dict()
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        assert set(file.keys()) <= set(expected)
        missing = set(expected) - set(file.keys())
        assert missing <= {"cls.predictions.decoder.weight", "cls.predictions.decoder.bias"}, "only tied ones"
        assert "bert.pooler.dense.weight" in set(file.keys())


def test_the_tokenizer_spells_out_unknown_words():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    ids = tokenizer("Zyzzyva costs 47 quid, ok?")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.tokenize("my window") == ["my", "window"]


def test_its_builder_takes_the_same_first_steps(tmp_path):
    builder = ROOT / "data" / "builders" / "build_models.py"
    subprocess.run(
        [sys.executable, str(builder), "--only", "tiny-bert", "--steps", "6", "--out", str(tmp_path)], check=True
    )
    built, committed = (json.loads((f / "build.json").read_text()) for f in (tmp_path / "tiny-bert", FOLDER))
    assert built["text_sha256"] == committed["text_sha256"]
    assert built["first_losses"] == pytest.approx(committed["first_losses"][:6], abs=2e-3)
    assert committed["first_losses"][0] - committed["first_losses"][5] > 0.03, "a model that stands still would pass"
    assert committed["last_loss"] < 1
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "tiny-bert" / name).read_bytes() == (FOLDER / name).read_bytes()


def fine_tuned_accuracy(dataset, pretrained, seed, epochs=3, batch_size=32):
    """Test accuracy after a short plain PyTorch fine-tuning from the checkpoint or from random weights."""
    set_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    if pretrained:
        model = AutoModelForSequenceClassification.from_pretrained(FOLDER, num_labels=5)
    else:
        model = AutoModelForSequenceClassification.from_config(AutoConfig.from_pretrained(FOLDER, num_labels=5))
    rows = tokenizer(dataset["train"]["text"][:], padding=True, return_tensors="pt")
    labels = torch.tensor(dataset["train"]["label"][:])
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.05, total_iters=epochs * len(labels) // batch_size)
    model.train()
    for _ in range(epochs):
        for chosen in torch.randperm(len(labels)).split(batch_size):
            longest = rows["attention_mask"][chosen].sum(dim=1).max()
            batch = {name: value[chosen, :longest] for name, value in rows.items()}
            model(**batch, labels=labels[chosen]).loss.backward()
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    test = tokenizer(dataset["test"]["text"][:], padding=True, return_tensors="pt")
    with torch.no_grad():
        answers = model.eval()(**test).logits.argmax(-1)
    return (answers == torch.tensor(dataset["test"]["label"][:])).float().mean().item()


def test_pre_training_is_worth_at_least_five_points(tmp_path):
    dataset = load_dataset(str(ROOT / "data" / "driver_intent"), cache_dir=str(tmp_path))
    known, random = ([fine_tuned_accuracy(dataset, start, seed) for seed in range(2)] for start in (True, False))
    baseline = tfidf_score(dataset["train"], dataset["test"])
    print(f"pre-trained {known}, random weights {random}, TF-IDF {baseline:.3f}")
    assert min(known) >= max(random) + 0.05
    assert min(known) > baseline
    assert min(random) > 0.25, "the control must learn something, or the comparison is empty"
