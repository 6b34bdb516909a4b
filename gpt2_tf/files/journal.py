"""The samples of a long run in a file, as they are finished: a run that was killed goes on from it.

Until all are there, `OUT.part` holds them: a line of JSON that says what run it is, then one for each sample. A kill
can cut the last line alone, and the next run drops it. Of a run that several processes share, on machines that may
have no more in common than the folder, each has its own, `OUT.0-of-4.part`; the last of them writes `OUT`.
"""

import contextlib
import json
import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from gpt2_tf.files.shard import WHOLE, Shard

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

BEGINNING = b'{"run": '


class Record:
    """The record of one run: `done` is the shard's finished samples, number -> fields, and `seed` what they draw from.

    Args:
        out: where the samples come when all are there.
        run: what the samples depend on, in JSON's kinds; the record of another run is not gone on with.
        seed: None takes the record's, or draws one.
        shard: which of the samples are this process's.

    Raises:
        FileExistsError: `out` is there already.
        BlockingIOError: another process writes the record now.
        ValueError: the record is another run's, or damaged; or another shard's is.
    """

    def __init__(self, out: str | os.PathLike, run: Mapping[str, Any], seed: int | None = None, shard: Shard = WHOLE):
        self.out, self.shard = Path(out), shard
        names = [""] if shard.of == 1 else [f".{number}-of-{shard.of}" for number in range(shard.of)]
        self.parts = [Path(f"{out}{name}.part") for name in names]
        self.part = self.parts[shard.number]
        if self.out.exists() and not self.part.exists():
            done = "; another share has written it whole, or" if shard.of > 1 else ";"
            raise FileExistsError(f"{out} is there already{done} choose another --out, or remove it")
        self.file = open(self.part, "a+b")  # noqa: SIM115
        try:
            self._lock()
            self._read(json.loads(json.dumps(run)), seed)
            self._others()  # before hours of work that wouldn't fit theirs
        except BaseException:
            self.file.close()
            raise

    def __enter__(self) -> "Record":
        return self

    def __exit__(self, *exception) -> None:
        self.file.close()

    def add(self, number: int, fields: Mapping[str, Any]) -> None:
        """Keeps one more sample, so that no kill from here on loses it."""
        self._write({"number": number, **fields})
        self.done[number] = dict(fields)

    def gather(self, of: int) -> dict[int, dict[str, Any]] | None:
        """All `of` samples, the other shards' too; None where these have more to do, or one has written `out`."""
        os.fsync(self.file.fileno())  # before theirs are read, so that one of two that end at once finds all
        done = self.done | self._others()
        return done if len(done) == of else None

    def finish(self, lines: Iterable[str]) -> None:
        """Writes `out`, which appears whole, and takes the records away."""
        temporary = self.part.with_suffix(".tmp")  # the lock is held, so nobody else's
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.writelines(f"{line}\n" for line in lines)
            file.flush()
            os.fsync(file.fileno())  # before the records go
        os.replace(temporary, self.out)
        self.file.close()
        for part in self.parts:
            part.unlink(missing_ok=True)  # another process may have had it since

    def _lock(self) -> None:
        if "fcntl" not in globals():
            return
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(
                f"{self.part} is being written by another process; wait for it, or choose another --out"
            ) from None

    def _read(self, run: dict[str, Any], seed: int | None) -> None:
        self.file.seek(0)
        begun, self.done, size = _parse(self.part, self.file.read())
        self.file.truncate(size)
        self.seed = begun.get("seed", random.getrandbits(31)) if seed is None else seed
        self.run = {**run, "seed": self.seed}
        if self.done:
            self._check(self.part, begun)
        else:
            self._write({"run": self.run})

    def _others(self) -> dict[int, dict[str, Any]]:
        """What there is of the other shards' samples."""
        found = {}
        for part in self.parts:
            if part != self.part:
                with contextlib.suppress(FileNotFoundError):
                    begun, samples, _ = _parse(part, part.read_bytes())
                    if samples:
                        self._check(part, begun)
                    found |= samples
        return found

    def _check(self, part: Path, begun: Mapping[str, Any]) -> None:
        for name, value in self.run.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{part} is of another run, with {name} {begun.get(name)} instead of {value}; "
                    "give what it was begun with, choose another --out, or remove it"
                )

    def _write(self, fields: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(fields).encode() + b"\n")
        self.file.flush()


def _parse(part: Path, content: bytes) -> tuple[dict[str, Any], dict[int, dict[str, Any]], int]:
    """A record's run, its samples by their numbers, and how many bytes these take: without a line that was cut.

    Without a sample there is nothing to go on with, and the settings may have been mistaken: then nothing of it counts.
    """

    def fields(number: int, key: str) -> dict[str, Any]:
        try:
            values = json.loads(lines[number - 1])
        except ValueError:
            values = None
        if not isinstance(values, dict) or key not in values:
            raise damaged(number)
        return values

    def damaged(number: int) -> ValueError:
        return ValueError(
            f"{part} is damaged in line {number}, or no record of a run; "
            "choose another --out, or remove it to begin anew"
        )

    *lines, _ = content.split(b"\n")
    if content and not content.startswith(BEGINNING[: len(content)]):
        raise damaged(1)
    if len(lines) < 2:
        return {}, {}, 0
    begun = fields(1, "run")["run"]
    samples = [fields(number, "number") for number in range(2, len(lines) + 1)]
    size = sum(len(line) + 1 for line in lines)
    return begun, {sample.pop("number"): sample for sample in samples}, size
