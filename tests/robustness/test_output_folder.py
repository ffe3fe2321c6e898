"""A folder of results has one owner: a second run is refused, a dead owner's folder is taken over."""

import json
import os
import subprocess
import sys
import time

import psutil
import pytest
from conftest import ROOT, refusal

from utils import session
from utils.errors import CourseError
from utils.training import checkpoints

HOLD = """
import sys, time
from utils import session
from utils.training import checkpoints, weight_files
try:
    session.own_folder(sys.argv[1])
except ValueError as error:
    sys.exit(str(error))
print("mine", flush=True)
time.sleep(float(sys.argv[2]))
"""


def hold(folder, seconds):
    command = [sys.executable, "-c", HOLD, str(folder), str(seconds)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, **pipes)


def test_a_folder_has_one_owner_until_that_one_ends_or_dies(tmp_path):
    first = hold(tmp_path, 600)
    assert first.stdout.readline() == "mine\n"
    second = hold(tmp_path, 0)
    err = second.communicate(timeout=60)[1]
    assert second.returncode == 1
    assert f"{tmp_path}: process {first.pid} on " in err
    assert "has been using this folder since 20" in err
    assert len(err.strip().splitlines()) == 1
    first.kill()
    first.wait()
    assert (tmp_path / session.LOCK).exists()
    third = hold(tmp_path, 0)
    assert third.communicate(timeout=60) == ("mine\n", "")
    assert list(tmp_path.iterdir()) == []


RACE = """
import json, os, sys, time
from pathlib import Path
from utils import session
from utils.training import checkpoints, weight_files
folder, wins = Path(sys.argv[1]), []
for round in range(4):
    (folder / session.LOCK).write_text(json.dumps({"pid": 2**22 + 1, "host": os.uname().nodename, "started": 1}))
    start, children, (read, write) = time.time() + 0.05, [], os.pipe()
    for number in range(6):
        if not (pid := os.fork()):
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
        ended += [status] if pid else time.sleep(0.01) or []
    os.write(write, b"......")
    ended += [os.waitpid(-1, 0)[1] for _ in range(6 - len(ended))]
    wins.append(sum(map(os.waitstatus_to_exitcode, ended)))
print(wins)
"""


def test_of_many_that_find_a_dead_owner_one_takes_over(tmp_path):
    command = [sys.executable, "-c", RACE, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == f"{[1] * 4}\n", done.stderr


@pytest.fixture
def lock(tmp_path, monkeypatch):
    """A function that writes the lock of somebody; our own would stay until pytest ends, so it is kept small."""
    monkeypatch.setattr(checkpoints, "_renew", lambda lock: None)

    def write(age=0, **changes):
        me = psutil.Process()
        owner = {"pid": 1, "host": checkpoints.platform.node(), "started": psutil.Process(1).create_time()}
        path = tmp_path / session.LOCK
        path.write_text(json.dumps(owner | {"since": "yesterday"} | changes) if "text" not in changes else "{")
        os.utime(path, (time.time() - age,) * 2)
        return me

    return write


def taken(folder):
    session.own_folder(folder)
    return json.loads((folder / session.LOCK).read_text())["pid"] == os.getpid()


def test_another_machine_counts_as_alive_while_it_renews_the_lock(lock, tmp_path):
    lock(host="another", age=session.SILENT - 60)
    assert "process 1 on another has been using this folder since yesterday" in refusal(taken, tmp_path)
    lock(host="another", age=session.SILENT + 1)
    assert taken(tmp_path)


def test_a_reused_number_and_an_unreadable_lock_are_no_owner(lock, tmp_path):
    lock(pid=os.getppid(), started=1.0)
    assert taken(tmp_path)
    lock(text="{")
    assert taken(tmp_path)


def test_the_process_that_started_this_one_lets_it_in(lock, tmp_path):
    parent = psutil.Process(os.getppid())
    lock(pid=parent.pid, started=parent.create_time())
    assert not taken(tmp_path)
    assert not taken(tmp_path)


def test_a_lock_that_changed_hands_in_the_meantime_stays_where_it_is(lock, tmp_path, monkeypatch):
    lock(pid=2**22 + 1)  # dead, and another process sees it as well, and is faster
    path, read = tmp_path / session.LOCK, session._owner

    def slow(lock_file):
        found = read(lock_file)
        if found[1]["host"] != "another":
            lock(host="another")
        return found

    monkeypatch.setattr(checkpoints, "_owner", slow)
    moved = []  # a lock that is moved away, if only for a moment, lets a third one in
    monkeypatch.setattr(checkpoints.Path, "unlink", lambda file, **kwargs: moved.append(file.name) or os.unlink(file))
    monkeypatch.setattr(
        checkpoints.Path, "rename", lambda file, other: moved.append(file.name) or os.rename(file, other)
    )
    assert "process 1 on another" in refusal(taken, tmp_path)
    assert json.loads(path.read_text())["host"] == "another"
    assert path.name not in moved


def test_a_dead_owner_is_removed_by_one_at_a_time(lock, tmp_path, monkeypatch):
    lock(pid=2**22 + 1)
    path = tmp_path / session.LOCK
    dead, turns = path.read_text(), []
    touch, sleep = checkpoints.Path.touch, time.sleep

    def wait(seconds):
        turns.append(path.read_text())  # nobody touches it meanwhile
        if len(turns) == 3:
            busy.unlink()
        sleep(0)

    session._remove(path, dead + " of another")
    assert path.read_text() == dead
    monkeypatch.setattr(checkpoints.Path, "touch", lambda file, **kwargs: turns.append(file) or touch(file, **kwargs))
    session._remove(path, dead)
    assert not path.exists()
    (busy,), turns[:] = turns, []
    lock(pid=2**22 + 1)
    assert path.read_text() == dead
    touch(busy)
    monkeypatch.setattr(checkpoints.Path, "touch", touch)
    monkeypatch.setattr(checkpoints.time, "sleep", wait)
    assert taken(tmp_path)
    assert turns == [dead] * 3
    assert os.listdir(tmp_path) == [path.name]
    lock(pid=2**22 + 1)
    touch(busy)
    os.utime(busy, (0, 0))
    assert "was killed while it took this folder over; delete that file" in refusal(taken, tmp_path)


def test_where_files_have_no_second_name_the_lock_is_written_all_the_same(lock, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints.os, "link", lambda *names: (_ for _ in ()).throw(PermissionError("no links")))
    assert taken(tmp_path)
    assert os.listdir(tmp_path) == [session.LOCK]
    with pytest.raises(FileExistsError):
        session._create(tmp_path / session.LOCK, {"host": "another", "pid": 1})


def test_a_living_owner_renews_its_lock(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoints, "SILENT", 0.1)
    session.own_folder(tmp_path)
    path = tmp_path / session.LOCK
    os.utime(path, (0, 0))
    time.sleep(0.5)
    assert time.time() - path.stat().st_mtime < 60
    path.unlink()


def test_a_folder_that_cannot_be_written_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(CourseError, match="cannot write here"):
        session.own_folder(tmp_path / "file")
