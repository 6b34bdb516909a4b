"""The random numbers of sampling: uniform in [0, 1), a function of the seed, the row's number and the position alone.

Each row has its own stream of numbers, so a sample depends neither on its neighbours nor on the batch size.
"""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

NOISE_COLUMNS = 1024  # numbers per row that are drawn at once


def draw_uniform(seed: int, rows: Sequence[int], length: int, first: int = 0) -> np.ndarray:
    """Draw uniform random numbers for each row; they equal those of `tf.random.stateless_uniform`.

    Args:
        seed: a whole number of 64 bits.
        rows: the number of each row. A row's random numbers depend on the seed and on this number alone.
        length: how many numbers per row.
        first: the position of the first number in the row's stream; an even number.

    Returns:
        float64 [rows, length], in [0, 1).

    Example:
        >>> draw_uniform(seed=1, rows=[0, 5], length=2).round(3).tolist()
        [[0.028, 0.802], [0.035, 0.754]]
    """

    def draw_row(row: int) -> np.ndarray:
        key, (low, high) = tf.raw_ops.StatelessRandomGetKeyCounter(seed=np.array([seed, row], np.int64))
        # Philox makes two numbers of each count, so position `first` has count `first // 2`.
        counter = tf.stack([low + tf.constant(first // 2, tf.uint64), high])
        return tf.raw_ops.StatelessRandomUniformV2(
            shape=[length], key=key, counter=counter, alg=tf.random.Algorithm.PHILOX.value, dtype=tf.float64
        ).numpy()

    return np.stack([draw_row(row) for row in rows])


class UniformNoise:
    """`draw_uniform`'s numbers for texts of any length. They are drawn in blocks, because most texts stop early.

    Example:
        >>> noise = UniformNoise(seed=1, rows=[0])
        >>> noise.columns(1, 3).round(3).tolist()
        [[0.802, 0.026]]
    """

    def __init__(self, seed: int, rows: Sequence[int]):
        self.seed, self.rows = seed, list(rows)
        self.first, self.drawn = 0, np.zeros([len(self.rows), 0])

    def columns(self, first: int, last: int) -> np.ndarray:
        """Return the numbers at positions `first` to `last` - 1 of each row: float64 [rows, last - first]."""
        if not self.first <= first <= last <= self.first + self.drawn.shape[1]:
            self.first = first - first % 2
            self.drawn = draw_uniform(self.seed, self.rows, max(NOISE_COLUMNS, last - self.first), self.first)
        return self.drawn[:, first - self.first : last - self.first]
