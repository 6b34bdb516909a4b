"""The filters: pure functions from logits to logits, float [batch, n_vocab] each.

A masked token gets the dtype's lowest number. OpenAI's -1e10 would not do: divided by a temperature near 0, the logits
of the kept tokens can be lower than that. A setting `t`, `k` or `p` is one number, or one number per row, [batch, 1].
"""

import tensorflow as tf


def mask_tokens(logits: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """Mask the tokens for which `mask`, bool [batch, n_vocab], is true.

    Example:
        >>> logits = mask_tokens(tf.constant([[1.0, 2.0]]), [[True, False]])
        >>> (logits == tf.float32.min).numpy().tolist()
        [[True, False]]
    """
    return tf.where(mask, logits.dtype.min, logits)


def repetition_penalty(
    logits: tf.Tensor, penalty: tf.Tensor | float, tokens: tf.Tensor, pad_lengths: tf.Tensor
) -> tf.Tensor:
    """Make the tokens that the text holds less likely (penalty above 1) or more likely (below 1).

    A positive logit is divided by `penalty`, a negative logit is multiplied by it.

    Args:
        logits: float [batch, n_vocab].
        penalty: a positive number; 1 changes nothing.
        tokens: int [batch, seq], the left-padded text of each row.
        pad_lengths: int [batch], the length of each row's padding.

    Source: "CTRL" (Keskar et al., 2019), section 4.1, extended to negative logits.

    Example:
        >>> repetition_penalty([[2.0, -2.0, 3.0]], 2.0, tf.constant([[0, 1]]), tf.constant([0])).numpy().tolist()
        [[1.0, -4.0, 3.0]]
    """
    logits = tf.convert_to_tensor(logits)
    penalized = tf.where(logits > 0, logits / penalty, logits * penalty)
    in_text = tf.range(tf.shape(tokens)[1]) >= pad_lengths[:, None]
    return tf.where(_tokens_where(logits, tokens, in_text), penalized, logits)


def no_repeat_ngram(logits: tf.Tensor, n: tf.Tensor | int, tokens: tf.Tensor, pad_lengths: tf.Tensor) -> tf.Tensor:
    """Mask each token that would complete a sequence of n tokens which the row's text already holds.

    Args:
        logits: float [batch, n_vocab].
        n: the length of the sequences, at least 1.
        tokens: int [batch, seq], the left-padded text of each row.
        pad_lengths: int [batch], the length of each row's padding.

    Example:
        >>> logits = no_repeat_ngram([[0.0, 0.0, 0.0]], 2, tf.constant([[0, 2, 0]]), tf.constant([0]))
        >>> (logits == tf.float32.min).numpy().tolist()  # "0 2" is in the text, and the text ends with 0
        [[False, False, True]]
    """
    logits = tf.convert_to_tensor(logits)
    seq = tf.shape(tokens)[1]
    n = tf.minimum(n, seq + 1)  # No text holds a longer sequence, and a larger n would only take memory.
    first_columns = tf.range(tf.maximum(seq - n + 1, 0))
    ngrams = tf.gather(tokens, first_columns[:, None] + tf.range(n), axis=1)  # [batch, ngrams, n]
    newest = tf.gather(tokens, tf.maximum(tf.range(seq - n + 1, seq), 0), axis=1)  # [batch, n - 1]
    same = tf.reduce_all(ngrams[:, :, :-1] == newest[:, None], axis=-1) & (first_columns >= pad_lengths[:, None])
    return mask_tokens(logits, _tokens_where(logits, ngrams[:, :, -1], same))


def temperature(logits: tf.Tensor, t: tf.Tensor | float) -> tf.Tensor:
    """Divide the logits by `t`, a positive number: above 1 evens the probabilities out, below 1 sharpens them.

    Example:
        >>> temperature(tf.constant([[1.0, 2.0]]), 0.5).numpy().tolist()
        [[2.0, 4.0]]
    """
    return logits / t


def top_k(logits: tf.Tensor, k: tf.Tensor | int) -> tf.Tensor:
    """Keep each row's k most likely tokens, and every token as likely as the k-th. k is 1 to n_vocab; 0 keeps all.

    Example:
        >>> (top_k([[1.0, 3.0, 2.0, 2.0]], 2) > tf.float32.min).numpy().tolist()
        [[False, True, True, True]]
    """
    logits = tf.convert_to_tensor(logits)
    k = tf.broadcast_to(k, [tf.shape(logits)[0], 1])
    sorted_logits = tf.math.top_k(logits, tf.maximum(tf.reduce_max(k), 1)).values
    smallest = tf.gather(sorted_logits, tf.maximum(k - 1, 0), batch_dims=1)
    return mask_tokens(logits, (logits < smallest) & (k > 0))


def top_p(logits: tf.Tensor, p: tf.Tensor | float) -> tf.Tensor:
    """Keep each row's most likely tokens whose cumulative probability is at most p, and at least one token.

    The token that crosses p is dropped; the paper keeps it. Every token as likely as the last kept token stays. A p of
    1 keeps all tokens.

    Source: "The Curious Case of Neural Text Degeneration" (Holtzman et al., 2019), as OpenAI's code implements it.

    Example:
        >>> (top_p(tf.math.log([[0.5, 0.3, 0.2]]), 0.79) > tf.float32.min).numpy().tolist()
        [[True, False, False]]
    """
    logits = tf.convert_to_tensor(logits)
    # In float32, the sum of 50,257 probabilities is off by up to 5e-4, so the sums are float64.
    p = tf.cast(p, tf.float64)
    log_total = tf.reduce_logsumexp(tf.cast(logits, tf.float64), axis=-1, keepdims=True)

    def cumulative(sorted_logits):
        return tf.cumsum(tf.exp(tf.cast(sorted_logits, tf.float64) - log_total), axis=-1)

    # Sorting all logits takes five times as long as finding the 1,024 largest, which nearly always hold more than p.
    largest = tf.math.top_k(logits, tf.minimum(1024, tf.shape(logits)[1])).values
    sorted_logits = tf.cond(
        tf.reduce_all((cumulative(largest)[:, -1:] > p) | (p >= 1)),
        lambda: largest,
        lambda: tf.sort(logits, direction="DESCENDING"),
    )
    count = tf.reduce_sum(tf.cast(cumulative(sorted_logits) <= p, tf.int32), axis=-1, keepdims=True)
    smallest = tf.gather(sorted_logits, tf.maximum(count - 1, 0), batch_dims=1)
    # Rounded probabilities can sum to more than 1, so a p of 1 is excluded here: it must mask nothing.
    return mask_tokens(logits, (logits < smallest) & (p < 1))


def min_p(logits: tf.Tensor, p: tf.Tensor | float) -> tf.Tensor:
    """Keep each row's tokens that are at least p times as likely as its most likely token. p is in (0, 1].

    Source: "Turning Up the Heat: Min-p Sampling" (Nguyen et al., 2024).

    Example:
        >>> (min_p(tf.math.log([[0.5, 0.3, 0.2]]), 0.5) > tf.float32.min).numpy().tolist()
        [[True, True, False]]
    """
    logits = tf.convert_to_tensor(logits)
    return mask_tokens(logits, logits < tf.reduce_max(logits, axis=-1, keepdims=True) + tf.math.log(p))


def _tokens_where(logits: tf.Tensor, tokens: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """bool [batch, n_vocab]: the ids that each row of `tokens` holds where `mask` is true, both [batch, any]."""
    shape = tf.shape(logits)
    rows = tf.broadcast_to(tf.range(shape[0])[:, None], tf.shape(tokens))
    counts = tf.scatter_nd(tf.stack([rows, tokens], axis=-1), tf.cast(mask, tf.int32), shape)
    return counts > 0
