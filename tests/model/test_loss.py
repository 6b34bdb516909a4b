"""The loss against NumPy in float64, and against TensorFlow's loss on all logits at once."""

import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf.model import loss

N_VOCAB, N_EMBD = 37, 8


def drawn(batch, seq, dtype=tf.float32):
    """Return hidden states, a tied embedding and targets, some of which are padding."""
    rng = np.random.default_rng(batch * seq)
    h, wte = rng.normal(0, 1, [batch, seq, N_EMBD]), rng.normal(0, 1, [N_VOCAB, N_EMBD])
    targets = rng.integers(0, N_VOCAB, [batch, seq])
    targets[rng.random([batch, seq]) < 0.3] = -1
    targets.flat[-2:] = [-1, 0][-targets.size :]
    return tf.cast(h, dtype), tf.cast(wte, dtype), targets.astype(np.int32)


def expected(h, wte, targets, logits=None):
    """Return the sum of -log p and its gradients by h and wte, in float64; `logits` replaces the exact ones."""
    h, wte = (np.asarray(x, np.float64) for x in (h, wte))
    logits = h @ wte.T if logits is None else logits
    p = np.exp(logits - logits.max(-1, keepdims=True))
    p /= p.sum(-1, keepdims=True)
    kept = targets >= 0
    one_hot = np.eye(N_VOCAB)[np.maximum(targets, 0)]
    by_logits = (p - one_hot) * kept[..., None]
    total = -(np.log((p * one_hot).sum(-1)) * kept).sum()
    return total, by_logits @ wte, np.einsum("bsv,bse->ve", by_logits, h)


def found(h, wte, targets, factor=1):
    """Return the loss times a factor and its gradients, as training computes them."""
    with tf.GradientTape() as tape:
        tape.watch([h, wte])
        total = factor * loss.cross_entropy(h, wte, targets, training=True)
    return total, *tape.gradient(total, [h, wte])


@pytest.fixture(params=[1, 5, 6, 7, 12, 1000])
def rows(request, monkeypatch):
    """Rows per chunk. A batch of 2 x 6 has 12 rows, so there are many chunks or one, with or without a remainder."""
    monkeypatch.setattr(loss, "CHUNK", request.param * N_VOCAB + N_VOCAB - 1)
    return request.param


def assert_close(one, other, rtol=1e-6):
    for x, y in zip(one, other, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=rtol * np.abs(y).max())


@pytest.mark.parametrize("graph", [False, True], ids=["eager", "graph"])
def test_loss_and_gradients_equal_numpys_for_every_chunk_size(rows, graph):
    """The tolerance, 1e-6 of the largest value, allows float32 roundings of values of about 1."""
    h, wte, targets = drawn(2, 6)
    train = tf.function(found) if graph else found
    assert_close(train(h, wte, targets), expected(h, wte, targets))
    total = loss.cross_entropy(h, wte, targets)
    assert total.dtype == tf.float32 and total.shape == []
    assert_close([total], expected(h, wte, targets)[:1])


def test_shapes_may_be_unknown_when_traced(rows):
    signature = [
        tf.TensorSpec([None, None, N_EMBD]),
        tf.TensorSpec([N_VOCAB, N_EMBD]),
        tf.TensorSpec([None, None], "int32"),
    ]
    train = tf.function(found, input_signature=signature)
    for shape in ((2, 6), (1, 1), (3, 5)):
        arguments = drawn(*shape)
        assert_close(train(*arguments), expected(*arguments))


def test_the_loss_equals_tensorflows(rows):
    h, wte, targets = drawn(2, 6)
    kept = targets >= 0
    with tf.GradientTape() as tape:
        tape.watch([h, wte])
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(
            tf.maximum(targets, 0), tf.matmul(h, wte, transpose_b=True)
        )
        total = tf.reduce_sum(losses * tf.cast(kept, tf.float32))
    assert_close(found(h, wte, targets), [total, *tape.gradient(total, [h, wte])])


def test_gradients_follow_the_chain_rule():
    h, wte, targets = drawn(2, 6)
    assert_close(found(h, wte, targets, -0.25), [-0.25 * x for x in expected(h, wte, targets)])


def test_a_frozen_embedding_has_no_gradient_and_the_rest_stays(rows):
    h, wte, targets = drawn(2, 6)
    with tf.GradientTape() as tape:
        tape.watch([h, wte])
        total = loss.cross_entropy(h, wte, targets, training=True, frozen=True)
    by_h, by_wte = tape.gradient(total, [h, wte])
    assert by_wte is None
    assert_close([total, by_h], expected(h, wte, targets)[:2])


def test_padding_has_no_part_in_loss_and_gradients():
    h, wte, targets = drawn(2, 6)
    assert_close(found(h, wte, np.full_like(targets, -1)), [0, np.zeros([2, 6, N_EMBD]), np.zeros([N_VOCAB, N_EMBD])])
    other = tf.where(targets[..., None] >= 0, h, h + 5)
    np.testing.assert_array_equal(loss.cross_entropy(h, wte, targets), loss.cross_entropy(other, wte, targets))
    assert not np.any(found(h, wte, targets)[1].numpy()[targets < 0])


@pytest.mark.slow
@pytest.mark.parametrize("dtype, rtol", [(tf.bfloat16, 2**-7), (tf.float16, 2**-10)], ids=["bfloat16", "float16"])
def test_16_bit_dtypes_lose_two_roundings(rows, dtype, rtol):
    """The gradients have the dtype, and the sums over the chunks are float32.

    The reference starts from the 16-bit logits of this CPU, since CPUs round them differently. After the logits, the
    gradient by the logits and the result are rounded: two roundings of the largest value, of half the dtype's epsilon
    `rtol` each. The gradient of the embedding, summed in 16 bits over 512 chunks of one row, is off by four to six.
    """
    h, wte, targets = drawn(8, 64, dtype)
    logits = tf.matmul(tf.reshape(h, [-1, N_EMBD]), wte, transpose_b=True).numpy().astype(np.float64)
    total, *gradients = found(h, wte, targets)
    assert total.dtype == tf.float32 and {gradient.dtype for gradient in gradients} == {dtype}
    results = [total, *(tf.cast(gradient, tf.float32) for gradient in gradients)]
    assert_close(results, expected(h.numpy(), wte.numpy(), targets, logits.reshape(8, 64, N_VOCAB)), rtol)


def test_only_one_chunk_of_logits_exists_at_a_time(monkeypatch):
    """No tensor of the graph has the shape of all logits, in training and evaluation. 37 is the vocabulary only."""
    monkeypatch.setattr(loss, "CHUNK", 4 * N_VOCAB)
    h, wte, targets = drawn(3, 7)
    for function in (found, loss.cross_entropy):
        graph = tf.function(function).get_concrete_function(h, wte, targets).graph.as_graph_def()
        shapes = [
            [dim.size for dim in shape.dim]
            for body in graph.library.function
            for node in body.node_def
            for shape in node.attr["_output_shapes"].list.shape
        ]
        assert [21, N_VOCAB] not in shapes and [3, 7, N_VOCAB] not in shapes
