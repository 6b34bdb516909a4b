"""The journal of a long run: it keeps each result at once, so that the same command resumes after a kill.

The journal of `OUT` is the file `OUT.part`. Its first line, the header, is JSON with the run's settings; each further
line is JSON with one result. A kill can damage only the last line, which the next run drops. Every line ends in its
CRC32, so other damage is found. When several processes share a run, each has its own journal, such as
`OUT.0-of-4.part`. The processes need nothing in common but the folder. The last of them to end writes `OUT`.
"""

import contextlib
import json
import os
import random
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gpt2_tf.files.atomic import atomic_path, remove_abandoned
from gpt2_tf.files.lock import file_lock
from gpt2_tf.files.regular import open_regular
from gpt2_tf.files.shard import UNSHARDED, Shard

HEADER_START = b'{"run": '
CHECKSUM = re.compile(rb', "crc32": "([0-9a-f]{8})"}$')  # the end of each line


class Journal:
    """The results of one run so far, in memory and in `OUT.part`.

    Attributes:
        results: dict, number of the result (from 0) -> its fields; those of this process's shard only.
        seed: the run's seed.
        shard: this process's `Shard`.

    Args:
        out: the file that holds the results once all are there.
        run: the settings that the results depend on, as JSON values. A journal with other settings is not resumed.
        seed: the run's seed. None takes the seed of the journal, or draws one for a new journal.
        shard: the share of the results that this process computes; default all.

    Raises:
        FileExistsError: `out` exists already.
        BlockingIOError: another process is writing the journal.
        ValueError: the journal, or the journal of another shard, is damaged or belongs to a run with other settings.

    Example:
        >>> with Journal("samples.txt", {"temperature": 0.7}, seed=1) as journal:
        ...     journal.add(0, {"text": "Once"})  # and then the process is killed
        >>> with Journal("samples.txt", {"temperature": 0.7}, seed=1) as journal:
        ...     journal.add(1, {"text": "upon"})
        ...     results = journal.collect(total=2)
        ...     journal.finish(results[number]["text"] for number in range(2))
        >>> Path("samples.txt").read_text()
        'Once\\nupon\\n'
        >>> os.listdir(".")
        ['samples.txt']
    """

    def __init__(
        self, out: str | os.PathLike, run: Mapping[str, Any], seed: int | None = None, shard: Shard = UNSHARDED
    ):
        self.out, self.shard = Path(out), shard
        names = [""] if shard.count == 1 else [f".{index}-of-{shard.count}" for index in range(shard.count)]
        self.shard_paths = [Path(f"{out}{name}.part") for name in names]
        self.path = self.shard_paths[shard.index]
        if self.out.exists() and not self.path.exists():
            raise FileExistsError(f"{out} exists already; choose another --out, or remove it")
        with contextlib.ExitStack() as resources:
            try:
                with _errors_name(self.out):
                    if self.path.exists():
                        open_regular(self.path).close()
                    resources.enter_context(file_lock(self.path))
                    self.file = resources.enter_context(open(self.path, "a+b"))
            except BlockingIOError:
                raise BlockingIOError(
                    f"{out} is being written by another process; wait until that process ends, or choose another --out"
                ) from None
            self._load(json.loads(json.dumps(run)), seed)
            self._read_other_shards()  # so that settings that differ are found before hours of work
            remove_abandoned(self.out.parent)  # what a kill in `finish` has left
            self._resources = resources.pop_all()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal's file, and let other processes have it."""
        with _errors_name(self.out):  # after a full disk, closing tries once more to write what is left
            self._resources.close()

    def add(self, number: int, fields: Mapping[str, Any]) -> None:
        """Keep one more result. A kill after this call does not lose it."""
        self._write({"number": number, **fields}, self._header_crc)
        self.results[number] = dict(fields)

    def collect(self, total: int) -> dict[int, dict[str, Any]] | None:
        """Return all results of all shards, or None while other shards have not finished theirs.

        Also return None if another shard has already written `out`.

        Args:
            total: how many results all shards have together.
        """
        # Each shard writes its results before it reads those of the others. So if two shards end together, at least one
        # of them finds all results.
        with _errors_name(self.out):
            os.fsync(self.file.fileno())
        results = self.results | self._read_other_shards()
        if max(results, default=-1) >= total:
            raise ValueError(
                f"{self.out}: its journal has result {max(results)}, but the run has only {total} results, from 0; "
                f"choose another --out, or remove {self.path} to start again"
            )
        return results if len(results) == total else None

    def finish(self, lines: Iterable[str]) -> None:
        """Write the lines into `out`, which appears complete, and remove the journals of all shards."""
        with atomic_path(self.out) as temporary, open(temporary, "w", encoding="utf-8", newline="") as file:
            file.writelines(f"{line}\n" for line in lines)
        self.close()
        for path in self.shard_paths:
            path.unlink(missing_ok=True)  # another shard that ended at the same time may have removed it

    def _load(self, run: dict[str, Any], seed: int | None) -> None:
        """Read this process's journal, or begin it."""
        self.file.seek(0)
        journal = _parse(self.path, self.file.read())
        self.file.truncate(journal.size)
        self.results = journal.results
        self.seed = journal.run.get("seed", random.getrandbits(31)) if seed is None else seed
        self.run = {**run, "seed": self.seed}
        if self.results:
            self._check_same_run(self.path, journal.run)
            self._header_crc = journal.header_crc
        else:
            self._header_crc = self._write({"run": self.run}, 0)

    def _read_other_shards(self) -> dict[int, dict[str, Any]]:
        """The results that the other shards have so far."""
        found = {}
        for path in self.shard_paths:
            if path != self.path:
                with contextlib.suppress(FileNotFoundError):
                    with open_regular(path) as file:
                        journal = _parse(path, file.read())
                    if journal.results:
                        self._check_same_run(path, journal.run)
                    found |= journal.results
        return found

    def _check_same_run(self, path: Path, run: Mapping[str, Any]) -> None:
        for name, value in self.run.items():
            if run.get(name) != value:
                raise ValueError(
                    f"{self.out} was begun with {name} {run.get(name)}, not {value}; give the same settings to "
                    f"resume, choose another --out, or remove {path} to start again"
                )

    def _write(self, fields: Mapping[str, Any], header_crc: int) -> int:
        """Append a line, and return its CRC32.

        The CRC32 of a result starts from the header's, so that a line of another journal does not pass.
        """
        content = json.dumps(fields).encode().removesuffix(b"}")
        crc = zlib.crc32(content, header_crc)
        with _errors_name(self.out):
            self.file.write(content + b', "crc32": "%08x"}\n' % crc)
            self.file.flush()
        return crc


