"""Pre-trains tiny-gemma-2: a Gemma-2 in miniature that has read the car's manual and what readers say of answers."""

import json
import string
import time

import torch
from build_car_manual import world_statements
from build_toy_preference import world_letters
from pretraining import predict_next_tokens, write_receipt
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaTokenizer, set_seed

SEED = 11
STATEMENTS = 20_000
LETTERS = 40_000
STEPS = 9_500
BATCH_SIZE = 256
LEARNING_RATE = 3e-3
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]  # the numbers 0 to 4, as in Gemma
CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 4,
    "head_dim": 64,
    "query_pre_attn_scalar": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "sliding_window": 64,
    "max_position_embeddings": 512,
}


def gemma_tokenizer(documents):
    """A BPE with byte fallback, Gemma's kind: a space is part of the word behind it, written as "▁"."""
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Replace(" ", "▁")
    trained.pre_tokenizer = pre_tokenizers.Split(Regex(r"▁?\w+|▁|[^\w▁]"), "isolated")  # no piece spans two words
    trainer = trainers.BpeTrainer(
        vocab_size=1_900,
        min_frequency=20,
        special_tokens=SPECIAL + [f"<0x{byte:02X}>" for byte in range(256)],
        initial_alphabet=list(string.printable[:94] + "▁"),
        show_progress=False,
    )
    trained.train_from_iterator(documents, trainer)
    model = json.loads(trained.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    return GemmaTokenizer(vocab=model["vocab"], merges=merges, add_bos_token=True, model_max_length=512)


def build_tiny_gemma2(folder, steps=STEPS, device=None):
    """Writes a `Gemma2ForCausalLM` checkpoint in bfloat16, as Gemma's own, its tokenizer and `build.json`, the receipt.

    Next token, one document a row, from <bos> to <eos>. All of it takes minutes on a GPU and hours on a CPU core.
    """
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    set_seed(SEED)
    documents = world_statements(STATEMENTS) + world_letters(LETTERS)
    tokenizer = gemma_tokenizer(documents)
    encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
    rows = [[tokenizer.bos_token_id, *ids, tokenizer.eos_token_id] for ids in encoded]
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **CONFIG)).train().to(device)
    losses = predict_next_tokens(
        model,
        rows,
        name="tiny-gemma-2",
        seed=SEED,
        steps=steps,
        of=STEPS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        warmup=200,
    )
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_receipt(folder, documents, losses, seed=SEED, started=started, device=device)
