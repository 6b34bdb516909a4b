"""The key/value cache: a tuple with one `(k, v)` a block, each [batch, n_head, seq, head_dim].

It grows by concatenation, as OpenAI's does. OpenAI's `past` and `present` are the same numbers in one tensor,
[batch, n_layer, 2, n_head, seq, head_dim]: `pack` and `unpack` turn one into the other.
"""

import tensorflow as tf

from gpt2_tf.hparams import HParams

KeyValue = tuple[tf.Tensor, tf.Tensor]
Cache = tuple[KeyValue, ...]


def append(past: KeyValue | None, k: tf.Tensor, v: tf.Tensor) -> KeyValue:
    """One block's past keys and values followed by the new ones, [batch, n_head, past + seq, head_dim] each."""
    if past is None:
        return k, v
    return tf.concat([past[0], k], axis=2), tf.concat([past[1], v], axis=2)


def empty(hparams: HParams, batch: int, dtype: str) -> Cache:
    """Before anything is read."""
    key = tf.zeros([batch, hparams.n_head, 0, hparams.head_dim], dtype)
    return tuple((key, key) for _ in range(hparams.n_layer))


def first(cache: Cache, seq: tf.Tensor | int) -> Cache:
    """The cache of the first `seq` tokens alone."""
    return tuple((k[:, :, :seq], v[:, :, :seq]) for k, v in cache)


def last(cache: Cache, seq: tf.Tensor | int) -> Cache:
    """The part of the cache that the last `seq` tokens gave."""
    return tuple((k[:, :, -seq:], v[:, :, -seq:]) for k, v in cache)


def reorder(cache: Cache, rows: tf.Tensor) -> Cache:
    """The cache of these rows of the batch, int [any], in this order; a row may come several times, or not at all."""
    return tuple((tf.gather(k, rows), tf.gather(v, rows)) for k, v in cache)


def pack(cache: Cache) -> tf.Tensor:
    """The cache as OpenAI's `past`, [batch, n_layer, 2, n_head, seq, head_dim]."""
    return tf.stack([tf.stack([k, v], axis=1) for k, v in cache], axis=1)


def unpack(past: tf.Tensor) -> Cache:
    """OpenAI's `past`, [batch, n_layer, 2, n_head, seq, head_dim], as a cache."""
    return tuple((layer[:, 0], layer[:, 1]) for layer in tf.unstack(past, axis=1))


def spec(hparams: HParams, dtype: str) -> tuple:
    """The specs of a cache of any batch and length, nested like the cache."""
    key = tf.TensorSpec([None, hparams.n_head, None, hparams.head_dim], dtype)
    return tuple((key, key) for _ in range(hparams.n_layer))
