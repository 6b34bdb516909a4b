"""Ctrl-C as KeyboardInterrupt, whatever TensorFlow makes of it."""

import contextlib
import signal
import threading
from collections.abc import Iterator


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """A Ctrl-C within comes out as KeyboardInterrupt.

    Python raises it wherever it is; within TensorFlow's C++, another error can come of it, or nothing.
    """
    before = signal.getsignal(signal.SIGINT)
    # Ignored, as in a shell's background, or the system's default; or not in the main thread, to which alone it comes.
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield
        return
    came = False

    def note(number, frame):
        nonlocal came
        came = True
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, note)
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
