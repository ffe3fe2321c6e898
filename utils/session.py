"""A lesson's surroundings: what this machine has, versions, and an output folder with one owner."""

import atexit
import contextlib
import hashlib
import json
import logging
import os
import platform
import subprocess
import tempfile
import threading
import time
import warnings
from importlib import metadata
from pathlib import Path

import psutil
from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from utils.errors import CourseError
from utils.paths import ROOT

# Before torch is imported: a fixed number of threads, so that sums are the same on any number of cores. Threads that
# wait for each other give way soon: else a busy machine stalls (a step took 30 times as long, on two cores).
os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # at its import: lacks an optional kernel

LOCK = "in_use.json"
SILENT = 300  # seconds after which the lock of another machine counts as left behind; a living owner renews it


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


def public_version(version):
    """A version without its local part: "2.13.0" of "2.13.0+cpu", "2.13.0+cu130" and "2.13.0". None stays None.

    The local part names a build. It depends on where a package came from, and two sources of the same build do not
    agree: PyPI's torch calls itself 2.13.0+cu130 and its package 2.13.0. So compare versions without it.
    """
    if version is None:
        return None
    try:
        return Version(version).public
    except InvalidVersion:
        return version


def check_versions():
    """Prints one line: ready, or which packages differ from requirements.txt and what to do."""
    wrong = [
        f"{name} {version or 'missing'} (needs {wanted})"
        for name, (version, wanted) in versions().items()
        if not version or not wanted.contains(public_version(version), prereleases=True)
    ]
    remedy = "Run `pip install -r requirements.txt` and restart the kernel."
    print(f"Not ready: {', '.join(wrong)}. {remedy}" if wrong else "Ready: all packages are here.")


def check_dtype(dtype):
    """Raises CourseError unless this machine has units for `dtype` ("float32", "float16", "bfloat16"). It asks for the
    card's generation: torch's own is_bf16_supported is also true where bfloat16 is only emulated."""
    import torch

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
    installed["torch"] = str(torch.__version__)  # with the build that runs: the package's version may lack it
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


def writable_folder(path):
    """Creates the folder if need be, proves that a file can be written in it, and returns it as a Path."""
    folder = Path(path).expanduser()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = "set OUTPUT_DIR to another folder"
        raise CourseError(f"{folder}: cannot write here ({error.strerror}); {remedy}.") from error
    return folder


def own_folder(path):
    """Creates the folder if need be, takes it for this process until it ends, and returns it as a Path.

    Raises CourseError if it cannot be written, or if a living process other than those that started this one has it.
    The lock of a dead process is taken over. Processes of another machine count as alive while they renew the lock.
    """
    folder, me = writable_folder(path), psutil.Process()
    lock, family = folder / LOCK, {me.pid, *(parent.pid for parent in me.parents())}
    mine = {"pid": me.pid, "host": platform.node(), "started": me.create_time(), "since": time.strftime("%F %T")}
    while True:
        try:
            _create(lock, mine)
            break
        except FileExistsError:
            text, owner = _owner(lock)
        if owner and _alive(owner, lock):
            if owner["host"] == mine["host"] and owner["pid"] in family:
                return folder
            who = f"process {owner['pid']} on {owner['host']} has been using this folder since {owner['since']}"
            raise CourseError(f"{folder}: {who}; stop it (a notebook: shut its kernel down), or set OUTPUT_DIR.")
        _remove(lock, text)
    atexit.register(_release, lock, mine)
    threading.Thread(target=_renew, args=(lock,), daemon=True).start()
    return folder


def _create(lock, mine):
    """Writes the lock, there with its content at once; FileExistsError if there is one."""
    draft = lock.with_name(f"{LOCK}.{mine['host']}.{mine['pid']}")
    try:
        draft.write_text(json.dumps(mine))
        try:
            os.link(draft, lock)
        except FileExistsError:
            raise
        except OSError:  # a file system without links, such as Google Drive
            with lock.open("x") as file:
                json.dump(mine, file)
    finally:
        draft.unlink(missing_ok=True)


def _remove(lock, text):
    """Removes the lock with this text, of a dead owner. Of all that want to, one at a time may look and remove it, so
    that none removes the lock of a new owner who took over in the meantime."""
    turn = lock.with_name(f"{LOCK}.{hashlib.sha256(text.encode()).hexdigest()[:16]}")
    try:
        turn.touch(exist_ok=False)
    except FileExistsError:  # somebody else's turn, which takes a moment
        with contextlib.suppress(FileNotFoundError):
            if time.time() - turn.stat().st_mtime > SILENT:
                fault = "a process was killed while it took this folder over"
                raise CourseError(f"{turn}: {fault}; delete that file.") from None
        return time.sleep(0.02)
    try:
        with contextlib.suppress(FileNotFoundError):
            if lock.read_text() == text:
                lock.unlink()
    finally:
        turn.unlink()


def _owner(lock):
    """Text and content of the lock; None for what nobody is writing and nobody can read."""
    text = ""
    for _ in range(20):
        try:
            text = lock.read_text()
            return text, {"pid": 0, "host": "", "started": 0.0, "since": ""} | json.loads(text)
        except (OSError, ValueError, TypeError):  # its owner may be between creating and writing it
            time.sleep(0.05)
    return text, None


def _alive(owner, lock):
    try:
        if owner["host"] != platform.node():
            return time.time() - lock.stat().st_mtime < SILENT
        return abs(psutil.Process(owner["pid"]).create_time() - owner["started"]) < 5
    except (psutil.Error, FileNotFoundError):
        return False


def _renew(lock):
    while lock.exists():
        os.utime(lock)
        time.sleep(SILENT / 5)


def _release(lock, mine):
    if os.getpid() == mine["pid"] and lock.exists() and _owner(lock)[1] == mine:
        lock.unlink()
