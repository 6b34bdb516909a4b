"""The samples of a long run in a file, as they are finished: a run that was killed goes on from it.

Until all are there, `OUT.part` holds them: a line of JSON that says what run it is, then one for each sample. A kill
can cut the last line alone, and the next run drops it.
"""

import contextlib
import json
import os
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):  # Windows has none
    import fcntl

BEGINNING = b'{"run": '


class Record:
    """The record of one run: `done` is its finished samples, number -> fields, and `seed` what it draws from.

    Args:
        out: where the samples come when all are there.
        run: what the samples depend on, in JSON's kinds; the record of another run is not gone on with.
        seed: None takes the record's, or draws one.

    Raises:
        FileExistsError: `out` is there already.
        BlockingIOError: another process writes the record now.
        ValueError: the record is another run's, or damaged.
    """

    def __init__(self, out: str | os.PathLike, run: Mapping[str, Any], seed: int | None = None):
        self.out, self.part = Path(out), Path(f"{out}.part")
        if self.out.exists() and not self.part.exists():
            raise FileExistsError(f"{out} is there already; choose another --out, or remove it")
        self.file = open(self.part, "a+b")  # noqa: SIM115
        try:
            self._lock()
            self._read(json.loads(json.dumps(run)), seed)
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

    def finish(self, lines: Iterable[str]) -> None:
        """Writes `out`, which appears whole, and takes the record away."""
        temporary = Path(f"{self.out}.tmp")  # the lock is held, so nobody else's
        with open(temporary, "w", encoding="utf-8", newline="") as file:
            file.writelines(f"{line}\n" for line in lines)
        os.replace(temporary, self.out)
        self.file.close()
        self.part.unlink(missing_ok=True)  # another process may have had it since

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
        content = self.file.read()
        *lines, _ = content.split(b"\n")
        self.done: dict[int, dict[str, Any]] = {}
        if content and not content.startswith(BEGINNING[: len(content)]):
            raise self._damaged(1)
        if len(lines) < 2:  # without a sample there is nothing to go on with, and the settings may have been mistaken
            self.file.truncate(0)
            self.seed = random.getrandbits(31) if seed is None else seed
            self._write({"run": {**run, "seed": self.seed}})
            return
        begun = self._parse(lines, 1)["run"]
        self.seed = begun["seed"] if seed is None else seed
        for name, value in {**run, "seed": self.seed}.items():
            if begun.get(name) != value:
                raise ValueError(
                    f"{self.part} is of another run, with {name} {begun.get(name)} instead of {value}; "
                    "give what it was begun with, choose another --out, or remove it"
                )
        for number in range(2, len(lines) + 1):
            fields = self._parse(lines, number)
            self.done[fields.pop("number")] = fields
        self.file.truncate(sum(len(line) + 1 for line in lines))

    def _parse(self, lines: list[bytes], number: int) -> dict[str, Any]:
        key = "run" if number == 1 else "number"
        try:
            fields = json.loads(lines[number - 1])
        except ValueError:
            fields = None
        if not isinstance(fields, dict) or key not in fields:
            raise self._damaged(number)
        return fields

    def _damaged(self, number: int) -> ValueError:
        return ValueError(
            f"{self.part} is damaged in line {number}, or no record of a run; "
            "choose another --out, or remove it to begin anew"
        )

    def _write(self, fields: Mapping[str, Any]) -> None:
        self.file.write(json.dumps(fields).encode() + b"\n")
        self.file.flush()
