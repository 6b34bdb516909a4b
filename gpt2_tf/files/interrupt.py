"""Ctrl-C ends a command with KeyboardInterrupt, even when it arrives inside TensorFlow's C++ code."""

import contextlib
import signal
import threading
from collections.abc import Iterator

_pressed: list[bool] = []  # for each block of `reliable_ctrl_c` that has begun: whether Ctrl-C was pressed in it


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
    manager remembers the Ctrl-C, and raises KeyboardInterrupt in place of that error, or at the end of the block. Each
    step of a long loop in the block calls `raise_dropped_ctrl_c`, so that the loop ends soon.

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

    def handle(number, frame):
        _pressed[-1] = True
        raise KeyboardInterrupt

    _pressed.append(False)
    previous_handler = signal.signal(signal.SIGINT, handle)
    try:
        yield
        raise_dropped_ctrl_c()
    except Exception:
        if _pressed[-1]:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, previous_handler)
        _pressed.pop()


def raise_dropped_ctrl_c() -> None:
    """Raise KeyboardInterrupt if Ctrl-C was pressed in the block of `reliable_ctrl_c`, but C++ code has dropped it.

    Example:
        >>> raise_dropped_ctrl_c()  # nobody has pressed Ctrl-C
    """
    if _pressed and _pressed[-1] and thread_receives_ctrl_c():
        raise KeyboardInterrupt
