"""Write files and folders so that each appears under its name complete, or not at all, even through a power cut.

Everything is first written into a temporary folder `.part-*` beside its target, and then renamed. The temporary folder
is locked while its process lives. The next write into the same folder removes those that a kill has left.
"""

import contextlib
import errno
import itertools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from gpt2_tf.files.lock import NO_LOCKS

PREFIX = ".part-"
TEMPORARY_NAME = re.compile(r"\.part-[0-9a-f]{16}")
# Python's errors of a full or broken disk carry no file name.
FULL_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_ERRORS = (*FULL_DISK, errno.EIO)


def atomic_write(path: str | os.PathLike, data: bytes) -> None:
    """Write a file that is never seen half-written: it has its old content, or all of `data`.

    Args:
        path: the file; its folder must exist.
        data: the whole content.

    Raises:
        OSError: the file cannot be written; the error names `path`.

    Example:
        >>> atomic_write("settings.json", b"{}")
        >>> Path("settings.json").read_bytes()
        b'{}'
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data)


@contextlib.contextmanager
def atomic_path(target: str | os.PathLike) -> Iterator[Path]:
    """Give a temporary path; what the block makes there, a file or a folder, is moved to `target` when the block ends.

    When the block raises, nothing is left, and an earlier `target` is unchanged.

    Args:
        target: a file, new or to be replaced, or a folder, new or empty. The folder that holds it must exist.

    Raises:
        OSError: something cannot be written; the error names `target`, not the temporary path.

    Example:
        >>> with atomic_path("model") as temporary:
        ...     temporary.mkdir()
        ...     _ = (temporary / "hparams.json").write_text("{}")
        ...     os.path.exists("model")
        False
        >>> os.listdir("model")
        ['hparams.json']
    """
    target = Path(target)
    with _staging_folder(target.parent, target) as staging:
        yield staging / target.name
        move_into_place([staging / target.name], target.parent)


@contextlib.contextmanager
def staging_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Give an empty temporary folder inside `folder`, and remove it at the end with all that is still in it.

    Use it with `move_into_place` when several files belong together; `atomic_path` is simpler for a single one.

    Args:
        folder: made if missing, as by `new_folder`.

    Raises:
        OSError: something cannot be written; the error names the file by its final place in `folder`.

    Example:
        >>> with staging_folder("run") as staging:
        ...     paths = [staging / "weights", staging / "index"]
        ...     for path in paths:
        ...         path.touch()
        ...     move_into_place(paths, "run")
        >>> sorted(os.listdir("run"))
        ['index', 'weights']
    """
    with new_folder(folder) as folder, _staging_folder(folder, folder) as staging:
        yield staging


@contextlib.contextmanager
def new_folder(folder: str | os.PathLike) -> Iterator[Path]:
    """Make a folder and its parents. If the block raises, remove those that were made and are empty.

    So a command that fails before it has written anything leaves no empty folders behind.

    Args:
        folder: new, or an existing folder, which stays in any case.

    Raises:
        OSError: the folder cannot be made.

    Example:
        >>> with new_folder("runs/first") as folder:
        ...     raise ValueError("no text")
        Traceback (most recent call last):
        ValueError: no text
        >>> os.path.exists("runs")
        False
    """
    folder = Path(folder)
    made = list(itertools.takewhile(lambda path: not path.exists(), (folder, *folder.parents)))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield folder
    except BaseException:
        for path in made:
            with contextlib.suppress(OSError):  # not empty, or not made
                path.rmdir()
        raise


def move_into_place(paths: Sequence[Path], folder: str | os.PathLike) -> None:
    """Move finished files or folders into `folder`, one after the other, under the names that they have.

    All of them are on the disk before the first is moved, and all moves are on the disk when this returns. So the last
    path may be what tells a reader that the others are complete.

    Args:
        paths: on the same file system as `folder`.
        folder: an existing folder; files in it are replaced, and so are empty folders.

    Example:
        >>> os.mkdir("archive")
        >>> Path("report").touch()
        >>> move_into_place([Path("report")], "archive")
        >>> os.listdir("archive")
        ['report']
    """
    folder = Path(folder)
    for path in paths:
        for entry in [*path.rglob("*"), path] if path.is_dir() else [path]:
            _sync(entry)
    for path in paths:
        target = folder / path.name
        if path.is_dir() and target.is_dir():
            target.rmdir()  # Windows replaces no folder, not even an empty one
        os.replace(path, target)
    _sync(folder)


