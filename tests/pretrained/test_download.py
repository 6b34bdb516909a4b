"""`download_model` against a real server on the loopback that misbehaves as real ones do, and real kills."""

import contextlib
import email.utils
import errno
import gzip
import hashlib
import http.server
import json
import os
import random
import re
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import pytest

from gpt2_tf.hparams import HParams
from gpt2_tf.pretrained import download as download_model
from gpt2_tf.pretrained import transfer
from gpt2_tf.pretrained.download import DATA, FILES, INDEX, META, RESUMABLE, check_file, download, main
from gpt2_tf.pretrained.transfer import CHUNK, TRIES

ROOT = Path(__file__).parents[2]
OFFICIAL = ROOT.parent / "shared" / "data" / "official-117M"
posix = pytest.mark.skipif(sys.platform == "win32", reason="uses POSIX signals, limits or devices")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The seven files of a small model, {name: bytes}: a checkpoint of 2 MB by TensorFlow's Saver, a stand-in for the
    vocabulary."""
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("served")
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        for name, shape in (("model/wte", [3000, 150]), ("model/wpe", [400, 150]), ("model/ln_f/g", [150])):
            tf.compat.v1.get_variable(name, shape)
        session.run(tf.compat.v1.global_variables_initializer())
        tf.compat.v1.train.Saver().save(session, str(folder / "model.ckpt"))
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    words = random.Random(0).randbytes(300_000)
    hparams = json.dumps(HParams.from_size("124M").to_dict()).encode()
    files |= {"encoder.json": words, "vocab.bpe": words[::-1], "hparams.json": hparams}
    assert set(files) == set(FILES) and len(files[DATA]) > 10 * CHUNK
    return files


@pytest.fixture(autouse=True)
def quick_and_local(monkeypatch, request):
    """Short waits, no proxy, and the sums of this module's vocabulary."""
    for name, value in {"BACKOFF": 0.01, "READ_TIMEOUT": 0.4, "CONNECT_TIMEOUT": 2.0}.items():
        monkeypatch.setattr(transfer, name, value)
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.delenv("GPT2_TF_BASE_URL", raising=False)
    if "model" in request.fixturenames:
        for name, value in sums(request.getfixturevalue("model")).items():
            monkeypatch.setitem(download_model.SHA256, name, value)


