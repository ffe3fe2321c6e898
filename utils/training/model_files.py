"""Checks a model before its weights are loaded."""

import errno
import hashlib
import re
from importlib.metadata import version
from pathlib import Path

import torch
from huggingface_hub import is_offline_mode, try_to_load_from_cache
from huggingface_hub.errors import GatedRepoError, HFValidationError, RepositoryNotFoundError
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, has_file

from utils.errors import CourseError
from utils.training import model_folders

CACHE_PROBLEMS = (errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EROFS, errno.EDQUOT)
REVISIONS = {  # for which the course was written; none is known of the copy in 4 bits that lesson 05 takes on Colab
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "google-bert/bert-large-uncased": "6da4b6a26a1877e173fca3225479512db81a5e5b",
    "google-t5/t5-3b": "bed96aab9ee46012a5046386105ee5fd0ac572f0",
    "facebook/opt-1.3b": "3f5c25d0bc631cb57ac65913f76e22c2dfb61d62",
    "google/gemma-2-9b-it": "11c9b309abf73637e4b6f9a3fa1e92e615547819",
}


def check_model(model_id, converted=False, max_length=None):
    """Checks a model, a folder or a hub id, before its weights are loaded.

    Raises CourseError if it is neither here nor in the cache while the hub cannot be asked; if a file of a folder is
    missing, cut or a pointer; if its weights are of another architecture than its configuration, or not safetensors; if
    a file in the cache is damaged; if it brings code of its own; if its tokenizer has no words, or ids beyond the
    model's embeddings; or if max_length is more than it has positions. Says so if the hub has another revision than the
    course was written for.
    converted: where the hub has a pickle only, the copy that its bot converted will do. The caller then loads with
    use_safetensors=True, which takes that copy, and never opens the pickle.
    """
    model_folders.check_path(model_id)
    is_folder = Path(model_id).is_dir()
    if is_folder:
        model_folders.check_folder(model_id)
    try:
        check_code(model_id)
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
        if not (converted or is_folder or has_safe_weights(model_id)):
            remedy = "a pickle can run code when it is opened; take a model whose main branch has safetensors"
            raise CourseError(f"{model_id}: there are no weights in the safetensors format; {remedy}.")
    except CourseError:
        raise
    except Exception as error:  # the libraries raise errors of many kinds here, also of their own parsers
        raise CourseError(f"{model_id}: {in_words(model_id, is_folder, error)}.") from None
    if is_folder:
        check_architecture(model_id, config)
    else:
        check_cache(model_id)
    check_vocabulary(model_id, config, tokenizer)
    if max_length is not None:
        check_positions(model_id, config, tokenizer, max_length)


def in_words(model_id, is_folder, error):
    """What an error at the reading of a model's configuration or tokenizer means, and the remedy."""
    reason = " ".join(str(error).split())[:200].rstrip(". ")
    if is_folder:
        problem = f"transformers {version('transformers')} cannot read its configuration or tokenizer ({reason})"
        return f"{problem}; correct the file, or take a model that it knows"
    causes = causes_of(error)
    page = f"https://huggingface.co/{model_id}"
    denied = next((cause for cause in causes if getattr(cause, "errno", None) in CACHE_PROBLEMS), None)
    if any(isinstance(cause, HFValidationError) for cause in causes):
        return f"no folder in {Path.cwd()} has this name, and it is no name on the hub either; correct model_id"
    if denied is not None:
        return f"the cache cannot be written ({denied}); make room, or set HF_HOME to a folder of yours"
    if any(isinstance(cause, GatedRepoError) for cause in causes):
        return f"it is gated; open {page}, accept its terms, and run `hf auth login`"
    if is_offline_mode():
        return (
            f"it is neither a folder in {Path.cwd()} nor in the cache, and HF_HUB_OFFLINE=1 keeps this run off the hub "
            "(`make run` sets it for the profile tiny); correct model_id, fetch it before with `hf download`, "
            "or set HF_HUB_OFFLINE=0 to go online"
        )
    if any(isinstance(cause, RepositoryNotFoundError) for cause in causes):
        return f"the hub has no model of this name that you may read; look at {page}, or run `hf auth login`"
    if isinstance(error, OSError):
        return f"{reason} …; go online and try again, or set model_id to a folder or to another model"
    return f"{reason} …; take a model that transformers {version('transformers')} knows"


