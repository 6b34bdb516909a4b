"""`gpt2-tf prepare`: texts to a folder of token ids."""

import subprocess
import sys
from pathlib import Path

import pytest
from oracles.command_line import assert_error, text_of


def test_prepare_with_a_models_vocabulary(cli, tiny_folder, tmp_path):
    from encoder import Encoder
    from gpt2_tf.data.prepared import load_prepared

    enc = Encoder.from_folder(tiny_folder)
    (tmp_path / "a.csv").write_text("who,said\nI,the fox\n")
    (tmp_path / "b.jsonl").write_text('{"body": "the dog"}\n')
    (tmp_path / "c.txt").write_text("the")
    out = tmp_path / "out"
    files = [tmp_path / "a.csv", tmp_path / "*.jsonl", "--val-file", tmp_path / "c.txt"]
    flags = ["--out", out, "--model", tiny_folder, "--column", "said", "--field", "body"]
    train = [*enc.encode("the fox"), enc.end_of_text, *enc.encode("the dog"), enc.end_of_text]
    val = [*enc.encode("the"), enc.end_of_text]
    summary = f"{out}: {len(train)} tokens to train and {len(val)} to validate, of a vocabulary of 300"
    assert text_of(cli("prepare", *files, *flags)) == summary
    prepared = load_prepared(out)
    assert (prepared.train.tolist(), prepared.val.tolist()) == (train, val)


@pytest.mark.parametrize("size, n_vocab", [("chars", 7), ("260", 260)])
def test_prepare_with_a_new_vocabulary(cli, tmp_path, size, n_vocab):
    from gpt2_tf.data.prepared import load_prepared

    (tmp_path / "a.txt").write_text("the then them " * 9)
    out = tmp_path / "out"
    ran = cli("prepare", tmp_path / "a.txt", "--out", out, "--vocab-size", size, "--val-fraction", "0.1")
    train, val, enc = load_prepared(out)
    summary = f"{len(train)} tokens to train and {len(val)} to validate, of a vocabulary of {n_vocab}"
    assert text_of(ran) == f"{out}: {summary}"
    assert enc.n_vocab == n_vocab


CHARS = ["a.txt", "--out", "out", "--vocab-size", "chars"]


@pytest.mark.parametrize(
    "argv, status, parts",
    [
        (["a.txt", "--out", "out"], 2, ["give --model or --vocab-size"]),
        (["a.txt", "--vocab-size", "chars"], 2, ["--out"]),
        (["--out", "out", "--vocab-size", "chars"], 2, ["FILES"]),
        (
            ["a.txt", "--out", "out", "--vocab-size", "256"],
            2,
            ["--vocab-size is '256', but must be a whole number of at least 257, or chars"],
        ),
        ([*CHARS, "--model", "124M"], 2, ["give --vocab-size or --model, not both"]),
        ([*CHARS, "--val-fraction", "2"], 2, ["--val-fraction is '2', but must be a number from 0 to 1"]),
        ([*CHARS, "--val-fraction", ".1", "--val-file", "a.txt"], 2, ["give --val-fraction or --val-file, not both"]),
        (["none.txt", *CHARS[1:]], 1, ["none.txt: no such file; expected a file, a folder"]),
        (CHARS, 1, ["a.txt is not UTF-8: byte 0xe9 at offset 5; convert"]),
        (["a.txt", "--out", "a.txt", "--vocab-size", "chars"], 1, ["a.txt: File exists"]),
        (["a.txt", "--out", "out", "--model", "nope"], 1, ["there is no model 'nope': expected a size"]),
    ],
)
def test_wrong_prepare_arguments(cli, tmp_path, monkeypatch, argv, status, parts):
    monkeypatch.chdir(tmp_path)
    Path("a.txt").write_bytes("é caf".encode()[:5] + b"\xe9")
    assert_error(cli("prepare", *argv), status, *parts)
    assert not Path("out/train.bin").exists()


def test_prepare_shows_progress_without_tensorflow(environment, tmp_path):
    (tmp_path / "a.txt").write_text("the then them " * 400_000)
    code = """
import sys, tqdm
real = tqdm.tqdm
tqdm.tqdm = lambda *args, **settings: real(*args, **{**settings, "delay": 0, "mininterval": 0})
from gpt2_tf.cli import main
status = main(sys.argv[1:])
assert "tensorflow" not in sys.modules
sys.exit(status)
"""
    command = [sys.executable, "-c", code, "prepare", *CHARS]
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0 and ran.stdout == "out: 5,600,001 tokens to train, of a vocabulary of 7\n"
    assert "tokenizing train: " in ran.stderr and "M/5.60M" in ran.stderr
