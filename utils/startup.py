"""What has to be decided before torch is imported: the number of threads, one GPU for one process, a home folder.

`import utils` does it, whatever part is imported first. Only the standard library is used here.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

GPUS = "CUDA_VISIBLE_DEVICES"  # CUDA reads it once, when it starts
ALL_GPUS = "COURSE_ALL_GPUS"  # what GPUS named before this module chose the first of them
OUR_THREADS = "COURSE_THREADS"  # set if this module decided on the number of threads, not the reader
LAUNCHER = ("WORLD_SIZE", "RANK", "LOCAL_RANK")  # torchrun and accelerate set these for each of their processes


def one_gpu(environment, installed):
    """The environment variables to set so that a single process uses one GPU; an empty dict if nothing is to change.

    environment: the variables of the process; installed: the number of GPUs of the machine. Trainer would share each
    batch among all GPUs that it sees (DataParallel, with as many times the batch), and device_map="auto" would split
    the model. Whoever wants several GPUs starts a process for each (torchrun, accelerate); those are left alone, and so
    is a single GPU that somebody chose, and an empty list, which means no GPU. ALL_GPUS keeps the whole list: a process
    that starts torchrun gives it back as CUDA_VISIBLE_DEVICES.
    """
    if any(name in environment for name in LAUNCHER):
        return {}
    if GPUS in environment:
        names = [name.strip() for name in environment[GPUS].split(",") if name.strip()]
    else:
        names = [str(number) for number in range(installed)]
    if len(names) < 2:
        return {}
    return {GPUS: names[0], ALL_GPUS: ",".join(names)}


def count_gpus():
    """How many NVIDIA GPUs this machine has, counted without torch and without starting CUDA."""
    driver = Path("/proc/driver/nvidia/gpus")  # a folder a GPU; not everywhere, for example not in WSL
    if driver.is_dir():
        return len(list(driver.iterdir()))
    if shutil.which("nvidia-smi") is None:
        return 0
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        return 0
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def name_user():
    """Names the user and a home folder where the system has neither, as in a container that runs under any number.

    torch, Jupyter and the caches of the hub ask for both, and stop if they get no answer.
    """
    if not hasattr(os, "getuid"):
        return  # Windows
    number = os.getuid()
    if not any(os.environ.get(name) for name in ("LOGNAME", "USER", "LNAME", "USERNAME")):
        os.environ["USER"] = f"user{number}"
    home = Path(os.path.expanduser("~"))  # Path.home() raises an error if there is none
    if os.access(home, os.W_OK) or (home / ".cache").is_dir():  # caches that are read only serve as well
        return
    substitute = Path(tempfile.gettempdir()) / f"home-of-{number}"
    if not os.path.lexists(substitute):
        substitute.mkdir(mode=0o700)
    elif substitute.lstat().st_uid != number:  # somebody else was quicker; what is read there could be theirs
        substitute = Path(tempfile.mkdtemp())
    os.environ["HOME"] = str(substitute)
    print(f"{home}: no home folder that can be written, so caches go to {substitute}; set HOME.", file=sys.stderr)


def prepare():
    """Sets the number of threads, the GPU and the home folder of this process, unless somebody has set them before."""
    name_user()
    # One thread: for the tiny models more are not faster, and sums are the same on any number of cores. A lesson with
    # a model of real size takes all cores (session.choose_threads). Threads that wait for each other give way soon:
    # else a busy machine stalls (a step took 30 times as long, on two cores).
    if "OMP_NUM_THREADS" not in os.environ:
        os.environ.update({"OMP_NUM_THREADS": "1", OUR_THREADS: "1"})
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return  # too late: `chosen_gpu` says so
    installed = 0 if GPUS in os.environ else count_gpus()
    os.environ.update(one_gpu(os.environ, installed))


def chosen_gpu(environment, seen):
    """Which of several GPUs this process uses, in words; an empty string if there is nothing to tell.

    environment: the variables of the process; seen: the number of GPUs that torch sees in it.
    """
    if any(name in environment for name in LAUNCHER):
        return ""
    if seen > 1:
        return f"{seen} GPUs at once, because torch was at work before `utils`: restart the kernel and run all cells"
    if seen == 1 and ALL_GPUS in environment:
        return f"GPU {environment[GPUS]} of {len(environment[ALL_GPUS].split(','))}"
    return ""
