"""Checks a model before its weights are loaded."""

import hashlib
import re
from pathlib import Path

from huggingface_hub import try_to_load_from_cache
from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, has_file

from utils.errors import CourseError
from utils.training.weight_files import refuse_pickles

REVISIONS = {  # for which the course was written; none is known of the copy in 4 bits that lesson 05 takes on Colab
    "google-bert/bert-base-uncased": "86b5e0934494bd15c9632b12f734a8a67f723594",
    "google-bert/bert-large-uncased": "6da4b6a26a1877e173fca3225479512db81a5e5b",
    "google-t5/t5-3b": "bed96aab9ee46012a5046386105ee5fd0ac572f0",
    "facebook/opt-1.3b": "3f5c25d0bc631cb57ac65913f76e22c2dfb61d62",
    "google/gemma-2-9b-it": "11c9b309abf73637e4b6f9a3fa1e92e615547819",
}


def check_model(model_id, converted=False):
    """Checks a model, a folder or a hub id, before its weights are loaded.

    Raises CourseError if it is neither here nor in the cache while the hub cannot be asked; if its weights are not
    safetensors; if a file in the cache is damaged; if it brings code of its own; or if its tokenizer has ids beyond
    the model's embeddings. Says so if the hub has another revision than the course was written for.
    converted: where the hub has a pickle only, the copy that its bot converted will do. The caller then loads with
    use_safetensors=True, which takes that copy, and never opens the pickle.
    """
    is_folder = Path(model_id).is_dir()
    if is_folder:
        refuse_pickles(model_id)
    try:
        check_code(model_id)
        config = AutoConfig.from_pretrained(model_id, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(model_id, trust_remote_code=False)
        if not (converted or is_folder or has_safe_weights(model_id)):
            remedy = "a pickle can run code when it is opened; take a model whose main branch has safetensors"
            raise CourseError(f"{model_id}: there are no weights in the safetensors format; {remedy}.")
    except CourseError:
        raise
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        remedy = "correct model_id, go online, accept the model's terms on its page at the hub, or use PROFILE = 'tiny'"
        raise CourseError(f"{model_id}: {reason} …; {remedy}.") from None
    if not is_folder:
        check_cache(model_id)
    check_vocabulary(model_id, config, tokenizer)


def check_code(model_id):
    """Raises CourseError if the model's config.json names Python files of its own."""
    config, _ = PreTrainedConfig.get_config_dict(model_id)
    if "auto_map" in config:
        remedy = "the course runs no code of a model; take one whose architecture transformers knows"
        raise CourseError(f"{model_id}: config.json names Python files of its own (auto_map); {remedy}.")


def has_safe_weights(model_id):
    """Whether the main branch of a model on the hub has weights in the safetensors format, in one file or several."""
    return has_file(model_id, SAFE_WEIGHTS_NAME) or has_file(model_id, SAFE_WEIGHTS_INDEX_NAME)


def check_vocabulary(model_id, config, tokenizer):
    """Raises CourseError if the tokenizer has a token whose number is beyond the model's embeddings."""
    vocabulary = tokenizer.get_vocab()
    token = max(vocabulary, key=vocabulary.get)
    number = vocabulary[token]
    if number >= config.vocab_size:
        problem = f"its tokenizer gives {token!r} the number {number}, but the model has {config.vocab_size} tokens"
        raise CourseError(f"{model_id}: {problem}; use the tokenizer that the model was trained with.")


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
