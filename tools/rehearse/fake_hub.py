"""Models that a lesson takes for the real ones: tokenizers of the real size and random weights, in a hub's cache."""

import json
from typing import NamedTuple

from tools.random_checkpoint import random_checkpoint
from utils.errors import CourseError
from utils.paths import ROOT

MODELS = ROOT / "data" / "models"


class Kind(NamedTuple):
    """What a rehearsal knows of all models of one `model_type`."""

    tiny: str  # folder of the tiny model, whose tokenizer is filled up
    model_class: str  # class of transformers with which the real checkpoint was saved
    dtype: str  # data type of the real checkpoint


KINDS = {
    "bert": Kind("tiny-bert", "AutoModelForPreTraining", "float32"),
    "t5": Kind("tiny-t5", "AutoModelForSeq2SeqLM", "float32"),
    "opt": Kind("tiny-opt", "AutoModelForCausalLM", "float16"),
    "gemma2": Kind("tiny-gemma-2", "AutoModelForCausalLM", "bfloat16"),
}
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}  # of a parameter
SPECIAL_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id", "decoder_start_token_id")


def snapshot(hub, model_id):
    """The folder of a model in a hub cache, made as huggingface_hub makes it."""
    from utils.training.model_files import REVISIONS  # not above: it imports torch

    revision = REVISIONS.get(model_id, "0" * 40)
    folder = hub / f"models--{model_id.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True, exist_ok=True)
    (folder / "refs" / "main").write_text(revision, encoding="utf-8")
    (folder / "snapshots" / revision).mkdir(parents=True, exist_ok=True)
    return folder / "snapshots" / revision


def write_tokenizer(shape, folder):
    """Write the tokenizer of the tiny model, filled up to the real size of the vocabulary with pieces no text has.

    shape: the configuration of the real model, a dict. Raises CourseError if the tiny vocabulary is larger than that.
    """
    source = MODELS / KINDS[shape["model_type"]].tiny
    tokenizer = json.loads((source / "tokenizer.json").read_text("utf-8"))
    fill_up(tokenizer, shape["vocab_size"], source.name)
    settings = json.loads((source / "tokenizer_config.json").read_text("utf-8"))
    settings["model_max_length"] = shape.get("max_position_embeddings", settings.get("model_max_length", 512))
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings), encoding="utf-8")
    configuration(shape).save_pretrained(folder)  # AutoTokenizer reads it; write_weights completes it


def fill_up(tokenizer, size, name):
    """Add pieces to the vocabulary of a tokenizer, the content of tokenizer.json, until it has `size`."""
    vocabulary = tokenizer["model"]["vocab"]
    is_unigram = isinstance(vocabulary, list)  # pieces with scores; else {piece: number}
    pieces = {token["content"] for token in tokenizer["added_tokens"]}
    if is_unigram:
        pieces.update(piece for piece, _ in vocabulary)
    else:
        pieces.update(vocabulary)
    if len(pieces) > size:
        raise CourseError(f"{name} has {len(pieces)} pieces, more than the real {size}.")
    lowest_score = min(score for _, score in vocabulary) if is_unigram else None
    for number in range(len(pieces), size):
        piece = f"[unused{number}]"
        if is_unigram:
            vocabulary.append([piece, lowest_score])
        else:
            vocabulary[piece] = number


def configuration(shape):
    """The transformers configuration of a shape, with the special tokens of its tokenizer."""
    import transformers

    tiny = json.loads((MODELS / KINDS[shape["model_type"]].tiny / "config.json").read_text("utf-8"))
    special = {name: tiny[name] for name in SPECIAL_TOKENS if tiny.get(name) is not None}
    return transformers.AutoConfig.for_model(**{**special, **shape})


def model_class(shape):
    """The class of transformers that saves a checkpoint of this shape."""
    import transformers

    return getattr(transformers, KINDS[shape["model_type"]].model_class)


def count_parameters(shape):
    """How many parameters a model of this shape has."""
    import torch

    with torch.device("meta"):
        model = model_class(shape).from_config(configuration(shape))
    return sum(parameter.numel() for parameter in model.parameters())


def write_weights(shape, folder):
    """Write random weights of a shape, and config.json as the real checkpoint has it."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    random_checkpoint(model_class(shape), configuration(shape), folder, device)
    written = json.loads((folder / "config.json").read_text("utf-8"))
    written["dtype"] = KINDS[shape["model_type"]].dtype
    (folder / "config.json").write_text(json.dumps(written, indent=2), encoding="utf-8")
