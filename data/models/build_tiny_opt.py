"""Pre-trains tiny-opt: an OPT in miniature that has read the manual of one fictional car, and questions about it."""

import hashlib
import json
import platform
import time

import torch
import transformers
from build_car_manual import world_statements
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Tokenizer, OPTConfig, OPTForCausalLM, get_cosine_schedule_with_warmup, set_seed

SEED = 11
DOCUMENTS = 20_000
STEPS = 2_400
BATCH_SIZE = 24
LEARNING_RATE = 3e-3
VOCABULARY = 1_100
SPECIAL = ["<s>", "<pad>", "</s>", "<unk>"]  # the numbers 0 to 3, as in OPT


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


def build_tiny_opt(folder, steps=STEPS):
    """Writes an `OPTForCausalLM` checkpoint in float16, as OPT's own, its tokenizer and `build.json`, the receipt.

    Next token, from </s> to </s>, one document a row. No dropout: the model sees each document about three times.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)  # sums are added in one order, whatever the number of cores
    set_seed(SEED)
    documents = world_statements(DOCUMENTS)
    tokenizer = opt_tokenizer(documents)
    rows = [[*ids, tokenizer.eos_token_id] for ids in tokenizer(documents)["input_ids"]]
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        word_embed_proj_dim=128,
        ffn_dim=512,
        num_hidden_layers=4,
        num_attention_heads=2,
        max_position_embeddings=512,
        dropout=0.0,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = OPTForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, STEPS)
    generator, order, losses = torch.Generator().manual_seed(SEED), [], []
    while len(losses) < steps:
        if len(order) < BATCH_SIZE:
            order = torch.randperm(len(rows), generator=generator).tolist()
        chosen, order = [rows[number] for number in order[:BATCH_SIZE]], order[BATCH_SIZE:]
        batch = tokenizer.pad({"input_ids": chosen}, return_tensors="pt")
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        loss = model(**batch, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(round(loss.item(), 4))
        if len(losses) % 100 == 0:
            print(f"tiny-opt: step {len(losses)} of {STEPS}, loss {sum(losses[-100:]) / 100:.3f}", flush=True)
    model.config.dropout = 0.1  # fine-tuning starts from OPT's own dropout again
    model.half().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    receipt = {
        "text_sha256": hashlib.sha256(json.dumps(documents).encode()).hexdigest(),
        "seed": SEED,
        "steps": steps,
        "first_losses": losses[:20],
        "last_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder / "build.json").write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
