"""A lesson's surroundings: what this machine has, and an output folder with one owner."""

import atexit
import contextlib
import logging
import os
import platform
import subprocess
import tempfile
import time
import warnings
from importlib import metadata
from pathlib import Path

import psutil
from filelock import SoftFileLease, Timeout

from utils import run_folder, startup, versions
from utils.errors import CourseError
from utils.paths import ROOT

logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # at its import: lacks an optional kernel

LOCK = "in_use.lock"  # the claim to a folder, written by filelock
SINCE = "in_use_since.txt"  # when its owner took it, in seconds since 1970
LEASE_SECONDS = 120  # a claim that is not renewed for so long counts as left behind; its owner renews it three times
CLAIMS = "COURSE_CLAIMS"  # environment variable: the claims of this process and of those that started it
_held = []  # the claims of this process; filelock gives them back at its end


def check_dtype(dtype):
    """Raises CourseError unless this machine has units for `dtype` ("float32", "float16", "bfloat16"). It asks for the
    card's generation: torch's own is_bf16_supported is also true where bfloat16 is only emulated."""
    import torch

    if dtype != "float32" and not torch.cuda.is_available():
        raise CourseError(f'{dtype} needs a GPU, and none is here; use PROFILE = "tiny", or choose a GPU runtime.')
    if dtype == "bfloat16" and torch.cuda.get_device_capability() < (8, 0):
        raise CourseError(f'{torch.cuda.get_device_name()} has no bfloat16 units; use PROFILE = "colab" (float16).')


def choose_dtype(wish, device_map="auto"):
    """The name of the number type to compute in: `wish`, checked by `check_dtype`; for "auto" what the machine has
    units for, "bfloat16" or else "float32". It is asked, not guessed: the card for its generation, the CPU for its
    instructions (AMX or AVX-512 with bfloat16). device_map: "cpu" if a GPU is not to be used."""
    import torch

    if wish != "auto":
        check_dtype(wish)
        return wish
    if device_map != "cpu" and torch.cuda.is_available():
        has_units = torch.cuda.get_device_capability() >= (8, 0)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_units = any(capabilities.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))
    return "bfloat16" if has_units else "float32"


def choose_threads(model_id):
    """Gives torch all cores for a model that is not one of the course's tiny ones, unless OMP_NUM_THREADS is the
    reader's own: see utils/startup.py.
    """
    import torch

    tiny = model_id is None or (ROOT / "data" / "models") in (ROOT / model_id).resolve().parents
    if startup.OUR_THREADS in os.environ and not tiny:
        allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        torch.set_num_threads(min(allowed, psutil.cpu_count(logical=False) or allowed))


def facts():
    """Device, versions and git commit ("+" if files differ from it; None without checkout or git), for results.json."""
    import torch

    git = ["git", "-C", str(ROOT), "describe", "--always", "--dirty=+", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True, timeout=60).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):  # there is no git here, or it waits for a slow disk
        commit = None
    device = f"CPU, threads: {torch.get_num_threads()}"
    if torch.cuda.is_available():
        card = torch.cuda.get_device_properties(0)
        device = f"{card.name}, {card.total_memory / 2**30:.0f} GiB"
    installed = {name: version for name, (version, _) in versions.installed().items()}
    installed["torch"] = str(torch.__version__)  # with the build that runs: the package's version may lack it
    with contextlib.suppress(metadata.PackageNotFoundError):
        installed["flash-attn-4"] = metadata.version("flash-attn-4")  # lesson 05 is faster with it, where it runs
    return {"device": device, "versions": {"python": platform.python_version()} | installed, "commit": commit or None}


def report():
    """Prints one line: device, versions, whether the hub may be asked. Quiets progress bars and known warnings, and
    lets no experiment tracker ask for a login (see trackers.py)."""
    import datasets
    import torch
    import transformers
    from huggingface_hub import is_offline_mode

    from utils import trackers

    trackers.keep_offline()
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()  # its bars of loaded files; training keeps its own
    logging.getLogger("transformers.trainer").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*pin_memory.*")  # said on every machine without a GPU
    warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a figure shows a box in its place
    # PEFT uses the old name of this argument
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*deprecated")
    # lesson 02 says what paging is for
    warnings.filterwarnings("ignore", message=".*[Pp]aged optimizers are not supported on CPU")

    environment = facts()
    parts = [environment["device"]]
    choice = startup.chosen_gpu(os.environ, torch.cuda.device_count())
    if choice:
        parts.append(choice)
    for name in ("torch", "transformers", "datasets"):
        parts.append(f"{name} {environment['versions'][name]}")
    parts.append("offline" if is_offline_mode() else "hub allowed")
    print(" · ".join(parts))


