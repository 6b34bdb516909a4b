"""The key/value cache: for each block its pieces, one behind the other, each `(k, v)`, [batch, n_head, seq, head_dim].

It grows by concatenation, as OpenAI's does, which copies the last piece: one piece is enough, but a long text is
written faster with a second, short one. OpenAI's `past` and `present` are the same numbers in one tensor,
[batch, n_layer, 2, n_head, seq, head_dim]: `pack` and `unpack` turn one into the other.
"""

import tensorflow as tf

from gpt2_tf.hparams import HParams

Pieces = tuple[tuple[tf.Tensor, tf.Tensor], ...]
Cache = tuple[Pieces, ...]

SHORT = 32  # tokens; a copy of so many takes next to nothing


def append(past: Pieces | None, k: tf.Tensor, v: tf.Tensor) -> Pieces:
    """One block's past keys and values, the new ones at the end of its last piece."""
    if past is None:
        return ((k, v),)
    *before, (last_k, last_v) = past
    return (*before, (tf.concat([last_k, k], axis=2), tf.concat([last_v, v], axis=2)))


def empty(hparams: HParams, batch: int, dtype: str) -> Cache:
    """Before anything is read."""
    key = tf.zeros([batch, hparams.n_head, 0, hparams.head_dim], dtype)
    return tuple(((key, key),) for _ in range(hparams.n_layer))


def length(cache: Cache) -> tf.Tensor | int:
    """How many tokens it holds."""
    return sum(k.shape[2] if k.shape[2] is not None else tf.shape(k)[2] for k, _ in cache[0])


def join(cache: Cache) -> Cache:
    """The same in one piece."""
    return tuple((tuple(tf.concat(parts, axis=2) for parts in zip(*pieces, strict=True)),) for pieces in cache)


def divide(cache: Cache) -> Cache:
    """The same in two pieces, the second of which is short."""
    if len(cache[0]) == 2:
        short = tf.shape(cache[0][1][0])[2] <= SHORT
        return tf.cond(short, lambda: cache, lambda: divide(join(cache)))
    return tuple((*pieces, tuple(part[:, :, :0] for part in pieces[0])) for pieces in cache)


def first(cache: Cache, seq: tf.Tensor | int) -> Cache:
    """The cache of the first `seq` tokens alone, in one piece."""
    return tuple(((k[:, :, :seq], v[:, :, :seq]),) for ((k, v),) in join(cache))


def last(cache: Cache, seq: tf.Tensor | int) -> Cache:
    """The part of the cache that the last `seq` tokens gave, in one piece."""
    return tuple(((k[:, :, -seq:], v[:, :, -seq:]),) for ((k, v),) in join(cache))


def reorder(cache: Cache, rows: tf.Tensor) -> Cache:
    """The cache of these rows of the batch, int [any], in this order; a row may come several times, or not at all."""
    return tf.nest.map_structure(lambda part: tf.gather(part, rows), cache)


def pack(cache: Cache) -> tf.Tensor:
    """The cache as OpenAI's `past`, [batch, n_layer, 2, n_head, seq, head_dim]."""
    return tf.stack([tf.stack(key_value, axis=1) for (key_value,) in join(cache)], axis=1)


def unpack(past: tf.Tensor) -> Cache:
    """OpenAI's `past`, [batch, n_layer, 2, n_head, seq, head_dim], as a cache of one piece."""
    return tuple(((layer[:, 0], layer[:, 1]),) for layer in tf.unstack(past, axis=1))


def spec(hparams: HParams, dtype: str, batch: int | None = None, pieces: int = 1) -> tuple:
    """The specs of a cache of any length, nested like the cache; `batch` None is any."""
    key = tf.TensorSpec([batch, hparams.n_head, None, hparams.head_dim], dtype)
    return tuple(((key, key),) * pieces for _ in range(hparams.n_layer))