def sums(files):
    return {name: hashlib.sha256(files[name]).hexdigest() for name in ("encoder.json", "vocab.bpe")}


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves the server's files with ranges, unless `plans` has another response for a file's next request."""

    def do_GET(self):
        size, _, name = self.path.removeprefix("/gpt-2/").partition("/")
        first = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        self.start = int(first[1]) if first else 0
        self.data = self.server.files.get(name) if size == "124M" else None
        self.seen = {"name": name, "range": self.headers.get("Range"), "sent": 0}
        self.seen["encoding"] = self.headers.get("Accept-Encoding")
        self.server.seen.append(self.seen)
        plan = self.server.plans.get(name)
        # The client may close the connection or be killed, which is no error here.
        with contextlib.suppress(ConnectionError):
            (plan.pop(0) if plan else honest)(self)

    def head(self, status, **headers):
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key.replace("_", "-"), str(value))
        self.end_headers()

    def body(self, data):
        for at in range(0, len(data), CHUNK):
            self.wfile.write(data[at : at + CHUNK])
            self.seen["sent"] += len(data[at : at + CHUNK])

    def log_message(self, *_):
        pass


def honest(handler, until=None):
    """The right response, cut at byte `until` of the file."""
    data, start = handler.data, handler.start
    if data is None:
        handler.head(404, Content_Length=0)
    elif start >= len(data):
        handler.head(416, Content_Range=f"bytes */{len(data)}", Content_Length=0)
    elif start:
        span = f"bytes {start}-{len(data) - 1}/{len(data)}"
        handler.head(206, Content_Length=len(data) - start, Content_Range=span)
        handler.body(data[start:until])
    else:
        handler.head(200, Content_Length=len(data))
        handler.body(data[:until])


def drop_at(until):
    return lambda handler: honest(handler, until)


def stall_at(until):
    def plan(handler):
        honest(handler, until)
        handler.wfile.flush()
        handler.server.released.wait(20)

    return plan


def without_ranges(until=None):
    def plan(handler):
        handler.start = 0
        honest(handler, until)

    return plan


def answer(status, body=b"", **headers):
    def plan(handler):
        handler.head(status, Content_Length=len(body), **headers)
        handler.body(body)

    return plan


def without_length(body):
    def plan(handler):
        handler.head(200)
        handler.body(body)

    return plan


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, files):
        super().__init__(("127.0.0.1", 0), Handler)
        self.files, self.plans, self.seen = dict(files), {}, []
        self.released = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}/gpt-2"

    def asked(self, name=None):
        """The Range header of each request so far, for one file or all."""
        return [one["range"] for one in self.seen if name in (None, one["name"])]

    def sent(self, name):
        return sum(one["sent"] for one in self.seen if one["name"] == name)


@pytest.fixture
def server(model):
    with Server(model) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.released.set()
        server.shutdown()


def assert_whole(folder, model):
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == model


def one_line(caught):
    text = str(caught.value)
    assert text and "\n" not in text and len(text) < 500
    return text


def first_range(server, name=DATA):
    """Where the second request for a file began."""
    first, second = server.asked(name)
    assert first is None
    return int(re.fullmatch(r"bytes=(\d+)-", second)[1])


# Without faults.


def test_seven_files_come_once_each(server, model, tmp_path, capsys):
    folder = download("124M", tmp_path / "new" / "models", server.url + "/")
    assert folder == tmp_path / "new" / "models" / "124M"
    assert_whole(folder, model)
    assert [one["name"] for one in server.seen] == list(FILES)
    assert {one["encoding"] for one in server.seen} == {"identity"} and set(server.asked()) == {None}
    out, err = capsys.readouterr()
    assert out == "" and all(name in err for name in FILES)


def test_a_whole_folder_needs_no_network(server, model, tmp_path, monkeypatch):
    folder = download("124M", tmp_path, server.url)
    server.seen.clear()
    assert download("117M", tmp_path, server.url) == folder
    assert server.seen == []
    assert_whole(folder, model)
    assert len(list(folder.iterdir())) == len(FILES)  # not even a lock file, because the folder may be read-only
    monkeypatch.setattr(socket, "socket", None)
    assert download("124M", tmp_path) == folder


@pytest.mark.parametrize("name", FILES)
def test_only_missing_and_damaged_files_are_fetched(name, server, model, tmp_path, capsys):
    folder = download("124M", tmp_path, server.url)
    for damage in (Path.unlink, lambda path: path.write_bytes(model[name][: 20 if name == "checkpoint" else -9])):
        damage(folder / name)
        server.seen.clear()
        download("124M", tmp_path, server.url)
        assert [one["name"] for one in server.seen] == [name]
        assert_whole(folder, model)
    assert f"{name} is damaged, so it is fetched again: " in capsys.readouterr().err


def test_the_base_url_comes_from_the_argument_then_the_environment_then_openai(
    server, model, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(transfer, "TRIES", 1)
    monkeypatch.setenv("GPT2_TF_BASE_URL", "http://127.0.0.1:9/nothing")
    assert main(["345M", "--models-dir", str(tmp_path), "--base-url", server.url]) == 1
    assert f"{server.url}/355M/checkpoint: HTTP 404" in capsys.readouterr().err
    assert main(["124M", "--models-dir", str(tmp_path), "--base-url", server.url]) == 0
    assert f"{tmp_path / '124M'} is complete" in capsys.readouterr().err
    monkeypatch.setenv("GPT2_TF_BASE_URL", server.url)
    assert_whole(download("124M", tmp_path / "by environment"), model)
    monkeypatch.setenv("GPT2_TF_BASE_URL", "")
    monkeypatch.setattr(download_model, "BASE_URL", server.url)
    assert_whole(download("124M", tmp_path / "by default"), model)


def test_openais_address():
    assert download_model.BASE_URL == "https://openaipublic.blob.core.windows.net/gpt-2/models"


@pytest.mark.skipif(not OFFICIAL.exists(), reason="OpenAI's files are not in ../shared/data")
@pytest.mark.parametrize("name", [name for name in FILES if name != DATA])
def test_openais_own_files_pass_and_with_a_byte_less_fail(name, tmp_path):
    path = tmp_path / name
    path.write_bytes((OFFICIAL / name).read_bytes())
    check_file(path, name, "124M")
    path.write_bytes((OFFICIAL / name).read_bytes()[: 20 if name == "checkpoint" else -1])
    with pytest.raises(ValueError):
        check_file(path, name, "124M")


@pytest.mark.skipif(not OFFICIAL.exists(), reason="OpenAI's files are not in ../shared/data")
def test_openais_weights_have_the_size_that_the_index_says(tmp_path):
    shutil.copy(OFFICIAL / INDEX, tmp_path)
    with open(tmp_path / DATA, "wb") as file:
        file.truncate(497_759_232)  # a hole: takes no room
    with pytest.raises(ValueError, match="148 of 148 tensors don't have the CRC32C"):
        check_file(tmp_path / DATA, DATA, "124M")
    with open(tmp_path / DATA, "ab") as file:
        file.write(b"x")
    with pytest.raises(ValueError, match=r"497,759,233 bytes, but .* 497,759,232"):
        check_file(tmp_path / DATA, DATA, "124M")


def test_importing_the_script_imports_no_large_package():
    heavy = "{'requests', 'tqdm', 'numpy', 'tensorflow', 'keras'} & set(sys.modules)"
    code = f"import sys, download_model; sys.exit(str({heavy}) if {heavy} else 0)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=ROOT, check=True)


# Breaks, and resuming after them.


def test_a_dropped_connection_is_resumed_in_the_same_run(server, model, tmp_path, capsys):
    server.plans[DATA] = [drop_at(1_000_000)]
    assert_whole(download("124M", tmp_path, server.url), model)
    assert 1_000_000 - CHUNK <= first_range(server) <= 1_000_000
    assert len(model[DATA]) <= server.sent(DATA) <= len(model[DATA]) + CHUNK
    err = capsys.readouterr().err
    assert f"{server.url}/124M/{DATA}: the connection broke off; trying again in 0.01 s\n" in err
    resumed = [int(percent) for percent in re.findall(rf"{DATA}: +(\d+)%", err.split("trying again")[1])]
    assert 40 <= resumed[0] <= 50 and resumed[-1] == 100


def test_a_server_that_answers_in_small_ranges_is_asked_for_the_next(server, model, tmp_path):
    def piece(handler):
        span = f"bytes {handler.start}-{handler.start + 499_999}/{len(handler.data)}"
        handler.head(206, Content_Length=500_000, Content_Range=span)
        handler.body(handler.data[handler.start : handler.start + 500_000])

    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{DATA}.part").write_bytes(model[DATA][:77])
    server.plans[DATA] = [piece, piece]
    assert_whole(download("124M", tmp_path, server.url), model)
    assert server.asked(DATA) == ["bytes=77-", "bytes=500077-", "bytes=1000077-"]


def test_breaks_with_progress_between_them_do_not_end_the_download(server, model, tmp_path):
    ends = range(150_000, 2_000_000, 150_000)
    server.plans[DATA] = [drop_at(end) for end in ends]
    assert len(ends) > 2 * TRIES
    assert_whole(download("124M", tmp_path, server.url), model)
    assert len(server.asked(DATA)) == len(ends) + 1


def test_breaks_without_progress_end_the_download(server, tmp_path):
    server.plans[DATA] = [drop_at(700_000)] * 50
    with pytest.raises(ConnectionError, match=f"{TRIES} times in a row") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert len(server.asked(DATA)) in (TRIES, TRIES + 1)
    assert 0 < (tmp_path / "124M" / f"{DATA}.part").stat().st_size <= 700_000
    assert not (tmp_path / "124M" / DATA).exists()


def test_a_file_without_a_checksum_starts_again(server, model, tmp_path):
    server.plans[META] = [drop_at(len(model[META]) - 100)]
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{META}.part").write_bytes(b"old")
    assert META not in RESUMABLE
    assert_whole(download("124M", tmp_path, server.url), model)
    assert server.asked(META) == [None, None]


def test_a_part_of_an_earlier_run_is_continued(server, model, tmp_path):
    (tmp_path / "124M").mkdir()
    for name in sorted(RESUMABLE):
        (tmp_path / "124M" / f"{name}.part").write_bytes(model[name][:77])
    assert_whole(download("124M", tmp_path, server.url), model)
    for name in RESUMABLE:
        assert server.asked(name) == ["bytes=77-"]
        assert server.sent(name) == len(model[name]) - 77


def test_a_server_that_ignores_ranges_sends_all_again(server, model, tmp_path):
    server.plans[DATA] = [drop_at(1_000_000), without_ranges()]
    assert_whole(download("124M", tmp_path, server.url), model)
    assert first_range(server) > 0 and server.sent(DATA) > len(model[DATA])


def test_a_server_that_ignores_ranges_and_always_drops_is_given_up(server, tmp_path):
    server.plans[DATA] = [without_ranges(500_000)] * 50
    with pytest.raises(ConnectionError, match="in a row"):
        download("124M", tmp_path, server.url)
    assert len(server.asked(DATA)) <= TRIES + 1


def test_a_part_that_was_whole_already_is_only_checked(server, model, tmp_path):
    (tmp_path / "124M").mkdir()
    for name in ("vocab.bpe", DATA):
        (tmp_path / "124M" / f"{name}.part").write_bytes(model[name])
    assert_whole(download("124M", tmp_path, server.url), model)
    assert server.asked("vocab.bpe") == [f"bytes={len(model['vocab.bpe'])}-"]  # answered 416
    assert server.asked(DATA) == []
    assert server.sent("vocab.bpe") == 0


@pytest.mark.parametrize("name", ["encoder.json", DATA])
def test_a_part_longer_than_the_file_is_dropped(name, server, model, tmp_path):
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{name}.part").write_bytes(model[name] + b"more")
    assert_whole(download("124M", tmp_path, server.url), model)


@pytest.mark.parametrize("span", ["bytes 0-5/6", "bytes 1-2", "", "lines 77-99/100"])
def test_another_range_than_asked_for_is_not_written(span, server, model, tmp_path):
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{DATA}.part").write_bytes(model[DATA][:77])
    server.plans[DATA] = [answer(206, b"x" * 99, Content_Range=span)]
    assert_whole(download("124M", tmp_path, server.url), model)
    assert server.asked(DATA) == ["bytes=77-", None]


@pytest.mark.parametrize("name", sorted(RESUMABLE))
def test_a_file_that_changed_on_the_server_is_not_joined_to_its_old_part(name, server, model, tmp_path):
    folder = tmp_path / "124M"
    folder.mkdir()
    (folder / f"{name}.part").write_bytes(bytes(len(model[name]) // 2))
    with pytest.raises(OSError, match="removed it; run again") as caught:
        download("124M", tmp_path, server.url)
    assert name in one_line(caught)
    assert not (folder / name).exists() and not (folder / f"{name}.part").exists()
    assert_whole(download("124M", tmp_path, server.url), model)


@posix
def test_after_sigkill_in_mid_file_the_next_run_resumes(server, model, tmp_path):
    server.plans[DATA] = [stall_at(1_200_000)]
    child = start(server, tmp_path)
    part = tmp_path / "124M" / f"{DATA}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    child.kill()
    assert child.wait(10) == -signal.SIGKILL
    child.stderr.close()
    left = part.stat().st_size
    assert not (tmp_path / "124M" / DATA).exists()
    before = server.sent(DATA)
    assert_whole(download("124M", tmp_path, server.url), model)
    assert first_range(server) == left > 1_000_000
    assert server.sent(DATA) - before == len(model[DATA]) - left


@posix
def test_ctrl_c_keeps_the_part_and_says_so_in_a_line(server, model, tmp_path):
    server.plans[DATA] = [stall_at(1_200_000)]
    child = start(server, tmp_path)
    part = tmp_path / "124M" / f"{DATA}.part"
    wait_until(lambda: part.exists() and part.stat().st_size > 1_000_000)
    child.send_signal(signal.SIGINT)
    err = child.communicate(timeout=120)[1]
    assert child.returncode == 130
    assert err.splitlines()[-1] == "download_model.py: interrupted; run the same command again to resume"
    assert "Traceback" not in err and part.stat().st_size > 1_000_000
    assert_whole(download("124M", tmp_path, server.url), model)
    assert first_range(server) > 1_000_000


@posix
def test_two_processes_at_once_fetch_each_file_once(server, model, tmp_path):
    server.plans[DATA] = [stall_at(1_200_000)]
    first = start(server, tmp_path, READ_TIMEOUT=30)
    wait_until(lambda: server.asked(DATA))
    second = start(server, tmp_path)
    read = iter(second.stderr.readline, "")
    assert next(line for line in read).startswith("waiting for another process that is writing ")
    server.released.set()
    assert (first.wait(20), second.wait(20)) == (0, 0)
    for child in (first, second):
        child.stderr.close()
    assert_whole(tmp_path / "124M", model)
    assert len(server.asked()) == len(FILES) + 1  # the stalled connection is resumed once


@posix
def test_a_killed_process_blocks_no_other(server, model, tmp_path):
    server.plans["checkpoint"] = [stall_at(0)]
    child = start(server, tmp_path, READ_TIMEOUT=30)
    wait_until(lambda: server.seen)
    child.kill()
    child.communicate(timeout=120)
    assert_whole(download("124M", tmp_path, server.url), model)


@posix
def test_a_file_system_without_locks_works(server, model, tmp_path, monkeypatch):
    import fcntl

    def flock(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    assert_whole(download("124M", tmp_path, server.url), model)


def start(server, models_dir, before="", **constants):
    """Starts a real download in another process, with this module's vocabulary."""
    code = f"""
import sys, filelock, requests, tqdm, gpt2_tf.weights.tensor_bundle
from gpt2_tf.pretrained import download as download_model, transfer
download_model.SHA256.update({sums(server.files)!r})
vars(transfer).update({dict(BACKOFF=0.01) | constants!r})
{before}
sys.exit(download_model.main(sys.argv[1:]))
"""
    command = [sys.executable, "-W", "error", "-c", code, "124M", "--models-dir", models_dir, "--base-url", server.url]
    return subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True)


