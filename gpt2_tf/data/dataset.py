"""Token ids -> batches of tokens and targets, as Keras's `fit` takes them. The target of a token is the next token.

The ids may be a `np.memmap` larger than memory: a row is read when its batch is made. A batch depends on the seed and
its step only, so a run that resumes at a step gets the batches that it would have had.
"""

import types
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

IGNORED = -1  # the target of padding, which losses and metrics leave out
FEISTEL_ROUNDS = 6  # with 4, the orders of 5 windows are not equally likely
IDS_PER_SEARCH = 2**20

_and, _xor = tf.bitwise.bitwise_and, tf.bitwise.bitwise_xor


class ReplicaSlice(NamedTuple):
    """The part of each batch that the replicas of one worker get. The batch is cut into equal parts, one per replica.

    Attributes:
        first: the number of the worker's first replica, from 0.
        count: the worker's replicas; the dataset yields their parts one after another.
        n_replicas: all replicas.

    Example:
        >>> first_worker = ReplicaSlice(first=0, count=2, n_replicas=4)
        >>> batches = windows(range(99), window=8, batch_size=4, replicas=first_worker)
        >>> batches.element_spec[0].shape
        TensorShape([1, 8])
    """

    first: int
    count: int
    n_replicas: int


WHOLE_BATCH = ReplicaSlice(0, 1, 1)


