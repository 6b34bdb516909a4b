"""Fetches OpenAI's files of a GPT-2: `python download_model.py 124M` fills `models/124M`.

A file is written as `NAME.part` and gets its name once it is whole and checked, so what has its name can be trusted.
A `.part` left by a break or a kill is continued where a checksum covers the result: the vocabulary by its sha256, the
index by its own CRC32C, the weights by the CRC32C that the index holds of each tensor. A file that changed on the
server in between thus never passes as a splice of two. The other three files are small and begin anew.
"""

import argparse
import contextlib
import email.utils
import errno
import hashlib
import os
import re
import ssl
import sys
import time
from collections.abc import Collection, Iterator
from pathlib import Path

from gpt2_tf.files import progress
from gpt2_tf.hparams import HParams, canonical_size

# requests, tqdm and NumPy (in gpt2_tf.weights) are imported where they are used, so that `--help` is quick.

BASE_URL = "https://openaipublic.blob.core.windows.net/gpt-2/models"
INDEX, META, DATA = "model.ckpt.index", "model.ckpt.meta", "model.ckpt.data-00000-of-00001"
# The weights come last: their size and checksums stand in the index.
FILES = ("checkpoint", "encoder.json", "hparams.json", "vocab.bpe", INDEX, META, DATA)
# All sizes share one vocabulary; the sums are those that tiktoken publishes.
SHA256 = {
    "encoder.json": "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    "vocab.bpe": "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5",
}
RESUMABLE = {*SHA256, INDEX, DATA}

CHUNK = 1 << 16  # bytes; a broken connection can lose as many
CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 30.0  # seconds without a byte
TRIES = 5  # in a row, without a byte gained
BACKOFF = 1.0  # seconds before the second try, doubled before each further one
LONGEST_WAIT = 60.0  # seconds of a server's Retry-After that are waited for
LOCK_POLL = 0.2  # seconds


class _Again(Exception):
    """A fault that may pass: worth another request, after `wait` seconds where the server asked for that."""

    def __init__(self, text: str, wait: float | None = None):
        super().__init__(text)
        self.wait = wait


def download(
    size: str,
    models_dir: str | os.PathLike = "models",
    base_url: str | None = None,
    names: Collection[str] = FILES,
) -> Path:
    """Makes `models_dir/size` whole: fetches those of OpenAI's seven files that are missing or not whole.

    A whole folder is recognized without the network. Progress and notices go to stderr.

    Args:
        size: one of OpenAI's sizes, by its present or older name.
        models_dir: holds a folder for each size; made if missing.
        base_url: the server's folder of models, with files at BASE/124M/NAME; without one, the environment's
            GPT2_TF_BASE_URL, or else OpenAI's.
        names: the files that are wanted; all seven, unless it is the vocabulary alone.

    Returns:
        The folder.

    Raises:
        ValueError: no such size, or not a URL.
        OSError: the network, the server, the disk or a file's content is at fault; its text is one line for the user.
    """
    size = canonical_size(size)
    base_url = base_url or os.environ.get("GPT2_TF_BASE_URL") or BASE_URL
    if not re.match(r"https?://[^/]", base_url):
        raise ValueError(f"the base URL {base_url!r} must begin with http:// or https:// and a server's name")
    folder = Path(models_dir) / size
    if not (faulty := [name for name in names if _fault(folder / name)]):
        return folder
    _make(folder)
    with _lock(folder):
        for name in faulty:
            # Looked at again: another process may have fetched it while this one waited.
            if fault := _fault(folder / name):
                if fault != "missing":
                    _note(f"{folder / name} is fetched anew: {fault}")
                _fetch(f"{base_url.rstrip('/')}/{size}/{name}", folder / name)
    return folder


def _fault(path: Path) -> str | None:
    """What is wrong with a file under its final name, as far as its folder tells; the weights are read to the end."""
    if not path.exists():
        return "missing"
    try:
        _check(path.name, path)
        if path.name == DATA:
            _check_weights(path)
    except (ValueError, FileNotFoundError) as error:
        return str(error)
    return None


def _check(name: str, path: Path) -> None:
    """Raises ValueError unless `path` can be what OpenAI serves as `name`. The weights' index must lie beside them."""
    from gpt2_tf.weights.protobuf import decode_fields

    if name in SHA256:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != SHA256[name]:
            raise ValueError(f"its sha256 is {found[:16]}..., but OpenAI's is {SHA256[name][:16]}...")
    elif name == "checkpoint":
        if not re.match(rb'model_checkpoint_path: "[^"\n]+"\r?\n', path.read_bytes()):
            raise ValueError('it doesn\'t begin with a line model_checkpoint_path: "..."')
    elif name == "hparams.json":
        HParams.from_json(path)
    elif name == INDEX:
        _data_size(path)
    elif name == META:
        # Field 2 of TensorFlow's MetaGraphDef is the graph.
        if 2 not in {number for number, _ in decode_fields(path.read_bytes())}:
            raise ValueError("it is not a TensorFlow graph")
    elif name == DATA:
        found, expected = path.stat().st_size, _data_size(path.with_name(INDEX))
        if found != expected:
            raise ValueError(f"it has {found:,} bytes, but {INDEX} says {expected:,}")


