"""One long list of rows, shared between processes."""

from typing import NamedTuple


class Shard(NamedTuple):
    """Share `number`, from 0, `of` so many: every `of`th batch.

    Batches stay whole, so that a row has the neighbours of a run that isn't shared, and comes out the same to the last
    bit; and every `of`th of them, so that rows sorted by length make shares that take equally long.
    """

    number: int
    of: int

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def firsts(self, rows: int, batch_size: int) -> range:
        """Where its batches of so many rows begin."""
        return range(self.number * batch_size, rows, self.of * batch_size)

    def count(self, rows: int, batch_size: int) -> int:
        """How many of the rows are its."""
        return sum(min(batch_size, rows - first) for first in self.firsts(rows, batch_size))


WHOLE = Shard(0, 1)


def parse(text: str) -> Shard:
    """The shard of "0/4". ValueError for what is none."""
    number, _, of = text.partition("/")
    if not (number.isdecimal() and of.isdecimal() and int(number) < int(of)):
        raise ValueError(f"{text!r} is given, but it must be a share and their number, 0/4 to 3/4 for four")
    return Shard(int(number), int(of))
