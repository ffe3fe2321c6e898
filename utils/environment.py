"""What this machine has: one line at the top of every lesson, and the facts for results.json."""

import contextlib
import logging
import os
import platform
import subprocess
import warnings
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[1]
# Before torch is imported: a fixed number of threads, so that sums are the same on any number of cores. Threads that
# wait for each other give way soon: else a busy machine stalls (a step took 30 times as long, on two cores).
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # at its import: lacks an optional kernel


def versions():
    """{package: (installed version or None, range that requirements.txt asks for)}, in its order."""
    lines = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text("utf-8").splitlines()]
    found = {}
    for wanted in (Requirement(line) for line in lines if line and not line.startswith("-")):
        try:
            found[wanted.name] = metadata.version(wanted.name), wanted.specifier
        except metadata.PackageNotFoundError:
            found[wanted.name] = None, wanted.specifier
    return found


def check_versions():
    """Prints one line: ready, or which packages differ from requirements.txt and what to do."""
    wrong = [
        f"{name} {version or 'missing'} (needs {wanted})"
        for name, (version, wanted) in versions().items()
        if not version or not wanted.contains(version, prereleases=True)
    ]
    remedy = "Run `pip install -r requirements.txt` and restart the kernel."
    print(f"Not ready: {', '.join(wrong)}. {remedy}" if wrong else "Ready: all packages are here.")


def check_dtype(dtype):
    """Raises CourseError unless this machine has units for `dtype` ("float32", "float16", "bfloat16"). It asks for the
    card's generation: torch's own is_bf16_supported is also true where bfloat16 is only emulated."""
    import torch

    from utils.checks import CourseError

    if dtype != "float32" and not torch.cuda.is_available():
        raise CourseError(f'{dtype} needs a GPU, and none is here; use PROFILE = "tiny", or choose a GPU runtime.')
    if dtype == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        raise CourseError(f'{torch.cuda.get_device_name()} has no bfloat16 units; use PROFILE = "colab" (float16).')


def facts():
    """Device, versions and git commit ("+" if files differ from it, None outside a checkout), for results.json."""
    import torch

    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    device = f"CPU, threads: {torch.get_num_threads()}"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        device = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    installed = {name: version for name, (version, _) in versions().items()}
    with contextlib.suppress(metadata.PackageNotFoundError):
        installed["flash-attn-4"] = metadata.version("flash-attn-4")  # lesson 05 is faster with it, where it runs
    return {"device": device, "versions": {"python": platform.python_version()} | installed, "commit": commit or None}


def report():
    """Prints one line: device, versions, whether the hub may be asked. Quiets progress bars and known warnings, and
    sets Weights & Biases to its offline mode unless you chose one, so that nothing asks for a login."""
    import datasets
    import transformers
    from huggingface_hub import is_offline_mode

    os.environ.setdefault("WANDB_MODE", "offline")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # its bars of loaded files; training keeps its own
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # said on every machine without a GPU
    for known in (".*gradient_checkpointing.*deprecated", ".*[Pp]aged optimizers are not supported on CPU"):
        warnings.filterwarnings("ignore", message=known)  # PEFT uses the old name; lesson 02 says what paging is for
    found = facts()
    shown = [f"{name} {found['versions'][name]}" for name in ("torch", "transformers", "datasets")]
    print(" · ".join([found["device"], *shown, "offline" if is_offline_mode() else "hub allowed"]))
