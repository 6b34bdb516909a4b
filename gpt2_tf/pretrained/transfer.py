"""Fetch one file by HTTP into `NAME.part`: resume, retry, and bounds on size and time.

The server and the network are not trusted. A response is bounded in size and in time, and text from outside is escaped
before it is shown. Whether the content is right is for the caller to check.
"""

import contextlib
import email.utils
import errno
import re
import socket
import ssl
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

from gpt2_tf.files import progress
from gpt2_tf.files.terminal import escape_control_characters

# `requests` and `tqdm` are imported where they are used, so that `--help` is quick.

CHUNK = 1 << 16  # bytes; a broken connection loses at most one chunk
CONNECT_TIMEOUT = 10.0  # seconds
READ_TIMEOUT = 20.0  # seconds without a byte
CHUNK_TIMEOUT = 30.0  # seconds for the response's header, and for each chunk: a server slower than 2 kB/s is given up
TRIES = 5  # requests in a row that gain less than a chunk
BACKOFF = 1.0  # seconds before the second try; doubled before each further try
MAX_RETRY_AFTER = 60.0  # seconds; a server that asks for a longer wait ends the download


class TemporaryFault(Exception):
    """A fault that another request may not have.

    Args:
        text: what went wrong, for the user.
        wait: seconds that the server asked to wait, or None.

    Example:
        >>> TemporaryFault("the connection was lost", wait=3.0).wait
        3.0
    """

    def __init__(self, text: str, wait: float | None = None):
        super().__init__(escape_control_characters(text))
        self.wait = wait


def fetch(url: str, path: Path, *, resume: bool, size: int | None, max_size: int) -> Path:
    """Fetch `url` into `PATH.part` and return that path. The progress bar and notices go to stderr.

    Args:
        url: where the file is.
        path: the file's final place, which error messages name.
        resume: whether an existing `PATH.part` is continued. If false, it is overwritten.
        size: the file's size in bytes, if known.
        max_size: the most bytes that are accepted.

    Raises:
        FileNotFoundError: the server does not have the file.
        OSError: the network, the server or the disk is at fault. The text is one line, with the URL or the path.

    Example:
        >>> fetch("http://127.0.0.1:9/model", Path("model"), resume=True, size=None, max_size=100)  # doctest: +SKIP
        PosixPath('model.part')
    """
    import requests

    part = path.with_name(f"{path.name}.part")
    with contextlib.ExitStack() as resources:
        connections = []
        resources.callback(_close_sockets, connections)
        session = resources.enter_context(requests.Session())
        _track_connections(session, connections)
        session.headers["Accept-Encoding"] = "identity"  # a compressed response would have another size
        session.hooks["response"].append(_refuse_insecure_redirect)
        best = failures = 0
        while fault := _try_request(session, connections, url, path, part, resume, size, max_size):
            gained = _file_size(part) - best
            failures = 1 if gained >= CHUNK else failures + 1
            best = max(best, _file_size(part))
            if failures == TRIES:
                raise ConnectionError(
                    f"{url}: {fault}, {TRIES} times in a row; check the connection, or run again later to resume"
                )
            wait = BACKOFF * 2 ** (failures - 1) if fault.wait is None else fault.wait
            notify(f"{url}: {fault}; trying again in {wait:g} s")
            time.sleep(wait)
    return part


def notify(text: str) -> None:
    """Print a line on stderr, with control characters escaped.

    Example:
        >>> notify("https://example.org/model: trying again in 1 s")
    """
    print(escape_control_characters(text), file=sys.stderr, flush=True)


