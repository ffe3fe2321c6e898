"""End a kernel, with all that it started, as soon as its runner is gone.

The runner holds the other side of a pipe that is this program's input. It writes the number of the kernel's process on
the first line, and the word "ended" when the kernel has ended in order. However the runner ends, also by kill -9, the
pipe is closed then; what is missing is that word. A kernel notices the end of its runner by itself (ipykernel looks
once a second), but it leaves behind what it started: that is why this program is needed.
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


def main():
    """Wait for the end of the input, then end the kernel unless it has ended in order."""
    kernel_pid = sys.stdin.readline()
    rest = sys.stdin.read()
    if kernel_pid.strip().isdecimal() and rest != "ended":
        end_kernel(int(kernel_pid))


if __name__ == "__main__":
    main()
