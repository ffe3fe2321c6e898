"""The watcher of a kernel: nothing that the kernel started outlives the runner, and nothing ends while it is there."""

import subprocess
import sys

import psutil
import pytest

from tools.run_notebooks import WATCHER

KERNEL = """import subprocess, time
subprocess.Popen(['sleep', '600'])
subprocess.Popen(['sleep', '600'], start_new_session=True)
print('started', flush=True)
time.sleep(600)"""


@pytest.fixture
def family():
    """What stands for a kernel, and its two children: one in its process group, one in a session of its own."""
    command = [sys.executable, "-c", KERNEL]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as kernel:
        assert kernel.stdout.readline() == "started\n"
        process = psutil.Process(kernel.pid)
        family = [process, *process.children(recursive=True)]
        assert len(family) == 3
        yield family
        for member in family:
            if member.is_running():
                member.kill()


def watch(kernel, word):
    """Run a watcher whose runner names the kernel, writes a word, or nothing, and is gone then."""
    subprocess.run([sys.executable, "-P", str(WATCHER)], input=f"{kernel.pid}\n{word}", text=True, check=True)


def alive(family):
    """Those that still run; a zombie does not."""
    _, rest = psutil.wait_procs(family, timeout=5)
    return [member for member in rest if member.status() != psutil.STATUS_ZOMBIE]


def test_without_its_runner_a_kernel_ends_with_all_that_it_started(family):
    watch(family[0], "")
    assert alive(family) == []


def test_a_runner_whose_kernel_has_ended_says_so_and_nothing_is_killed(family):
    watch(family[0], "ended")
    assert all(member.is_running() for member in family)


def test_children_that_have_outlived_their_kernel_are_found(family):
    kernel, in_its_group, _ = family
    kernel.kill()
    kernel.wait()
    watch(kernel, "")
    assert alive([in_its_group]) == []


def test_a_runner_that_is_gone_before_it_names_a_kernel_ends_nothing():
    done = subprocess.run([sys.executable, "-P", str(WATCHER)], input="", text=True, capture_output=True)
    assert (done.returncode, done.stderr) == (0, "")
