"""Files of weights: safetensors only, and whole ones only. Nothing is unpickled here."""

import json
import zipfile
from pathlib import Path

from utils.errors import CourseError, first_ten

SAFE = {f"{kind}model.safetensors{index}" for kind in ("", "adapter_") for index in ("", ".index.json")}


def fault(checkpoint):
    """Why a checkpoint cannot be used, in a few words; "" if every file in it is whole. Nothing in it is unpickled."""
    try:
        json.loads((checkpoint / "trainer_state.json").read_text("utf-8"))["global_step"]  # Trainer writes it last
    except (OSError, ValueError, TypeError, KeyError):
        return "trainer_state.json is missing or broken"
    weights = [*checkpoint.glob("*.safetensors")]
    for index in checkpoint.glob("*.safetensors.index.json"):
        weights += [checkpoint / name for name in set(json.loads(index.read_text("utf-8"))["weight_map"].values())]
    if not weights:
        return "it has no weights in the safetensors format"
    archives = [*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]
    broken = [file.name for file in weights if not _whole_tensors(file)]
    broken += [file.name for file in archives if not _whole_zip(file)]
    return f"{first_ten(broken)} is not whole" if broken else ""


def safe_weights(folder):
    """Raises CourseError if a folder has weights, but none in the safetensors format under the name that is looked for:
    all other formats are pickles, which can run code when they are opened. Nothing is opened here."""
    names = sorted(file.name for file in Path(folder).glob("*") if file.is_file())
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".h5"))]
    if pickles and not SAFE & {*names}:
        remedy = "get the model in the safetensors format, which holds numbers only"
        raise CourseError(f"{folder}: {first_ten(pickles)} can run code when it is opened; {remedy}.")


def _whole_tensors(file):
    """Whether the header of a .safetensors file agrees with the file's size."""
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header = json.loads(stream.read(length) if length < file.stat().st_size else b"")
        ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        return file.stat().st_size == 8 + length + max(ends, default=0)
    except (OSError, ValueError, TypeError, KeyError):
        return False


def _whole_zip(file):
    """Whether a file that torch.save wrote, a zip archive, has its directory and all its checksums."""
    try:
        with zipfile.ZipFile(file) as archive:
            return archive.testzip() is None
    except (OSError, ValueError, zipfile.BadZipFile):
        return False