@contextlib.contextmanager
def _errors_name(out: Path) -> Iterator[None]:
    """Name the file that the user asked for in errors of the system; some name its journal, and some no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(out)) from error


class _Contents(NamedTuple):
    """What a journal holds: the run's settings, the results by number, and the size in bytes of its complete lines."""

    run: dict[str, Any]
    results: dict[int, dict[str, Any]]
    size: int
    header_crc: int


def _parse(path: Path, content: bytes) -> _Contents:
    """Read a journal.

    A journal without results is read as an empty one. Its settings may have been the mistake that ended the run.
    """
    *lines, _ = content.split(b"\n")
    if content and not content.startswith(HEADER_START[: len(content)]):
        raise _damaged(path, 1)
    if len(lines) < 2:
        return _Contents({}, {}, 0, 0)
    header, header_crc = _parse_line(path, lines, 1, 0)
    if not isinstance(header.get("run"), dict):
        raise _damaged(path, 1)
    results = {}
    for number in range(2, len(lines) + 1):
        fields, _ = _parse_line(path, lines, number, header_crc)
        result = fields.pop("number", None)
        if type(result) is not int or result < 0:
            raise _damaged(path, number)
        results[result] = fields
    return _Contents(header["run"], results, sum(len(line) + 1 for line in lines), header_crc)


def _parse_line(path: Path, lines: list[bytes], number: int, header_crc: int) -> tuple[dict[str, Any], int]:
    """Return the fields of line `number`, from 1, and the line's CRC32."""
    line = lines[number - 1]
    checksum = CHECKSUM.search(line)
    if checksum is None:
        raise _damaged(path, number)
    content = line[: checksum.start()]
    crc = zlib.crc32(content, header_crc)
    if crc != int(checksum[1], 16):
        raise _damaged(path, number)
    try:
        fields = json.loads(content + b"}")
    except (ValueError, RecursionError):
        raise _damaged(path, number) from None
    return fields, crc


def _damaged(path: Path, number: int) -> ValueError:
    return ValueError(
        f"{path} is damaged in line {number}, or not a journal of this program; choose another --out, or remove it to "
        "start again"
    )
