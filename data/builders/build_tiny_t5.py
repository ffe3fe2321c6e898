"""Pre-trains tiny-t5: a T5 in miniature that fills in spans cut out of unlabelled bills and the news about them."""

import math
import re
import string
import time
from collections import Counter

import numpy as np
import torch
from build_toy_bills import world_bills
from pretraining import write_receipt
from torch.utils.data import DataLoader, Dataset
from transformers import (
    T5Config,
    T5ForConditionalGeneration,
    T5Tokenizer,
    get_cosine_schedule_with_warmup,
    set_seed,
)

SEED = 11
DOCUMENTS = 40_000
STEPS = 8_000
BATCH_SIZE = 128
LEARNING_RATE = 3e-3
NOISE = 0.2  # the share of tokens that is cut out (T5: 0.15)
SPAN = 3  # the mean length of a cut
LENGTH = 272  # positions of every input of a batch: longer than any document
TARGET = 112  # and of every target
CONFIG = {"d_model": 128, "d_kv": 32, "num_heads": 4, "d_ff": 512, "num_layers": 3, "num_decoder_layers": 3}


def t5_tokenizer(documents):
    """A Unigram vocabulary, T5's kind: every word of the documents with its log probability, and single characters.

    It is counted, not trained: the trainer of the tokenizers library cut the few words of this small world into
    letters (446 tokens a document instead of 220) and did so in another way at every call.
    """
    pieces = Counter()
    for document in documents:
        for word in document.split():
            pieces.update(re.findall(r"^▁[$\w]+|\w+|[^\w▁]", "▁" + word))
    total = pieces.total()
    characters = [character for character in string.printable[:94] + "▁" if character not in pieces]
    vocabulary = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    for piece, count in sorted(pieces.items()):
        vocabulary.append((piece, round(math.log(count / total), 4)))
    for character in sorted(characters):
        vocabulary.append((character, -20.0))
    for number in reversed(range(100)):
        vocabulary.append((f"<extra_id_{number}>", 0.0))
    return T5Tokenizer(vocab=vocabulary, model_max_length=512)


def random_lengths(total, count, rng):
    """So many lengths of at least 1 whose sum is `total`."""
    boundaries = rng.choice(np.arange(1, total), count - 1, replace=False)
    return np.diff([0, *np.sort(boundaries), total])


def cut_spans(tokens, sentinels, eos, rng):
    """(input, target) of one document as in the T5 paper: cut spans become sentinels, the target lists what was cut."""
    cut = max(1, round(len(tokens) * NOISE))
    spans = max(1, round(cut / SPAN))
    cuts = random_lengths(cut, spans, rng)
    gaps = random_lengths(len(tokens) - cut, spans, rng)
    source = []
    target = []
    position = 0
    for number in range(spans):
        source += [*tokens[position : position + gaps[number]], sentinels[number]]
        position += gaps[number]
        target += [sentinels[number], *tokens[position : position + cuts[number]]]
        position += cuts[number]
    return [*source, eos], [*target, sentinels[spans], eos]


class Spans(Dataset):
    """Batches of span corruption; batch number `n` is the same whoever asks for it."""

    def __init__(self, documents, tokenizer, steps):
        encoded = tokenizer(documents, add_special_tokens=False)["input_ids"]
        self.rows = [np.asarray(ids, dtype=np.int64) for ids in encoded]
        self.sentinels = tokenizer.convert_tokens_to_ids([f"<extra_id_{number}>" for number in range(100)])
        self.eos = tokenizer.eos_token_id
        self.steps = steps

    def __len__(self):
        return self.steps

    def __getitem__(self, number):
        rng = np.random.default_rng([SEED, number])
        ids = np.zeros((BATCH_SIZE, LENGTH), dtype=np.int64)
        labels = np.full((BATCH_SIZE, TARGET), -100, dtype=np.int64)
        for row, chosen in enumerate(rng.integers(0, len(self.rows), BATCH_SIZE)):
            source, target = cut_spans(self.rows[chosen], self.sentinels, self.eos, rng)
            ids[row, : len(source)] = source
            labels[row, : len(target)] = target
        return {"input_ids": ids, "attention_mask": (ids != 0).astype(np.int64), "labels": labels}


def build_tiny_t5(folder, steps=STEPS, device=None):
    """Writes a `T5ForConditionalGeneration` checkpoint, its tokenizer and `build.json`, the receipt, to `folder`.

    All of it takes minutes on a GPU and half a day on a CPU core. No dropout while pre-training.
    """
    started = time.perf_counter()
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    torch.set_num_threads(1)
    torch.backends.cuda.matmul.allow_tf32 = True
    set_seed(SEED)
    documents = world_bills(DOCUMENTS)
    tokenizer = t5_tokenizer(documents)
    config = T5Config(
        vocab_size=len(tokenizer), dropout_rate=0.0, feed_forward_proj="relu", decoder_start_token_id=0, **CONFIG
    )
    model = T5ForConditionalGeneration(config).train().to(device)
    spans = Spans(documents, tokenizer, steps)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 500, STEPS)
    losses = []
    for batch in DataLoader(spans, batch_size=None, num_workers=4 if device != "cpu" else 0):
        batch = {name: value.to(device, non_blocking=True) for name, value in batch.items()}
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.detach())
        if len(losses) % 500 == 0:
            seconds = time.perf_counter() - started
            mean = torch.stack(losses[-100:]).mean()
            print(f"tiny-t5: step {len(losses)} of {STEPS}, loss {mean:.3f}, {seconds:.0f} s", flush=True)
    model.config.dropout_rate = 0.1  # fine-tuning starts from T5's own dropout again
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    losses = [loss.item() for loss in losses]
    write_receipt(folder, documents, losses, seed=SEED, started=started, device=device)
    return model, tokenizer
