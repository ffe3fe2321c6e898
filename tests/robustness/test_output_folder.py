"""A folder of results has one owner: a second run is refused, a dead owner's folder is taken over."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, refusal
from filelock import SoftFileLease

from utils import session
from utils.errors import CourseError

HOLD = """
import os, sys, time
from utils import session
try:
    session.own_folder(sys.argv[1])
except ValueError as error:
    sys.exit(str(error))
print("mine", flush=True)
time.sleep(float(sys.argv[2]))
"""


@pytest.fixture(autouse=True)
def no_inheritance(monkeypatch):
    """What this process itself has taken must not let its children in."""
    monkeypatch.delenv(session.CLAIMS, raising=False)


def hold(folder, seconds, code=HOLD):
    command = [sys.executable, "-c", code, str(folder), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def test_a_folder_has_one_owner_until_that_one_ends_or_dies(tmp_path):
    first = hold(tmp_path, 600)
    assert first.stdout.readline() == "mine\n"
    second = hold(tmp_path, 0)
    err = second.communicate(timeout=60)[1]
    assert second.returncode == 1
    assert f"{tmp_path}: process {first.pid} on " in err
    assert f"has been using this folder since {time.strftime('%Y')}-" in err
    assert err.strip().endswith("; stop it (a notebook: shut its kernel down), or set OUTPUT_DIR.")
    assert len(err.strip().splitlines()) == 1
    first.kill()
    first.wait()
    assert (tmp_path / session.LOCK).exists()
    started = time.monotonic()
    third = hold(tmp_path, 0)
    assert third.communicate(timeout=60) == ("mine\n", "")
    assert time.monotonic() - started < 30, "it is known to be dead, so nobody waits"
    assert list(tmp_path.iterdir()) == []


def test_a_stopped_owner_is_not_a_dead_one(tmp_path, monkeypatch):
    """Ctrl-Z, or a laptop that sleeps: it renews nothing, but it will go on."""
    owner = hold(tmp_path, 600)
    assert owner.stdout.readline() == "mine\n"
    owner.send_signal(signal.SIGSTOP)
    long_ago = time.time() - 10 * session.LEASE_SECONDS
    os.utime(tmp_path / session.LOCK, (long_ago, long_ago))
    try:
        assert f"process {owner.pid} on " in refusal(session.own_folder, tmp_path)
    finally:
        owner.kill()
        owner.wait()


RACE = """
import os, sys, time
from pathlib import Path
from utils import session
folder, wins = Path(sys.argv[1]), []
dead = (folder / session.LOCK).read_text()
for _ in range(4):
    (folder / session.LOCK).write_text(dead)
    start, children, (read, write) = time.time() + 0.05, [], os.pipe()
    for number in range(6):
        pid = os.fork()
        if pid == 0:
            time.sleep(max(0, start - time.time()))
            try:
                session.own_folder(folder)
                os.read(read, 1)  # it owns the folder until all others have tried
                os._exit(1)
            except ValueError:
                os._exit(0)
        children.append(pid)
    ended, late = [], time.time() + 20
    while len(ended) < 5 and time.time() < late:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid:
            ended.append(status)
        else:
            time.sleep(0.01)
    os.write(write, b"......")
    while len(ended) < 6:
        ended.append(os.waitpid(-1, 0)[1])
    wins.append(sum(os.waitstatus_to_exitcode(status) for status in ended))