def causes_of(error):
    """The error and those that it was raised from, the last one first."""
    causes = []
    while error is not None and error not in causes:
        causes.append(error)
        error = error.__cause__ or error.__context__
    return causes


def check_code(model_id):
    """Raises CourseError if the model's config.json names Python files of its own."""
    config, _ = PreTrainedConfig.get_config_dict(model_id)
    if "auto_map" in config:
        remedy = "the course runs no code of a model; take one whose architecture transformers knows"
        raise CourseError(f"{model_id}: config.json names Python files of its own (auto_map); {remedy}.")


def has_safe_weights(model_id):
    """Whether the main branch of a model on the hub has weights in the safetensors format, in one file or several."""
    return has_file(model_id, SAFE_WEIGHTS_NAME) or has_file(model_id, SAFE_WEIGHTS_INDEX_NAME)


def check_architecture(model_id, config):
    """Raises CourseError if a folder's weights are of another architecture than its configuration.

    Such a model would load without an error, with random weights in place of all that the files do not name.
    """
    with torch.device("meta"):  # names and shapes only
        try:
            expected = [ending(name) for name in AutoModel.from_config(config).state_dict()]
        except ValueError:
            return  # a kind of model that AutoModel does not build
    stored = {ending(name) for name in model_folders.names_of_weights(Path(model_id))}
    found = sum(name in stored for name in expected)
    if found < len(expected) / 2:
        problem = (
            f"config.json describes a {config.model_type}, whose weights have other names than those in the folder"
        )
        remedy = "put the config.json there that belongs to the weights"
        raise CourseError(f"{model_id}: {problem} ({found} of {len(expected)} are there); {remedy}.")


def ending(name):
    """The end of the name of a weight; its beginning differs between a bare model, one with a head, and releases."""
    return ".".join(name.split(".")[-3:])


def check_vocabulary(model_id, config, tokenizer):
    """Raises CourseError if the tokenizer has special tokens only, or one whose number is beyond the embeddings."""
    vocabulary = tokenizer.get_vocab()
    if len(vocabulary) <= len(tokenizer.all_special_tokens):
        remedy = "take a model with a tokenizer, or save one there with tokenizer.save_pretrained"
        raise CourseError(f"{model_id}: its tokenizer has no words, so its files are missing; {remedy}.")
    token = max(vocabulary, key=vocabulary.get)
    number = vocabulary[token]
    size = getattr(config.get_text_config(), "vocab_size", None)
    if size is not None and number >= size:
        problem = f"its tokenizer gives {token!r} the number {number}, but the model has {size} tokens"
        raise CourseError(f"{model_id}: {problem}; use the tokenizer that the model was trained with.")


def check_positions(model_id, config, tokenizer, max_length):
    """Raises CourseError if a text of `max_length` tokens is longer than what the model has positions for."""
    positions = getattr(config.get_text_config(), "max_position_embeddings", None)
    if positions is None:  # T5, for example, knows distances only
        return
    positions = min(positions, tokenizer.model_max_length)  # RoBERTa counts two more than a text may have
    if max_length > positions:
        problem = f"max_length is {max_length}, but this model has {positions} positions"
        raise CourseError(f"{model_id}: {problem}; set max_length to {positions} or less.")


def check_cache(model_id):
    """Compares the revision in the hub's cache with REVISIONS, and large files with their names: those are hashes."""
    config = try_to_load_from_cache(model_id, "config.json")
    if not isinstance(config, str):
        return
    folder = Path(config).parent
    revision = REVISIONS.get(model_id)
    if revision is not None and revision != folder.name:
        print(
            f"{model_id}: the hub has revision {folder.name}, the course was written for {revision}; scores may differ."
        )
        print(f"To go back: hf download {model_id} --revision {revision} --local-dir FOLDER, and FOLDER as model_id.")
    for file in sorted(folder.iterdir()):
        blob = file.resolve()
        is_named_by_hash = re.fullmatch("[0-9a-f]{64}", blob.name)  # what git-lfs holds, named by its SHA-256
        if is_named_by_hash and sha256_of(blob) != blob.name:
            remedy = f"delete {blob} and run again, and it is fetched anew"
            raise CourseError(f"{model_id}: {file.name} in the cache is damaged; {remedy}.")


def sha256_of(path):
    """The SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