def wait_until(condition):
    end = time.monotonic() + 15
    while not condition():
        assert time.monotonic() < end, "waited 15 s"
        time.sleep(0.01)


# Busy, absent and wrong servers.


@pytest.fixture
def naps(monkeypatch):
    """The seconds that the download would have slept."""
    naps = []
    monkeypatch.setattr(transfer, "time", type("clock", (), {"sleep": naps.append, "time": time.time}))
    return naps


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_a_busy_server_is_asked_again_after_growing_waits(status, server, model, tmp_path, naps):
    server.plans["checkpoint"] = [answer(status, b"busy")] * 3
    assert_whole(download("124M", tmp_path, server.url), model)
    assert naps == [0.01, 0.02, 0.04]
    server.plans["checkpoint"] = [answer(status, b"busy")] * 50
    server.seen.clear()
    with pytest.raises(ConnectionError, match=f"checkpoint: HTTP {status} .*, {TRIES} times in a row") as caught:
        download("124M", tmp_path / "again", server.url)
    one_line(caught)
    assert len(server.asked()) == TRIES


def test_retry_after_is_honoured_as_seconds_and_as_a_date(server, model, tmp_path, naps):
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    waits = ["7", "0", date, "soon", "Mon, 01 Jan 2001 00:00:00 GMT"]
    server.plans = {name: [answer(503, Retry_After=wait)] for name, wait in zip(FILES, waits, strict=False)}
    assert_whole(download("124M", tmp_path, server.url), model)
    assert naps[:2] == [7, 0] and 25 < naps[2] <= 30 and naps[3:] == [0.01, 0]


