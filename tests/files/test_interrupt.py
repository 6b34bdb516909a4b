"""A Ctrl-C that something else was made of."""

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt2_tf.files import interrupt


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_it_comes_out_as_it_is():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.kept():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_error_made_of_it_is_it_again():
    with pytest.raises(KeyboardInterrupt) as caught, interrupt.kept():
        try:
            ctrl_c()
        except KeyboardInterrupt:
            raise SystemError("returned a result with an exception set") from None
    assert caught.value.__cause__ is None


def test_one_that_is_dropped_comes_at_the_end():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt.kept():
        with contextlib.suppress(KeyboardInterrupt):
            ctrl_c()
        done.append(1)
    assert done == [1]


def test_other_errors_stay():
    with pytest.raises(ValueError, match="wrong"), interrupt.kept():
        raise ValueError("wrong")
    with interrupt.kept():
        pass


def test_one_within_another():
    with interrupt.kept():
        with pytest.raises(KeyboardInterrupt), interrupt.kept(), contextlib.suppress(KeyboardInterrupt):
            ctrl_c()
        here = True
    assert here


def test_in_another_thread_nothing_is_changed():
    """Python lets the main thread alone set signals, and to it alone they come."""

    def within():
        with interrupt.kept():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor() as threads:
        assert threads.submit(within).result() is signal.getsignal(signal.SIGINT)


def test_where_it_is_ignored_it_stays_so():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.kept():
            ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