@contextlib.contextmanager
def disk_errors(path: Path, part: Path | None = None, total: int | None = None) -> Iterator[None]:
    """Turn the system's errors of writing `path` into one line for the user.

    Args:
        path: the file or folder that the errors name.
        part: what is written so far, or None.
        total: the final size of `part` in bytes, if known.

    Example:
        >>> with disk_errors(Path("missing/file")):
        ...     open("missing/file", "w")
        Traceback (most recent call last):
        FileNotFoundError: can't write missing/file: No such file or directory; ...
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise  # not of the system; the text is for the user already
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            needed = "" if total is None else f"{total - _file_size(part):,} more bytes are needed; "
            raise OSError(f"can't write {path}: {error.strerror}; {needed}make room and run again to resume") from error
        raise type(error)(f"can't write {path}: {error.strerror}; allow it or choose another --models-dir") from error


def _try_request(session, connections, url, path, part, resume, size, max_size) -> TemporaryFault | None:
    """Send one request; return the fault if another request may help."""
    try:
        _receive(session, connections, url, path, part, resume, size, max_size)
    except TemporaryFault as fault:
        return fault
    return None


def _receive(
    session, connections: list, url: str, path: Path, part: Path, resume: bool, size: int | None, max_size: int
) -> None:
    """Request the bytes that `part` lacks, and append them."""
    offset = _file_size(part) if resume else 0
    if offset and offset == size:
        return
    with Watchdog(connections, CHUNK_TIMEOUT) as watchdog:
        with _network_errors(url, watchdog):
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            response = session.get(url, headers=headers, stream=True, timeout=(CONNECT_TIMEOUT, READ_TIMEOUT))
        with response:
            offset, total = _read_position(response, url, offset, path, part)
            if offset and offset == total:
                return
            if None not in (size, total) and total != size:
                raise OSError(
                    f"{url} has {total:,} bytes, but {size:,} were expected: the files are of different models; "
                    "remove the index if it is not OpenAI's, or choose another --base-url"
                )
            if (total or 0) > max_size:
                raise OSError(f"{url} has {total:,} bytes, but at most {max_size:,} were expected; check --base-url")
            bar = progress.bar(desc=path.name, initial=offset, total=total, unit="B", unit_scale=True)
            with bar, disk_errors(path, part, total), open(part, "ab" if offset else "wb") as file:
                for chunk in _read_chunks(response, url, watchdog):
                    offset += len(chunk)
                    if offset > max_size:
                        raise OSError(f"{url} has more than the expected {max_size:,} bytes; check --base-url")
                    file.write(chunk)
                    bar.update(len(chunk))
    if total is not None and _file_size(part) != total:
        raise TemporaryFault(f"the response ended at byte {_file_size(part):,} of {total:,}")


def _read_position(response, url: str, offset: int, path: Path, part: Path) -> tuple[int, int | None]:
    """Return where in the file the response's body starts, and the size of the whole file in bytes, if known.

    Raises:
        TemporaryFault: another request may get a better response.
        OSError: no other request will.
    """
    status = escape_control_characters(f"HTTP {response.status_code} {response.reason}")
    if response.ok and response.headers.get("Content-Encoding", "identity") not in ("", "identity"):
        raise OSError(f"{url}: the server compresses the file although asked not to; choose another --base-url")
    if response.status_code == 200:
        return 0, _parse_number(response.headers.get("Content-Length", ""))
    if response.status_code == 206 and offset:
        span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(\d{1,18}|\*)", response.headers.get("Content-Range", ""))
        if span and int(span[1]) == offset:
            return offset, None if span[2] == "*" else int(span[2])
        part.unlink()
        raise TemporaryFault("the server sent another range than requested")
    if response.status_code == 416 and offset:
        if response.headers.get("Content-Range") == f"bytes */{offset}":
            return offset, offset
        part.unlink()
        raise TemporaryFault(f"the server's file is shorter than the {offset:,} bytes of {path} so far")
    if response.status_code in (408, 429) or response.status_code >= 500:
        wait = _parse_retry_after(response.headers.get("Retry-After"))
        if wait is not None and wait > MAX_RETRY_AFTER:
            raise ConnectionError(f"{url}: {status}; the server asks to wait {wait:.0f} s; run again after that time")
        raise TemporaryFault(status, wait)
    if response.status_code == 404:
        raise FileNotFoundError(
            f"{url}: {status}; the server does not have the file; check --base-url, which must hold SIZE/NAME"
        )
    raise OSError(f"{url}: {status}, but 200 was expected; check --base-url")


def _parse_number(text: str) -> int | None:
    """The number of a header, or None. Numbers of more than 18 digits are not read."""
    return int(text) if re.fullmatch(r"[0-9]{1,18}", text) else None


def _parse_retry_after(value: str | None) -> float | None:
    """The seconds that a Retry-After header asks for, as a number or a date. None if it is missing or invalid."""
    if value is None:
        return None
    if (seconds := _parse_number(value)) is not None:
        return float(seconds)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, IndexError, OverflowError):
        return None


def _read_chunks(response, url: str, watchdog: "Watchdog") -> Iterator[bytes]:
    """Yield the response's body in chunks. Network errors are raised here, so disk errors can be told apart."""
    chunks = response.iter_content(CHUNK)
    while True:
        with _network_errors(url, watchdog):
            chunk = next(chunks, None)
        watchdog.feed()
        if chunk is None:
            return
        yield chunk


