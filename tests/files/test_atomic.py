"""Atomic writes: complete or not at all, the errors' names, and what a kill leaves."""

import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from gpt2_tf.files.atomic import atomic_path, atomic_write, move_into_place, new_folder, staging_folder


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "loss.csv"
    atomic_write(path, b"old")
    with pytest.raises(ValueError, match="stop"), atomic_path(path) as temporary:
        temporary.write_bytes(b"half")
        raise ValueError("stop")
    assert path.read_bytes() == b"old"
    atomic_write(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_appears_with_all_its_files(tmp_path):
    target = tmp_path / "model"
    target.mkdir()  # an empty folder gives way
    with atomic_path(target) as temporary:
        (temporary / "best").mkdir(parents=True)
        (temporary / "best" / "weights").write_bytes(b"1")
        assert list(target.iterdir()) == []
    assert (target / "best" / "weights").read_bytes() == b"1"
    assert list(tmp_path.iterdir()) == [target]


def test_a_folder_that_holds_files_is_not_replaced(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "mine").touch()
    with pytest.raises(OSError, match="model"), atomic_path(target) as temporary:
        temporary.mkdir()
    assert [path.name for path in target.iterdir()] == ["mine"] and list(tmp_path.iterdir()) == [target]


def test_several_files_move_in_the_order_given(tmp_path, monkeypatch):
    moves = []
    replace = os.replace
    monkeypatch.setattr(
        os, "replace", lambda source, target: (moves.append(Path(target).name), replace(source, target))
    )
    with staging_folder(tmp_path) as staging:
        for name in ("checkpoint", "data", "index", "unused"):
            (staging / name).write_text(name)
        move_into_place([staging / name for name in ("data", "index", "checkpoint")], tmp_path)
    assert moves == ["data", "index", "checkpoint"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint", "data", "index"]


def test_everything_is_on_the_disk_before_the_first_move(tmp_path, monkeypatch):
    """Otherwise, a power cut could leave an empty file with its final name."""
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda descriptor: (calls.append("fsync"), fsync(descriptor)))
    monkeypatch.setattr(os, "replace", lambda source, target: (calls.append("move"), replace(source, target)))
    with staging_folder(tmp_path) as staging:
        (staging / "folder").mkdir()
        (staging / "folder" / "file").touch()
        (staging / "file").touch()
        move_into_place([staging / "folder", staging / "file"], tmp_path)
    assert calls == ["fsync", "fsync", "fsync", "move", "move", "fsync"]  # the last is that of `tmp_path`


def test_an_error_names_the_target(tmp_path):
    target = tmp_path / "no" / "loss.csv"
    with pytest.raises(FileNotFoundError) as error:
        atomic_write(target, b"")
    assert error.value.filename == str(target)

    target = tmp_path / "model"
    with pytest.raises(FileNotFoundError) as error, atomic_path(target) as temporary:
        (temporary / "a").write_bytes(b"")  # the folder was not made
    assert error.value.filename == str(target / "a")

    with pytest.raises(FileNotFoundError) as error, staging_folder(tmp_path) as staging:
        (staging / "a" / "b").read_bytes()
    assert error.value.filename == str(tmp_path / "a" / "b")

    with pytest.raises(FileNotFoundError) as error, atomic_path(target):
        Path("elsewhere").read_bytes()
    assert error.value.filename == "elsewhere"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_names_the_target(tmp_path):
    """Python's error of a full disk has no file name."""
    target = tmp_path / "loss.csv"
    with pytest.raises(OSError, match="No space left") as error, atomic_path(target) as temporary:
        temporary.symlink_to("/dev/full")
        temporary.write_bytes(b"x" * 10)
    assert error.value.filename == str(target)
    assert list(tmp_path.iterdir()) == []


HALF = """
import os, sys
from gpt2_tf.files.atomic import atomic_path
with atomic_path(sys.argv[1]) as temporary:
    temporary.write_bytes(b"half")
    print("half", flush=True)
    sys.stdin.read()
"""


def test_the_next_write_removes_what_a_kill_left_but_nothing_of_a_living_process(tmp_path):
    def start():
        command = [sys.executable, "-c", HALF, str(tmp_path / "out")]
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "half\n"
        return process

    killed, living = start(), start()
    mine = tmp_path / ".part-of-my-own"
    mine.mkdir()
    killed.kill()
    killed.communicate()
    (tmp_path / ".part-0123456789abcdef").mkdir()  # killed before it had a lock file
    assert len(list(tmp_path.glob(".part-*"))) == 4
    atomic_write(tmp_path / "other", b"")
    assert len(list(tmp_path.glob(".part-*"))) == 2
    living.communicate("")
    assert living.returncode == 0 and (tmp_path / "out").read_bytes() == b"half"
    assert sorted(path.name for path in tmp_path.iterdir()) == [".part-of-my-own", "other", "out"]


WRITE = """
import sys
from gpt2_tf.files.atomic import atomic_write
print("ready", flush=True)
for number in range(10**6):
    atomic_write(sys.argv[1], bytes([number % 256]) * 100_000)
"""


def test_kills_at_any_moment_leave_a_complete_file_and_nothing_that_stays(tmp_path):
    rng = random.Random(0)
    for _ in range(12):
        process = subprocess.Popen([sys.executable, "-c", WRITE, str(tmp_path / "out")], stdout=subprocess.PIPE)
        assert process.stdout.readline() == b"ready\n"
        time.sleep(rng.random() * 0.2)
        process.kill()
        process.communicate()
        if (tmp_path / "out").exists():
            content = (tmp_path / "out").read_bytes()
            assert len(content) == 100_000 and len(set(content)) == 1
        atomic_write(tmp_path / "other", b"")
        assert {path.name for path in tmp_path.iterdir()} <= {"out", "other"}


def test_a_failed_block_leaves_no_folder_that_it_made(tmp_path):
    (tmp_path / "old").mkdir()
    for make in (new_folder, staging_folder):
        for target in ("old", "old/new", "new", "a/b/c"):
            with pytest.raises(KeyboardInterrupt), make(tmp_path / target):
                raise KeyboardInterrupt
        assert [path.name for path in tmp_path.rglob("*")] == ["old"]
    with pytest.raises(ValueError, match="later"), new_folder(tmp_path / "a/b") as folder:
        (folder.parent / "kept").touch()
        raise ValueError("later")
    assert (tmp_path / "a/kept").exists() and not (tmp_path / "a/b").exists()
    with pytest.raises(OSError, match="name too long"), new_folder(tmp_path / "p/q" / ("x" * 300)):
        pass
    assert not (tmp_path / "p").exists()
