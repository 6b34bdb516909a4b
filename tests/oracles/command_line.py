"""What a command of `gpt2-tf` did, and how its errors must look."""

from typing import NamedTuple

from gpt2_tf.cli.flags import BUNDLED_NOTICE


class Ran(NamedTuple):
    status: int
    out: bytes
    err: str


def assert_error(ran: Ran, status: int, *parts: str, notice: bool | str = False) -> None:
    """Stderr is one line that contains all the parts.

    `notice` is the line that must come before it, True for that of the bundled model.
    """
    assert ran.status == status
    assert ran.out == b""
    lines = ran.err.splitlines()
    notices = [f"gpt2-tf: {notice}" if isinstance(notice, str) else f"gpt2-tf: {BUNDLED_NOTICE}"] if notice else []
    assert lines[:-1] == notices
    assert ran.err.endswith("\n") and lines[-1].startswith("gpt2-tf: error: ")
    for part in parts:
        assert part in lines[-1]


def text_of(ran: Ran) -> str:
    """The output of a command that succeeded, without the newline at its end."""
    assert (ran.status, ran.err) == (0, "")
    text = ran.out.decode()
    assert text.endswith("\n")
    return text[:-1]
