"""Files of weights: safetensors only, and whole ones only. Nothing is unpickled here."""

import json
import math
import zipfile
from pathlib import Path

from safetensors import SafetensorError, safe_open

from utils.errors import CourseError, first_ten

SAFE_NAMES = {
    "model.safetensors",
    "model.safetensors.index.json",
    "adapter_model.safetensors",
    "adapter_model.safetensors.index.json",
}
PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5")  # and what else is no plain file of numbers


def why_unusable(checkpoint):
    """Why a checkpoint folder cannot be used, in a few words; "" if every file in it is whole."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"]  # Trainer writes it last
    except (OSError, ValueError, TypeError, KeyError):
        return "trainer_state.json is missing or broken"
    weights = list(checkpoint.glob("*.safetensors"))
    for index in checkpoint.glob("*.safetensors.index.json"):
        weight_map = json.loads(index.read_text("utf-8"))["weight_map"]
        weights += [checkpoint / name for name in set(weight_map.values())]
    if not weights:
        return "it has no weights in the safetensors format"
    broken = [file.name for file in weights if not is_whole_safetensors(file)]
    for pattern in ("*.pt", "*.pth"):
        broken += [file.name for file in checkpoint.glob(pattern) if not is_whole_archive(file)]
    if broken:
        return f"{first_ten(broken)} is not whole"
    return ""


def numbers_written(folder, stem):
    """How many numbers the weights in a folder have; None if there are none. stem: "model" or "adapter_model"."""
    files = list(Path(folder).glob(f"{stem}*.safetensors"))
    if not files:
        return None
    numbers = 0
    for file in files:
        with safe_open(file, framework="pt") as weights:
            shapes = [weights.get_slice(name).get_shape() for name in list(weights.keys())]
        numbers += sum(math.prod(shape) for shape in shapes)
    return numbers


def refuse_pickles(folder):
    """Raises CourseError if a folder has weights, but none in the safetensors format under the name that is looked for.

    All other formats are pickles, which can run code when they are opened. Nothing is opened here.
    """
    names = sorted(file.name for file in Path(folder).glob("*") if file.is_file())
    pickles = [name for name in names if name.endswith(PICKLES)]
    has_safe_weights = not SAFE_NAMES.isdisjoint(names)
    if pickles and not has_safe_weights:
        remedy = "get the model in the safetensors format, which holds numbers only"
        raise CourseError(f"{folder}: {first_ten(pickles)} can run code when it is opened; {remedy}.")


def is_whole_safetensors(file):
    """Whether a .safetensors file is as long as its header says, and its header can be read."""
    try:
        with safe_open(file, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def is_whole_archive(file):
    """Whether a file that torch.save wrote, a zip archive, has its directory and all its checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
