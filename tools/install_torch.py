"""Chooses the build of PyTorch for this machine and installs it: `python tools/install_torch.py`.

The Makefile calls it with the Python of .venv, before the other packages are installed; it needs nothing but pip. On
Linux, the torch of PyPI is the build for NVIDIA GPUs and brings several GB of CUDA libraries. A machine without such a
GPU gets PyTorch's own build for the CPU (https://pytorch.org/get-started/locally), if its index answers soon; all other
machines get what pip finds. A torch that is installed already and fits requirements.txt stays. One line says what was
chosen and why.

TORCH_BUILD overrides the choice: cpu (PyTorch's build for the CPU, or an error), cuda (what pip finds, which must be a
build for CUDA) or pip (what pip finds). TORCH_CPU_INDEX is another index for the build for the CPU, such as a mirror.
"""

import argparse
import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

REQUIREMENTS = Path(__file__).resolve().parents[1] / "requirements.txt"
CPU_INDEX = "https://download.pytorch.org/whl/cpu"
SECONDS = 5  # an index that needs longer than that for its first bytes counts as silent
BUILDS = ("cpu", "cuda", "pip")


def wanted_torch(requirements=REQUIREMENTS):
    """The requirement of torch in requirements.txt, such as "torch>=2.6,<2.14"."""
    for line in requirements.read_text("utf-8").splitlines():
        requirement = line.split("#")[0].replace(" ", "")
        if requirement.startswith(("torch>", "torch=", "torch<", "torch~")):
            return requirement
    raise SystemExit(f"{requirements} does not say which torch the course needs.")


def has_nvidia_gpu():
    """Whether this machine has an NVIDIA GPU, as its driver says; torch is not needed to know."""
    if any(Path("/dev").glob("nvidia[0-9]*")) or any(Path("/proc/driver/nvidia/gpus").glob("*")):
        return True
    windows_driver = "/usr/lib/wsl/lib"  # where Windows' Subsystem for Linux puts it
    program = shutil.which("nvidia-smi") or shutil.which("nvidia-smi", path=windows_driver)
    if program is None:
        return False
    try:
        listed = subprocess.run([program, "-L"], capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return listed.returncode == 0 and "GPU " in listed.stdout


def answers(index, seconds=SECONDS):
    """Whether an index of packages lists files of torch within so many seconds, looking up its name included."""
    pages = []

    def ask():
        try:
            # The address is PyTorch's, or one that whoever runs the set-up has chosen.
            with urllib.request.urlopen(f"{index.rstrip('/')}/torch/", timeout=seconds) as page:  # noqa: S310
                pages.append(page.read(2**16))
        except (OSError, ValueError):  # no such host, no route, a refusal, an error page, a broken answer
            return

    # In a thread: a time-out of urlopen counts each piece of an answer alone, and never the search for a host's name.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    return bool(pages) and b".whl" in pages[0]


def pip_install(requirement, constraint, *options):
    """Runs `pip install` for torch alone; what it needs comes with the rest of the course. Returns the exit code."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", requirement, *options]
    if constraint:
        command += ["--constraint", constraint]
    return subprocess.run(command).returncode


def installed_torch(requirement, constraint):
    """The version of the installed torch if it is the one that is wanted, else None; pip is asked, without network."""
    command = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--dry-run", "--quiet"]
    command += ["--report", "-", requirement]
    if constraint:
        command += ["--constraint", constraint]
    asked = subprocess.run(command, capture_output=True, text=True)
    if asked.returncode != 0 or json.loads(asked.stdout)["install"]:
        return None
    return importlib.metadata.version("torch")


def cuda_of_installed_torch():
    """The CUDA version of the installed torch, None if it is a build without CUDA; torch is not imported."""
    path = importlib.metadata.distribution("torch").locate_file("torch/version.py")
    return runpy.run_path(str(path)).get("cuda")


def choose(build, index):
    """(build to install, the reason in words) from TORCH_BUILD, which may be empty; SystemExit if it is unknown."""
    if build and build not in BUILDS:
        raise SystemExit(f"TORCH_BUILD={build} is not known; choose cpu, cuda or pip, or leave it out.")
    if build:
        return build, f"as TORCH_BUILD={build} says"
    if not sys.platform.startswith("linux"):
        return "pip", "as only on Linux pip finds a build that is larger than needed"
    if has_nvidia_gpu():
        return "pip", "as this machine has an NVIDIA GPU"
    if not answers(index):
        return "pip", f"as this machine has no NVIDIA GPU, but {index} does not answer"
    return "cpu", "as this machine has no NVIDIA GPU"


def install(build, index, constraint):
    """Installs torch, or leaves it to the next command if it is what pip finds anyway; SystemExit says what failed."""
    requirement = wanted_torch()
    options = []
    version = installed_torch(requirement, constraint)
    if version:
        cuda = cuda_of_installed_torch()
        is_another_build = (build == "cuda" and not cuda) or (build == "cpu" and cuda)
        if not is_another_build:
            print(f"torch: {version} is installed already and stays.")
            return
        options.append("--force-reinstall")
    chosen, reason = choose(build, index)
    if chosen == "cpu":
        print(f"torch: the build for the CPU from {index}, {reason}.", flush=True)
        if pip_install(requirement, constraint, "--index-url", index, *options) == 0:
            return
        if build == "cpu":
            raise SystemExit(f"TORCH_BUILD=cpu: pip could not install {requirement} from {index}; see its words above.")
        print(f"torch: what pip finds, as {index} has no torch for this machine after all.", flush=True)
        return
    print(f"torch: what pip finds, {reason}.", flush=True)
    if chosen == "cuda":
        if pip_install(requirement, constraint, *options) != 0:
            raise SystemExit(f"TORCH_BUILD=cuda: pip could not install {requirement}; see its words above.")
        if not cuda_of_installed_torch():
            version = importlib.metadata.version("torch")
            raise SystemExit(f"TORCH_BUILD=cuda: pip found torch {version} for this machine, a build without CUDA.")


def main():
    """Reads the command line and the two environment variables, and installs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--constraint", help="file with exact versions, as pip's --constraint takes it")
    options = parser.parse_args()
    build = os.environ.get("TORCH_BUILD", "")
    index = os.environ.get("TORCH_CPU_INDEX") or CPU_INDEX
    install(build, index, options.constraint)


if __name__ == "__main__":
    main()
