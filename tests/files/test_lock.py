"""Locks: two processes, a killed process, a thread that waits."""

import subprocess
import sys
import threading

import pytest

from gpt2_tf.files.lock import file_lock, folder_lock

# Takes the lock, says so, and keeps it until its stdin ends.
HOLD = """
import sys
from gpt2_tf.files import lock
with getattr(lock, sys.argv[1])(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder():
    """Starts a process that holds a lock, and returns it once the lock is held."""
    processes = []

    def start(kind, path) -> subprocess.Popen:
        command = [sys.executable, "-c", HOLD, kind, str(path)]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        processes.append(process)
        assert process.stdout.readline() == "held\n"
        return process

    yield start
    for process in processes:
        process.kill()
        process.__exit__(None, None, None)  # closes the pipes


@pytest.mark.parametrize(("kind", "lock"), [("folder_lock", folder_lock), ("file_lock", file_lock)])
def test_a_second_process_is_refused_until_the_first_is_killed(kind, lock, holder, tmp_path):
    path = tmp_path if kind == "folder_lock" else tmp_path / "samples.txt"
    process = holder(kind, path)
    with pytest.raises(BlockingIOError) as error, lock(path):
        pass
    assert str(error.value).startswith(f"{path} is being written by another process; wait until that process ends, or")
    process.kill()
    process.wait()
    assert list(tmp_path.iterdir()) != []  # the kill left the lock file
    with lock(path):
        pass
    assert list(tmp_path.iterdir()) == []


def test_waiting_gets_the_lock_when_the_other_process_ends(holder, tmp_path, capsys):
    process = holder("folder_lock", tmp_path)
    threading.Timer(0.3, process.stdin.close).start()
    with folder_lock(tmp_path, wait=True):
        assert process.wait(timeout=120) == 0
    assert capsys.readouterr().err == f"waiting for another process that is writing {tmp_path}\n"


def test_only_one_thread_at_a_time_holds_a_folder(tmp_path, capsys):
    """Lock files are removed at each release; nobody may get in twice because of that."""
    inside, most = 0, 0

    def work():
        nonlocal inside, most
        for _ in range(50):
            with folder_lock(tmp_path, wait=True):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    capsys.readouterr()


def test_a_missing_folder_is_named_and_not_made(tmp_path):
    for lock in (folder_lock(tmp_path / "no"), file_lock(tmp_path / "no/file")):
        with pytest.raises(FileNotFoundError, match="no"), lock:
            pass
    assert list(tmp_path.iterdir()) == []
