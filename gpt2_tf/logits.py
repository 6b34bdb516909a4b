"""Pure filters, logits -> logits, each [batch, n_vocab]. A token that is cut gets the dtype's least number: OpenAI's
-1e10 is above what a temperature near 0 makes of the others."""

import tensorflow as tf


def temperature(logits: tf.Tensor, t: tf.Tensor | float) -> tf.Tensor:
    """Flatter above 1, sharper below; `t` is positive."""
    return logits / t


def top_k(logits: tf.Tensor, k: tf.Tensor | int) -> tf.Tensor:
    """Keeps each row's k likeliest tokens, and all that are as likely as the k-th; k is 1 to n_vocab."""
    logits = tf.convert_to_tensor(logits)
    smallest = tf.math.top_k(logits, k).values[:, -1:]
    return tf.where(logits < smallest, logits.dtype.min, logits)


def top_p(logits: tf.Tensor, p: tf.Tensor | float) -> tf.Tensor:
    """Keeps each row's likeliest tokens whose cumulative probability is at most p, and at least one.

    So the token that crosses p is dropped, unlike in the paper; tokens as likely as the last kept one stay; p of 1
    keeps all. Source: "The Curious Case of Neural Text Degeneration" (Holtzman et al., 2019), as OpenAI coded it.
    """
    logits = tf.convert_to_tensor(logits)
    falling = tf.sort(logits, direction="DESCENDING")
    # float64: in float32 the sum of 50,257 probabilities is off by up to 5e-4.
    cumulative = tf.cumsum(tf.cast(tf.nn.softmax(falling), tf.float64), axis=-1)
    count = tf.reduce_sum(tf.cast(cumulative <= tf.cast(p, tf.float64), tf.int32), axis=-1)
    smallest = tf.gather(falling, tf.maximum(count - 1, 0), batch_dims=1)[:, None]
    # Rounded probabilities may add up to more than 1, and then a p of 1 must cut nothing.
    return tf.where((logits < smallest) & (p < 1), logits.dtype.min, logits)
