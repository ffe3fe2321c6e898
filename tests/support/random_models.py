"""Small models with random weights and a working tokenizer, a function a kind: each writes a folder that the lessons
can name as `model_id`, so that a test can run a lesson on another architecture."""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

# What a decoder of each model_type is made of, beside what all have. Widths are multiples of 64: bitsandbytes unpacks
# others wrongly on some CPUs.
DECODERS = {
    "opt": {"ffn_dim": 128, "word_embed_proj_dim": 64, "max_position_embeddings": 512},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 2, "n_positions": 512},
    "llama": {},
    "mistral": {"sliding_window": None},
    "qwen2": {},
    "qwen3": {"head_dim": 32},
    "smollm3": {},
    "gemma2": {"head_dim": 32},
    "gemma3_text": {"head_dim": 32},
}
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 512,
}
PADDING = "<pad>"
NO_SUCH_FIELDS = {  # sizes that a family calls otherwise
    "opt": ("intermediate_size", "num_key_value_heads"),
    "gpt2": tuple(SIZES),
}


def decoder(model_type, folder, texts, *, chat_template=None, chat_tokens=(), seed=0, **changes):
    """Writes a decoder with random weights to a folder; returns its path as a string.

    model_type: a key of DECODERS. texts: a list, on which its byte-level tokenizer is trained. chat_template: of the
    tokenizer; by default it has none, as a base model. chat_tokens: control tokens of that template. changes: fields of
    its configuration.
    """
    tokenizer = byte_level_tokenizer(texts, has_pad=model_type not in ("llama", "gpt2"), more=chat_tokens)
    tokenizer.chat_template = chat_template
    left_out = NO_SUCH_FIELDS.get(model_type, ())
    fields = {name: value for name, value in SIZES.items() if name not in left_out}
    fields.update(DECODERS[model_type])
    fields.update(
        vocab_size=len(tokenizer),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    fields.update(changes)
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **fields), dtype=torch.float32)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def byte_level_tokenizer(texts, *, size=400, has_pad=True, more=()):
    """A byte-level BPE tokenizer trained on texts, with more control tokens; without has_pad it has no pad token, as
    those of Llama and GPT-2."""
    special = ["<s>", "</s>", *([PADDING] if has_pad else []), *more]
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(texts, trainer)
    names = {"bos_token": "<s>", "eos_token": "</s>"}
    if has_pad:
        names["pad_token"] = PADDING
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=512, **names)


def texts_of(folder, split="train"):
    """All strings in the .jsonl file of a split, for a tokenizer."""
    found = []

    def collect(value):
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, dict):
            for inner in value.values():
                collect(inner)
        elif isinstance(value, list):
            for inner in value:
                collect(inner)

    for line in (Path(folder) / f"{split}.jsonl").read_text("utf-8").splitlines():
        collect(json.loads(line))
    return found
