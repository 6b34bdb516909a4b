"""The key/value cache: the attention's keys and values of all earlier tokens, so that they are computed once.

A `KVCache` has one entry per block. The entry is a tuple of segments, each a pair `(k, v)` of tensors
[batch, n_head, seq, head_dim]; the segments lie one behind the other along `seq`.

New tokens are appended by `tf.concat`, as in OpenAI's code. `tf.concat` copies the segment that it extends, so a long
text is written faster with two segments: a long one, which is not copied, and a tail of at most `TAIL_TOKENS` tokens.

OpenAI's `past` and `present` hold the same numbers in one tensor, [batch, n_layer, 2, n_head, seq, head_dim].
`to_past` and `from_past` convert between the two forms.
"""

import tensorflow as tf

from gpt2_tf.hparams import HParams

Segments = tuple[tuple[tf.Tensor, tf.Tensor], ...]
KVCache = tuple[Segments, ...]

TAIL_TOKENS = 32  # Copying a tail of this length at each step takes no measurable time.


def append(past: Segments | None, k: tf.Tensor, v: tf.Tensor) -> Segments:
    """Append one block's new keys and values to its last segment.

    Example:
        >>> k = v = tf.zeros([1, 2, 3, 4])  # [batch, n_head, seq, head_dim]
        >>> ((k, v),) = append(append(None, k, v), k[:, :, :1], v[:, :, :1])
        >>> k.shape.as_list()
        [1, 2, 4, 4]
    """
    if past is None:
        return ((k, v),)
    *earlier, (last_k, last_v) = past
    return (*earlier, (tf.concat([last_k, k], axis=2), tf.concat([last_v, v], axis=2)))


def empty(hparams: HParams, batch: int, dtype: str) -> KVCache:
    """Return a cache of zero tokens.

    Example:
        >>> length(empty(model.hparams, batch=1, dtype="float32"))
        0
    """
    key = tf.zeros([batch, hparams.n_head, 0, hparams.head_dim], dtype)
    return tuple(((key, key),) for _ in range(hparams.n_layer))


def length(cache: KVCache) -> tf.Tensor | int:
    """Return the number of cached tokens: an int where the shape is known, an int32 scalar tensor otherwise.

    Example:
        >>> length(model.hidden_states([[10, 20, 30]])[1])
        3
    """
    return sum(k.shape[2] if k.shape[2] is not None else tf.shape(k)[2] for k, _ in cache[0])


def concat(cache: KVCache) -> KVCache:
    """Return the same cache with one segment per block.

    Example:
        >>> _, cache = model.hidden_states([[10, 20, 30]])
        >>> len(split_tail(cache)[0]), len(concat(split_tail(cache))[0])
        (2, 1)
    """
    return tuple((tuple(tf.concat(parts, axis=2) for parts in zip(*segments, strict=True)),) for segments in cache)


def split_tail(cache: KVCache) -> KVCache:
    """Return the same cache with two segments per block, the second of at most `TAIL_TOKENS` tokens.

    Example:
        >>> _, cache = model.hidden_states([[10, 20, 30]])
        >>> [k.shape[2] for k, _ in split_tail(cache)[0]]
        [3, 0]
    """
    if len(cache[0]) == 2:
        short = tf.shape(cache[0][1][0])[2] <= TAIL_TOKENS
        return tf.cond(short, lambda: cache, lambda: split_tail(concat(cache)))
    return tuple((*segments, tuple(part[:, :, :0] for part in segments[0])) for segments in cache)


def truncate(cache: KVCache, seq: tf.Tensor | int) -> KVCache:
    """Keep the first `seq` tokens, in one segment per block.

    Example:
        >>> _, cache = model.hidden_states([[10, 20, 30]])
        >>> length(truncate(cache, 2))
        2
    """
    return tuple(((k[:, :, :seq], v[:, :, :seq]),) for ((k, v),) in concat(cache))


def newest(cache: KVCache, seq: tf.Tensor | int) -> KVCache:
    """Keep the last `seq` tokens, in one segment per block.

    Example:
        >>> _, cache = model.hidden_states([[10, 20, 30]])
        >>> length(newest(cache, 2))
        2
    """
    return tuple(((k[:, :, -seq:], v[:, :, -seq:]),) for ((k, v),) in concat(cache))


def reorder(cache: KVCache, rows: tf.Tensor) -> KVCache:
    """Gather rows of the batch.

    Args:
        rows: row numbers, int [any]. A row may appear several times or not at all.

    Example:
        >>> _, cache = model.hidden_states([[10], [20]])
        >>> ((k, _),) = reorder(cache, [1, 1, 0])[0]
        >>> k.shape[0]
        3
    """
    return tf.nest.map_structure(lambda part: tf.gather(part, rows), cache)


def to_past(cache: KVCache) -> tf.Tensor:
    """Convert a cache to OpenAI's `past`, [batch, n_layer, 2, n_head, seq, head_dim].

    Example:
        >>> _, cache = model.hidden_states([[10, 20, 30]])
        >>> to_past(cache).shape == [1, model.hparams.n_layer, 2, model.hparams.n_head, 3, model.hparams.head_dim]
        True
    """
    return tf.stack([tf.stack(key_value, axis=1) for (key_value,) in concat(cache)], axis=1)


def from_past(past: tf.Tensor) -> KVCache:
    """Convert OpenAI's `past`, [batch, n_layer, 2, n_head, seq, head_dim], to a cache of one segment per block.

    Example:
        >>> _, cache = model.hidden_states([[10, 20, 30]])
        >>> length(from_past(to_past(cache)))
        3
    """
    return tuple(((layer[:, 0], layer[:, 1]),) for layer in tf.unstack(past, axis=1))


def tensor_specs(hparams: HParams, dtype: str, batch: int | None = None, segments: int = 1) -> tuple:
    """Return the `tf.TensorSpec`s of a cache of any length, nested like the cache.

    Args:
        dtype: the dtype that the model computes in, `model.compute_dtype`.
        batch: number of rows; None (the default) allows any number.
        segments: segments per block: 1 (the default), or 2 for a cache that `split_tail` returned.

    Example:
        >>> ((k, v),) = tensor_specs(model.hparams, "float32")[0]
        >>> k.shape == [None, model.hparams.n_head, None, model.hparams.head_dim]
        True
    """
    key = tf.TensorSpec([batch, hparams.n_head, None, hparams.head_dim], dtype)
    return tuple(((key, key),) * segments for _ in range(hparams.n_layer))
