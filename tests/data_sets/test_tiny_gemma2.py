"""The tiny Gemma-2 is a real checkpoint with Gemma's peculiarities, comes from its builder, and can judge answers."""

import itertools
import json
import random
import sys
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from safetensors import safe_open
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, Gemma2ForCausalLM, GemmaTokenizer

sys.path.insert(0, str(ROOT / "data" / "builders"))
import build_tiny_gemma2
import build_toy_preference

FOLDER = ROOT / "data" / "models" / "tiny-gemma-2"
VERDICTS = ["First", "Second", "Both", "Neither", "Alike"]


def test_it_is_small_and_has_the_keys_and_peculiarities_of_the_real_one():
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 8 * 2**20
    config = AutoConfig.from_pretrained(FOLDER)
    assert config.architectures == ["Gemma2ForCausalLM"]
    assert (config.attn_logit_softcapping, config.final_logit_softcapping) == (50.0, 30.0)
    assert config.layer_types == ["sliding_attention", "full_attention"] * (config.num_hidden_layers // 2)
    assert config.sliding_window < 128, "a longer text than the window must occur, or the window is never used"
    assert config.num_key_value_heads < config.num_attention_heads, "grouped, as in Gemma-2-9b"
    assert config.tie_word_embeddings
    assert config.hidden_activation == "gelu_pytorch_tanh"
    for width in (config.hidden_size, config.intermediate_size, config.head_dim * config.num_key_value_heads):
        assert width % 64 == 0, "bitsandbytes errs at others on some CPUs"
    assert (config.pad_token_id, config.eos_token_id, config.bos_token_id) == (0, 1, 2)
    with torch.device("meta"):
        expected = {name: value.shape for name, value in Gemma2ForCausalLM(config).state_dict().items()}
    with safe_open(FOLDER / "model.safetensors", "pt") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    assert set(expected) - set(found) <= {"lm_head.weight"}, "only the tied one"
    assert set(found) <= set(expected)
    assert all(value.shape == expected[name] for name, value in found.items())
    assert {value.dtype for value in found.values()} == {torch.bfloat16}, "as Gemma's own"
    places = ("input", "post_attention", "pre_feedforward", "post_feedforward")
    for layer in range(config.num_hidden_layers):
        for place in places:
            norm = found[f"model.layers.{layer}.{place}_layernorm.weight"]
            assert norm.abs().max() > 0, "a norm at its start has not learned"


def test_its_tokenizer_is_gemmas():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    assert type(tokenizer).__name__ == "GemmaTokenizer"
    written = json.loads((FOLDER / "tokenizer_config.json").read_text())
    assert written["tokenizer_class"] == "GemmaTokenizer"
    assert tokenizer.convert_tokens_to_ids(["<pad>", "<eos>", "<bos>", "<unk>"]) == [0, 1, 2, 3]
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id) == (0, 1, 2)
    assert len(tokenizer) == AutoConfig.from_pretrained(FOLDER).vocab_size
    assert tokenizer("horn")["input_ids"][0] == 2
    assert tokenizer("horn")["input_ids"][-1] != 1
    assert tokenizer.tokenize("Which one is better?") == ["Which", "▁one", "▁is", "▁better", "?"]
    assert tokenizer.tokenize("好") == ["<0xE5>", "<0xA5>", "<0xBD>"]
    text = "Zyzzyva? 47 € für 你好 😀\n  <0x41>\tthe horn"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.unk_token_id not in ids, "bytes spell out what it does not know"
    assert tokenizer.decode(ids) == text


def test_a_control_token_that_somebody_wrote_stays_text():
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    for written in ("<eos>", "<pad>", "<bos>", "a<eos><eos>b"):
        ids = tokenizer(written, add_special_tokens=False, split_special_tokens=True)["input_ids"]
        assert not {0, 1, 2, 3, 4} & set(ids), written
        assert tokenizer.decode(ids) == written
    assert 1 in tokenizer("a<eos>b", add_special_tokens=False)["input_ids"], "without the option it is a token"


STEPS = 3  # the first has learning rate 0, so the third is the first that shows a change


def in_pieces(forward):
    """A forward that takes a batch 16 rows at a time, short ones first, with the loss and gradients of the whole.

    All at once it takes gigabytes. When it returns, the gradients are there, except for the last step: none needs them.
    """
    calls = itertools.count(1)

    def run(model, input_ids, attention_mask, labels):
        lengths, count, total = attention_mask.sum(dim=1), (labels[:, 1:] != -100).sum(), torch.zeros(())
        with torch.set_grad_enabled(next(calls) < STEPS):
            for rows in lengths.argsort().split(16):
                ids, mask, own = (value[rows, : lengths[rows].max()] for value in (input_ids, attention_mask, labels))
                loss = forward(model, input_ids=ids, attention_mask=mask, labels=own, num_items_in_batch=count).loss
                if loss.requires_grad:
                    loss.backward()
                total += loss.detach()
        return SimpleNamespace(loss=total.requires_grad_())

    return run


