"""An interactive session: its text, its commands, and Ctrl-C and Ctrl-D at a real terminal."""

import contextlib
import io
import os
import select
import subprocess
import sys
import time

import pytest

from gpt2_tf import generate
from gpt2_tf.cli.interactive import HELP, SESSION_SETTINGS, Session, answer_lines
from gpt2_tf.cli.sampling_flags import SETTINGS

VALUES = {name: SETTINGS[name].default for name in SESSION_SETTINGS} | {"length": 6, "seed": 3}


@pytest.fixture
def session(lively, enc):
    return Session(lively, enc, VALUES | {"temperature": 0.0})


def greedy(session, text):
    (completion,) = generate(session.model, session.enc, text, length=6, temperature=0, window=True)
    return completion.text


def test_each_answer_continues_the_whole_text(session):
    first = "".join(session.answer("the then"))
    assert first == greedy(session, "the then")
    assert session.text == "the then" + first
    second = "".join(session.answer("them"))
    assert second == greedy(session, f"the then{first}\nthem")
    assert session.text == f"the then{first}\nthem{second}"


def test_an_empty_line_continues_without_new_text(session):
    first = "".join(session.answer(""))
    assert first == greedy(session, None)
    assert "".join(session.answer("")) == greedy(session, first)


def test_no_second_newline_after_a_newline(session):
    session.text = "the\n"
    answer = "".join(session.answer("e"))
    assert session.text == "the\ne" + answer


def test_a_stopped_answer_stays_in_the_text(session):
    pieces = session.answer("the then")
    begun = next(pieces) + next(pieces)
    pieces.close()
    assert session.text == "the then" + begun
    assert greedy(session, "the then").startswith(begun)


def test_the_window_slides(session):
    for _ in range(12):
        list(session.answer("the quick"))
    assert len(session.enc.encode(session.text)) > 3 * session.model.hparams.n_ctx


def test_answers_differ_and_the_same_seed_repeats_the_session(lively, enc):
    def texts(session):
        return ["".join(session.answer("the")) or session.command("/reset") for _ in range(3)]

    session = Session(lively, enc, VALUES)
    once = texts(session)
    assert once == texts(Session(lively, enc, VALUES))
    assert once != texts(Session(lively, enc, VALUES | {"seed": 4}))
    session.command("/reset")
    session.command("/set seed 3")
    assert once == texts(session)
    first = Session(lively, enc, VALUES)
    answers = {"".join(first.answer("the")) for _ in range(8) if first.command("/reset")}
    assert len(answers) > 5


def test_set_shows_and_changes_settings(session):
    assert session.command("/set temperature 0.7") == "temperature        0.7"
    assert session.settings["temperature"] == 0.7
    assert session.command("/set top-k   5") == "top_k              5"
    assert session.command(r"/set stop \n") == r"stop               '\n'"
    assert session.settings["stop"] == ("\n",)
    assert session.command("/set top_k") == "top_k              5"
    assert [line.split()[0] for line in session.command("/set").splitlines()] == list(SESSION_SETTINGS)


@pytest.mark.parametrize("word", ["quit", "exit", "/quit", "/exit", " quit "])
def test_quit_and_exit_end_the_session(session, monkeypatch, capsys, word):
    lines = f"/set length 2\n{word}\n/set length 3\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    answer_lines(session)
    assert session.settings["length"] == 2
    assert capsys.readouterr() == ("", "length             2\n")


def test_quit_within_a_line_is_text(session, monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"quit now\n")))
    answer_lines(session)
    assert session.text == "quit now" + capsys.readouterr().out[:-1]


def test_a_changed_setting_acts_on_the_next_answer(session):
    whole = "".join(session.answer("them"))
    session.command("/reset")
    session.command("/set length 2")
    short = "".join(session.answer("them"))
    assert whole.startswith(short) and len(short) < len(whole)


def test_reset_and_help(session):
    list(session.answer("the then"))
    assert "forgotten" in session.command("/reset")
    assert session.text == ""
    assert session.command("/help") == HELP


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/foo", "there is no command /foo; /help lists the commands, //foo sends it as text"),
        ("/", "there is no command /; /help lists"),
        ("/reset now", "/reset takes nothing after it"),
        ("/top-k 5", "there is no command /top-k; `/set top-k 5` sets it"),
        ("/set colour 3", "there is no setting 'colour'; expected length, temperature"),
        ("/set colour", "there is no setting 'colour'"),
        ("/set top_p 2", "top_p is '2', but must be a number above 0 and at most 1"),
    ],
)
def test_a_wrong_command_changes_nothing(session, line, message):
    before = dict(session.settings)
    with pytest.raises(ValueError, match=message):
        session.command(line)
    assert session.settings == before


def test_a_setting_that_the_model_refuses_leaves_the_text(session):
    list(session.answer("the"))
    before = session.text
    session.command("/set top_k 1000")
    with pytest.raises(ValueError, match="top_k is 1000, but must be 0"):
        list(session.answer("e"))
    assert session.text == before


