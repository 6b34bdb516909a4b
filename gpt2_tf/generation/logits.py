"""Pure filters, logits -> logits, each [batch, n_vocab]. A token that is cut gets the dtype's least number: OpenAI's
-1e10 is above what a temperature near 0 makes of the others. A setting t, k or p is a number, or one a row, [batch, 1].
"""

import tensorflow as tf


def cut(logits: tf.Tensor, tokens: tf.Tensor) -> tf.Tensor:
    """Cuts the tokens for which `tokens`, booleans [batch, n_vocab], is true."""
    return tf.where(tokens, logits.dtype.min, logits)


def repetition_penalty(logits: tf.Tensor, penalty: tf.Tensor | float, text: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Makes the tokens that each row's text holds less likely (above 1) or more (below).

    A positive logit is divided by `penalty`, a negative one multiplied. `text` is int [batch, seq], each row's own from
    column `start`, [batch], on. Source: "CTRL" (Keskar et al., 2019), section 4.1, with the sign minded.
    """
    logits = tf.convert_to_tensor(logits)
    penalized = tf.where(logits > 0, logits / penalty, logits * penalty)
    own = tf.range(tf.shape(text)[1]) >= start[:, None]
    return tf.where(_held(logits, text, own), penalized, logits)


def no_repeat_ngram(logits: tf.Tensor, n: tf.Tensor | int, text: tf.Tensor, start: tf.Tensor) -> tf.Tensor:
    """Cuts each token that would end a run of n tokens which the row's text holds already; `text` as above."""
    logits = tf.convert_to_tensor(logits)
    seq = tf.shape(text)[1]
    n = tf.minimum(n, seq + 1)  # longer ones take memory, and aren't there
    runs = tf.range(tf.maximum(seq - n + 1, 0))  # by their first columns
    grams = tf.gather(text, runs[:, None] + tf.range(n), axis=1)  # [batch, runs, n]
    latest = tf.gather(text, tf.maximum(tf.range(seq - n + 1, seq), 0), axis=1)  # [batch, n - 1]
    same = tf.reduce_all(grams[:, :, :-1] == latest[:, None], axis=-1) & (runs >= start[:, None])
    return cut(logits, _held(logits, grams[:, :, -1], same))


def temperature(logits: tf.Tensor, t: tf.Tensor | float) -> tf.Tensor:
    """Flatter above 1, sharper below; `t` is positive."""
    return logits / t


def top_k(logits: tf.Tensor, k: tf.Tensor | int) -> tf.Tensor:
    """Keeps each row's k likeliest tokens, and all that are as likely as the k-th; k is 1 to n_vocab, or 0 for all."""
    logits = tf.convert_to_tensor(logits)
    k = tf.broadcast_to(k, [tf.shape(logits)[0], 1])
    falling = tf.math.top_k(logits, tf.maximum(tf.reduce_max(k), 1)).values
    smallest = tf.gather(falling, tf.maximum(k - 1, 0), batch_dims=1)
    return cut(logits, (logits < smallest) & (k > 0))


def top_p(logits: tf.Tensor, p: tf.Tensor | float) -> tf.Tensor:
    """Keeps each row's likeliest tokens whose cumulative probability is at most p, and at least one.

    So the token that crosses p is dropped, unlike in the paper; tokens as likely as the last kept one stay; p of 1
    keeps all. Source: "The Curious Case of Neural Text Degeneration" (Holtzman et al., 2019), as OpenAI coded it.
    """
    logits = tf.convert_to_tensor(logits)
    # float64: in float32 the sum of 50,257 probabilities is off by up to 5e-4.
    p = tf.cast(p, tf.float64)
    total = tf.reduce_logsumexp(tf.cast(logits, tf.float64), axis=-1, keepdims=True)

    def cumulative(falling):
        return tf.cumsum(tf.exp(tf.cast(falling, tf.float64) - total), axis=-1)

    # The likeliest thousand hold more than p as good as always, and to sort all takes five times as long.
    head = tf.math.top_k(logits, tf.minimum(1024, tf.shape(logits)[1])).values
    falling = tf.cond(
        tf.reduce_all((cumulative(head)[:, -1:] > p) | (p >= 1)),
        lambda: head,
        lambda: tf.sort(logits, direction="DESCENDING"),
    )
    count = tf.reduce_sum(tf.cast(cumulative(falling) <= p, tf.int32), axis=-1, keepdims=True)
    smallest = tf.gather(falling, tf.maximum(count - 1, 0), batch_dims=1)
    # Rounded probabilities may add up to more than 1, and then a p of 1 must cut nothing.
    return cut(logits, (logits < smallest) & (p < 1))


def min_p(logits: tf.Tensor, p: tf.Tensor | float) -> tf.Tensor:
    """Keeps each row's tokens that are at least p times as likely as its likeliest; p is above 0 and at most 1.

    Source: "Turning Up the Heat: Min-p Sampling" (Nguyen et al., 2024).
    """
    logits = tf.convert_to_tensor(logits)
    return cut(logits, logits < tf.reduce_max(logits, axis=-1, keepdims=True) + tf.math.log(p))


def _held(logits: tf.Tensor, tokens: tf.Tensor, which: tf.Tensor) -> tf.Tensor:
    """Booleans [batch, n_vocab]: the ids in each row of `tokens` where `which`, both [batch, any]."""
    shape = tf.shape(logits)
    rows = tf.broadcast_to(tf.range(shape[0])[:, None], tf.shape(tokens))
    counts = tf.scatter_nd(tf.stack([rows, tokens], axis=-1), tf.cast(which, tf.int32), shape)
    return counts > 0