def drawn_alone(tokenize):
    """A tokenizer's call that reads the documents of the first steps alone, and takes the others for empty."""
    rng, count = np.random.default_rng(build_tiny_gemma2.SEED), build_tiny_gemma2.STATEMENTS + build_tiny_gemma2.LETTERS
    drawn = sorted({*np.concatenate([rng.integers(0, count, build_tiny_gemma2.BATCH_SIZE) for _ in range(STEPS)])})

    def run(tokenizer, documents, **options):
        found = tokenize(tokenizer, [documents[number] for number in drawn], **options)["input_ids"]
        found = dict(zip(drawn, found, strict=True))
        return {"input_ids": [found.get(number, []) for number in range(len(documents))]}

    return run


def test_its_builder_takes_the_same_first_steps(tmp_path, monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(Gemma2ForCausalLM, "forward", in_pieces(Gemma2ForCausalLM.forward))
    monkeypatch.setattr(GemmaTokenizer, "__call__", drawn_alone(GemmaTokenizer.__call__))
    build_tiny_gemma2.build_tiny_gemma2(tmp_path, steps=STEPS, device="cpu")
    torch.set_num_threads(threads)
    built, committed = (json.loads((folder / "build.json").read_text()) for folder in (tmp_path, FOLDER))
    assert built["text_sha256"] == committed["text_sha256"]
    assert built["first_losses"] == pytest.approx(committed["first_losses"][:STEPS], abs=2e-3)
    assert committed["first_losses"][0] - committed["first_losses"][STEPS - 1] > 0.01, (
        "a model that stands still would pass"
    )
    assert committed["steps"] == build_tiny_gemma2.STEPS
    for name in ("tokenizer.json", "tokenizer_config.json", "config.json"):
        assert (tmp_path / name).read_bytes() == (FOLDER / name).read_bytes()


def cases(question, mark):
    """[(text, number of the true verdict)] about two answers to questions on the facts of test prompts."""
    rng, found = random.Random(0), []
    facts = [fact for prompt in build_toy_preference.questions()["test"] for fact in prompt]
    for fact in 2 * facts:
        a, b = (build_toy_preference.respond([fact], rng.choice([*build_toy_preference.MODELS]), rng) for _ in "ab")
        ours, theirs = (build_toy_preference.judged(answer, mark) for answer in (a, b))
        same = "Alike" if mark == "better" else "Both" if ours > (0.0,) else "Neither"
        verdict = "First" if ours > theirs else "Second" if theirs > ours else same
        lines = [f"Question: {build_toy_preference.ask(fact, rng)}", f"The first answer: {a['turns'][0]}"]
        text = "\n".join([*lines, f"The second answer: {b['turns'][0]}", question])
        found.append((text, VERDICTS.index(verdict)))
    return found


@torch.no_grad()
def verdicts(model, tokenizer, texts):
    """The number of the likeliest verdict after each text, by its first token."""
    ids = torch.tensor([tokenizer(f" {name}", add_special_tokens=False)["input_ids"] for name in VERDICTS])[:, 0]
    assert len({*ids.tolist()}) == len(VERDICTS)
    found = []
    for at in range(0, len(texts), 36):
        batch = tokenizer(texts[at : at + 36], padding=True, padding_side="right", return_tensors="pt")
        last = batch["attention_mask"].sum(dim=1) - 1
        found += model(**batch).logits[torch.arange(len(last)), last][:, ids].argmax(dim=1).tolist()
    return found


@pytest.mark.parametrize(
    ("question", "mark"), [("Which answer is right?", "right"), ("Which answer is better?", "better")]
)
def test_it_judges_answers_and_a_random_one_does_not(question, mark):
    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    trained = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32, attn_implementation="eager").eval()
    torch.manual_seed(0)
    random_one = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(FOLDER), attn_implementation="eager")
    texts, true = zip(*cases(question, mark), strict=True)
    share = {
        name: sum(map(int.__eq__, verdicts(model, tokenizer, list(texts)), true)) / len(true)
        for name, model in (("trained", trained), ("random", random_one.float().eval()))
    }
    assert share["trained"] >= 0.90
    assert share["random"] <= 0.50
    assert max(Counter(true).values()) / len(true) <= 0.50, "who always says the same must fail"
    assert len(true) == 144