def test_retry_after_beyond_reason_ends_at_once(server, tmp_path, naps):
    server.plans["checkpoint"] = [answer(429, Retry_After="3600")] * 9
    with pytest.raises(ConnectionError, match="wait 3600 s") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert naps == [] and len(server.asked()) == 1


@pytest.mark.parametrize(
    ("plan", "kind", "says"),
    [
        (answer(404, b"<Error>BlobNotFound</Error>"), FileNotFoundError, "HTTP 404 .*--base-url"),
        (answer(404, gzip.compress(b"none"), Content_Encoding="gzip"), FileNotFoundError, "HTTP 404"),
        (answer(403), OSError, "HTTP 403 .*200 was expected"),
        (answer(204), OSError, "HTTP 204"),
        (answer(206, b"{}", Content_Range="bytes 0-1/2"), OSError, "HTTP 206"),
        (answer(416), OSError, "HTTP 416"),
        (answer(200, gzip.compress(b"{}"), Content_Encoding="gzip"), OSError, "compresses"),
        (answer(302, Location="/gpt-2/124M/hparams.json"), OSError, "redirects"),
    ],
)
def test_permanent_errors_are_not_retried(plan, kind, says, server, tmp_path, naps):
    server.plans["hparams.json"] = [plan] * 50
    with pytest.raises(kind, match=f"124M/hparams.json: .*{says}") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert naps == [] and not list((tmp_path / "124M").glob("hparams.json*"))


