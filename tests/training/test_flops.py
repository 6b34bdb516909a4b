"""The count of FLOP, against the products of the network counted one by one, and against TensorFlow's profiler."""

import pytest
import tensorflow as tf

from gpt2_tf import GPT2, HParams
from gpt2_tf.training.flops import flops_per_token, matmul_peak

HPARAMS = HParams(n_vocab=500, n_ctx=64, n_embd=48, n_head=3, n_layer=2)


def matmul_flops(rows: int, inner: int, columns: int) -> int:
    """A multiplication and an addition for each term of each element of the product."""
    return 2 * rows * inner * columns


def forward_flops(hparams: HParams, window: int) -> int:
    """The matrix products of the forward pass over one row of `window` tokens."""
    n_embd, head_dim = hparams.n_embd, hparams.n_embd // hparams.n_head
    attention = matmul_flops(window, n_embd, 3 * n_embd) + matmul_flops(window, n_embd, n_embd)
    scores = hparams.n_head * (matmul_flops(window, head_dim, window) + matmul_flops(window, window, head_dim))
    mlp = matmul_flops(window, n_embd, 4 * n_embd) + matmul_flops(window, 4 * n_embd, n_embd)
    return hparams.n_layer * (attention + scores + mlp) + matmul_flops(window, n_embd, hparams.n_vocab)


@pytest.mark.parametrize("size", ["124M", "1558M"])
@pytest.mark.parametrize("window", [1, 256, 1024])
def test_a_step_takes_three_times_the_products_of_the_forward_pass(size, window):
    """The backward pass has two products for each of the forward pass. 0.2%, for the biases and gains."""
    hparams = HParams.from_size(size)
    expected = 3 * forward_flops(hparams, window) / window
    assert flops_per_token(hparams, window) == pytest.approx(expected, rel=2e-3)


def test_frozen_weights_have_no_gradients_of_their_own():
    """So each product with a weight has one product in the backward pass; attention keeps two."""
    hparams, window = HParams.from_size("124M"), 1024
    attention = 4 * hparams.n_layer * hparams.n_embd * window
    weights = forward_flops(hparams, window) / window - attention
    assert flops_per_token(hparams, window, frozen=True) == pytest.approx(2 * weights + 3 * attention, rel=2e-3)


def test_tensorflow_profiler_counts_the_same_products():
    """Its count of the forward pass. 5%, because it counts the additions of biases and other small ops too."""
    model = GPT2(HPARAMS)
    forward = tf.function(model, autograph=False)
    graph = forward.get_concrete_function(tf.TensorSpec([1, 64], tf.int32)).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    options["output"] = "none"
    counted = tf.compat.v1.profiler.profile(graph, options=options).total_float_ops
    assert counted == pytest.approx(flops_per_token(HPARAMS, 64) / 3 * 64, rel=0.05)


def test_matmul_peak_is_a_rate_of_this_machine():
    assert 1e8 < matmul_peak(256) < 1e15
