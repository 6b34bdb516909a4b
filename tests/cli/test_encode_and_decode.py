"""`gpt2-tf encode` and `gpt2-tf decode`: text to ids and back, to the last byte."""

import os
import subprocess
import sys

import pytest
from oracles.command_line import text_of

from gpt2_tf.cli.flags import BUNDLED_VOCABULARY_NOTICE


def test_decode_inverts_encode(cli, tiny_folder):
    text = "The quick\r\n\n\n naïve\0 色は 👍\ttail\n".encode() + bytes(range(1, 128))
    ran = cli("encode", "--model", tiny_folder, "-", stdin=text)
    ids = text_of(ran).split(" ")
    assert len(ids) < len(text)
    assert cli("decode", "--model", tiny_folder, "-", stdin=ran.out) == (0, text, "")
    assert cli("decode", "--model", tiny_folder, *ids) == (0, text, "")
    assert cli("encode", "--model", tiny_folder, text.decode()) == ran


def test_decode_writes_the_bytes_of_a_partial_character(cli, tiny_folder):
    first, *_ = text_of(cli("encode", "--model", tiny_folder, "\u0101")).split()
    assert cli("decode", "--model", tiny_folder, first) == (0, b"\xc4", "")


def test_one_argument_may_hold_several_ids(cli, tiny_folder):
    ids = text_of(cli("encode", "The quick", "--model", tiny_folder))
    assert cli("decode", ids, "--model", tiny_folder).out == cli("decode", *ids.split(), "--model", tiny_folder).out


def test_allow_special_reads_end_of_text_as_the_special_token(cli, tiny, tiny_folder):
    _, enc = tiny
    text = "The quick<|endoftext|>brown <|endoftext|>"
    with_flag = text_of(cli("encode", text, "--allow-special", "--model", tiny_folder))
    assert [*map(int, with_flag.split())] == enc.encode(text, allowed_special="all")
    assert with_flag.split().count(str(enc.end_of_text)) == 2
    without_flag = text_of(cli("encode", text, "--model", tiny_folder))
    assert str(enc.end_of_text) not in without_flag.split()


def test_a_notice_says_whose_ids_they_are(cli):
    ran = cli("encode", "The quick")
    assert ran.err == f"gpt2-tf: {BUNDLED_VOCABULARY_NOTICE}\n"
    assert "the ids are those of" in ran.err
    assert cli("decode", *ran.out.decode().split()).err == f"gpt2-tf: {BUNDLED_VOCABULARY_NOTICE}\n"


def test_encode_and_decode_of_empty_input(cli, tiny_folder):
    assert cli("encode", "--model", tiny_folder, "") == (0, b"\n", "")
    assert cli("decode", "--model", tiny_folder, "-", stdin=b" \n") == (0, b"", "")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal")
def test_a_terminal_gets_no_control_characters_of_the_model(environment, tiny_folder, tiny):
    """A pipe gets every byte."""
    import pty

    text = "a\x1b[31m\tb\r\nc"
    ids = map(str, tiny[1].encode(text))
    command = [sys.executable, "-m", "gpt2_tf", "decode", "--model", tiny_folder, *ids]
    reader, writer = pty.openpty()
    subprocess.run(command, stdout=writer, env=environment, check=True)
    os.close(writer)
    shown = os.read(reader, 1000)
    os.close(reader)
    assert shown.split() == rb"a\x1b[31m b c".split()
    assert subprocess.run(command, stdout=subprocess.PIPE, env=environment, check=True).stdout == text.encode()