PAGES = {
    "html": b"<!DOCTYPE html>\n<html><body>Please log in</body></html>\n",
    "html after a blank line": b"\n<html><head><title>Hotel</title></head><body>"
    + b"Welcome! " * 99
    + b"</body></html>",
    "xml": b'<?xml version="1.0" encoding="utf-8"?><Error><Code>ServerBusy</Code></Error>',
    "json": b'{"error": {"code": 503, "message": "busy"}}',
    "nothing": b"",
}


@pytest.mark.parametrize("page", PAGES.values(), ids=PAGES)
@pytest.mark.parametrize("serve", [lambda page: answer(200, page), without_length], ids=["length", "no length"])
@pytest.mark.parametrize("name", FILES)
def test_a_page_with_status_200_is_never_taken_for_a_file(name, serve, page, server, model, tmp_path):
    server.plans[name] = [serve(page)]
    with pytest.raises(OSError, match=re.escape(name)) as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert not list((tmp_path / "124M").glob(f"{name}*"))
    assert_whole(download("124M", tmp_path, server.url), model)


def test_a_page_instead_of_the_rest_of_the_weights_keeps_the_part(server, model, tmp_path):
    server.plans[DATA] = [drop_at(1_000_000), answer(200, PAGES["html"])]
    with pytest.raises(OSError, match=r"has 56 bytes, but 2,040,600 were expected") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert (tmp_path / "124M" / f"{DATA}.part").stat().st_size > 900_000
    server.seen.clear()
    assert_whole(download("124M", tmp_path, server.url), model)
    assert len(server.asked(DATA)) == 1 and server.sent(DATA) < 1_200_000


