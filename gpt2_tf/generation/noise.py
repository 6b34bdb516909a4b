"""The random numbers of sampling: uniform in [0, 1), a function of the seed, the row's number and the position alone.

Each row has its own stream of numbers, so a sample depends neither on its neighbours nor on the batch size. The numbers
are those of TensorFlow's `tf.random.stateless_uniform`, computed in NumPy, so that no engine needs TensorFlow for them.
"""

from collections.abc import Sequence

import numpy as np

NOISE_COLUMNS = 1024  # numbers per row that are drawn at once

# Philox 4x32 with 10 rounds: its multipliers, and what each round adds to the key.
MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10
# TensorFlow mixes the two numbers of a stateless seed by one Philox block with this key.
SEED_KEY = (0x3EC8F720, 0x02461E29)
WORD = 0xFFFFFFFF


def philox(counters: np.ndarray, key: tuple[int, int]) -> np.ndarray:
    """Compute Philox 4x32-10: each column of counters, [4, n] words of 32 bits, becomes four random words.

    Source: "Parallel Random Numbers: As Easy as 1, 2, 3" (Salmon et al., 2011).

    Example:
        >>> [hex(word) for word in philox(np.zeros([4, 1], np.uint64), key=(0, 0))[:, 0]]
        ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    word, half = np.uint64(WORD), np.uint64(32)
    c0, c1, c2, c3 = counters.astype(np.uint64)
    for number in range(ROUNDS):
        k0, k1 = (np.uint64((k + number * step) & WORD) for k, step in zip(key, KEY_STEPS, strict=True))
        a, b = c0 * MULTIPLIERS[0], c2 * MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> half) ^ c1 ^ k0, b & word, (a >> half) ^ c3 ^ k1, a & word
    return np.stack([c0, c1, c2, c3])


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
    # A block of four words makes two numbers, so position `first` has block `first // 2`.
    blocks = np.arange(first // 2, (first + length + 1) // 2, dtype=np.uint64)

    def draw_row(row: int) -> np.ndarray:
        words = [word for number in (seed, row) for word in (number & WORD, (number >> 32) & WORD)]
        k0, k1, high0, high1 = philox(np.array(words, np.uint64)[:, None], SEED_KEY)[:, 0]
        counters = [blocks & np.uint64(WORD), blocks >> np.uint64(32), *np.broadcast_arrays(high0, high1, blocks)[:2]]
        high, low = philox(np.stack(counters), (int(k0), int(k1))).T.reshape(-1, 2).T
        mantissa = ((high & np.uint64(0xFFFFF)) << np.uint64(32)) | low  # 52 bits
        return mantissa[:length] * 2.0**-52

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