print(wins)
"""


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path):
    dead = hold(tmp_path, 600)
    assert dead.stdout.readline() == "mine\n"
    dead.kill()
    dead.wait()
    race = hold(tmp_path, 0, RACE)
    out, err = race.communicate(timeout=120)
    assert out == f"{[1] * 4}\n", err


CHILD = """
import subprocess, sys
from utils import session
session.own_folder(sys.argv[1])
child = "import sys; from utils import session; session.own_folder(sys.argv[1]); print('let in', flush=True)"
grandchild = "import subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[2], sys.argv[1]])"
subprocess.run([sys.executable, "-c", child, sys.argv[1]])
subprocess.run([sys.executable, "-c", grandchild, sys.argv[1], child])
session.own_folder(sys.argv[1])
print("mine", flush=True)
"""


def test_who_was_started_by_the_owner_is_let_in(tmp_path):
    """A kernel may use the folder of its runner, which a process between the two has started; so may a second call."""
    owner = hold(tmp_path, 0, CHILD)
    assert owner.communicate(timeout=120) == ("let in\nlet in\nmine\n", "")
    assert list(tmp_path.iterdir()) == []


def test_the_claims_of_several_folders_are_handed_down(tmp_path):
    for name in ("a", "b"):
        session.own_folder(tmp_path / name)
    tokens = os.environ[session.CLAIMS].split(",")
    assert len(tokens) == 2
    for name, token in zip(("a", "b"), tokens, strict=True):
        assert f"token={token}\n" in (tmp_path / name / session.LOCK).read_text()


@pytest.fixture
def claim(tmp_path_factory, tmp_path):
    """A function that writes the claim of somebody else, renewed `age` seconds ago."""
    folder = tmp_path_factory.mktemp("template")
    with SoftFileLease(folder / session.LOCK, lease_duration=session.LEASE_SECONDS):
        template = (folder / session.LOCK).read_text()

    def write(age=0, **changes):
        text = template
        for name, value in ({"token": "f" * 32} | changes).items():
            text, count = re.subn(rf"^{name}=.*$", f"{name}={value}", text, flags=re.MULTILINE)
            assert count == 1, "filelock writes its claims in another way now"
        path = tmp_path / session.LOCK
        path.write_text(text)
        renewed = time.time() - age
        os.utime(path, (renewed, renewed))
        (tmp_path / session.SINCE).write_text(str(time.time() - 3600))

    return write


def taken(folder):
    session.own_folder(folder)
    return f"pid={os.getpid()}\n" in (folder / session.LOCK).read_text()


def test_another_machine_counts_as_alive_while_it_renews_its_claim(claim, tmp_path):
    claim(pid=1, host="another", age=session.LEASE_SECONDS - 60)
    assert "process 1 on another has been using this folder since 20" in refusal(taken, tmp_path)


def test_another_machine_that_is_silent_is_watched_before_its_folder_is_taken(claim, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(session, "LEASE_SECONDS", 2.0)
    claim(pid=1, host="another", duration=2.0, age=4)
    started = time.monotonic()
    assert taken(tmp_path)
    assert time.monotonic() - started > 1.9
    assert "does process 1 on another live? Waiting for 2.0 s to see." in capsys.readouterr().out


def test_another_machine_whose_clock_is_behind_keeps_its_folder(tmp_path, monkeypatch, claim):
    monkeypatch.setattr(session, "LEASE_SECONDS", 2.0)
    claim(pid=1, host="another", duration=2.0, age=3600)
    renew = "import os, sys, time\nfor n in range(100): os.utime(sys.argv[1], (n, n)); time.sleep(0.1)"
    other = subprocess.Popen([sys.executable, "-c", renew, str(tmp_path / session.LOCK)])
    try:
        time.sleep(0.5)
        assert "process 1 on another" in refusal(taken, tmp_path)
    finally:
        other.kill()
        other.wait()


def test_a_process_that_got_the_number_of_a_dead_owner_is_no_owner(claim, tmp_path):
    claim(pid=os.getppid(), start=1)  # our parent lives, but it started at another time
    assert taken(tmp_path)


def test_an_unreadable_claim_is_no_owner_and_an_empty_one_is_named(tmp_path):
    (tmp_path / session.LOCK).write_text("{")
    assert taken(tmp_path)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / session.LOCK).touch()
    message = refusal(session.own_folder, tmp_path / "other")
    assert "in_use.lock in it cannot be read" in message
    assert "delete that file" in message


def test_a_living_owner_renews_its_claim(tmp_path, monkeypatch):
    monkeypatch.setattr(session, "LEASE_SECONDS", 0.3)
    session.own_folder(tmp_path)
    path = tmp_path / session.LOCK
    os.utime(path, (0, 0))
    time.sleep(1)
    assert time.time() - path.stat().st_mtime < 60


def test_a_folder_that_somebody_removed_is_taken_again(tmp_path):
    folder = session.own_folder(tmp_path / "results")
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    assert taken(folder)


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="cannot write here"):
        session.own_folder(tmp_path / "file")

    def full(claim, timeout):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(SoftFileLease, "acquire", full)
    message = refusal(session.own_folder, tmp_path)
    assert "cannot write here (No space left on device); set OUTPUT_DIR to another folder." in message
