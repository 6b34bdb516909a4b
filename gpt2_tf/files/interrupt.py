"""Ctrl-C as KeyboardInterrupt, whatever TensorFlow makes of it."""

import contextlib
import signal
import threading
from collections.abc import Iterator


def comes_here() -> bool:
    """Whether a Ctrl-C comes to this thread: the main one alone has it, and where it isn't ignored.

    It is in a shell's background; or the system's default is set, which Python sees nothing of.
    """
    return callable(signal.getsignal(signal.SIGINT)) and threading.current_thread() is threading.main_thread()


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """A Ctrl-C within comes out as KeyboardInterrupt.

    Python raises it wherever it is; within TensorFlow's C++, another error can come of it, or nothing.
    """
    if not comes_here():
        yield
        return
    came = False

    def note(number, frame):
        nonlocal came
        came = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    except Exception:
        if came:
            raise KeyboardInterrupt from None
        raise
    finally:
        signal.signal(signal.SIGINT, before)
    if came:
        raise KeyboardInterrupt
