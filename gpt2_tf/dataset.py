"""Token ids -> windows -> `tf.data`."""

from collections.abc import Sequence

import numpy as np
import tensorflow as tf


def random_windows(ids: Sequence[int], window: int, batch_size: int, *, seed: int = 0) -> tf.data.Dataset:
    """Endless batches of windows from random places, as `fit` takes them: each token's target is the next one.

    Args:
        ids: one long text, more than `window` tokens.

    Yields:
        `(tokens, targets)`, int32 [batch_size, window] each; the same seed gives the same batches.

    Raises:
        ValueError: the text is shorter than one window and its last target.
    """
    ids = tf.constant(np.asarray(ids, np.int32))
    starts = len(ids) - window  # a window's last target must be in the text
    if starts < 1:
        raise ValueError(f"the text has {len(ids)} tokens; windows of {window} need at least {window + 1}")

    def batch(seeds: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        start = tf.random.stateless_uniform([batch_size, 1], seeds, maxval=starts, dtype=tf.int32)
        rows = tf.gather(ids, start + tf.range(window + 1))
        return rows[:, :-1], rows[:, 1:]

    steps = tf.data.Dataset.counter(dtype=tf.int32)
    return steps.map(lambda step: batch(tf.stack([seed, step]))).prefetch(tf.data.AUTOTUNE)