def _data_size(index: Path) -> int:
    """Size in bytes of the weights' one file."""
    from gpt2_tf.weights.tensor_bundle import data_sizes, read_index

    sizes = data_sizes(read_index(index))
    if list(sizes) != [0]:
        raise ValueError(f"{index} is an index of {len(sizes)} files of weights, and not of {DATA} alone")
    return sizes[0]


def _check_weights(path: Path) -> None:
    """Raises ValueError unless each tensor has the checksum that the index beside has."""
    from gpt2_tf.weights.tensor_bundle import damaged_tensors, read_index

    _note(f"checking {path} against {INDEX}")
    entries = read_index(path.with_name(INDEX))
    if names := damaged_tensors(path, entries):
        raise ValueError(f"{len(names)} of {len(entries)} tensors don't have the CRC32C in {INDEX}, as {names[0]}")


def _fetch(url: str, path: Path) -> None:
    """Fetches one file, through breaks and busy servers, checks it, and gives it its name."""
    import requests

    part = path.with_name(f"{path.name}.part")
    expected = _data_size(path.with_name(INDEX)) if path.name == DATA else None
    with requests.Session() as session:
        # A compressed answer would have another length.
        session.headers["Accept-Encoding"] = "identity"
        best = failures = 0
        while fault := _attempt(session, url, part, expected):
            failures = 1 if _size(part) > best else failures + 1
            best = max(best, _size(part))
            if failures == TRIES:
                raise ConnectionError(
                    f"{url}: {fault}, {TRIES} times in a row; check the connection, or run again later: it resumes"
                )
            wait = BACKOFF * 2 ** (failures - 1) if fault.wait is None else fault.wait
            _note(f"{url}: {fault}; trying again in {wait:g} s")
            time.sleep(wait)
    try:
        _check(path.name, part)
        if path.name == DATA:
            _check_weights(part)
    except ValueError as error:
        part.unlink()
        raise OSError(
            f"{url}: what came is not the model's {path.name}: {error}; removed it: run again, and if it comes again, "
            "a login page or a broken mirror may stand in the way (--base-url)"
        ) from None
    with _disk(path):
        os.replace(part, path)


def _attempt(session, url: str, part: Path, expected: int | None) -> _Again | None:
    """One request; returns what went wrong if another may help."""
    try:
        _receive(session, url, part, expected)
    except _Again as fault:
        return fault
    return None


def _receive(session, url: str, part: Path, expected: int | None) -> None:
    """Requests what `part` lacks and appends it; `expected` is the whole file's size in bytes, if known."""
    offset = _size(part) if part.name.removesuffix(".part") in RESUMABLE else 0
    if offset and offset == expected:
        return
    with _network(url):
        headers = {"Range": f"bytes={offset}-"} if offset else {}
        response = session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
    with response:
        offset, total = _place(response, url, offset, part)
        if offset == total:
            return
        if None not in (expected, total) and total != expected:
            raise OSError(
                f"{url} has {total:,} bytes, but {part.with_name(INDEX)} says {expected:,}: one of them is of another "
                "model; delete the index if it is not OpenAI's, or choose another --base-url"
            )
        name = part.name.removesuffix(".part")
        bar = progress.bar(desc=name, initial=offset, total=total, unit="B", unit_scale=True)
        with bar, _disk(part, total), open(part, "ab" if offset else "wb") as file:
            for chunk in _chunks(response, url):
                file.write(chunk)
                bar.update(len(chunk))
    if total is not None and _size(part) != total:
        raise _Again(f"the answer ended at byte {_size(part):,} of {total:,}")


