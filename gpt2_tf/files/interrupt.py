"""Ctrl-C ends a command with KeyboardInterrupt, even when it arrives inside TensorFlow's C++ code."""

import contextlib
import signal
import threading
from collections.abc import Iterator


def thread_receives_ctrl_c() -> bool:
    """Whether Ctrl-C raises KeyboardInterrupt in the current thread.

    Python raises KeyboardInterrupt in the main thread only. A shell starts its background commands with SIGINT ignored,
    and then Ctrl-C raises nothing.

    Example:
        >>> thread_receives_ctrl_c()
        True
    """
    return callable(signal.getsignal(signal.SIGINT)) and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def reliable_ctrl_c() -> Iterator[None]:
    """Make sure that a Ctrl-C during the block ends the block with KeyboardInterrupt.

    TensorFlow's C++ code can turn the KeyboardInterrupt that Python raises into another error, or drop it. This context
    manager remembers the Ctrl-C, and raises KeyboardInterrupt in place of that error, or at the end of the block.

    Example:
        >>> try:
        ...     with reliable_ctrl_c(), contextlib.suppress(KeyboardInterrupt):
        ...         signal.raise_signal(signal.SIGINT)
        ... except KeyboardInterrupt:
        ...     print("interrupted")
        interrupted
    """
    if not thread_receives_ctrl_c():
        yield
        return
    interrupted = False

    def handle(number, frame):
        nonlocal interrupted
        interrupted = True
        raise KeyboardInterrupt

    previous_handler = signal.signal(signal.SIGINT, handle)
    try:
        yield
    except Exception:
        if interrupted:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, previous_handler)
    if interrupted:
        raise KeyboardInterrupt