@contextlib.contextmanager
def _network_errors(url: str, watchdog: "Watchdog") -> Iterator[None]:
    """Turn what `requests` raises into TemporaryFault, or into an OSError of one line if no retry would help."""
    import requests
    import urllib3

    too_slow = TemporaryFault(f"less than {CHUNK:,} bytes came in {watchdog.seconds:g} s")
    try:
        yield
        if watchdog.expired:
            raise too_slow
    except (requests.RequestException, urllib3.exceptions.HTTPError, ValueError) as error:
        if watchdog.expired:
            raise too_slow from error
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
            raise TemporaryFault("the connection broke off") from error
        if isinstance(error, (requests.ConnectionError, requests.Timeout)):
            raise TemporaryFault(reason) from error
        raise OSError(f"{url}: {escape_control_characters(reason)}; check --base-url") from error


def _refuse_insecure_redirect(response, *args, **kwargs) -> None:
    """Refuse a redirect from https to another scheme: anybody on the way could change the file."""
    if response.is_redirect and response.url.startswith("https:"):
        target = urljoin(response.url, response.headers["Location"])
        if urlsplit(target).scheme != "https":
            raise OSError(
                f"{response.url}: the server redirects from https to {escape_control_characters(target[:200])}, which "
                "is not secure; choose another --base-url"
            )


def _track_connections(session, connections: list) -> None:
    """Append each connection of the session to the list `connections` when the connection is made."""
    from requests.adapters import HTTPAdapter
    from urllib3 import HTTPConnectionPool, HTTPSConnectionPool

    def tracked(pool_class: type) -> type:
        class Connection(pool_class.ConnectionCls):
            def connect(self):
                connections.append(self)  # before, because the server may be slow in the TLS handshake
                super().connect()
                self.opened = self.sock  # http.client forgets the socket when the server will close the connection

        return type(pool_class.__name__, (pool_class,), {"ConnectionCls": Connection})

    pool_classes = {"http": tracked(HTTPConnectionPool), "https": tracked(HTTPSConnectionPool)}

    class Adapter(HTTPAdapter):
        def init_poolmanager(self, *args, **kwargs):
            super().init_poolmanager(*args, **kwargs)
            self.poolmanager.pool_classes_by_scheme = pool_classes

        def proxy_manager_for(self, *args, **kwargs):
            manager = super().proxy_manager_for(*args, **kwargs)
            manager.pool_classes_by_scheme = pool_classes
            return manager

    session.mount("http://", Adapter())
    session.mount("https://", Adapter())


def _close_sockets(connections: list) -> None:
    """Close the sockets of responses that were not read to their end, which `requests` leaves open."""
    for connection in connections:
        if opened := getattr(connection, "opened", None):
            with contextlib.suppress(OSError):
                socket.close(opened.detach())


class Watchdog(threading.Thread):
    """Cut the connections if `feed` is not called in time.

    The timeout of a socket starts again with each byte. So a server that sends a byte now and then, or endless
    `100 Continue` headers, could hold the download forever. Cutting the connection ends the read that waits.

    Args:
        connections: urllib3's connections; the list may grow.
        seconds: the longest time between two calls of `feed`.

    Example:
        >>> with Watchdog(connections=[], seconds=30.0) as watchdog:
        ...     watchdog.feed()
        >>> watchdog.expired
        False
    """

    def __init__(self, connections: list, seconds: float):
        super().__init__(daemon=True)
        self.connections, self.seconds = connections, seconds
        self.expired = self._ended = False
        self._fed = threading.Event()

    def __enter__(self) -> "Watchdog":
        self.start()
        return self

    def __exit__(self, *exception) -> None:
        self._ended = True
        self._fed.set()

    def feed(self) -> None:
        self._fed.set()

    def run(self) -> None:
        while self._fed.wait(self.seconds):
            self._fed.clear()
            if self._ended:
                return
        self.expired = True
        for connection in self.connections:
            for sock in (connection.sock, getattr(connection, "opened", None)):
                with contextlib.suppress(OSError, AttributeError):  # closed already, or None
                    sock.shutdown(socket.SHUT_RDWR)


def _file_size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
