"""Ctrl-C ends a block with KeyboardInterrupt, even when code in the block turns it into something else."""

import contextlib
import os
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest

from gpt2_tf.files import interrupt


def ctrl_c():
    os.kill(os.getpid(), signal.SIGINT)


def test_ctrl_c_raises_keyboard_interrupt_and_the_handler_is_restored():
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupt.reliable_ctrl_c():
        ctrl_c()
    assert signal.getsignal(signal.SIGINT) is before


def test_another_error_after_ctrl_c_becomes_keyboard_interrupt():
    with pytest.raises(KeyboardInterrupt) as caught, interrupt.reliable_ctrl_c():
        try:
            ctrl_c()
        except KeyboardInterrupt:
            raise SystemError("returned a result with an exception set") from None
    assert caught.value.__cause__ is None


def test_a_ctrl_c_that_is_dropped_is_raised_at_the_end_of_the_block():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt.reliable_ctrl_c():
        with contextlib.suppress(KeyboardInterrupt):
            ctrl_c()
        done.append(1)
    assert done == [1]


def test_a_loop_raises_a_ctrl_c_that_was_dropped_at_its_next_step():
    done = []
    with pytest.raises(KeyboardInterrupt), interrupt.reliable_ctrl_c():
        for step in range(5):
            interrupt.raise_dropped_ctrl_c()
            with contextlib.suppress(KeyboardInterrupt):
                if step == 2:
                    ctrl_c()
            done.append(step)
    assert done == [0, 1, 2]
    interrupt.raise_dropped_ctrl_c()  # the next block starts afresh


def test_errors_without_ctrl_c_are_unchanged():
    with pytest.raises(ValueError, match="wrong"), interrupt.reliable_ctrl_c():
        raise ValueError("wrong")
    with interrupt.reliable_ctrl_c():
        pass


def test_an_inner_block_takes_the_ctrl_c_from_the_outer_one():
    with interrupt.reliable_ctrl_c():
        with pytest.raises(KeyboardInterrupt), interrupt.reliable_ctrl_c(), contextlib.suppress(KeyboardInterrupt):
            ctrl_c()
        here = True
    assert here


def test_other_threads_leave_the_handler_alone():
    """Python lets only the main thread set signal handlers, and only the main thread receives signals."""

    def within():
        with interrupt.reliable_ctrl_c():
            return signal.getsignal(signal.SIGINT)

    with ThreadPoolExecutor() as threads:
        assert threads.submit(within).result() is signal.getsignal(signal.SIGINT)


def test_an_ignored_ctrl_c_stays_ignored():
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with interrupt.reliable_ctrl_c():
            ctrl_c()
    finally:
        signal.signal(signal.SIGINT, before)
