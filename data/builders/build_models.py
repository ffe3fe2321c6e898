"""Pre-trains the course's tiny models on the unlabelled text of its own small world, from a seed.

python data/builders/build_models.py                          builds every model (minutes on a GPU, a day on a CPU)
python data/builders/build_models.py --steps 20 --out DIR     the first steps alone: what a test repeats
"""

import argparse
import random
import string
import time
from pathlib import Path

import torch
from build_datasets import world_dialogues
from pretraining import write_receipt
from tokenizers import BertWordPieceTokenizer
from torch.utils.data import DataLoader
from transformers import (
    BertConfig,
    BertForPreTraining,
    BertTokenizer,
    DataCollatorForLanguageModeling,
    get_cosine_schedule_with_warmup,
    set_seed,
)

MODELS = Path(__file__).resolve().parents[1] / "models"
SEED = 11
DIALOGUES = 30_000
STEPS = 3_000
BATCH_SIZE = 64
LEARNING_RATE = 1.5e-3
MASKED_SHARE = 0.3  # 0.15 is BERT's; these lines are short, and 0.3 learned more in as many steps


def bert_tokenizer(dialogues):
    """A lower-case WordPiece vocabulary: every piece that occurs at least 40 times in the dialogues.

    Every ASCII letter and digit has a piece of its own, so that a word which the small world does not know is
    spelt out instead of becoming [UNK]. The trainer numbers its pieces in random order: they are sorted here.
    """
    letters = string.ascii_lowercase + string.digits
    spelling = [first + second for first in letters for second in letters]  # gives each its ##piece
    lines = [line for pair in dialogues for line in pair]
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    wordpiece = BertWordPieceTokenizer(lowercase=True)
    wordpiece.train_from_iterator(
        spelling + lines,
        vocab_size=5000,
        min_frequency=40,
        initial_alphabet=list(letters + string.punctuation),
        special_tokens=special + [f"##{letter}" for letter in letters],  # numbered first, so ties are cut alike
        show_progress=False,
    )
    pieces = special + sorted(set(wordpiece.get_vocab()) - set(special))
    return BertTokenizer(vocab={piece: number for number, piece in enumerate(pieces)}, model_max_length=512)


def sentence_pairs(dialogues, tokenizer, rng):
    """BERT's second task: about half of the answers follow their line (0), the others are random (1)."""
    examples = []
    for line, answer in dialogues:
        is_random = rng.random() < 0.5
        if is_random:
            answer = rng.choice(dialogues)[1]
        encoded = tokenizer(line, answer, return_special_tokens_mask=True)
        examples.append({**encoded, "next_sentence_label": int(is_random)})
    return examples


def build_tiny_bert(folder, steps=STEPS):
    """Writes a `BertForPreTraining` checkpoint, its tokenizer and `build.json`, the receipt, to `folder`.

    Masked words and next sentence, as BERT was trained. No dropout: the model sees each line about six times.
    """
    started = time.perf_counter()
    torch.set_num_threads(1)  # sums are added in one order, whatever the number of cores
    set_seed(SEED)
    dialogues = world_dialogues(DIALOGUES)
    tokenizer = bert_tokenizer(dialogues)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        num_hidden_layers=3,
        num_attention_heads=6,
        intermediate_size=768,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    model = BertForPreTraining(config).train()
    loader = DataLoader(
        sentence_pairs(dialogues, tokenizer, random.Random(SEED)),
        batch_size=BATCH_SIZE,
        shuffle=True,
        generator=torch.Generator().manual_seed(SEED),
        collate_fn=DataCollatorForLanguageModeling(tokenizer, mlm_probability=MASKED_SHARE, seed=SEED),
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, 100, STEPS)
    losses = []
    while len(losses) < steps:
        for batch in loader:
            loss = model(**batch).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
            losses.append(round(loss.item(), 4))
            if len(losses) % 100 == 0:
                print(f"tiny-bert: step {len(losses)} of {STEPS}, loss {sum(losses[-100:]) / 100:.3f}", flush=True)
            if len(losses) == steps:
                break
    # fine-tuning starts from BERT's own dropout again
    model.config.hidden_dropout_prob = 0.1
    model.config.attention_probs_dropout_prob = 0.1
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_receipt(folder, dialogues, losses, seed=SEED, started=started)


def main():
    """Builds the models that the command line asks for."""
    from build_tiny_gemma2 import build_tiny_gemma2  # not above: a model's own script imports nothing from here
    from build_tiny_opt import build_tiny_opt
    from build_tiny_t5 import build_tiny_t5

    builders = {
        "tiny-bert": build_tiny_bert,
        "tiny-t5": build_tiny_t5,
        "tiny-opt": build_tiny_opt,
        "tiny-gemma-2": build_tiny_gemma2,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, help="stop after so many steps")
    parser.add_argument("--out", type=Path, default=MODELS, help="folder that receives tiny-bert/ and the others")
    parser.add_argument("--only", choices=[*builders], help="build this model alone")
    options = parser.parse_args()
    names = [options.only] if options.only else list(builders)
    for name in names:
        build = builders[name]
        if options.steps:
            build(options.out / name, steps=options.steps)
        else:
            build(options.out / name)


if __name__ == "__main__":
    main()
