"""The kernels' special cases against the plain formulas."""

import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf.model import ops
from gpt2_tf.model.ops import dropout


def test_dropout_keeps_the_mean_and_depends_on_seed_and_site_alone():
    x, seed = tf.ones([100, 1000]), tf.constant([5, 6])
    dropped = dropout(x, 0.2, seed, 3).numpy()
    assert set(np.unique(dropped)) == {0, np.float32(1.25)}
    assert dropped.mean() == pytest.approx(1, abs=0.01)  # the mean has a standard deviation of 0.0016
    np.testing.assert_array_equal(dropout(x, 0.2, seed, 3), dropped)
    for other in (dropout(x, 0.2, seed, 4), dropout(x, 0.2, seed + 1, 3)):
        assert np.mean(other.numpy() == dropped) == pytest.approx(0.68, abs=0.02)  # 0.8 * 0.8 + 0.2 * 0.2
    assert dropout(x, 0.2, None, 3) is x and dropout(x, 0, seed, 3) is x


def drawn(*shape):
    return tf.constant(np.random.default_rng(0).normal(size=shape), tf.float32)


@pytest.mark.parametrize("n_embd", [1, 34, 60, 64])
@pytest.mark.parametrize("shape", [(1, 1), (1, 5), (3, 1), (2, 4)])
def test_products_equal_the_plain_formula(n_embd, shape):
    """float32 sums of up to 100, in another order: 1e-4 is about ten roundings of the largest.

    The two softmaxes use different exponential functions, whose results differ by a few roundings.
    """
    x, w, wte = drawn(*shape, n_embd), drawn(1, n_embd, 48), drawn(11, n_embd)
    np.testing.assert_allclose(ops.linear(x, w), x.numpy() @ w.numpy()[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(ops.tied_logits(x, wte), x.numpy() @ wte.numpy().T, rtol=0, atol=1e-4)
    np.testing.assert_allclose(ops.softmax(x), tf.nn.softmax(x), rtol=1e-5)


GRAPH = """
import os, sys
cores = int(sys.argv[1])
os.cpu_count = lambda: cores
os.sched_getaffinity = lambda pid: set(range(cores))
import tensorflow as tf
from gpt2_tf import GPT2, HParams
model = GPT2(HParams(n_vocab=31, n_ctx=16, n_embd=256, n_head=2, n_layer=1), w_init_stdev=0)
step = tf.function(model.forward, input_signature=[tf.TensorSpec([1, 1], tf.int32)])
sys.stdout.write(str(step.get_concrete_function().graph.as_graph_def()))
"""


@pytest.mark.slow
def test_the_traced_graph_does_not_depend_on_the_number_of_cores():
    """An export made on 2 cores runs on 64: the parts of a product must not be counted on the exporting machine."""
    made = [
        subprocess.Popen([sys.executable, "-c", GRAPH, cores], stdout=subprocess.PIPE, text=True)
        for cores in ("2", "64")
    ]
    one, other = (process.communicate(timeout=300)[0] for process in made)
    assert "BatchMatMulV3" in one and one == other