def test_weights_of_the_right_size_with_a_changed_byte_are_refused(server, model, tmp_path):
    changed = bytearray(model[DATA])
    changed[-5] ^= 1
    server.files[DATA] = bytes(changed)
    with pytest.raises(OSError, match=r"1 of 3 tensors don't have the CRC32C .* model/wte") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert not list((tmp_path / "124M").glob(f"{DATA}*"))


def test_weights_that_were_damaged_on_the_disk_are_fetched_anew(server, model, tmp_path, capsys):
    folder = download("124M", tmp_path, server.url)
    data = bytearray(model[DATA])
    data[len(data) // 2] ^= 1
    (folder / DATA).write_bytes(data)
    server.seen.clear()
    download("124M", tmp_path, server.url)
    assert [one["name"] for one in server.seen] == [DATA]
    assert_whole(folder, model)
    assert "fetched again: 1 of " in capsys.readouterr().err


def test_files_without_a_length_still_come(server, model, tmp_path):
    server.plans = {name: [without_length(data)] for name, data in model.items()}
    assert_whole(download("124M", tmp_path, server.url), model)


def test_a_refused_connection(tmp_path):
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unheard.getsockname()[1]}"
        with pytest.raises(ConnectionError, match=f"{url}/124M/checkpoint: .*refused.*, {TRIES} times") as caught:
            download("124M", tmp_path, url)
    one_line(caught)


def test_an_unknown_host(tmp_path, monkeypatch):
    def getaddrinfo(*_, **__):
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ConnectionError, match="Name or service not known") as caught:
        download("124M", tmp_path, "http://mirror.invalid")
    one_line(caught)


def test_a_stalled_response_is_resumed(server, model, tmp_path):
    server.plans[DATA] = [stall_at(1_000_000)]
    assert_whole(download("124M", tmp_path, server.url), model)
    assert first_range(server) > 1_000_000 - 2 * CHUNK


def test_a_server_that_always_stalls_is_given_up(server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "READ_TIMEOUT", 0.1)
    server.plans["encoder.json"] = [stall_at(0)] * 50
    with pytest.raises(ConnectionError, match=r"encoder.json: nothing came for 0.1 s, 5 times in a row") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    server.plans["encoder.json"] = [lambda handler: handler.server.released.wait(20)] * 50  # not even a status line
    with pytest.raises(ConnectionError, match=r"encoder.json: nothing came for 0.1 s, 5 times in a row"):
        download("124M", tmp_path, server.url)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_an_untrusted_certificate(server, tmp_path, naps):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -days 1 -keyout key -out cert"
    subprocess.run(command.split(), cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
    server.socket = context.wrap_socket(server.socket, server_side=True, do_handshake_on_connect=False)
    server.handle_error = lambda *_: None
    with pytest.raises(ConnectionError, match=r"not trusted: self.signed certificate") as caught:
        download("124M", tmp_path, server.url.replace("http:", "https:"))
    one_line(caught)
    assert naps == []


# The disk, and mistakes of the user.


@posix
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_named_with_the_bytes_needed(server, tmp_path):
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{DATA}.part").symlink_to("/dev/full")
    with pytest.raises(
        OSError, match=r"No space left on device; 2,040,600 more bytes are needed; .*to resume"
    ) as caught:
        download("124M", tmp_path, server.url)
    assert DATA in one_line(caught)


@posix
def test_a_disk_that_fills_in_mid_file_keeps_the_part(server, model, tmp_path):
    limit = "import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1_500_000, 1_500_000))"
    child = start(server, tmp_path, before=limit)
    err = child.communicate(timeout=120)[1]
    assert child.returncode == 1
    error = err.splitlines()[-1]
    assert error.startswith("download_model.py: error: can't write") and "File too large; 540,600 more bytes" in error
    assert (tmp_path / "124M" / f"{DATA}.part").stat().st_size == 1_500_000
    assert_whole(download("124M", tmp_path, server.url), model)
    assert first_range(server) == 1_500_000


@posix
@pytest.mark.parametrize("existing", [False, True], ids=["models folder", "size's folder"])
def test_no_permission_to_write(existing, server):
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "124M"
        if existing:
            folder.mkdir()
            folder.chmod(0o555)
        Path(root).chmod(0o555)
        # root may write anywhere: so as nobody.
        child = start(server, root, before="import os\nif os.getuid() == 0: os.setuid(65534)")
        err = child.communicate(timeout=120)[1]
        Path(root).chmod(0o755)
        if existing:
            folder.chmod(0o755)
    assert child.returncode == 1
    error = err.splitlines()[-1]
    assert re.fullmatch(r"download_model.py: error: can't write \S+: Permission denied; .*--models-dir", error), err


@pytest.mark.parametrize("below", ["", "deep/er"])
def test_a_models_folder_that_is_a_file(below, server, tmp_path):
    (tmp_path / "models").write_text("notes")
    with pytest.raises(NotADirectoryError, match="models is a file, but must be a folder") as caught:
        download("124M", tmp_path / "models" / below, server.url)
    one_line(caught)
    assert server.seen == []


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["125M"], "no GPT-2 size is named '125M'; did you mean '124M'? OpenAI's sizes are 124M"),
        (["gpt2-large"], "no GPT-2 size is named 'gpt2-large'; did you mean '774M'? OpenAI's sizes are 124M"),
        (["../124M"], "no GPT-2 size is named"),
        (["124M", "--base-url", "ftp://mirror/gpt-2"], "must begin with http:// or https://"),
        (["124M", "--base-url", "http://"], "must begin with http:// or https://"),
        (["124M", "--base-url", "https:///models"], "and a server's name"),
    ],
)
def test_mistakes_in_the_arguments_end_in_one_line_and_2(arguments, says, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and re.fullmatch(r"download_model.py: error: .*\n", err) and says in err
    assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match=re.escape(says)):
        download(arguments[0], tmp_path, *arguments[2:])


