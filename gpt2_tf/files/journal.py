"""The journal of a long run: it keeps each result at once, so that the same command resumes after a kill.

The journal of `OUT` is the file `OUT.part`. Its first line is JSON with the run's settings; each further line is JSON
with one result. A kill can damage only the last line, which the next run drops. When several processes share a run,
each has its own journal, such as `OUT.0-of-4.part`. The processes need nothing in common but the folder. The last of
them to end writes `OUT`.
"""

import contextlib
import json
import os
import random
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2_tf.files.atomic import atomic_path
from gpt2_tf.files.lock import file_lock
from gpt2_tf.files.shard import UNSHARDED, Shard

HEADER_START = b'{"run": '


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
                    resources.enter_context(file_lock(self.path))
                    self.file = resources.enter_context(open(self.path, "a+b"))
            except BlockingIOError:
                raise BlockingIOError(
                    f"{out} is being written by another process; wait until that process ends, or choose another --out"
                ) from None
            self._load(json.loads(json.dumps(run)), seed)
            self._read_other_shards()  # so that settings that differ are found before hours of work
            self._resources = resources.pop_all()

    def __enter__(self) -> "Journal":
        return self

    def __exit__(self, *exception) -> None:
        self.close()

    def close(self) -> None:
        """Close the journal's file, and let other processes have it."""
        self._resources.close()

    def add(self, number: int, fields: Mapping[str, Any]) -> None:
        """Keep one more result. A kill after this call does not lose it."""
        self._write({"number": number, **fields})
        self.results[number] = dict(fields)

    def collect(self, total: int) -> dict[int, dict[str, Any]] | None:
        """Return all results of all shards, or None while other shards have not finished theirs.

        None, too, when another shard has found all results and written `out` already.

        Args:
            total: how many results all shards have together.
        """
        # Of two shards that end at the same time, each writes first and reads then, so at least one finds everything.
        with _errors_name(self.out):
            os.fsync(self.file.fileno())
        results = self.results | self._read_other_shards()
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
        header, self.results, size = _parse(self.path, self.file.read())
        self.file.truncate(size)
        self.seed = header.get("seed", random.getrandbits(31)) if seed is None else seed
        self.run = {**run, "seed": self.seed}
        if self.results:
            self._check_same_run(self.path, header)
        else:
            self._write({"run": self.run})

    def _read_other_shards(self) -> dict[int, dict[str, Any]]:
        """The results that the other shards have so far."""
        found = {}
        for path in self.shard_paths:
            if path != self.path:
                with contextlib.suppress(FileNotFoundError):
                    header, results, _ = _parse(path, path.read_bytes())
                    if results:
                        self._check_same_run(path, header)
                    found |= results
        return found

    def _check_same_run(self, path: Path, header: Mapping[str, Any]) -> None:
        for name, value in self.run.items():
            if header.get(name) != value:
                raise ValueError(
                    f"{self.out} was begun with {name} {header.get(name)}, not {value}; give the same settings to "
                    f"resume, choose another --out, or remove {path} to start again"
                )

    def _write(self, fields: Mapping[str, Any]) -> None:
        with _errors_name(self.out):
            self.file.write(json.dumps(fields).encode() + b"\n")
            self.file.flush()


@contextlib.contextmanager
def _errors_name(out: Path) -> Iterator[None]:
    """Name the file that the user asked for in errors of the system; some name its journal, and some no file."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(out)) from error


def _parse(path: Path, content: bytes) -> tuple[dict[str, Any], dict[int, dict[str, Any]], int]:
    """Read a journal: its run's settings, its results by number, and the size in bytes of its complete lines.

    A journal without results is read as an empty one. Its settings may have been the mistake that ended the run.
    """

    def parse_line(number: int, key: str) -> dict[str, Any]:
        try:
            fields = json.loads(lines[number - 1])
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or key not in fields:
            raise damaged(number)
        return fields

    def damaged(number: int) -> ValueError:
        return ValueError(
            f"{path} is damaged in line {number}, or not a journal of this program; choose another --out, or remove "
            "it to start again"
        )

    *lines, _ = content.split(b"\n")
    if content and not content.startswith(HEADER_START[: len(content)]):
        raise damaged(1)
    if len(lines) < 2:
        return {}, {}, 0
    header = parse_line(1, "run")["run"]
    results = [parse_line(number, "number") for number in range(2, len(lines) + 1)]
    size = sum(len(line) + 1 for line in lines)
    return header, {fields.pop("number"): fields for fields in results}, size
