"""Batches of token ids: their rows against slices made with NumPy, their order, and the start at any step."""

import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf.data.dataset import IGNORED, ReplicaSlice, documents, windows

END = 9


def take(dataset, n=-1):
    """The first n batches, or all, as pairs of arrays."""
    return [(tokens.numpy(), targets.numpy()) for tokens, targets in dataset.take(n)]


def rows(batches):
    """The rows that have a target, in order, each as `(tokens, targets)` without the padding."""
    pairs = [pair for batch in batches for pair in zip(*(part.tolist() for part in batch), strict=True)]
    kept = []
    for tokens, targets in pairs:
        n = sum(target != IGNORED for target in targets)
        assert targets[n:] == [IGNORED] * (len(targets) - n) and tokens[n:] == [0] * (len(tokens) - n)
        kept += [(tokens[:n], targets[:n])] * bool(n)
    return kept


# Windows


@pytest.mark.parametrize("count, window, batch_size", [(100, 8, 4), (24, 8, 4), (17, 8, 1), (97, 96, 2), (200, 1, 7)])
def test_shuffled_windows_are_slices_of_the_ids_with_the_next_ids_as_targets(count, window, batch_size):
    n = max(1, (count - window) // window)
    batches = take(windows(range(100, 100 + count), window, batch_size, seed=3), 3 * n)  # batch_size * 3 epochs
    for tokens, targets in batches:
        assert tokens.shape == targets.shape == (batch_size, window)
        assert tokens.dtype == targets.dtype == np.int32
        np.testing.assert_array_equal(tokens, tokens[:, :1] + np.arange(window))
        np.testing.assert_array_equal(targets, tokens + 1)
        assert tokens.min() >= 100 and targets.max() < 100 + count
    begins = np.array([tokens[0] for tokens, _ in rows(batches)]).reshape(3 * batch_size, n) - 100
    for epoch in begins:  # each window once; together they cover the ids without gaps
        np.testing.assert_array_equal(np.sort(epoch), epoch.min() + np.arange(n) * window)
        assert epoch.min() < window and count - 1 - n * window < 2 * window


def test_each_epoch_has_its_own_order_and_offset():
    begins = np.array([tokens[0] for tokens, _ in rows(take(windows(range(1000), 10, 9, seed=1), 11 * 40))])
    epochs = begins.reshape(40, 99)
    assert {int(begin) for begin in epochs.min(axis=1)} == set(range(10))
    orders = {tuple(epoch - epoch.min()) for epoch in epochs}
    assert len(orders) == 40 and tuple(range(0, 990, 10)) not in orders


def test_the_order_is_random():
    """Each of 5 windows is equally likely at each of 5 places of the order.

    The counts of the 5 x 5 table have fixed row and column sums, so 4/5 of the usual chi-squared sum has 16 degrees of
    freedom. One random table in 7,000 exceeds 45.
    """
    n, epochs = 5, 5000
    begins = np.array([tokens[0] for tokens, _ in rows(take(windows(range(60), 10, n * 100, seed=5), epochs // 100))])
    epochs = begins.reshape(epochs, n)
    places = (epochs - epochs.min(axis=1, keepdims=True)) // 10
    counts = np.array([[np.sum(places[:, at] == window) for window in range(n)] for at in range(n)])
    assert 0.8 * np.sum((counts - 1000) ** 2 / 1000) < 45
    assert len(Counter(map(tuple, places.tolist()))) == 120  # all 5! orders occur


@pytest.mark.slow
def test_the_same_seed_gives_the_same_batches():
    first, again, other = (take(windows(range(99), 8, 4, seed=seed), 5) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    for seed in (-(2**63), 2**63 - 1):
        take(windows(range(99), 8, 4, seed=seed), 1)


@pytest.mark.slow
@pytest.mark.parametrize("start", [1, 5, 23, 1000])
def test_batches_from_any_step_are_those_of_the_whole_run(start):
    ids = [1, 2, END, 3, 4, 5, 6, END, 7, END] * 5
    for make in (windows, lambda *args, **kw: documents(*args, end_of_text=END, **kw)):
        if start < 100:
            whole = take(make(ids, 3, 4, seed=7), start + 20)
            np.testing.assert_array_equal(take(make(ids, 3, 4, seed=7, start=start), 20), whole[start:])
        else:
            once, again = (take(make(ids, 3, 4, seed=7, start=start), 20) for _ in range(2))
            np.testing.assert_array_equal(once, again)


@pytest.mark.slow
@pytest.mark.parametrize("seed, start", [(None, 0), (7, 0), (7, 30)])
def test_the_parts_of_all_replicas_make_up_the_batch(seed, start):
    """Batches of 6 rows and 3 replicas: the first worker has two replicas, the second worker one."""
    ids = [1, 2, END, 3, 4, 5, 6, END, 7, END] * 5
    for make in (windows, lambda *args, **kw: documents(*args, end_of_text=END, **kw)):
        whole = take(make(ids, 3, 6, seed=seed, start=start), 8)
        shares = [
            make(ids, 3, 6, seed=seed, start=start, replicas=ReplicaSlice(*share)) for share in ((0, 2, 3), (2, 1, 3))
        ]
        first, second = take(shares[0], 2 * len(whole)), take(shares[1], len(whole))
        if seed is None:
            assert [int(share.cardinality()) for share in shares] == [2 * len(whole), len(whole)]
        parts = [first[::2], first[1::2], second]
        for batch, *shared in zip(whole, *parts, strict=True):
            np.testing.assert_array_equal(np.concatenate(shared, axis=1), batch)


def test_a_batch_that_replicas_cannot_share_equally_is_refused():
    with pytest.raises(ValueError, match="batch_size 4 can't be divided among 3 replicas"):
        windows(range(99), 8, 4, replicas=ReplicaSlice(0, 1, 3))


def test_only_the_rows_of_a_batch_are_read_from_a_large_file(tmp_path):
    """The file is sparse and has 10 GB."""
    status = Path("/proc/self/status")
    if not status.exists():
        pytest.skip("needs Linux's count of this process's memory")

    def memory() -> int:
        """Bytes of memory in use that are not a copy of a file."""
        return 1024 * int(re.search(r"RssAnon:\s*(\d+)", status.read_text())[1])

    path = tmp_path / "ids.bin"
    count = 5 * 2**30
    with open(path, "wb") as file:
        file.truncate(2 * count)
    with open(path, "r+b") as file:
        file.seek(2 * (count - 1024))
        file.write(np.full(1024, 50256, np.uint16).tobytes())
    ids = np.memmap(path, np.uint16, mode="r")
    before = memory()
    batches = take(windows(ids, 1024, 8, seed=1), 4)
    assert all(not tokens.any() for tokens, _ in batches)
    assert memory() - before < 0.5e9
    last = -(-(count - 1) // 1024) - 1
    ((tokens, targets),) = take(windows(ids, 1024, 1, start=last))
    assert tokens[0, :1023].tolist() == [50256] * 1023 == targets[0, :1023].tolist()
    assert targets[0, 1023] == IGNORED


@pytest.mark.parametrize("count, window, batch_size", [(100, 8, 4), (97, 8, 4), (98, 8, 4), (5, 8, 3), (2, 1, 1)])
def test_without_a_seed_every_id_but_the_first_is_a_target_once(count, window, batch_size):
    dataset = windows(range(100, 100 + count), window, batch_size)
    batches = take(dataset)
    assert dataset.cardinality() == len(batches) == -(-(count - 1) // (window * batch_size))
    assert all(tokens.shape == targets.shape == (batch_size, window) for tokens, targets in batches)
    assert [token for tokens, _ in rows(batches) for token in tokens] == list(range(100, 100 + count - 1))
    assert [target for _, targets in rows(batches) for target in targets] == list(range(101, 100 + count))


@pytest.mark.parametrize("seed", [None, 1])
def test_ids_shorter_than_a_window_are_padded(seed):
    ((tokens, targets),) = take(windows([5, 6, 7], 4, 1, seed=seed), 1)
    assert (tokens.tolist(), targets.tolist()) == ([[5, 6, 0, 0]], [[6, 7, IGNORED, IGNORED]])


def test_ids_of_one_window_and_one_more_make_one_row():
    ((tokens, targets),) = take(windows([5, 6, 7], 2, 1, seed=1), 1)
    assert (tokens.tolist(), targets.tolist()) == ([[5, 6]], [[6, 7]])


# Documents


def test_each_document_has_its_own_rows():
    ids = [1, 2, END, 3, END, END, 4, 5, 6, 7, 8, END, 1, 2]
    dataset = documents(ids, 4, 2, end_of_text=END)
    batches = take(dataset)
    assert dataset.cardinality() == len(batches) == 3
    assert rows(batches) == [
        ([END, 1, 2], [1, 2, END]),
        ([END, 3], [3, END]),
        ([END], [END]),
        ([END, 4, 5, 6], [4, 5, 6, 7]),
        ([7, 8], [8, END]),
        ([END, 1], [1, 2]),
    ]


def test_each_epoch_has_every_row_of_every_document_once():
    rng = np.random.default_rng(0)
    texts = [[*rng.integers(0, END, rng.integers(0, 12)).tolist(), END] for _ in range(50)]
    ids = np.array([id for text in texts for id in text], np.uint16)
    expected = []
    for text in texts:
        tokens = [END, *text]
        expected += [(tokens[at : min(at + 5, len(text))], text[at : at + 5]) for at in range(0, len(text), 5)]
    assert rows(take(documents(ids, 5, 7, end_of_text=END))) == expected
    n = len(expected)
    epochs = rows(take(documents(ids, 5, n, end_of_text=END, seed=4), 3))
    assert [sorted(epochs[at : at + n]) for at in (0, n, 2 * n)] == [sorted(expected)] * 3
    assert epochs[:n] != expected and epochs[:n] != epochs[n : 2 * n]


def test_document_ends_are_found_at_the_borders_of_a_search():
    ids = np.ones(2**21 + 5, np.uint32)
    places = [2**20 - 1, 2**20, 2**21, 2**21 + 4]
    ids[places] = END
    dataset = documents(ids, 2**21, 1, end_of_text=END)
    assert [len(tokens) for tokens, _ in rows(take(dataset))] == np.diff([-1, *places]).tolist()


def test_unaligned_strided_and_read_only_ids_are_read():
    ids = np.arange(200, dtype=np.uint16)
    ids.flags.writeable = False
    for begin in (0, 1, 32, 33):
        ((tokens, _),) = take(windows(ids[begin:], 16, 1), 1)
        np.testing.assert_array_equal(tokens[0], np.arange(begin, begin + 16))
    ((tokens, _),) = take(windows(ids[::-2], 16, 1), 1)
    np.testing.assert_array_equal(tokens[0], np.arange(199, 167, -2))


@pytest.mark.slow
def test_a_process_can_end_while_batches_are_made():
    code = (
        "from gpt2_tf.data.dataset import windows; batches = iter(windows(range(9999), 64, 64, seed=1)); next(batches)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60, stderr=subprocess.DEVNULL)


# For `fit`


def test_keras_fit_takes_the_batches_and_knows_their_shapes():
    import keras

    for dataset in (windows(range(50), 4, 2, seed=1), documents(range(50), 4, 2, end_of_text=END)):
        assert [spec.shape for spec in dataset.element_spec] == [(2, 4), (2, 4)]
        assert [spec.dtype for spec in dataset.element_spec] == [tf.int32, tf.int32]
    assert windows(range(50), 4, 2, seed=1).cardinality() == tf.data.INFINITE_CARDINALITY
    model = keras.Sequential([keras.layers.Embedding(50, 50)])
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True, ignore_class=IGNORED)
    model.compile("sgd", loss, jit_compile=False)
    validation = windows(range(50), 4, 2)
    model.fit(windows(range(50), 4, 2, seed=1), steps_per_epoch=3, validation_data=validation, shuffle=False, verbose=0)


@pytest.mark.parametrize(
    "ids, window, batch_size, start, message",
    [
        ([5], 2, 1, 0, r"ids are int64 \[1\], but must be at least 2 integers in one dimension"),
        ([[5, 6]], 2, 1, 0, r"ids are int64 \[1, 2\]"),
        ([0.5, 1.5], 2, 1, 0, r"ids are float64 \[2\]"),
        ([5, 6], 0, 1, 0, "window is 0, but must be at least 1"),
        ([5, 6], 1, 0, 0, "batch_size is 0, but must be at least 1"),
        ([5, 6], 1, 1, -1, "start is -1, but must be at least 0"),
    ],
)
def test_errors_name_the_wrong_value_and_the_expected_one(ids, window, batch_size, start, message):
    with pytest.raises(ValueError, match=message):
        windows(ids, window, batch_size, start=start)
    with pytest.raises(ValueError, match=message):
        documents(ids, window, batch_size, end_of_text=END, start=start)