@contextlib.contextmanager
def disk_errors_name(path: str | os.PathLike) -> Iterator[None]:
    """Name the file in the errors of a full or broken disk. Python's own have no file name.

    Example:
        >>> with disk_errors_name("samples.txt"):
        ...     raise OSError(errno.ENOSPC, "No space left on device")
        Traceback (most recent call last):
        OSError: [Errno 28] No space left on device: 'samples.txt'
    """
    try:
        yield
    except OSError as error:
        if error.errno in DISK_ERRORS and error.filename is None:
            raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise


def remove_abandoned(folder: str | os.PathLike) -> None:
    """Remove the temporary folders in `folder` that killed processes have left.

    A process that lives holds the lock file of its temporary folder, so a lock file that can be locked proves that its
    process has died. Every write by this module into `folder` does this first.

    Args:
        folder: where the temporary folders are; its subfolders are not searched. It may be missing.

    Example:
        >>> os.makedirs("killed/.part-0123456789abcdef")
        >>> Path("killed/.part-0123456789abcdef/lock").touch()  # as a killed process leaves it
        >>> remove_abandoned("killed")
        >>> os.listdir("killed")
        []
    """
    import filelock

    for temporary in Path(folder).glob(f"{PREFIX}*"):
        if not TEMPORARY_NAME.fullmatch(temporary.name):
            continue  # not made by this module
        if not (temporary / "lock").exists():
            # A process was killed before it made the lock file, or after it removed all files. A process that is about
            # to make the lock file makes another folder instead.
            with contextlib.suppress(OSError):  # not empty
                temporary.rmdir()
            continue
        lock = filelock.FileLock(temporary / "lock")
        try:
            lock.acquire(timeout=0)
        except OSError:  # such as filelock's Timeout: the process lives
            continue
        shutil.rmtree(temporary / "files", ignore_errors=True)
        lock.release()
        shutil.rmtree(temporary, ignore_errors=True)  # Windows removes the lock file only after its release


def _sync(path: Path) -> None:
    """Wait until a file's content, or a folder's list of names, is on the disk."""
    if path.is_dir():
        if os.name == "nt":  # Windows opens no folder
            return
        descriptor = os.open(path, os.O_RDONLY)
    else:
        descriptor = os.open(path, os.O_RDWR)  # Windows syncs no file that is open for reading alone
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (path.is_dir() and error.errno in (errno.EINVAL, errno.ENOTSUP)):  # some network file systems
            raise
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _staging_folder(folder: Path, target: Path) -> Iterator[Path]:
    """`staging_folder`, with the `target` that an error names when it is about no file of the staging folder."""
    import filelock  # here, because importing filelock takes longer than `gpt2-tf --help` should

    try:
        remove_abandoned(folder)
        while True:
            # The files lie one level deeper than the lock, so that they can have any name.
            temporary = folder / f"{PREFIX}{os.urandom(8).hex()}"
            temporary.mkdir()
            lock = filelock.FileLock(temporary / "lock")
            try:
                lock.acquire(timeout=0)
            except (filelock.Timeout, FileNotFoundError):
                continue  # another process took the new folder for an abandoned one, and removes it
            except OSError as error:
                if error.errno not in NO_LOCKS:
                    raise
            break
        try:
            staging = temporary / "files"
            staging.mkdir()
            yield staging
        finally:
            # The lock file goes last: a folder without it would never be taken for an abandoned one.
            shutil.rmtree(temporary / "files", ignore_errors=True)
            lock.release()  # before its file, because Windows removes no file that is open
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        shown = _final_path(error, folder, target)
        if shown is None:
            raise
        raise OSError(error.errno, error.strerror, str(shown)) from error


def _final_path(error: OSError, folder: Path, target: Path) -> Path | None:
    """The path to name in an error about a temporary file or about the disk; None for other errors."""
    if not isinstance(error.filename, str):
        return target if error.errno in DISK_ERRORS else None
    path = Path(error.filename)
    if not path.is_relative_to(folder):
        return None
    first, *rest = [*path.relative_to(folder).parts, ""]
    if not first.startswith(PREFIX):
        return None
    return folder.joinpath(*rest[1:-1]) if len(rest) > 2 else target
