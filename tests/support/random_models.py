"""Small models with random weights, each in a folder that `from_pretrained` reads like a model of the hub.

They have what a real model of their family has: its configuration, its kind of tokenizer, the heads of its
pre-training, and weights that know nothing. Lessons run on them for a few steps, to show that a model is one id.
"""

import torch
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    AutoModelForPreTraining,
    BertTokenizer,
    DebertaV2Tokenizer,
    RobertaTokenizer,
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
