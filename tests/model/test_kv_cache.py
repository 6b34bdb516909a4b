"""The functions on the cache alone; test_gpt2 compares the model's numbers with and without a cache."""

import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf.hparams import HParams
from gpt2_tf.model import kv_cache

rng = np.random.default_rng(0)


def random_cache(n_layer=3, batch=2, n_head=4, seq=5, head_dim=6):
    def part():
        return tf.constant(rng.normal(size=[batch, n_head, seq, head_dim]))

    return tuple(((part(), part()),) for _ in range(n_layer))


def test_append_puts_new_tokens_after_old_ones():
    ((old,),), ((new,),) = random_cache(n_layer=1, seq=2), random_cache(n_layer=1, seq=3)
    ((k, v),) = kv_cache.append((old,), *new)
    np.testing.assert_array_equal(k, np.concatenate([old[0], new[0]], axis=2))
    np.testing.assert_array_equal(v, np.concatenate([old[1], new[1]], axis=2))
    (((only_k, only_v),)) = kv_cache.append(None, *new)
    assert only_k is new[0] and only_v is new[1]


def test_append_changes_only_the_last_segment():
    ((old,),), ((tail,),), ((new,),) = (random_cache(n_layer=1, seq=seq) for seq in (7, 2, 3))
    before, (k, _) = kv_cache.append((old, tail), *new)
    assert before is old
    np.testing.assert_array_equal(k, np.concatenate([tail[0], new[0]], axis=2))


def test_split_tail_keeps_the_tail_short_and_concat_undoes_it():
    full = random_cache(seq=5)
    split = kv_cache.split_tail(full)
    assert [k.shape[2] for k, _ in split[0]] == [5, 0]
    count = 2 * kv_cache.TAIL_TOKENS + 4
    for new in range(count):
        k = tf.fill([2, 4, 1, 6], tf.cast(new, tf.float64))
        split = kv_cache.split_tail(tuple(kv_cache.append(segments, k, -k) for segments in split))
        assert kv_cache.length(split) == 5 + new + 1
        assert split[0][1][0].shape[2] <= kv_cache.TAIL_TOKENS
    new = np.broadcast_to(np.arange(float(count))[:, None], [2, 4, count, 6])
    for ((k, v),), ((old_k, old_v),) in zip(kv_cache.concat(split), full, strict=True):
        np.testing.assert_array_equal(k, np.concatenate([old_k, new], axis=2))
        np.testing.assert_array_equal(v, np.concatenate([old_v, -new], axis=2))


def test_to_past_has_openais_axes_and_from_past_undoes_it():
    full = random_cache()
    past = kv_cache.to_past(full)
    assert past.shape == [2, 3, 2, 4, 5, 6]  # batch, n_layer, 2, n_head, seq, head_dim
    np.testing.assert_array_equal(past[:, 1, 0], full[1][0][0])
    np.testing.assert_array_equal(past[:, 2, 1], full[2][0][1])
    tf.nest.map_structure(np.testing.assert_array_equal, kv_cache.from_past(past), full)


def test_newest_and_truncate_keep_the_ends():
    full = random_cache()
    np.testing.assert_array_equal(kv_cache.newest(full, 2)[0][0][1], full[0][0][1][:, :, 3:])
    np.testing.assert_array_equal(kv_cache.truncate(full, 2)[2][0][0], full[2][0][0][:, :, :2])


def test_empty_holds_no_tokens_in_the_shape_and_dtype_of_a_cache():
    cache = kv_cache.empty(HParams(n_vocab=7, n_ctx=8, n_embd=24, n_head=4, n_layer=3), 2, "bfloat16")
    assert kv_cache.length(cache) == 0
    assert {(tuple(part.shape), part.dtype) for part in tf.nest.flatten(cache)} == {((2, 4, 0, 6), tf.bfloat16)}


def test_reorder_gathers_any_rows():
    full = random_cache()
    for rows in ([1, 0], [1, 1, 0, 1], [0], []):
        taken = kv_cache.reorder(full, tf.constant(rows, tf.int32))
        tf.nest.map_structure(lambda new, old, r=rows: np.testing.assert_array_equal(new, old.numpy()[r]), taken, full)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("batch", [None, 2])
def test_tensor_specs_have_the_shapes_dtype_and_nesting_of_a_cache(dtype, batch):
    hparams = HParams(n_vocab=7, n_ctx=8, n_embd=24, n_head=4, n_layer=3)
    for segments in (1, 2):
        specs = kv_cache.tensor_specs(hparams, dtype, batch, segments)
        cache = random_cache() if segments == 1 else kv_cache.split_tail(random_cache())
        tf.nest.assert_same_structure(specs, cache)
        assert {spec.dtype for spec in tf.nest.flatten(specs)} == {tf.as_dtype(dtype)}
        assert {tuple(spec.shape) for spec in tf.nest.flatten(specs)} == {(batch, 4, None, 6)}
