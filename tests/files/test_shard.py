"""Shares of a list: all of it, each row once, whole batches."""

import pytest

from gpt2_tf.files.shard import WHOLE, Shard, parse


@pytest.mark.parametrize("of", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_each_row_is_in_one_share(of, batch_size):
    for rows in range(40):
        batches = [range(first, min(first + batch_size, rows)) for first in WHOLE.firsts(rows, batch_size)]
        shares = []
        for number in range(of):
            shard = Shard(number, of)
            share = [range(first, min(first + batch_size, rows)) for first in shard.firsts(rows, batch_size)]
            assert shard.count(rows, batch_size) == sum(map(len, share))
            assert share == batches[number::of]
            shares += share
        assert sorted(row for batch in shares for row in batch) == list(range(rows))


def test_what_is_typed():
    assert parse("0/4") == Shard(0, 4) and str(Shard(3, 4)) == "3/4" and parse("0/1") == WHOLE
    for text in ("4/4", "1", "", "/", "-1/4", "a/4", "1/", "0/0", "1/4/2", "1.0/4"):
        with pytest.raises(ValueError, match=f"'{text}' is given, but it must be a share and their number, 0/4 to"):
            parse(text)
