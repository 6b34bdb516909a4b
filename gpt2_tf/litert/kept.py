"""Where the engine keeps its files, and whether they are as they were written. Nothing here imports LiteRT.

The files of a model are kept beside it, in `litert/`. For the bundled model, and where the model's folder can't be
written, they are in the user's cache folder. Where the environment variable GPT2_TF_CACHE names a folder, all models
have them there. Each state of a model has a folder of its own, named by the type of the weights and a digest of the
model's files.
"""

import contextlib
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import google_crc32c

from gpt2_tf.files.atomic import atomic_write
from gpt2_tf.files.lock import folder_lock

CACHE = "GPT2_TF_CACHE"
PACKAGE = Path(__file__).resolve().parents[1]
WEIGHTS = "weights.bin"  # the file without which a folder is of no use
UNUSED_SECONDS = 60 * 60  # files of an earlier state of the model are removed after this time
CHUNK = 1 << 22  # bytes that are read at a time for a checksum


class NotKept(OSError):
    """The engine's files can't be written where they are kept.

    Example:
        >>> raise NotKept(13, "Permission denied", "folder")
        Traceback (most recent call last):
        gpt2_tf.litert.kept.NotKept: [Errno 13] Permission denied: 'folder'
    """


def is_intact(path: Path) -> bool:
    """Return whether a file is as it was when `seal` was called.

    Example:
        >>> _ = Path("numbers").write_bytes(b"1, 2, 3")
        >>> is_intact(Path("numbers"))
        False
        >>> seal(Path("numbers"))
        >>> is_intact(Path("numbers"))
        True
        >>> _ = Path("numbers").write_bytes(b"1, 2, 4")
        >>> is_intact(Path("numbers"))
        False
    """
    try:
        known = json.loads(_check_file(path).read_bytes())
        found = stamp(path)
        if found == known["stamp"]:
            return True
        if found[0] != known["stamp"][0] or _checksum(path) != known["crc32c"]:
            return False
    except (OSError, ValueError, LookupError, TypeError):
        return False
    with contextlib.suppress(OSError):  # the folder may be read-only
        atomic_write(_check_file(path), json.dumps({**known, "stamp": found}).encode())
    return True


def seal(path: Path) -> None:
    """Record the size, times and checksum of a complete file in NAME.check.

    Example:
        >>> _ = Path("numbers").write_bytes(b"1, 2, 3")
        >>> seal(Path("numbers"))
        >>> sorted(json.loads(Path("numbers.check").read_bytes()))
        ['crc32c', 'stamp']
    """
    found = stamp(path)
    atomic_write(_check_file(path), json.dumps({"stamp": found, "crc32c": _checksum(path)}).encode())


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Hold a folder for this process, which writes there. The folder is made if it is missing.

    Raises:
        NotKept: something can't be written there.

    Example:
        >>> with writing(Path("litert/float32")):
        ...     seal(Path("litert"))
        Traceback (most recent call last):
        IsADirectoryError: ...
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _not_kept(folder, error) from None
    try:
        with folder_lock(folder, wait=True):
            yield
    except OSError as error:
        # An error that names a file elsewhere comes from reading the model.
        if error.filename is not None and not Path(os.fsdecode(error.filename)).is_relative_to(folder):
            raise
        raise _not_kept(folder, error) from None


def kept_roots(model_dir: Path) -> list[Path]:
    """List the folders in which a model's files may be kept, the preferred one first.

    Example:
        >>> kept_roots(Path("my-model"))[-1].name.startswith("my-model-")
        True
    """
    model_dir = model_dir.resolve()
    beside = [] if CACHE in os.environ or model_dir.is_relative_to(PACKAGE) else [model_dir / "litert"]
    digest = hashlib.sha256(os.fsencode(model_dir)).hexdigest()[:8]
    return [*beside, _cache() / "litert" / f"{model_dir.name}-{digest}"]


def kept_folder(model_dir: Path, state: str) -> Path:
    """Return the folder of one state of a model: the one that is filled, or else the one to fill.

    Example:
        >>> kept_folder(Path("my-model"), "int8-0123").name
        'int8-0123'
    """
    roots = kept_roots(model_dir)
    for root in roots:
        if is_intact(root / state / WEIGHTS):
            return root / state
    effective_ids = os.access in os.supports_effective_ids
    can_write = len(roots) == 1 or os.access(model_dir, os.W_OK, effective_ids=effective_ids)
    return roots[0 if can_write else -1] / state


def describe_kept(model_dir: Path) -> str:
    """Say which files are kept for a model, as `gpt2-tf info` shows it; "" for none.

    Example:
        >>> describe_kept(Path("."))
        ''
    """
    found = []
    for root in kept_roots(model_dir):
        sizes: dict[str, int] = {}
        for path in root.glob("*/*"):
            weights = path.parent.name.partition("-")[0]
            with contextlib.suppress(FileNotFoundError):  # another process may be writing
                sizes[weights] = sizes.get(weights, 0) + path.stat().st_size
        if kept := " and ".join(f"{weights}, {size:,} bytes" for weights, size in sorted(sizes.items())):
            found.append(f"{kept}, in {root}")
    return "; ".join(found)


def clear_kept(model_dir: Path) -> None:
    """Remove the files that are kept for a model. They are made again when they are needed.

    Example:
        >>> clear_kept(Path("."))
    """
    for root in kept_roots(model_dir):
        if root.exists():
            shutil.rmtree(root)


def remove_unused(folder: Path) -> None:
    """Remove the folders of the model's other states with this type of weights, if they haven't been used for an hour.

    Example:
        >>> remove_unused(Path("litert/int8-0123"))
    """
    for other in folder.parent.glob(f"{folder.name.partition('-')[0]}-*"):
        with contextlib.suppress(OSError):
            if other != folder and time.time() - other.stat().st_mtime > UNUSED_SECONDS:
                shutil.rmtree(other, ignore_errors=True)


def stamp(path: Path) -> list[int]:
    """Return the size and the times of a file: any change of its content changes one of them.

    Example:
        >>> _ = Path("numbers").write_bytes(b"1, 2, 3")
        >>> stamp(Path("numbers"))[0]
        7
    """
    status = path.stat()
    # The time of the last change of the entry can't be set back, unlike that of the content.
    return [status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino]


def _cache() -> Path:
    """The user's cache folder, by the system's custom."""
    if CACHE in os.environ:
        return Path(os.environ[CACHE])
    home = Path(os.path.expanduser("~"))
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", home / "AppData/Local"), "gpt2-tf")
    if sys.platform == "darwin":
        return home / "Library/Caches/gpt2-tf"
    return Path(os.environ.get("XDG_CACHE_HOME") or home / ".cache", "gpt2-tf")


def _not_kept(folder: Path, error: OSError) -> NotKept:
    reason = os.strerror(error.errno) if error.errno else str(error)
    message = f"the files of the engine litert can't be written there ({reason}); set {CACHE} to a folder that can be"
    return NotKept(error.errno, f"{message} written, or take the engine tensorflow", str(folder))


def _check_file(path: Path) -> Path:
    return path.with_name(f"{path.name}.check")


def _checksum(path: Path) -> int:
    crc = 0
    with open(path, "rb") as file:
        while content := file.read(CHUNK):
            crc = google_crc32c.extend(crc, content)
    return crc
