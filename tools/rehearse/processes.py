"""Where a rehearsal runs: a temporary folder in place of the reader's own, and processes that end with it."""

import contextlib
import os
import subprocess
from pathlib import Path

import psutil

from utils.paths import ROOT
from utils.planner import settings

PROBE = Path(__file__).with_name("probe.py")
STARTUP = """from importlib import util as _util
_spec = _util.spec_from_file_location("rehearsal_probe", {path!r})
_probe = _util.module_from_spec(_spec)
_spec.loader.exec_module(_probe)
_probe.watch(get_ipython())
del _util, _spec, _probe
"""  # a file of IPython, which it runs before the first cell of the lesson
OF_THE_HUB = ("HF_", "HUGGING", "TRANSFORMERS_")  # how variables begin that lead to the reader's own cache


def enter(folder, limit):
    """Make the temporary folder the place of the hub's cache and of IPython, for this process and the lesson.

    limit: bytes of the card that the lesson may use, as on a smaller card; 0: all. Into the kernel goes probe.py.
    """
    startup = folder / "ipython" / "profile_default" / "startup"
    startup.mkdir(parents=True)
    (startup / "00_probe.py").write_text(STARTUP.format(path=str(PROBE)), encoding="utf-8")
    for name in list(os.environ):
        if name.startswith(OF_THE_HUB):
            del os.environ[name]
    search_path = [str(ROOT)]
    if os.environ.get("PYTHONPATH"):
        search_path.append(os.environ["PYTHONPATH"])
    allocatable = max(1, limit - settings.CONTEXT) if limit else 0  # what CUDA takes itself is not torch's
    os.environ["PYTHONPATH"] = os.pathsep.join(search_path)
    os.environ["HF_HOME"] = str(folder / "hf")
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.environ["IPYTHONDIR"] = str(folder / "ipython")
    os.environ["REHEARSAL_RECORD"] = str(folder / "record.json")
    os.environ["REHEARSAL_LIMIT"] = str(allocatable)


def call(command, **options):
    """Run a command in a session of its own and return its exit code; if interrupted, nothing of it stays behind."""
    process = subprocess.Popen(command, start_new_session=True, **options)
    try:
        return process.wait()
    finally:
        if process.poll() is None:
            end(process)


def end(process):
    """Ask a process to end, which the runner does in order, then kill what is left of it and of its children."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        family = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(15)
    for member in [process, *family]:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()
    psutil.wait_procs(family, timeout=10)
    process.wait()
