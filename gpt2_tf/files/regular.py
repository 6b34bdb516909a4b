"""Open files that others made: only regular files, because a pipe or a device may never end."""

import os
import stat
from typing import BinaryIO


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Open a file for reading, as bytes.

    Reading a pipe waits until another process writes, and some devices never end. So neither is opened.

    Args:
        path: a regular file, or a link to one.

    Raises:
        OSError: the file is missing, or cannot be opened.
        ValueError: `path` is a pipe, a device or a socket.

    Example:
        >>> with open("hparams.json", "w") as file:
        ...     _ = file.write("{}")
        >>> with open_regular("hparams.json") as file:
        ...     file.read()
        b'{}'
    """
    mode = os.stat(path).st_mode
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):  # `open` says what is wrong with a folder
        raise ValueError(f"{os.fspath(path)} is a pipe or a device, but must be a regular file")
    return open(path, "rb")
