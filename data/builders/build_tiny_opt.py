"""Pre-trains tiny-opt: an OPT in miniature that has read the manual of one fictional car, and questions about it."""

import json
import time

import torch
from build_car_manual import world_statements
from pretraining import predict_next_tokens, write_receipt
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Tokenizer, OPTConfig, OPTForCausalLM, set_seed

SEED = 11
DOCUMENTS = 20_000
STEPS = 4_000
BATCH_SIZE = 96
LEARNING_RATE = 3e-3
VOCABULARY = 1_100
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # the numbers 0 to 3, as in OPT
CONFIG = {
    "hidden_size": 128,
    "word_embed_proj_dim": 128,
    "ffn_dim": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 512,
    "dropout": 0.0,
}


def opt_tokenizer(documents):
    """A byte-level BPE with OPT's special tokens: every text begins with </s>, which is the end token as well."""
    trained = ByteLevelBPETokenizer()
    trained.train_from_iterator(
        documents, vocab_size=VOCABULARY, min_frequency=2, special_tokens=SPECIAL, show_progress=False
    )
    model = json.loads(trained._tokenizer.to_str())["model"]
    return GPT2Tokenizer(
        vocab=model["vocab"],
        merges=[tuple(pair) for pair in model["merges"]],
        bos_token="</s>",
        eos_token="</s>",
        unk_token="</s>",
        pad_token="<pad>",
        add_bos_token=True,
        model_max_length=512,
    )


def build_tiny_opt(folder, steps=STEPS, device=None):
    """Writes an `OPTForCausalLM` checkpoint in float16, as OPT's own, its tokenizer and `build.json`, the receipt.

    Next token, from </s> to </s>, one document a row, no dropout. It takes minutes on a GPU and hours on a CPU core.
    """
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    set_seed(SEED)
    documents = world_statements(DOCUMENTS)
    tokenizer = opt_tokenizer(documents)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
    config = OPTConfig(
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        **CONFIG,
    )
    model = OPTForCausalLM(config).train().to(device)
    losses = predict_next_tokens(
        model,
        rows,
        name="tiny-opt",
        seed=SEED,
        steps=steps,
        of=STEPS,
        batch_size=BATCH_SIZE,
        learning_rate=LEARNING_RATE,
        warmup=100,
    )
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_receipt(folder, documents, losses, seed=SEED, started=started, device=device)
