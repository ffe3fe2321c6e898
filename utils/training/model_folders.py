"""Checks the files in a folder with a model before anything of it is loaded: they are there, and they are whole."""

import json
from pathlib import Path

from safetensors import safe_open

from utils.errors import CourseError, alike, first_ten
from utils.training.weight_files import is_whole_safetensors, refuse_pickles

CONFIG = "config.json"
ADAPTER = "adapter_config.json"
# a tokenizer has one of these, whatever its kind
VOCABULARIES = (
    "tokenizer.json",
    "tokenizer.model",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "tekken.json",
)
POINTER = b"version https://git-lfs"  # how a file begins that stands for a large one
FETCH = "fetch the files themselves with `git lfs pull`, or the model with `hf download`"
WHOLE = "the folder that save_pretrained or `hf download` wrote"


def check_path(model_id):
    """Raises CourseError if `model_id` is a file, or a path to a folder that does not exist."""
    path = Path(model_id)
    if path.is_file():
        if path.suffix == ".gguf":
            raise CourseError(f"{model_id}: {_gguf(path.name)}.")
        raise CourseError(f"{model_id}: this is a file; set model_id to {WHOLE}.")
    looks_like_path = model_id.startswith((".", "/", "~")) or model_id.count("/") > 1 or model_id.endswith("/")
    if not path.is_dir() and looks_like_path and "://" not in model_id:
        put_aside = path.parent / "earlier" / path.name
        if put_aside.is_dir():
            remedy = f"copy {put_aside} to another folder, and set model_id to that copy"
            raise CourseError(f"{model_id}: this run has put the earlier one aside, with this model; {remedy}.")
        similar = alike(path.name, _names(path.parent, Path.is_dir))
        hint = f"there is {similar!r} beside it" if similar else f"looked for in {Path.cwd()}"
        raise CourseError(f"{model_id}: there is no such folder ({hint}); correct model_id.")


def check_folder(model_id):
    """Raises CourseError unless a folder has a whole model: configuration, weights in safetensors, tokenizer."""
    folder = Path(model_id)
    _check_config(folder)
    _check_weights(folder)
    _check_tokenizer(folder)


def _check_config(folder):
    """Raises CourseError unless config.json is there and holds the configuration of a model."""
    if (folder / ADAPTER).is_file() or not (folder / CONFIG).is_file():  # beside an adapter, its base would be loaded
        raise CourseError(f"{folder}: {_what_it_holds_instead(folder)}.")
    config = _read_object(folder / CONFIG)
    if "model_type" not in config:
        raise CourseError(f"{folder / CONFIG}: it has no 'model_type'; set model_id to {WHOLE}.")


def _what_it_holds_instead(folder):
    """What a folder without config.json holds, and the remedy."""
    ggufs = _names(folder, lambda path: path.suffix == ".gguf")
    if (folder / ADAPTER).is_file():
        base = _read_object(folder / ADAPTER).get("base_model_name_or_path") or "adapter_config.json does not name it"
        return f"it holds an adapter, not a model; merge it into its base ({base}), or set model_id to that base"
    if ggufs:
        return _gguf(first_ten(ggufs))
    below = _names(folder, lambda path: (path / CONFIG).is_file())
    if below:
        return f"it has no {CONFIG}, but folders that have one ({first_ten(below)}); set model_id to one of these"
    return f"it has no {CONFIG}; set model_id to {WHOLE}"


def _gguf(names):
    """What is wrong with files for llama.cpp, and the remedy."""
    return f"{names} is for llama.cpp and cannot be trained; take the model in the safetensors format"


def _check_weights(folder):
    """Raises CourseError unless all files of weights that are looked for are there and whole."""
    refuse_pickles(folder)
    files = _files_of_weights(folder)
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        remedy = "fetch the model again, with all of its files"
        raise CourseError(f"{folder}: {first_ten(missing)} is missing, which its index names; {remedy}.")
    for file in files:
        _refuse_pointer(file)
        if not is_whole_safetensors(file):
            raise CourseError(
                f"{file}: it is cut or damaged ({file.stat().st_size:,} bytes are there); fetch it again."
            )


def _files_of_weights(folder):
    """The paths of the files that from_pretrained looks for; raises CourseError if it would find none."""
    names = _names(folder, Path.is_file)
    if "model.safetensors" in names:
        return [folder / "model.safetensors"]
    if "model.safetensors.index.json" in names:
        return [folder / name for name in _shards(folder / "model.safetensors.index.json")]
    ggufs = [name for name in names if name.endswith(".gguf")]
    others = [name for name in names if name.endswith((".safetensors", ".onnx", ".msgpack"))]
    if ggufs:
        raise CourseError(f"{folder}: {_gguf(first_ten(ggufs))}.")
    there = f" (only {first_ten(others)})" if others else ""
    raise CourseError(f"{folder}: it has no model.safetensors{there}; set model_id to {WHOLE}.")


def names_of_weights(folder):
    """The names of all weights in a folder that `check_folder` has passed."""
    names = []
    for file in _files_of_weights(folder):
        with safe_open(file, framework="pt") as weights:
            names += weights.keys()
    return names


def _shards(index):
    """The names of the files that an index of weights names, in order."""
    weight_map = _read_object(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise CourseError(f"{index}: it names no files of weights; fetch the model again.")
    return sorted({str(name) for name in weight_map.values()})


def _check_tokenizer(folder):
    """Raises CourseError unless the files of a tokenizer are there and can be read."""
    names = [name for name in VOCABULARIES if (folder / name).is_file()]
    if not names:
        remedy = "save it there with tokenizer.save_pretrained, from the model that yours was made of"
        raise CourseError(f"{folder}: it has no tokenizer ({', '.join(VOCABULARIES[:3])} or another); {remedy}.")
    for name in [*names, "tokenizer_config.json", "special_tokens_map.json", "generation_config.json"]:
        if not (folder / name).is_file():
            continue
        _refuse_pointer(folder / name)
        if name.endswith(".json"):
            _read_object(folder / name)


def _refuse_pointer(file):
    """Raises CourseError for a file of git-lfs that stands for the real one."""
    with _opened(file) as stream:
        is_pointer = stream.read(len(POINTER)) == POINTER
    if is_pointer:
        raise CourseError(f"{file}: git-lfs has left a pointer instead of the file; {FETCH}.")


def _read_object(file):
    """The JSON object in a file, as a dict; raises CourseError if it holds anything else."""
    _refuse_pointer(file)
    try:
        with _opened(file) as stream:
            value = json.load(stream)
    except (ValueError, RecursionError):
        raise CourseError(f"{file}: it is not JSON, so it is cut or damaged; fetch it again.") from None
    if not isinstance(value, dict):
        raise CourseError(f"{file}: it is no JSON object, so it is damaged; fetch it again.")
    return value


def _opened(file):
    """A file, opened for reading bytes; raises CourseError if that is not allowed."""
    try:
        return file.open("rb")
    except OSError as error:
        raise CourseError(f"{file}: cannot be read ({error.strerror}); change its permissions.") from None


def _names(folder, wanted):
    """The names in a folder, in order, whose paths are wanted; none if it cannot be listed."""
    try:
        return sorted(path.name for path in folder.iterdir() if wanted(path))
    except OSError:
        return []