def test_a_url_that_requests_cannot_read(tmp_path, capsys):
    assert main(["124M", "--models-dir", str(tmp_path), "--base-url", "http://[::1/models"]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith("download_model.py: error: http://[::1/models/124M/")


@pytest.mark.parametrize("arguments", [[], ["124M", "355M"], ["124M", "--force"]])
def test_wrong_arguments_are_usage_errors(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("download_model.py: error: ")


# Servers that lie.


def test_hyperparameters_of_another_size_are_refused(server, tmp_path):
    """A model with another n_head loads, and writes other text."""
    server.files["hparams.json"] = server.files["hparams.json"].replace(b'"n_head": 12', b'"n_head": 6')
    with pytest.raises(OSError, match="it is not of 124M: it has n_head 6, not 12") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert not (tmp_path / "124M" / "hparams.json").exists()


@pytest.mark.parametrize("name", sorted(RESUMABLE))
def test_an_empty_response_does_not_make_an_old_part_the_file(name, server, model, tmp_path):
    (tmp_path / "124M").mkdir()
    (tmp_path / "124M" / f"{name}.part").write_bytes(model[name])
    server.plans[name] = [answer(200, b"")] * 9
    if name == DATA:  # complete, by the size in the index: nothing is requested
        assert_whole(download("124M", tmp_path, server.url), model)
        return
    with pytest.raises(OSError, match=re.escape(name)) as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert not (tmp_path / "124M" / name).exists()


@pytest.mark.parametrize("name", [name for name in FILES if name != DATA])
def test_a_body_larger_than_the_file_can_be_is_refused(name, server, tmp_path, monkeypatch):
    monkeypatch.setitem(download_model.MAX_SIZES, name, 1_000_000)
    server.plans[name] = [answer(200, b"x" * 10_000_000)]
    with pytest.raises(OSError, match="has 10,000,000 bytes, but at most 1,000,000 were expected") as caught:
        download("124M", tmp_path / "length", server.url)
    one_line(caught)
    server.plans[name] = [without_length(b"x" * 10_000_000)]
    with pytest.raises(OSError, match="has more than the expected 1,000,000 bytes") as caught:
        download("124M", tmp_path / "no length", server.url)
    one_line(caught)
    assert (tmp_path / "no length" / "124M" / f"{name}.part").stat().st_size <= 1_000_000


def test_weights_without_a_length_end_at_the_size_in_the_index(server, model, tmp_path):
    server.plans[DATA] = [without_length(model[DATA] + b"x" * 1_000_000)]
    with pytest.raises(OSError, match="has more than the expected 2,040,600 bytes"):
        download("124M", tmp_path, server.url)


def drip(beginning: bytes, rest: bytes):
    """Sends `beginning`, and then `rest` again and again, a byte every 10 ms."""

    def plan(handler):
        handler.wfile.write(beginning)
        end = time.monotonic() + 20
        while time.monotonic() < end and not handler.server.released.is_set():
            for byte in rest:
                handler.wfile.write(bytes([byte]))
                time.sleep(0.01)

    return plan


@pytest.mark.slow
@pytest.mark.parametrize(
    "plan",
    [
        drip(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\n\r\n", b"x"),
        drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
        drip(b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    ],
    ids=["body", "body without a length", "header", "100 Continue"],
)
def test_a_server_that_drips_is_given_up(plan, server, tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "CHUNK_TIMEOUT", 0.3)
    server.plans["encoder.json"] = [plan] * 50
    start = time.monotonic()
    with pytest.raises(ConnectionError, match=rf"less than 65,536 bytes came in 0.3 s, {TRIES} times") as caught:
        download("124M", tmp_path, server.url)
    one_line(caught)
    assert time.monotonic() - start < 15  # TRIES times 0.3 s, on a busy machine


def test_text_from_the_server_is_escaped(server, tmp_path, capsys):
    """Otherwise the server could move the cursor, clear the screen or set the title of the user's terminal."""
    server.plans["checkpoint"] = [lambda handler: handler.wfile.write(b"HTTP/1.1 404 \x1b[2Jgone\x07\r\n\r\n")] * 2
    with pytest.raises(FileNotFoundError) as caught:
        download("124M", tmp_path, server.url)
    assert one_line(caught).isprintable()
    assert main(["124M", "--models-dir", str(tmp_path), "--base-url", server.url]) == 1
    server.plans["checkpoint"] = [lambda handler: handler.wfile.write(b"\x1b]0;title\x07 nonsense\r\n\r\n")] * 50
    assert main(["124M", "--models-dir", str(tmp_path), "--base-url", server.url]) == 1
    err = capsys.readouterr().err
    assert "\x1b" not in err and "\x07" not in err
    assert r"HTTP 404 \x1b[2Jgone\x07" in err and "nonsense" in err


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (answer(302, Location="http://["), "Invalid IPv6 URL"),
        (answer(302, Location="http://a" * 40 + "\x1b[2J"), ""),
        (answer(302, Location="gopher://x/"), ""),
        (answer(302, Location="http://" + "a" * 70 + ".example/"), ""),
    ],
)
def test_an_invalid_redirect_is_an_error_with_the_url(plan, says, server, tmp_path):
    server.plans["checkpoint"] = [plan] * 50
    with pytest.raises(OSError, match=rf"124M/checkpoint: .*{says}") as caught:
        download("124M", tmp_path, server.url)
    assert one_line(caught).isprintable()


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "1, 2", "x", ""])
def test_an_invalid_length_is_ignored_or_an_error_with_the_url(length, server, model, tmp_path):
    def plan(handler):
        handler.head(200, Content_Length=length)
        handler.body(handler.data)

    server.plans["checkpoint"] = [plan] * 50
    try:
        assert_whole(download("124M", tmp_path, server.url), model)
    except OSError as error:
        assert "124M/checkpoint: " in str(error) and "\n" not in str(error)


