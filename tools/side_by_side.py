"""Several lessons at once, each in a runner of its own: `python -m tools.run_notebooks --jobs 2`.

A tiny model keeps one core busy, so lessons side by side are done much sooner than one after the other.
"""

import concurrent.futures
import os
import signal
import subprocess
import sys
import time

import psutil

MEMORY_OF_A_LESSON = 3 * 2**30  # bytes that a tiny lesson may take, with its libraries


def default_jobs(profile):
    """How many lessons run at once unless --jobs says it: of the tiny ones one a core, as far as memory reaches."""
    if profile != "tiny":
        return 1
    by_memory = psutil.virtual_memory().available // MEMORY_OF_A_LESSON
    return max(1, min(os.cpu_count() or 1, by_memory))


class Runners:
    """The runners that are at work; a signal to this process goes to each of them."""

    def __init__(self, arguments, watcher):
        """arguments: of the command line. watcher: see tools.run_notebooks.watcher."""
        self.arguments = arguments
        self.watcher = watcher
        self.processes = []
        self.received_signal = None  # its number; no lesson begins after it

    def start(self, lesson):
        """The process that runs a lesson; None after a signal. It has a session of its own: Ctrl-C comes once."""
        if self.received_signal is not None:
            return None
        command = [sys.executable, "-m", "tools.run_notebooks", *self.arguments]
        command += ["--nb", str(lesson.path), "--jobs", "1", "--no-table"]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        self.processes.append(process)
        if self.received_signal is not None:  # it came while the process was being started
            process.send_signal(self.received_signal)
        return process

    def run(self, lesson):
        """Run a lesson and print its lines, each with the lesson's number; return (exit code, minutes), or None."""
        begin = time.monotonic()
        with self.watcher() as watch:
            process = self.start(lesson)
            if process is None:
                return None
            watch(process.pid)
            number = lesson.path.stem.split("_")[0]
            for line in process.stdout:
                print(f"{number}  {line}", end="", flush=True)
            code = process.wait()
        return code, (time.monotonic() - begin) / 60

    def on_signal(self, number, frame):
        """Hand a signal on; each runner ends its lesson in order."""
        self.received_signal = number
        for process in list(self.processes):
            if process.poll() is None:
                process.send_signal(number)


def run_all(lessons, arguments, jobs, watcher):
    """Run lessons, `jobs` at a time; the last ones take longest, so they begin first.

    Returns a list of (lesson, exit code, minutes) in the order of the lessons, and the number of a signal that stopped
    them, or None. The other parameters are those of Runners.
    """
    runners = Runners(arguments, watcher)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, runners.on_signal)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        futures = {lesson.path: pool.submit(runners.run, lesson) for lesson in reversed(lessons)}
        concurrent.futures.wait(futures.values())
    ended = []
    for lesson in lessons:
        outcome = futures[lesson.path].result()
        if outcome is not None:
            ended.append((lesson, *outcome))
    return ended, runners.received_signal