COMMAND = ["-m", "gpt2_tf", "interactive", "--model", "shakespeare", "--seed", "1", "--length", "8"]


@pytest.mark.slow
def test_lines_from_a_pipe():
    lines = "ROMEO:\n\n/set length 3\n//x\n/foo\n/set top_k 5000\nNay\n/set top_k 0\nNay\n/quit\nnever\n"
    ran = subprocess.run([sys.executable, *COMMAND], input=lines.encode(), capture_output=True, timeout=120)
    assert ran.returncode == 0
    err = ran.stderr.decode().splitlines()
    assert err[0] == "length             3"
    assert err[1].startswith("gpt2-tf: error: there is no command /foo")
    assert err[2] == "top_k              5000"
    assert err[3].startswith("gpt2-tf: error: top_k is 5000, but must be 0 (off) to 1024")
    assert err[4:] == ["top_k              0"]
    again = subprocess.run(
        [sys.executable, *COMMAND], input=lines.encode() + b"\xff\n", capture_output=True, timeout=120
    )
    assert again.stdout == ran.stdout
    assert b">" not in ran.stdout and len(ran.stdout.split()) > 8


class Terminal:
    """A command at a pseudo-terminal of its own, where a typed Ctrl-C is a real SIGINT."""

    # A process that a shell started in the background ignores SIGINT, and its child processes inherit that.
    LOGIN = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.login_tty(0)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""

    def __init__(self, *argv):
        self.master, slave = os.openpty()
        command = [sys.executable, "-c", self.LOGIN, *argv]
        env = {**os.environ, "TERM": "dumb", "PYTHONUNBUFFERED": ""}
        self.process = subprocess.Popen(command, stdin=slave, stdout=slave, stderr=slave, env=env)
        os.close(slave)
        self.seen, self.reads = "", []

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    def wait(self, condition) -> str:
        """Reads until the condition holds for the output since the last wait, and returns that output."""
        deadline = time.monotonic() + 60
        while not condition(self.seen):
            assert time.monotonic() < deadline, self.seen
            self._read()
        seen, self.seen = self.seen, ""
        return seen

    def end(self) -> tuple[int, str]:
        while self._read():
            pass
        return self.process.wait(30), self.seen

    def _read(self) -> bool:
        if not select.select([self.master], [], [], 60)[0]:
            return False
        try:
            content = os.read(self.master, 4096)
        except OSError:  # Linux's way to say that the other end is closed
            return False
        self.reads.append(content)
        self.seen += content.decode().replace("\r\n", "\n")
        return bool(content)


@pytest.fixture
def terminal():
    pytest.importorskip("pty")
    with contextlib.ExitStack() as stack:

        def start(*argv):
            started = Terminal(*argv)
            stack.callback(os.close, started.master)
            stack.callback(started.process.wait)
            stack.callback(started.process.kill)
            return started

        yield start


def ends_with(text):
    return lambda seen: seen.endswith(text)


@pytest.mark.slow
def test_a_session_at_a_terminal(terminal):
    session = terminal(*COMMAND, "--stop", "")
    assert "/help lists the commands" in session.wait(ends_with("> "))
    session.type("ROMEO:\n")
    answer = session.wait(ends_with("\n> "))
    assert len(answer) > len("ROMEO:\n\n> ")
    session.type("/set length 100000\n")
    session.wait(ends_with("100000\n> "))

    session.type("Nay\n")
    session.wait(lambda seen: len(seen) > 200)  # shown while it is generated
    start = time.monotonic()
    session.type("\x03")
    session.wait(ends_with("\n> "))
    assert time.monotonic() - start < 20  # filling the window would take minutes
    assert session.process.poll() is None

    session.type("half a line")
    session.wait(ends_with("half a line"))
    time.sleep(0.5)  # a Ctrl-C between input()'s echo and its waiting is noticed only at the next key
    session.type("\x03")
    session.wait(ends_with("\n> "))
    session.type("/set length 4\n")
    session.wait(ends_with("length             4\n> "))
    session.type("O\n")
    assert "half" not in session.wait(ends_with("\n> "))
    session.type("\x04")
    assert session.end() == (0, "\n")


@pytest.mark.slow
def test_ctrl_c_stops_a_stream_to_a_terminal(terminal):
    options = ("--model", "shakespeare", "--length", "100000", "--window", "--stop", "", "--seed", "1")
    running = terminal("-m", "gpt2_tf", "generate", "ROMEO:", *options)
    seen = running.wait(lambda seen: len(seen) > 300)
    assert seen.startswith("ROMEO:")
    assert sum(not content.endswith(b"\n") for content in running.reads) > 10  # shown token by token, not line by line
    running.type("\x03")
    status, rest = running.end()
    assert status == 130
    assert rest.endswith("\ngpt2-tf: interrupted\n")
    assert "Traceback" not in rest