def test_an_invalid_wait_is_ignored(server, model, tmp_path, naps):
    waits = ["9" * 5000, "²", "-1", "Mon, 99 Jan 99999 00:00:00 GMT"]
    server.plans = {name: [answer(503, Retry_After=wait)] for name, wait in zip(FILES, waits, strict=False)}
    server.plans["checkpoint"] = [answer(503, Retry_After="9" * 5000)]
    assert_whole(download("124M", tmp_path, server.url), model)
    assert naps == [0.01] * len(waits)


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs openssl to make a certificate")
def test_a_redirect_from_https_to_http_is_refused(server, model, tmp_path, monkeypatch):
    command = "openssl req -x509 -newkey rsa:2048 -nodes -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", "key", "-out", "cert"], cwd=tmp_path, check=True, capture_output=True)
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(tmp_path / "cert"))
    with Server(model) as secure:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(tmp_path / "cert", tmp_path / "key")
        secure.socket = context.wrap_socket(secure.socket, server_side=True, do_handshake_on_connect=False)
        threading.Thread(target=secure.serve_forever, args=(0.01,)).start()
        url = secure.url.replace("http:", "https:")
        secure.plans["checkpoint"] = [answer(302, Location=f"{server.url}/124M/checkpoint")]
        with pytest.raises(OSError, match="redirects from https to http://127") as caught:
            download("124M", tmp_path, url)
        one_line(caught)
        assert server.seen == []
        secure.plans["checkpoint"] = [answer(302, Location=f"{url}/124M/checkpoint")]
        assert_whole(download("124M", tmp_path, url), model)
        secure.shutdown()