def writable_folder(path):
    """Creates the folder if need be, proves that a file can be written in it, and returns it as a Path."""
    folder = expanded(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        remedy = "set OUTPUT_DIR to another folder"
        raise CourseError(f"{folder}: cannot write here ({error.strerror}); {remedy}.") from error
    return folder


def expanded(path):
    """The path with a leading "~" as the home folder, also if ROOT was put in front of it: ROOT / "~/x"."""
    path = Path(path)
    try:
        below = path.relative_to(ROOT)
    except ValueError:
        below = path
    if not str(below).startswith("~"):
        return path
    try:
        return below.expanduser()
    except RuntimeError:
        raise CourseError(f"{below}: nobody knows the home folder here; write the whole path in OUTPUT_DIR.") from None


def own_folder(path, put_aside=True):
    """Creates the folder if need be, takes it for this process until it ends, and returns it as a Path.

    put_aside: what a complete earlier run left in it makes room until this run is complete: see `run_folder`.

    Raises CourseError if it cannot be written, or if another process has it, unless that one started this process: a
    kernel may use the folder of its runner. The folder of a process that died is taken over. A claim is a file and not
    a lock of the system, because folders such as Google Drive have no such locks between two machines. So a process of
    another machine counts as alive while it renews its claim; where a claim looks old, this waits for LEASE_SECONDS to
    see whether it changes.
    """
    folder = writable_folder(path)
    claim = SoftFileLease(folder / LOCK, lease_duration=LEASE_SECONDS, thread_local=False)
    if claim.is_lock_held_by_us:  # this cell runs for the second time
        if put_aside and (folder / run_folder.RESULTS).exists():  # so does the whole lesson
            _put_aside(folder)
        return folder
    try:
        acquired = _acquire(claim, folder)
        if acquired:
            (folder / SINCE).write_text(str(time.time()))
    except OSError as error:
        raise CourseError(
            f"{folder}: cannot write here ({error.strerror}); set OUTPUT_DIR to another folder."
        ) from error
    if not acquired:
        owner = claim.owner
        if owner and owner.token in os.environ.get(CLAIMS, "").split(","):
            return folder
        raise CourseError(f"{folder}: {_in_use(folder, owner)}, or set OUTPUT_DIR.")
    _held.append(claim)
    atexit.register(_forget, folder / SINCE, os.getpid())
    inherited = os.environ.get(CLAIMS)
    os.environ[CLAIMS] = f"{inherited},{claim.token}" if inherited else claim.token
    if put_aside:
        _put_aside(folder)
    return folder


def is_ours(folder):
    """Whether this process itself has taken the folder, with `own_folder`."""
    lock = str(Path(folder) / LOCK)
    return any(claim.lock_file == lock for claim in _held)


def _put_aside(folder):
    """Puts aside what an earlier run left, and back at the end of this process if nothing is complete by then."""
    if run_folder.set_aside(folder):
        print(f"What the run before left is in {folder / run_folder.EARLIER} until this one is complete.")
        atexit.register(_recover, folder, os.getpid())


def _recover(folder, pid):
    """`run_folder.recover` at the end of the process `pid`, but not at the end of a fork of it."""
    if os.getpid() == pid:
        run_folder.recover(folder)


def _acquire(claim, folder):
    """Whether the claim could be acquired; False if somebody else has it who is, or may be, alive."""
    if _acquired(claim, 0.2):  # which is enough to take over from a process of this machine that is not there any more
        return True
    owner = claim.owner
    if owner is None:  # nobody can read it: filelock removes such a file if it stays as it is for two seconds
        return _acquired(claim, 5)
    if not _may_be_dead(owner, folder):
        return False
    print(f"{folder}: does process {owner.pid} on {owner.hostname} live? Waiting for {LEASE_SECONDS} s to see.")
    return _acquired(claim, 1.25 * LEASE_SECONDS)


def _acquired(claim, seconds):
    """Whether the claim could be acquired within so many seconds."""
    try:
        claim.acquire(timeout=seconds)
    except Timeout:
        return False
    return True


def _may_be_dead(owner, folder):
    """Whether the claim looks old, and no process of this machine can be its owner (one may be stopped, not dead)."""
    try:
        renewed = (folder / LOCK).stat().st_mtime
    except FileNotFoundError:
        return True  # given back in the meantime
    if time.time() - renewed < LEASE_SECONDS:
        return False
    if owner.hostname.partition("?")[0] != platform.node():  # behind "?" filelock writes the number of a container
        return True
    try:
        return psutil.Process(owner.pid).create_time() > _taken_at(folder)
    except psutil.NoSuchProcess:
        return True


def _taken_at(folder):
    """When the owner of the folder took it, in seconds since 1970; now, if that cannot be read (yet)."""
    try:
        return float((folder / SINCE).read_text())
    except (OSError, ValueError):
        return time.time()


def _in_use(folder, owner):
    """Who uses the folder, and what to do."""
    if owner is None:
        return f"{LOCK} in it cannot be read, so nobody can say who uses this folder; delete that file"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(_taken_at(folder)))
    who = f"process {owner.pid} on {owner.hostname} has been using this folder since {since}"
    return f"{who}; stop it (a notebook: shut its kernel down)"


def _forget(file, pid):
    """Removes the file at the end of the process `pid`, but not at the end of a fork of it."""
    if os.getpid() == pid:
        file.unlink(missing_ok=True)
