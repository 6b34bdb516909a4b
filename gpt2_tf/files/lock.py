"""Locks that keep two processes from writing the same folder or file at the same time."""

import contextlib
import errno
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from gpt2_tf.files.terminal import escape_control_characters

# Some network file systems cannot lock. A process that is alone there needs no lock, so it runs without.
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP)


@contextlib.contextmanager
def folder_lock(folder: str | os.PathLike, wait: bool = False) -> Iterator[None]:
    """Hold a folder for this process, so that no other process that asks for the same lock writes there.

    The lock is the file `.lock` in the folder, by the `filelock` library, so it works on Linux, macOS and Windows. The
    system releases the lock when the process ends, even by a kill; a `.lock` file that a kill leaves blocks nobody.

    Args:
        folder: an existing folder.
        wait: whether to wait for the other process, with a notice on stderr, instead of raising BlockingIOError.

    Raises:
        BlockingIOError: another process holds the folder, and `wait` is false.
        FileNotFoundError: there is no such folder.

    Example:
        >>> with folder_lock("."):
        ...     os.listdir(".")
        ['.lock']
        >>> os.listdir(".")
        []
    """
    with _lock(Path(folder, ".lock"), f"{folder}", "choose another folder", wait):
        yield


@contextlib.contextmanager
def file_lock(path: str | os.PathLike) -> Iterator[None]:
    """Hold one file for this process, by the lock file `PATH.lock` beside it.

    Args:
        path: the file; it need not exist yet, but its folder must.

    Raises:
        BlockingIOError: another process holds the file.
        FileNotFoundError: the file's folder does not exist.

    Example:
        >>> with file_lock("samples.txt"):
        ...     os.listdir(".")
        ['samples.txt.lock']
    """
    with _lock(Path(f"{path}.lock"), f"{path}", "choose another file", wait=False):
        yield


@contextlib.contextmanager
def _lock(lock_file: Path, target: str, otherwise: str, wait: bool) -> Iterator[None]:
    import filelock  # here, because importing filelock takes longer than `gpt2-tf --help` should

    if not lock_file.parent.is_dir():  # filelock would make the folder
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(lock_file.parent))
    lock = filelock.FileLock(lock_file)
    try:
        lock.acquire(timeout=0)
    except filelock.Timeout:
        if not wait:
            raise BlockingIOError(
                f"{target} is being written by another process; wait until that process ends, or {otherwise}"
            ) from None
        notice = escape_control_characters(f"waiting for another process that is writing {target}")
        print(notice, file=sys.stderr, flush=True)
        lock.acquire()
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise
    try:
        yield
    finally:
        # filelock notices when a lock file was removed while it waited, so removing the file here lets nobody in twice.
        # Windows removes no file that is open; there, filelock removes the file after its release.
        with contextlib.suppress(OSError):
            lock_file.unlink()
        if lock.is_locked:
            lock.release()
