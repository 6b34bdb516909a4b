"""`gpt2-tf download`, from a server on this machine."""

import contextlib
import http.server
import shutil
import threading

import pytest
from oracles.command_line import assert_error, text_of

from gpt2_tf.hparams import HParams
from gpt2_tf.pretrained import download as download_model
from gpt2_tf.pretrained import transfer

DATA = "model.ckpt.data-00000-of-00001"


@pytest.fixture
def mirror(tiny_folder, tmp_path, monkeypatch):
    """The address of a local server whose 124M is the tiny model; GPT2_TF_BASE_URL names it."""
    shutil.copytree(tiny_folder, tmp_path / "server" / "124M")
    # `save_checkpoint` writes no graph, so this is an empty one.
    (tmp_path / "server" / "124M" / download_model.META).write_bytes(b"\x12\x00")
    monkeypatch.setattr(download_model, "SHA256", {})
    monkeypatch.setitem(download_model.HPARAMS, "124M", HParams.from_json(tiny_folder / "hparams.json"))

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments):
            super().__init__(*arguments, directory=tmp_path / "server")

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setenv("GPT2_TF_BASE_URL", url)
        yield url
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("asked", ["124M", "117M"])
def test_download_prints_the_folder(cli, mirror, tiny_folder, tmp_path, asked):
    place = tmp_path / "models" / "124M"
    ran = cli("download", asked, "--models-dir", tmp_path / "models")
    assert (ran.status, ran.out.decode()) == (0, f"{place}\n")
    assert DATA in ran.err
    assert (place / DATA).read_bytes() == (tiny_folder / DATA).read_bytes()


def test_download_from_a_mirror(cli, mirror, monkeypatch, tmp_path):
    monkeypatch.setenv("GPT2_TF_BASE_URL", "http://127.0.0.1:9/nobody")
    ran = cli("download", "124M", "--models-dir", tmp_path / "models", "--base-url", mirror)
    assert ran.status == 0


def test_encode_downloads_the_vocabulary_only_and_generate_the_rest(cli, mirror, tmp_path):
    options = ("--model", "117M", "--models-dir", tmp_path / "models")
    encoded = cli("encode", "The quick", *options)
    assert encoded.status == 0
    assert encoded.out.replace(b" ", b"").strip().isdigit()
    fetched = {path.name for path in (tmp_path / "models" / "124M").iterdir() if not path.name.startswith(".")}
    assert fetched == {"encoder.json", "vocab.bpe"}
    generated = cli("generate", "The quick", "--length", 2, *options)
    assert (generated.status, generated.out[:9]) == (0, b"The quick")
    assert DATA in generated.err
    assert text_of(cli("encode", "The quick", *options)) == encoded.out.decode().strip()


def test_download_of_files_that_the_server_lacks(cli, mirror, tmp_path):
    ran = cli("download", "355M", "--models-dir", tmp_path / "models")
    progress, error = ran.err.splitlines()
    assert (ran.status, ran.out) == (1, b"")
    assert progress == f"downloading 355M to {tmp_path / 'models' / '355M'}: 7 of 7 files, 1,419 MB of weights"
    assert error.startswith(f"gpt2-tf: error: {mirror}/355M/") and "HTTP 404" in error and "check --base-url" in error


def test_download_without_a_server(cli, monkeypatch, tmp_path):
    monkeypatch.setattr(transfer, "BACKOFF", 0.0)
    with contextlib.closing(http.server.HTTPServer(("127.0.0.1", 0), None).socket) as taken:
        port = taken.getsockname()[1]
    ran = cli("download", "124M", "--models-dir", tmp_path, "--base-url", f"http://127.0.0.1:{port}")
    _, *notes, error = ran.err.splitlines()
    assert (ran.status, ran.out) == (1, b"")
    assert error.startswith(f"gpt2-tf: error: http://127.0.0.1:{port}/124M/checkpoint: ")
    assert "Connection refused" in error and "run again later" in error
    assert all(note.endswith("trying again in 0 s") for note in notes)


def test_download_into_a_read_only_folder(cli, unwritable):
    ran = cli("download", "124M", "--models-dir", unwritable)
    assert_error(ran, 1, f"can't write {unwritable / '124M'}: Permission denied", "choose another --models-dir")


@pytest.mark.parametrize(
    ("argv", "status", "parts"),
    [
        (["125M"], 2, ["'125M'", "124M (or 117M)", "1558M (or 1542M)"]),
        (["124M", "--base-url", "ftp://example.org"], 1, ["'ftp://example.org'", "begin with http:// or https://"]),
        (["124M", "--models-dir", __file__], 1, [f"{__file__} is a file", "choose another --models-dir"]),
    ],
    ids=["size", "base-url", "models-dir"],
)
def test_wrong_download_arguments(cli, tmp_path, monkeypatch, argv, status, parts):
    monkeypatch.chdir(tmp_path)
    assert_error(cli("download", *argv), status, *parts)
