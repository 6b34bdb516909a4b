import numpy as np
import pytest

from gpt2_tf.dataset import random_windows


def take(dataset, n):
    return [(tokens.numpy(), targets.numpy()) for tokens, targets in dataset.take(n)]


def test_windows_are_pieces_of_the_text_and_targets_are_one_ahead():
    batches = take(random_windows(range(100, 200), window=8, batch_size=4), 50)
    for tokens, targets in batches:
        assert tokens.shape == targets.shape == (4, 8)
        assert tokens.dtype == targets.dtype == np.int32
        np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(8))
        np.testing.assert_array_equal(targets, tokens + 1)
    starts = {int(start) for tokens, _ in batches for start in tokens[:, 0]}
    assert starts <= set(range(100, 192)) and len(starts) > 60
    assert starts >= {100, 191}  # from the first to the last place, as 200 draws of 92 should


def test_the_seed_decides():
    first, again, other = (take(random_windows(range(99), 8, 4, seed=seed), 5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_a_text_of_one_window_and_one_token_works():
    ((tokens, targets),) = take(random_windows([5, 6, 7], window=2, batch_size=1), 1)
    assert (tokens.tolist(), targets.tolist()) == ([[5, 6]], [[6, 7]])


def test_too_short_a_text_is_an_error_with_the_numbers():
    with pytest.raises(ValueError, match="2 tokens; windows of 2 need at least 3"):
        random_windows([5, 6], window=2, batch_size=1)
