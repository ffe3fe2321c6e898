"""Small models with random weights, each in a folder that `from_pretrained` reads like a model of the hub.

They have what a real model of their family has: its configuration, its kind of tokenizer, the heads of its
pre-training, and weights that know nothing. Lessons run on them for a few steps, to show that a model is one id.
"""

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    AutoModelForSeq2SeqLM,
    BartTokenizer,
    BertTokenizer,
    DebertaV2Tokenizer,
    MBartTokenizer,
    PreTrainedTokenizerFast,
    RobertaTokenizer,
    T5Tokenizer,
    TokenizersBackend,
    set_seed,
)

VOCABULARY = 600  # tokens, special ones included
WIDTH = 64  # for others, bitsandbytes returns wrong 4-bit weights on some CPUs
LAYERS = 2
HEADS = 2

SIZES = {  # under the names that most encoders have; a name that a family spells in another way is mapped to it
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "intermediate_size": 2 * WIDTH,
    "max_position_embeddings": 514,
}
ENCODERS = {  # {model type: (its tokenizer, what else its configuration needs)}
    "bert": (BertTokenizer, {}),
    "distilbert": (BertTokenizer, {"hidden_dim": 2 * WIDTH}),
    "electra": (BertTokenizer, {"embedding_size": WIDTH // 2}),
    "roberta": (RobertaTokenizer, {}),
    "modernbert": (RobertaTokenizer, {"local_attention": 8, "global_attn_every_n_layers": 2}),
    "deberta-v2": (
        DebertaV2Tokenizer,
        {  # as in DeBERTa-v3: positions are relative, and the heads of pre-training stand in no classifier
            "relative_attention": True,
            "position_buckets": 16,
            "pos_att_type": ["p2c", "c2p"],
            "norm_rel_ebd": "layer_norm",
            "position_biased_input": False,
            "share_att_key": True,
            "type_vocab_size": 0,
        },
    ),
}


def encoder(model_type, folder, texts):
    """Writes an encoder of this type into a folder (a Path), its tokenizer made from the texts; returns the folder.

    model_type: a key of ENCODERS.
    """
    tokenizer_class, settings = ENCODERS[model_type]
    tokenizer = tokenizer_class().train_new_from_iterator(texts, VOCABULARY)
    if model_type == "modernbert":
        tokenizer = as_modernbert(tokenizer)
    set_seed(0)
    config = AutoConfig.for_model(model_type, **SIZES, **settings, **special_ids(tokenizer), vocab_size=len(tokenizer))
    auto_class = AutoModelForMaskedLM if model_type == "modernbert" else AutoModelForPreTraining
    return write(auto_class.from_config(config, dtype=torch.float32), tokenizer, folder)


def as_modernbert(tokenizer):
    """ModernBERT's tokenizer: RoBERTa's kind of pieces, BERT's roles of the special tokens, no class of its own."""
    return TokenizersBackend(
        tokenizer_object=tokenizer.backend_tokenizer,
        cls_token=tokenizer.cls_token,
        sep_token=tokenizer.sep_token,
        pad_token=tokenizer.pad_token,
        mask_token=tokenizer.mask_token,
        unk_token=tokenizer.unk_token,
        model_input_names=["input_ids", "attention_mask"],
    )


def special_ids(tokenizer):
    """{name in a configuration: number of the token, None where the tokenizer has no such token}."""
    names = [f"{kind}_token_id" for kind in ("pad", "bos", "eos", "cls", "sep")]
    return {name: getattr(tokenizer, name) for name in names}


def write(model, tokenizer, folder):
    """Writes model and tokenizer into a folder and returns it."""
    tokenizer.model_max_length = 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


# ---- encoder-decoders

SEQ2SEQ_SIZES = {  # T5 spells all of them in another way than the others
    "d_model": WIDTH,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "encoder_attention_heads": HEADS,
    "decoder_attention_heads": HEADS,
    "encoder_ffn_dim": 2 * WIDTH,
    "decoder_ffn_dim": 2 * WIDTH,
    "max_position_embeddings": 512,
}
T5_SIZES = {
    "d_model": WIDTH,
    "d_kv": WIDTH // HEADS,
    "d_ff": 2 * WIDTH,
    "num_layers": LAYERS,
    "num_decoder_layers": LAYERS,
    "num_heads": HEADS,
}
SEQ2SEQ = {  # {name: (model type, its tokenizer, its configuration)}
    "t5": ("t5", T5Tokenizer, T5_SIZES),
    "flan-t5": ("t5", T5Tokenizer, {**T5_SIZES, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", BartTokenizer, SEQ2SEQ_SIZES),
    "mbart": ("mbart", MBartTokenizer, SEQ2SEQ_SIZES),
    "pegasus": ("pegasus", T5Tokenizer, SEQ2SEQ_SIZES),  # its own is a Unigram with the same special tokens
}


def seq2seq(name, folder, texts):
    """Writes an encoder-decoder into a folder (a Path), its tokenizer made from the texts; returns the folder.

    name: a key of SEQ2SEQ.
    """
    model_type, tokenizer_class, settings = SEQ2SEQ[name]
    tokenizer = tokenizer_class().train_new_from_iterator(texts, VOCABULARY)
    set_seed(0)
    config = AutoConfig.for_model(
        model_type,
        **settings,
        vocab_size=len(tokenizer),
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=first_of_the_decoder(model_type, tokenizer),
        forced_eos_token_id=None if model_type == "t5" else tokenizer.eos_token_id,
    )
    return write(AutoModelForSeq2SeqLM.from_config(config, dtype=torch.float32), tokenizer, folder)


def first_of_the_decoder(model_type, tokenizer):
    """The number of the token that the decoder begins with; None for mBART, which begins with that of a language."""
    if model_type == "mbart":
        return None
    return tokenizer.eos_token_id if model_type == "bart" else tokenizer.pad_token_id


# ---- decoders

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
DECODER_SIZES = {
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
    "gpt2": tuple(DECODER_SIZES),
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
    fields = {name: value for name, value in DECODER_SIZES.items() if name not in left_out}
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
