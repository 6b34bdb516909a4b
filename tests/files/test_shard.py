"""Shards of a list: together they have each row once, in batches that are not split."""

import pytest

from gpt2_tf.files.shard import UNSHARDED, Shard, parse_shard


@pytest.mark.parametrize("count", [1, 2, 3, 7])
@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_each_row_is_in_exactly_one_shard(count, batch_size):
    for rows in range(40):
        batches = [range(first, min(first + batch_size, rows)) for first in UNSHARDED.batch_starts(rows, batch_size)]
        shards = []
        for index in range(count):
            shard = Shard(index, count)
            rows_of_shard = [
                range(first, min(first + batch_size, rows)) for first in shard.batch_starts(rows, batch_size)
            ]
            assert shard.n_rows(rows, batch_size) == sum(map(len, rows_of_shard))
            assert rows_of_shard == batches[index::count]
            shards += rows_of_shard
        assert sorted(row for batch in shards for row in batch) == list(range(rows))


def test_parse_shard():
    assert parse_shard("0/4") == Shard(0, 4) and str(Shard(3, 4)) == "3/4" and parse_shard("0/1") == UNSHARDED
    for text in ("4/4", "1", "", "/", "-1/4", "a/4", "1/", "0/0", "1/4/2", "1.0/4"):
        with pytest.raises(ValueError, match=f"the shard is '{text}', but must be INDEX/COUNT"):
            parse_shard(text)
