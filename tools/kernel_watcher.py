"""End a kernel, with all that it started, as soon as its runner is gone: `python kernel_watcher.py PID_OF_THE_KERNEL`.

The runner holds the other side of a pipe that is this program's input. However the runner ends, also by kill -9, the
pipe is closed then. A kernel notices the end of its runner by itself (ipykernel looks once a second), but it leaves
behind what it started: that is why this program is needed.
"""

import contextlib
import os
import signal
import sys

import psutil


def end_kernel(pid):
    """Kill the kernel, what it started, and the process group that it leads (there it is alone with its children)."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        kernel = psutil.Process(pid)
        family = [kernel, *kernel.children(recursive=True)]
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
    for process in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


if __name__ == "__main__":
    if sys.stdin.buffer.read(1) == b"":  # the end of the file; the runner writes a byte when the kernel has ended
        end_kernel(int(sys.argv[1]))