def windows(
    ids: Sequence[int] | np.ndarray,
    window: int,
    batch_size: int,
    *,
    seed: int | None = None,
    start: int = 0,
    replicas: ReplicaSlice = WHOLE_BATCH,
) -> tf.data.Dataset:
    """Batches of windows: rows of `window` consecutive tokens. A window may span several documents.

    With a seed the batches are endless and shuffled. Each epoch has each window once. An epoch begins at a random
    position below `window`, so it leaves out fewer than two windows of tokens, at the ends. Without a seed, the batches
    are the windows in order, once, and every id but the first is a target.

    Args:
        ids: token ids, integers [count]; at least 2. If they don't fill one window, the window is padded.
        window: tokens per row; at least 1.
        batch_size: rows per batch, over all replicas; at least 1.
        seed: seed of the random order. Default: None, the order of the ids.
        start: the number of the first batch, from 0.
        replicas: the part of each batch to yield; the default is the whole batch.

    Yields:
        `(tokens, targets)`, int32 [batch_size / replicas.n_replicas, window] each. Padding is token 0 with the target
        `IGNORED`.

    Raises:
        ValueError: there are fewer than 2 ids, a number is out of its range, or a batch can't be divided.

    Example:
        >>> for tokens, targets in windows([5, 6, 7, 8, 9], window=2, batch_size=2):
        ...     print(tokens.numpy().tolist(), targets.numpy().tolist())
        [[5, 6], [7, 8]] [[6, 7], [8, 9]]
    """
    ids = _checked_ids(ids, window, batch_size, start, replicas)
    end = len(ids)
    if seed is None:
        n_rows, n_offsets = -(-(end - 1) // window), 1
    else:
        n_rows = max(1, (end - window) // window)
        n_offsets = max(1, min(window, end - n_rows * window))

    def row_spans(row: tf.Tensor, epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        first = 1 + row * window + tf.cast(_random_uint64(epoch, seed or 0) % n_offsets, tf.int64)
        return first, tf.minimum(first + window, end)

    return _make_batches(ids, row_spans, n_rows, window, batch_size, 0, seed, start, replicas)


def documents(
    ids: Sequence[int] | np.ndarray,
    window: int,
    batch_size: int,
    *,
    end_of_text: int,
    seed: int | None = None,
    start: int = 0,
    replicas: ReplicaSlice = WHOLE_BATCH,
) -> tf.data.Dataset:
    """Batches of rows that hold one document each, padded on the right.

    A document longer than `window` takes several rows. The input of a document begins with `end_of_text`, as samples
    do, and its last target is `end_of_text`. The positions of all documents are kept in memory. With a seed, each
    epoch has every row once.

    Args:
        ids: token ids, integers [count]; at least 2, with `end_of_text` after each document.
        window: tokens per row; at least 1.
        batch_size: rows per batch, over all replicas; at least 1.
        end_of_text: the id that ends a document.
        seed: seed of the random order of endless batches. Default: None, the order of the ids, once.
        start: the number of the first batch, from 0.
        replicas: the part of each batch to yield; the default is the whole batch.

    Yields:
        `(tokens, targets)`, as `windows` does.

    Raises:
        ValueError: as for `windows`.

    Example:
        >>> for tokens, targets in documents([5, 6, 0, 7, 0], window=3, batch_size=2, end_of_text=0):
        ...     print(tokens.numpy().tolist(), targets.numpy().tolist())
        [[0, 5, 6], [0, 7, 0]] [[5, 6, 0], [7, 0, -1]]
    """
    ids = _checked_ids(ids, window, batch_size, start, replicas)
    ends = [
        at + 1 + np.flatnonzero(ids[at : at + IDS_PER_SEARCH] == end_of_text)
        for at in range(0, len(ids), IDS_PER_SEARCH)
    ]
    ends = np.unique(np.concatenate([*ends, [len(ids)]]))  # the last document may lack its end
    starts = np.concatenate([[0], ends[:-1]])
    n_rows = -(-(ends - starts) // window)  # of each document
    row_in_document = np.arange(n_rows.sum()) - np.repeat(np.cumsum(n_rows) - n_rows, n_rows)
    first_targets = np.repeat(starts, n_rows) + row_in_document * window
    row_ends = np.minimum(first_targets + window, np.repeat(ends, n_rows))
    spans = tf.constant(np.stack([first_targets, row_ends]), tf.int64)  # [2, rows]

    def row_spans(row: tf.Tensor, epoch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        return tf.gather(spans[0], row), tf.gather(spans[1], row)

    return _make_batches(ids, row_spans, len(first_targets), window, batch_size, end_of_text, seed, start, replicas)


def _checked_ids(
    ids: Sequence[int] | np.ndarray, window: int, batch_size: int, start: int, replicas: ReplicaSlice
) -> np.ndarray:
    """The ids as an array, without copying a memmap. Raises ValueError where an argument is wrong."""
    ids = np.asarray(ids)
    if ids.ndim != 1 or len(ids) < 2 or ids.dtype.kind not in "iu":
        raise ValueError(f"ids are {ids.dtype} {list(ids.shape)}, but must be at least 2 integers in one dimension")
    for name, value, least in (("window", window, 1), ("batch_size", batch_size, 1), ("start", start, 0)):
        if value < least:
            raise ValueError(f"{name} is {value}, but must be at least {least}")
    n_replicas = replicas.n_replicas
    if batch_size % n_replicas:
        raise ValueError(
            f"batch_size {batch_size} can't be divided among {n_replicas} replicas; give a multiple of {n_replicas}"
        )
    return ids


def _make_batches(
    ids: np.ndarray,
    row_spans: Callable[[tf.Tensor, tf.Tensor], tuple[tf.Tensor, tf.Tensor]],
    n_rows: int,
    window: int,
    batch_size: int,
    token_before: int,
    seed: int | None,
    start: int,
    replicas: ReplicaSlice,
) -> tf.data.Dataset:
    """Batches of rows: endless and shuffled with a seed; without one, in order and once.

    All of it is TensorFlow ops: with Python in the pipeline (`tf.numpy_function`), a thread of `tf.data` can hang the
    process at its end.

    Args:
        row_spans: row numbers and their epochs, int64 [rows] each -> the first target of each row and the position
            after its last, int64 [rows] each.
        n_rows: rows per epoch.
        token_before: the token whose target is `ids[0]`.
    """
    ids = _as_tensor(ids)
    n_ids = tf.size(ids, tf.int64)
    part_size = batch_size // replicas.n_replicas

    def make_part(number: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        step, replica = number // replicas.count, replicas.first + number % replicas.count
        rows_since_start = step * batch_size + replica * part_size + tf.range(part_size, dtype=tf.int64)
        epoch, row = rows_since_start // n_rows, rows_since_start % n_rows
        if seed is not None:
            row = _permute(row, _random_uint64(epoch, seed), n_rows)
        first, end = (position[:, None] for position in row_spans(row, epoch))  # [part_size, 1]
        position = first + tf.range(window, dtype=tf.int64)  # [part_size, window], of the targets
        valid = position < end
        if seed is None:
            valid &= epoch[:, None] == 0  # the rows that fill up the last batch are padding
        targets = tf.cast(tf.gather(ids, tf.minimum(position, n_ids - 1)), tf.int32)
        tokens = tf.cast(tf.gather(ids, tf.clip_by_value(position - 1, 0, n_ids - 1)), tf.int32)
        tokens = tf.where(position == 0, token_before, tokens)
        return tf.where(valid, tokens, 0), tf.where(valid, targets, IGNORED)

    first_part = start * replicas.count
    if seed is None:
        part_numbers = tf.data.Dataset.range(first_part, -(-n_rows // batch_size) * replicas.count)
    else:
        part_numbers = tf.data.Dataset.counter(first_part)
    options = tf.data.Options()
    # The default optimizations copy the ids, up to 2 GB of them.
    options.experimental_optimization.apply_default_optimizations = False
    return part_numbers.map(make_part).prefetch(tf.data.AUTOTUNE).with_options(options)


def _as_tensor(ids: np.ndarray) -> tf.Tensor:
    """The ids as a tensor that shares their memory or file. Ids that are not aligned to 64 bytes are copied."""
    ids = np.ascontiguousarray(ids)
    if ids.ctypes.data % 64:
        return tf.constant(ids)
    if not ids.flags.writeable:
        # NumPy exports no read-only array by DLPack, so it gets one that claims to be writeable. Nothing writes to it.
        interface = {**ids.__array_interface__, "data": (ids.ctypes.data, False)}
        ids = np.asarray(types.SimpleNamespace(__array_interface__=interface, owner=ids))
    return tf.experimental.dlpack.from_dlpack(ids.__dlpack__())


def _random_uint64(numbers: tf.Tensor, seed: int) -> tf.Tensor:
    """A pseudo-random uint64 for each number, of the numbers' shape."""
    return _mix(tf.cast(numbers, tf.uint64) + _mix(tf.constant(seed % 2**64, tf.uint64)))


def _mix(x: tf.Tensor) -> tf.Tensor:
    """SplitMix64's step and finalizer, a permutation of uint64 (Steele et al., 2014)."""
    x += tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = _xor(x, tf.bitwise.right_shift(x, tf.constant(shift, tf.uint64))) * tf.constant(factor, tf.uint64)
    return _xor(x, tf.bitwise.right_shift(x, tf.constant(31, tf.uint64)))


def _permute(numbers: tf.Tensor, keys: tf.Tensor, count: int) -> tf.Tensor:
    """Map each number to its place in a random permutation of 0 to count - 1, without keeping the permutation.

    A Feistel network permutes the numbers with as many bits as `count - 1`. A number that it maps to `count` or above
    goes through it again (cycle walking), so the numbers below `count` are permuted among themselves.

    Args:
        numbers: int64 [n].
        keys: uint64 [n]; each key stands for another permutation.

    Returns:
        int64 [n].
    """
    bits = (count - 1).bit_length()
    half = tf.constant(bits // 2, tf.uint64)
    masks = [tf.constant((1 << size) - 1, tf.uint64) for size in (bits - bits // 2, bits // 2)]

    def network(x: tf.Tensor) -> tf.Tensor:
        left, right, round_keys = tf.bitwise.right_shift(x, half), _and(x, masks[1]), keys
        for _ in range(FEISTEL_ROUNDS):
            left = _xor(left, _and(_mix(right + round_keys), masks[0]))
            right = _xor(right, _and(_mix(left - round_keys), masks[1]))
            round_keys *= tf.constant(0xD1342543DE82EF95, tf.uint64)
        return tf.bitwise.left_shift(left, half) + right

    limit = tf.constant(count, tf.uint64)
    (places,) = tf.while_loop(
        lambda x: tf.reduce_any(x >= limit),
        lambda x: (tf.where(x >= limit, network(x), x),),
        (network(tf.cast(numbers, tf.uint64)),),
    )
    return tf.cast(places, tf.int64)
