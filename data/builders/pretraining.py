"""What the builders of the tiny models share: pre-training on the next token, and the receipt beside a checkpoint."""

import hashlib
import json
import math
import platform
import time

import numpy as np
import torch
import transformers
from transformers import get_cosine_schedule_with_warmup


def padded(rows, pad_token_id):
    """(input_ids, attention_mask) of lists of ids, padded on the right to a multiple of 16."""
    longest = max(len(row) for row in rows)
    width = math.ceil(longest / 16) * 16
    ids = np.full((len(rows), width), pad_token_id, dtype=np.int64)
    for number, row in enumerate(rows):
        ids[number, : len(row)] = row
    ids = torch.from_numpy(ids)
    return ids, (ids != pad_token_id).long()


def predict_next_tokens(model, rows, *, name, seed, steps, of, batch_size, learning_rate, warmup):
    """Trains a causal model on lists of ids, one document a row; returns the loss of each step.

    The first `steps` of a schedule of `of` steps are taken. Nothing but the seed decides which rows a step sees.
    """
    device = model.device
    started = time.perf_counter()
    torch.backends.cuda.matmul.allow_tf32 = True
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, of)
    rng = np.random.default_rng(seed)
    losses = []
    for step in range(1, steps + 1):
        chosen = [rows[number] for number in rng.integers(0, len(rows), batch_size)]
        ids, mask = padded(chosen, model.config.pad_token_id)
        ids = ids.to(device)
        mask = mask.to(device)
        labels = ids.masked_fill(mask == 0, -100)
        loss = model(input_ids=ids, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if step % 500 == 0:
            mean = torch.stack(losses[-100:]).mean()
            seconds = time.perf_counter() - started
            print(f"{name}: step {step} of {of}, loss {mean:.3f}, {seconds:.0f} s", flush=True)
    return [loss.item() for loss in losses]


def write_receipt(folder, documents, losses, *, seed, started, device="cpu"):
    """Writes build.json: from what text a model comes, its first and last losses, and the versions that made it.

    started: time.perf_counter() at the beginning of the build.
    """
    losses = [round(loss, 4) for loss in losses]
    receipt = {
        "text_sha256": hashlib.sha256(json.dumps(documents).encode()).hexdigest(),
        "seed": seed,
        "steps": len(losses),
        "first_losses": losses[:20],
        "last_loss": round(sum(losses[-100:]) / len(losses[-100:]), 4),
        "minutes": round((time.perf_counter() - started) / 60, 1),
        "device": torch.cuda.get_device_name() if str(device) != "cpu" else "CPU",
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        },
    }
    (folder / "build.json").write_text(json.dumps(receipt, indent=2) + "\n", encoding="utf-8")
