"""Token ids -> rows -> `tf.data`, as `fit` takes them: each token's target is the one after it.

The ids may be a `np.memmap` larger than memory: a row is read when its batch is made. Batch `s` is a function of the
seed and `s` alone, so that a run that goes on at step `s` sees what it would have seen.
"""

import types
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

IGNORED = -1  # the target of padding, which a loss and a metric leave out
ROUNDS = 6  # of a Feistel network; with 4, the orders of 5 windows aren't equally likely

_and, _xor = tf.bitwise.bitwise_and, tf.bitwise.bitwise_xor


class Share(NamedTuple):
    """What is yielded of each batch that is cut into `of` equal parts: `count` of them from `first` on, one by one."""

    first: int
    count: int
    of: int


WHOLE = Share(0, 1, 1)


def windows(
    ids: Sequence[int] | np.ndarray,
    window: int,
    batch_size: int,
    *,
    seed: int | None = None,
    start: int = 0,
    share: Share = WHOLE,
) -> tf.data.Dataset:
    """Batches of packed windows: rows of `window` tokens, in which one document follows another.

    Args:
        ids: at least 2; padding fills a window that they don't.
        seed: endless batches, shuffled: every epoch has each window once, and begins the first one at another of the
            first `window` places, so that it leaves out fewer than two windows' tokens, at the ends. None is the order
            of the ids, once, each but the first a target.
        start: the number of the first batch.
        share: the replica's or the worker's, of several that train together.

    Yields:
        `(tokens, targets)`, int32 [batch_size / share.of, window] each; padding is token 0 with target IGNORED.

    Raises:
        ValueError: fewer than 2 ids, a size or start out of its range, or a batch that can't be divided.
    """
    ids = _checked(ids, window, batch_size, start, share)
    end = len(ids)
    if seed is None:
        count, offsets = -(-(end - 1) // window), 1
    else:
        count = max(1, (end - window) // window)
        offsets = max(1, min(window, end - count * window))

    def spans(row: tf.Tensor, epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first = 1 + row * window + tf.cast(_random(epoch, seed or 0) % offsets, tf.int64)
        return first, tf.minimum(first + window, end)

    return _batches(ids, spans, count, window, batch_size, 0, seed, start, share)


def documents(
    ids: Sequence[int] | np.ndarray,
    window: int,
    batch_size: int,
    *,
    end_of_text: int,
    seed: int | None = None,
    start: int = 0,
    share: Share = WHOLE,
) -> tf.data.Dataset:
    """Batches of rows of one document each, padded on the right; one of over `window` tokens takes several rows.

    A document's first token is the target of `end_of_text`, as samples begin, and its last target is `end_of_text`.
    The places of all documents are kept in memory. Everything else is as for `windows`; every epoch has all rows.
    """
    ids = _checked(ids, window, batch_size, start, share)
    some = 2**20  # looked at together
    ends = [at + 1 + np.flatnonzero(ids[at : at + some] == end_of_text) for at in range(0, len(ids), some)]
    ends = np.unique(np.concatenate([*ends, [len(ids)]]))  # the last document may have been cut off
    begins = np.concatenate([[0], ends[:-1]])
    rows = -(-(ends - begins) // window)
    number_in_document = np.arange(rows.sum()) - np.repeat(np.cumsum(rows) - rows, rows)
    firsts = np.repeat(begins, rows) + number_in_document * window
    table = tf.constant(np.stack([firsts, np.minimum(firsts + window, np.repeat(ends, rows))]), tf.int64)

    def spans(row: tf.Tensor, epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(table[0], row), tf.gather(table[1], row)

    return _batches(ids, spans, len(firsts), window, batch_size, end_of_text, seed, start, share)


def _checked(ids: Sequence[int] | np.ndarray, window: int, batch_size: int, start: int, share: Share) -> np.ndarray:
    ids = np.asarray(ids)  # of a memmap, the same memory
    if ids.ndim != 1 or len(ids) < 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids are {ids.dtype} {list(ids.shape)}; expected a row of at least 2 whole numbers")
    for name, value, least in (("window", window, 1), ("batch_size", batch_size, 1), ("start", start, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}")
    if batch_size % share.of:
        raise ValueError(f"batch_size {batch_size} can't be divided among {share.of} replicas; give a multiple of that")
    return ids


def _batches(
    ids: np.ndarray,
    spans: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    count: int,
    window: int,
    batch_size: int,
    before: int,
    seed: int | None,
    start: int,
    share: Share,
) -> tf.data.Dataset:
    """Batches of an epoch's `count` rows, again and again, or with no seed once.

    All in TensorFlow's ops: a thread of `tf.data` in Python, as by `tf.numpy_function`, can hang the end of a process.

    Args:
        spans: numbers of rows and their epochs, int64 [batch_size] each -> where the targets begin, and their end.
        before: the token before `ids[0]`.
    """
    ids = _tensor(ids)
    n_ids = tf.size(ids, tf.int64)
    size = batch_size // share.of

    def batch(part: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        step, place = part // share.count, share.first + part % share.count
        number = step * batch_size + place * size + tf.range(size, dtype=tf.int64)
        epoch, row = number // count, number % count
        if seed is not None:
            row = _permuted(row, _random(epoch, seed), count)
        first, stop = (span[:, None] for span in spans(row, epoch))
        place = first + tf.range(window, dtype=tf.int64)  # [batch_size, window]
        kept = place < stop
        if seed is None:
            kept &= epoch[:, None] == 0  # the last batch's other rows are padding
        targets = tf.cast(tf.gather(ids, tf.minimum(place, n_ids - 1)), tf.int32)
        tokens = tf.cast(tf.gather(ids, tf.clip_by_value(place - 1, 0, n_ids - 1)), tf.int32)
        tokens = tf.where(place == 0, before, tokens)
        return tf.where(kept, tokens, 0), tf.where(kept, targets, IGNORED)

    once = tf.data.Dataset.range(start * share.count, -(-count // batch_size) * share.count)
    parts = once if seed is None else tf.data.Dataset.counter(start * share.count)
    options = tf.data.Options()
    options.experimental_optimization.apply_default_optimizations = False  # they copy the ids, up to 2 GB of them
    return parts.map(batch).prefetch(tf.data.AUTOTUNE).with_options(options)


def _tensor(ids: np.ndarray) -> tf.Tensor:
    """The ids where they are, in memory or in a file; a copy, if they begin where TensorFlow's kernels can't read."""
    ids = np.ascontiguousarray(ids)
    if ids.ctypes.data % 64:
        return tf.constant(ids)
    if not ids.flags.writeable:  # which DLPack can't say; nothing here writes
        interface = {**ids.__array_interface__, "data": (ids.ctypes.data, False)}
        ids = np.asarray(types.SimpleNamespace(__array_interface__=interface, owner=ids))
    return tf.experimental.dlpack.from_dlpack(ids.__dlpack__())


def _random(numbers: tf.Tensor, seed: int) -> tf.Tensor:
    """uint64 of the numbers' shape, as if drawn for each."""
    return _mixed(tf.cast(numbers, tf.uint64) + _mixed(tf.constant(seed % 2**64, tf.uint64)))


def _mixed(x: tf.Tensor) -> tf.Tensor:
    """SplitMix64's step and finalizer (Steele et al. 2014), which permutes uint64."""
    x += tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = _xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64))) * tf.constant(factor, tf.uint64)
    return _xor(x, tf.bitwise.right_shift(x, tf.constant(31, tf.uint64)))


def _permuted(numbers: tf.Tensor, key: tf.Tensor, count: int) -> tf.Tensor:
    """The numbers' places, int64, in a random order of all below `count`, which nobody has to hold in memory.

    A Feistel network permutes the numbers of as many bits as `count - 1` has. One that comes out at `count` or above
    goes through it again (cycle walking), so that those below are permuted among themselves.

    Args:
        numbers, key: int64 and uint64 [n]; each key has its own order.
    """
    bits = (count - 1).bit_length()
    half = tf.constant(bits // 2, tf.uint64)
    masks = [tf.constant((1 << size) - 1, tf.uint64) for size in (bits - bits // 2, bits // 2)]

    def network(x: tf.Tensor) -> tf.Tensor:
        left, right, keys = tf.bitwise.right_shift(x, half), _and(x, masks[1]), key
        for _ in range(ROUNDS):
            left = _xor(left, _and(_mixed(right + keys), masks[0]))
            right = _xor(right, _and(_mixed(left - keys), masks[1]))
            keys *= tf.constant(0xD1342543DE82EF95, tf.uint64)
        return tf.bitwise.left_shift(left, half) + right

    limit = tf.constant(count, tf.uint64)
    (places,) = tf.while_loop(
        lambda x: tf.reduce_any(x >= limit),
        lambda x: (tf.where(x >= limit, network(x), x),),
        (network(tf.cast(numbers, tf.uint64)),),
    )
    return tf.cast(places, tf.int64)
