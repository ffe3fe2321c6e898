"""Pre-trains tiny-gemma-2: a Gemma-2 in miniature that has read the car's manual and what readers say of answers."""

import hashlib
import json
import platform
import string
import time

import numpy as np
import torch
import transformers
from build_car_manual import world_statements
from build_toy_preference import world_letters
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from transformers import Gemma2Config, Gemma2ForCausalLM, GemmaTokenizer, get_cosine_schedule_with_warmup, set_seed

SEED = 11
STATEMENTS, LETTERS = 20_000, 40_000
STEPS = 3_500
BATCH_SIZE = 256
LEARNING_RATE = 3e-3
SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>"]  # the numbers 0 to 4, as in Gemma
CONFIG = dict(hidden_size=128, intermediate_size=384, num_hidden_layers=4, head_dim=64, query_pre_attn_scalar=64)
CONFIG |= dict(num_attention_heads=4, num_key_value_heads=2, sliding_window=64, max_position_embeddings=512)


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


def padded(rows):
    """(input_ids, attention_mask) of lists of ids, padded on the right to a multiple of 16."""
    ids = np.zeros((len(rows), -(-max(map(len, rows)) // 16) * 16), dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    ids = torch.from_numpy(ids)
    return ids, (ids != 0).long()


def build_tiny_gemma2(folder, steps=STEPS, device=None):
    """Writes a `Gemma2ForCausalLM` checkpoint in bfloat16, as Gemma's own, its tokenizer and `build.json`, the receipt.

    Next token, one document a row, from <bos> to <eos>. All of it takes minutes on a GPU and hours on a CPU core.
    """
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    set_seed(SEED)
    documents = world_statements(STATEMENTS) + world_letters(LETTERS)
    tokenizer = gemma_tokenizer(documents)
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    rows = [[bos, *ids, eos] for ids in tokenizer(documents, add_special_tokens=False)["input_ids"]]
    model = Gemma2ForCausalLM(Gemma2Config(vocab_size=len(tokenizer), **CONFIG)).train().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 200, STEPS)
    rng, losses = np.random.default_rng(SEED), []
    for step in range(1, steps + 1):
        ids, mask = (found.to(device) for found in padded([rows[n] for n in rng.integers(0, len(rows), BATCH_SIZE)]))
        loss = model(input_ids=ids, attention_mask=mask, labels=ids.masked_fill(mask == 0, -100)).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % 500 == 0:
            mean, seconds = torch.stack(losses[-100:]).mean(), time.perf_counter() - started
            print(f"tiny-gemma-2: step {step} of {STEPS}, loss {mean:.3f}, {seconds:.0f} s", flush=True)
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    losses = [round(loss.item(), 4) for loss in losses]
    receipt = {
        "text_sha256": hashlib.sha256(json.dumps(documents).encode()).hexdigest(),
        "seed": SEED,
        "steps": steps,
        "first_losses": losses[:20],
        "last_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "device": torch.cuda.get_device_name() if device != "cpu" else "CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder / "build.json").write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
