"""The cache's parts; that the model reads it rightly is test_model's to show."""

import numpy as np
import tensorflow as tf

from gpt2_tf.hparams import HParams
from gpt2_tf.model import kv_cache

rng = np.random.default_rng(0)


def random_cache(n_layer=3, batch=2, n_head=4, seq=5, head_dim=6):
    def part():
        return tf.constant(rng.normal(size=[batch, n_head, seq, head_dim]))

    return tuple(((part(), part()),) for _ in range(n_layer))


def test_append_puts_the_new_behind_the_old():
    ((old,),), ((new,),) = random_cache(n_layer=1, seq=2), random_cache(n_layer=1, seq=3)
    ((k, v),) = kv_cache.append((old,), *new)
    np.testing.assert_array_equal(k, np.concatenate([old[0], new[0]], axis=2))
    np.testing.assert_array_equal(v, np.concatenate([old[1], new[1]], axis=2))
    (((only_k, only_v),)) = kv_cache.append(None, *new)
    assert only_k is new[0] and only_v is new[1]


def test_append_leaves_all_but_the_last_piece_alone():
    ((old,),), ((short,),), ((new,),) = (random_cache(n_layer=1, seq=seq) for seq in (7, 2, 3))
    before, (k, _) = kv_cache.append((old, short), *new)
    assert before is old
    np.testing.assert_array_equal(k, np.concatenate([short[0], new[0]], axis=2))


def test_divide_keeps_the_second_piece_short_and_join_undoes_it():
    full = random_cache(seq=5)
    divided = kv_cache.divide(full)
    assert [k.shape[2] for k, _ in divided[0]] == [5, 0]
    count = 2 * kv_cache.SHORT + 4
    for new in range(count):
        k = tf.fill([2, 4, 1, 6], tf.cast(new, tf.float64))
        divided = kv_cache.divide(tuple(kv_cache.append(pieces, k, -k) for pieces in divided))
        assert kv_cache.length(divided) == 5 + new + 1
        assert divided[0][1][0].shape[2] <= kv_cache.SHORT
    new = np.broadcast_to(np.arange(float(count))[:, None], [2, 4, count, 6])
    for ((k, v),), ((old_k, old_v),) in zip(kv_cache.join(divided), full, strict=True):
        np.testing.assert_array_equal(k, np.concatenate([old_k, new], axis=2))
        np.testing.assert_array_equal(v, np.concatenate([old_v, -new], axis=2))


def test_pack_has_openais_axes_and_unpack_undoes_it():
    full = random_cache()
    past = kv_cache.pack(full)
    assert past.shape == [2, 3, 2, 4, 5, 6]  # batch, n_layer, 2, n_head, seq, head_dim
    np.testing.assert_array_equal(past[:, 1, 0], full[1][0][0])
    np.testing.assert_array_equal(past[:, 2, 1], full[2][0][1])
    tf.nest.map_structure(np.testing.assert_array_equal, kv_cache.unpack(past), full)


def test_last_is_the_end():
    full = random_cache()
    np.testing.assert_array_equal(kv_cache.last(full, 2)[0][0][1], full[0][0][1][:, :, 3:])


def test_reorder_takes_rows_in_any_order_and_number():
    full = random_cache()
    for rows in ([1, 0], [1, 1, 0, 1], [0], []):
        taken = kv_cache.reorder(full, tf.constant(rows, tf.int32))
        tf.nest.map_structure(lambda new, old, r=rows: np.testing.assert_array_equal(new, old.numpy()[r]), taken, full)


def test_spec_is_that_of_a_cache():
    hparams = HParams(n_vocab=7, n_ctx=8, n_embd=24, n_head=4, n_layer=3)
    tf.nest.map_structure(
        lambda spec, part: spec.shape.assert_is_compatible_with(part.shape),
        kv_cache.spec(hparams, "float32"),
        random_cache(),
    )