def _place(response, url: str, offset: int, part: Path) -> tuple[int, int | None]:
    """Where in the file the answer's body begins, and the whole file's size in bytes, if told.

    Raises:
        _Again: another request may be answered better.
        OSError: none will.
    """
    status = f"HTTP {response.status_code} {response.reason}"
    if response.ok and response.headers.get("Content-Encoding", "identity") not in ("", "identity"):
        raise OSError(f"{url}: the server sends it compressed, though asked not to; choose another --base-url")
    if response.status_code == 200:
        length = response.headers.get("Content-Length", "")
        return 0, int(length) if length.isdecimal() else None
    if response.status_code == 206 and offset:
        told = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", response.headers.get("Content-Range", ""))
        if told and int(told[1]) == offset:
            return offset, None if told[2] == "*" else int(told[2])
        part.unlink()
        raise _Again("the server sent another range than was asked for")
    if response.status_code == 416 and offset:
        if response.headers.get("Content-Range") == f"bytes */{offset}":
            return offset, offset
        part.unlink()
        raise _Again(f"the server's file ends before byte {offset:,}, where {part} would go on")
    if response.status_code in (408, 429) or response.status_code >= 500:
        wait = _retry_after(response.headers.get("Retry-After"))
        if wait is not None and wait > LONGEST_WAIT:
            raise ConnectionError(f"{url}: {status}; the server asks to wait {wait:.0f} s: run again then")
        raise _Again(status, wait)
    if response.status_code == 404:
        raise FileNotFoundError(
            f"{url}: {status}; the server doesn't have it: check --base-url, under which it must be SIZE/NAME"
        )
    raise OSError(f"{url}: {status}, but 200 was expected; check --base-url")


def _retry_after(value: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or a date; None where there is none to be understood."""
    if value is None:
        return None
    if value.isdecimal():
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _chunks(response, url: str) -> Iterator[bytes]:
    """The answer's body, with the network's faults told apart from those of whoever writes it."""
    chunks = response.iter_content(CHUNK)
    while True:
        with _network(url):
            chunk = next(chunks, None)
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def _network(url: str) -> Iterator[None]:
    """Turns what requests raises into _Again, or into an OSError of one line where no further try would help."""
    import requests

    try:
        yield
    except requests.RequestException as error:
        cause = error
        while deeper := cause.__cause__ or cause.__context__:
            cause = deeper
        reason = getattr(cause, "strerror", None) or str(cause)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise ConnectionError(f"{url}: the server's certificate is not trusted: {cause.verify_message}") from error
        if isinstance(cause, TimeoutError):
            connecting = isinstance(error, requests.ConnectTimeout)
            reason = f"nothing came for {CONNECT_TIMEOUT if connecting else READ_TIMEOUT:g} s"
        elif isinstance(error, requests.exceptions.ChunkedEncodingError):
            raise _Again("the connection broke off") from error
        if isinstance(error, (requests.ConnectionError, requests.Timeout)):
            raise _Again(reason) from error
        raise OSError(f"{url}: {reason}; check --base-url") from error


@contextlib.contextmanager
def _disk(path: Path, total: int | None = None) -> Iterator[None]:
    """Gives an error of writing `path`, of `total` bytes in the end, a text for the user."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = "" if total is None else f"{total - _size(path):,} more bytes are needed; "
            raise OSError(f"can't write {path}: {reason}; {needed}make room and run again: it resumes") from error
        raise type(error)(f"can't write {path}: {reason}; allow it or choose another --models-dir") from error


def _make(folder: Path) -> None:
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise NotADirectoryError(f"{path} is a file, but must be a folder; choose another --models-dir")
    with _disk(folder):
        folder.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Holds a folder for this process; the system lets go of it when the process ends, however it ends."""
    path = folder / ".download.lock"
    with _disk(path):
        file = open(path, "ab")  # noqa: SIM115 - closed by the next line; only its opening is _disk's
    with file:
        if not _try_lock(file.fileno()):
            _note(f"waiting for another download into {folder}")
            while not _try_lock(file.fileno()):
                time.sleep(LOCK_POLL)
        # The file stays: deleted, it would let in one process that holds it and one that makes it anew.
        yield


if sys.platform == "win32":
    import msvcrt

    def _try_lock(descriptor: int) -> bool:
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _try_lock(descriptor: int) -> bool:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        except OSError as error:
            # Some network file systems have no locks; a lone download needs none.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        return True


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line. Returns the exit status: 0, 1, 2 for a mistake in the arguments, 130 for Ctrl-C."""
    parser = argparse.ArgumentParser(prog="download_model.py", description="Fetches OpenAI's files of a GPT-2.")
    parser.add_argument("size", help="124M, 355M, 774M or 1558M")
    parser.add_argument("--models-dir", default="models", help="where the size's folder goes (default: models)")
    parser.add_argument("--base-url", help=f"a mirror (default: $GPT2_TF_BASE_URL, or {BASE_URL})")
    options = parser.parse_args(arguments)
    try:
        folder = download(options.size, options.models_dir, options.base_url)
    except KeyboardInterrupt:
        _note("download_model.py: interrupted; run it again and it resumes")
        return 130
    except (OSError, ValueError) as error:
        _note(f"download_model.py: error: {error}")
        return 1 if isinstance(error, OSError) else 2
    _note(f"{folder} is complete")
    return 0


if __name__ == "__main__":
    sys.exit(main())
