"""Split one long list of rows between several processes, such as `--shard 0/4` to `--shard 3/4`."""

from typing import NamedTuple


class Shard(NamedTuple):
    """The share of the rows that one process works on: every `count`-th batch, starting with batch `index`.

    A batch is never split, so each row keeps its neighbours and its result to the last bit. Batches are
    dealt out in turn: rows are often sorted by length, so shards of consecutive batches would take different times.

    Args:
        index: this process's shard, from 0 to `count` - 1.
        count: the number of shards, at least 1.

    Example:
        >>> shard = Shard(1, 4)
        >>> list(shard.batch_starts(n_rows=20, batch_size=2))
        [2, 10, 18]
        >>> shard.n_rows(20, batch_size=2)
        6
        >>> str(shard)
        '1/4'
    """

    index: int
    count: int

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    def batch_starts(self, n_rows: int, batch_size: int) -> range:
        """The number of the first row of each of this shard's batches, when all shards together have `n_rows` rows."""
        return range(self.index * batch_size, n_rows, self.count * batch_size)

    def n_rows(self, n_rows: int, batch_size: int) -> int:
        """How many of the `n_rows` rows are in this shard."""
        return sum(min(batch_size, n_rows - start) for start in self.batch_starts(n_rows, batch_size))


UNSHARDED = Shard(0, 1)


def parse_shard(text: str) -> Shard:
    """Read a shard as it is typed on the command line.

    Args:
        text: "INDEX/COUNT", such as "0/4".

    Raises:
        ValueError: the text has another form, or INDEX is not below COUNT.

    Example:
        >>> parse_shard("0/4")
        Shard(index=0, count=4)
    """
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise ValueError(f"the shard is {text!r}, but must be INDEX/COUNT, such as 0/4, 1/4, 2/4 and 3/4 for four")
    return Shard(int(index), int(count))
