"""The program as a process: exit status, stderr, closed streams, a full disk, Ctrl-C."""

import os
import signal
import subprocess
import sys
import sysconfig
import time
from pathlib import Path

import pytest
from oracles.command_line import Ran, assert_error

from gpt2_tf import GPT2, HParams, __version__


def test_debug_shows_the_traceback(process):
    argv = ("encode", "x", "--model", "nope")
    plain, debug, before = process(*argv), process(*argv, "--debug"), process("--debug", *argv)
    assert (plain.returncode, debug.returncode) == (1, 1)
    assert before.stderr == debug.stderr
    assert b"Traceback" not in plain.stderr
    assert b"Traceback (most recent call last)" in debug.stderr
    assert b"FileNotFoundError: there is no model 'nope'" in debug.stderr


@pytest.mark.parametrize(
    "argv", [["--help"], ["generate", "--help"], ["interactive", "--help"], ["download", "--help"]], ids=" ".join
)
def test_help_goes_to_stdout(cli, argv):
    ran = cli(*argv)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith(b"usage: gpt2-tf")


def test_version(process):
    ran = process("--version")
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, f"gpt2-tf {__version__}\n".encode(), b"")


@pytest.mark.parametrize(
    "argv",
    [
        ["--help"],
        ["--version"],
        ["generate", "--help"],
        ["interactive", "--help"],
        ["download", "--help"],
        ["encode", "--model", "TINY", "x"],
        ["decode", "--model", "TINY", "1"],
        ["info", "--model", "TINY"],
        ["convert", "--help"],
    ],
    ids=" ".join,
)
def test_quick_commands_do_not_import_tensorflow(environment, tiny_folder, argv):
    argv = [str(tiny_folder) if argument == "TINY" else argument for argument in argv]
    script = (
        "import sys; from gpt2_tf.cli import main\n"
        "try: status = main(sys.argv[1:])\n"
        "except SystemExit as end: status = end.code\n"
        "assert status == 0, status\n"
        "assert not {'tensorflow', 'keras'} & set(sys.modules), 'imported'"
    )
    ran = subprocess.run([sys.executable, "-c", script, *argv], env=environment, capture_output=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout


@pytest.mark.slow
def test_tensorflow_is_silent(environment, tiny_folder, tmp_path):
    script = Path(sysconfig.get_path("scripts"), "gpt2-tf")
    ran = subprocess.run(
        [script, "generate", "--model", tiny_folder, "x", "--length", "3", "--seed", "1"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        timeout=120,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
    assert ran.stdout.startswith(b"x")


@pytest.mark.slow
def test_tensorflow_messages_can_be_turned_on(process, tiny_folder):
    ran = process(
        *("generate", "--model", tiny_folder, "x", "--length", "3", "--seed", "1", "--engine", "tensorflow"),
        env={"TF_CPP_MIN_LOG_LEVEL": "0"},
    )
    assert ran.returncode == 0
    assert ran.stdout.startswith(b"x")
    assert ran.stderr


def test_an_argument_that_is_not_utf8(process, tiny_folder):
    ran = process("encode", "--model", tiny_folder, b"caf\xe9")
    assert_error(
        Ran(ran.returncode, ran.stdout, ran.stderr.decode()), 1, "the text is not UTF-8: byte 0xe9 at offset 3"
    )


@pytest.mark.parametrize(
    "argv",
    [
        pytest.param(["generate", "x", "--length", "9"], marks=pytest.mark.slow),
        ["encode", "x"],
        ["decode", "1"],
    ],
    ids=lambda argv: argv[0],
)
def test_broken_pipe_is_quiet(process, tiny_folder, argv):
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb") as broken:
        ran = process(*argv, "--model", tiny_folder, stdout=broken)
    assert (ran.returncode, ran.stderr) == (1, b"")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs the shell's ulimit")
@pytest.mark.parametrize(
    "command",
    [
        [
            "generate",
            "--file",
            "texts.txt",
            "--out",
            "OUT",
            "--model",
            "TINY",
            "--length",
            "3",
            "--engine",
            "tensorflow",
        ],
        ["convert", "TINY", "OUT"],
        ["train", "texts.txt", "--out", "OUT", "--init-from", "TINY", "--window", "8", "--steps", "1"],
        ["export", "OUT", "--model", "TINY"],
    ],
    ids=lambda command: command[0],
)
def test_a_full_disk_names_what_could_not_be_written(process, tiny_folder, tmp_path, command):
    """A limit on the size of files stands for the end of the disk: TensorFlow's writes fail too, not only Python's."""
    (tmp_path / "texts.txt").write_text("the text\n" * 60)
    words = [str(tiny_folder) if word == "TINY" else word for word in command]
    limited = ["bash", "-c", 'ulimit -f 2; exec "$@"', "bash", sys.executable, "-m", "gpt2_tf", *words]
    ran = subprocess.run(limited, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[-1].startswith("gpt2-tf: error: OUT") and "File too large" in ran.stderr
    assert not (tmp_path / "OUT").is_file()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full")
def test_full_disk_is_one_line(process, tiny_folder):
    with open("/dev/full", "wb") as full:
        ran = process("encode", "--model", tiny_folder, "x", stdout=full)
    assert_error(Ran(ran.returncode, b"", ran.stderr.decode()), 1, "stdout: No space left on device")


ENDLESS = [sys.executable, "-m", "gpt2_tf", "generate", "The", "--length", "99999", "--stop", ""]


@pytest.fixture
def long(copy):
    """The tiny model with a window so large that filling it takes minutes."""
    GPT2(HParams(n_vocab=300, n_ctx=100_000, n_embd=16, n_head=2, n_layer=2)).save_checkpoint(copy)
    return copy


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["tensorflow", "litert"])
def test_ctrl_c_ends_a_stream_with_the_text_so_far(environment, long, engine):
    command = [*ENDLESS, "--model", long, "--engine", engine]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            begun = os.read(process.stdout.fileno(), 3)
            while len(begun) < 10:  # wait for the first tokens
                begun += os.read(process.stdout.fileno(), 100)
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
            seconds = time.monotonic() - start
        finally:
            process.kill()
    assert (process.returncode, err) == (130, b"gpt2-tf: interrupted\n")
    assert begun.startswith(b"The") and (begun + out).endswith(b"\n")
    assert seconds < 20  # filling the window takes minutes


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
@pytest.mark.parametrize(("engine", "library"), [("tensorflow", "tensorflow"), ("litert", "libLiteRt")])
def test_ctrl_c_ends_a_batch(environment, long, engine, library):
    command = [*ENDLESS, "--model", long, "--nsamples", "2", "--engine", engine]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            maps = Path(f"/proc/{process.pid}/maps")
            wait_until(lambda: library in maps.read_text())
            time.sleep(8)  # long enough to import, trace and enter the loop
            assert process.poll() is None
            start = time.monotonic()
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
            seconds = time.monotonic() - start
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, b"", b"gpt2-tf: interrupted\n")
    assert seconds < 20  # filling the window takes minutes


def wait_until(condition) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="needs Linux's /proc")
def test_ctrl_c_while_tensorflow_is_imported(environment, tiny_folder):
    command = [sys.executable, "-m", "gpt2_tf", "generate", "x", "--model", tiny_folder, "--engine", "tensorflow"]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            maps = Path(f"/proc/{process.pid}/maps")
            wait_until(lambda: "tensorflow" in maps.read_text())
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, b"", b"gpt2-tf: interrupted\n")


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(environment, tiny_folder, closed):
    """A daemon has closed streams: there is no traceback, and the streams that are open get their output."""
    command = f"{sys.executable} -m gpt2_tf encode 'The quick' --model {tiny_folder} {closed}"
    ran = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert bool(ran.stdout) == (">&-" not in closed.replace("2>&-", ""))
    command = f"{sys.executable} -m gpt2_tf encode - --model {tiny_folder} {closed}"
    ran = subprocess.run(command, shell=True, env=environment, capture_output=True, text=True, timeout=60)
    assert (ran.returncode, ran.stderr) == (0, "")
