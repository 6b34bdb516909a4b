"""The arithmetic of GPT-2's layers, in the form that TensorFlow's kernels run fastest.

`gpt2.py` reads like OpenAI's `model.py`; each departure from the plain formula is here, with its reason.

How a product is cut into parts is fixed (`PARTS`), not taken from the number of cores. A SavedModel keeps the graph as
it was traced, so a count of cores would be that of the machine that exported the model. TensorFlow spreads the parts
over the threads of the machine that runs them. `os.cpu_count()` would also ignore the limits of a container.
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from math import gcd, pi, sqrt

import tensorflow as tf
from tensorflow.python.framework.ops import gradient_registry

# The number of parts that a matrix is cut into when one vector is multiplied by it. It is larger than the number of
# threads that memory can feed on common machines, and divides the widths of OpenAI's models. More parts than threads
# cost nothing that could be measured: one token of 124M on two busy cores took, at best of 12 rounds in turn, 96, 86,
# 98, 77, 66 and 56 ms with 1, 2, 4, 8, 16 and 32 parts; the medians were 120 to 157 ms, without an order.
PARTS = 16


def gelu(x: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Compute GELU in its tanh form (Hendrycks and Gimpel, 2016), as OpenAI's code does.

    Args:
        training: whether to use the gradient of `lean_gradient`, which keeps less in memory. Default: no.

    Example:
        >>> print(gelu(tf.constant([-1.0, 0.0, 1.0])).numpy().round(4))
        [-0.1588  0.      0.8412]
    """

    def tanh(x):
        return tf.tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))

    def forward(x):
        return 0.5 * x * (1 + tanh(x))

    def gradient(upstream, x):
        t = tanh(x)
        slope = sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x)
        return (upstream * 0.5 * (1 + t + x * (1 - t * t) * slope),)

    return lean_gradient(forward, gradient)(x) if training else forward(x)


def norm(x: tf.Tensor, g: tf.Tensor, b: tf.Tensor, training: bool | None = None) -> tf.Tensor:
    """Normalise the last axis of `x` (biased variance, epsilon 1e-5), then apply gain `g` and bias `b`, [n_embd] each.

    Args:
        training: whether to use the gradient of `lean_gradient`, which keeps less in memory. Default: no.

    Example:
        >>> norm(tf.constant([[1.0, 3.0]]), g=tf.ones(2), b=tf.zeros(2)).numpy().round(3).tolist()
        [[-1.0, 1.0]]
    """

    def normalize(x):
        centered = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True) + 1e-5)
        return centered * scale, scale

    def forward(x, g, b):
        return normalize(x)[0] * g + b

    def gradient(upstream, x, g, b):
        y, scale = normalize(x)
        inner = upstream * g
        along = tf.reduce_mean(inner, axis=-1, keepdims=True) + y * tf.reduce_mean(inner * y, axis=-1, keepdims=True)
        rows = tf.range(tf.rank(x) - 1)
        return scale * (inner - along), tf.reduce_sum(upstream * y, rows), tf.reduce_sum(upstream, rows)

    return lean_gradient(forward, gradient)(x, g, b) if training else forward(x, g, b)


def lean_gradient(forward: Callable, gradient: Callable) -> Callable:
    """Return `forward` with a gradient that keeps only its inputs in memory: `gradient(upstream, *inputs)`.

    TensorFlow's own gradient would keep every intermediate result too: for GELU, seven more tensors of the size of `x`.

    Use it in training only, within `free_gradients_with`.

    Example:
        >>> square = lean_gradient(lambda x: x * x, lambda upstream, x: upstream * 2 * x)
        >>> x = tf.constant(3.0)
        >>> with tf.GradientTape() as tape:
        ...     tape.watch(x)
        ...     y = square(x)
        >>> float(y), float(tape.gradient(y, x))
        (9.0, 6.0)
    """
    return tf.custom_gradient(lambda *inputs: (forward(*inputs), lambda upstream: gradient(upstream, *inputs)))


@contextlib.contextmanager
def free_gradients_with(model: object) -> Iterator[None]:
    """Trace a training step so that its graph is freed together with the model.

    `tf.custom_gradient` and `tf.recompute_grad` enter each use in a table of the process, which TensorFlow never
    clears. The entries hold the graph. So the entries that are made within this context are removed when `model` is
    freed. The table has no public function for that.

    Example:
        >>> with free_gradients_with(model), tf.GradientTape() as tape:
        ...     loss = tf.reduce_sum(model.hidden_states([[10, 20]], training=True)[0])
    """
    table = gradient_registry._registry
    before = set(table)
    yield
    made = set(table) - before
    if made:
        weakref.finalize(model, lambda: [table.pop(name, None) for name in made])


def softmax(x: tf.Tensor) -> tf.Tensor:
    """Compute the softmax over the last axis.

    oneDNN compiles a new kernel for each length of a single row, [..., 1, n]. While a text is written, each step has
    another length, so a single row is computed by simpler kernels.

    Example:
        >>> softmax(tf.constant([[0.0, 0.0]])).numpy().tolist()
        [[0.5, 0.5]]
    """
    if x.shape[-2] != 1:
        return tf.nn.softmax(x)
    ex = tf.exp(x - tf.reduce_max(x, axis=-1, keepdims=True))
    return ex / tf.reduce_sum(ex, axis=-1, keepdims=True)


def matmul(x: tf.Tensor, y: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """Multiply two batches of matrices.

    For a single float32 row, [..., 1, n], oneDNN reads `y` slowly and compiles a new kernel for each length. TensorFlow
    does not pass `BatchMatMulV3` to oneDNN, so a single row uses this operation.

    Example:
        >>> matmul(tf.constant([[1.0, 2.0]]), tf.constant([[3.0], [4.0]])).numpy().tolist()
        [[11.0]]
    """
    if x.shape[-2] != 1 or x.dtype != tf.float32:
        return tf.matmul(x, y, transpose_b=transpose_b)
    return tf.raw_ops.BatchMatMulV3(x=x, y=y, Tout=x.dtype, adj_y=transpose_b)


def linear(x: tf.Tensor, w: tf.Tensor) -> tf.Tensor:
    """Multiply the last axis of `x`, [..., nx], by `w`, [1, nx, nf]. Returns [..., nf].

    The time of a single token is the time of reading `w`, which one thread cannot do at the memory's full speed. So `w`
    is cut into parts along `nx`, which threads read at the same time; the sum of the parts' products is the result.

    Example:
        >>> linear(tf.constant([[1.0, 2.0]]), tf.constant([[[3.0], [4.0]]])).numpy().tolist()
        [[11.0]]
    """
    _, nx, nf = w.shape
    if x.shape[:-1].num_elements() == 1:
        n = gcd(nx, PARTS)
        y = tf.reduce_sum(matmul(tf.reshape(x, [n, 1, nx // n]), tf.reshape(w, [n, nx // n, nf])), axis=0)
    else:
        y = tf.matmul(tf.reshape(x, [1, -1, nx]), w)
    return tf.reshape(y, [*sizes(x)[:-1], nf])


def tied_logits(h: tf.Tensor, wte: tf.Tensor) -> tf.Tensor:
    """Multiply hidden states, [batch, seq, n_embd], by the tied embedding, [n_vocab, n_embd], transposed.

    Returns [batch, seq, n_vocab]. For one token per row, two cases have faster equivalents: with a single row,
    TensorFlow multiplies two equal rows faster than one; with several, `wte` times the rows takes half the time of the
    rows times `wte`.

    Example:
        >>> h, wte = tf.constant([[[1.0, 2.0]]]), tf.constant([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
        >>> tied_logits(h, wte).numpy().tolist()
        [[[1.0, 2.0, 3.0]]]
    """
    if h.shape[1] != 1:
        return tf.matmul(h, wte, transpose_b=True)
    if h.shape[0] == 1:
        return tf.matmul(tf.tile(h[0], [2, 1]), wte, transpose_b=True)[None, :1]
    return tf.transpose(tf.matmul(wte[None], tf.transpose(h, [1, 2, 0])), [2, 0, 1])


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None, site: int) -> tf.Tensor:
    """Set a random share of `x` to zero, and scale the rest so that the mean stays.

    The draw depends on `seed` and `site` alone. A block that is computed again for its gradient drops the same values,
    and so does a resumed run.

    Args:
        rate: the share that is dropped, in [0, 1).
        seed: int32 [2]; None returns `x` unchanged.
        site: number of the place in the model, so that places with the same seed differ.

    Example:
        >>> x = dropout(tf.ones([1000]), rate=0.2, seed=tf.constant([0, 1]), site=0)
        >>> sorted(set(x.numpy().tolist()))
        [0.0, 1.25]
    """
    if seed is None or not rate:
        return x
    return tf.nn.experimental.stateless_dropout(x, rate, tf.random.fold_in(seed, site), rng_alg="philox")


def sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """Return the sizes of the axes of `x`, for `tf.reshape`.

    Known sizes are numbers. A single unknown size is -1, which needs no operation; several are scalar tensors.

    Example:
        >>> sizes(tf.zeros([2, 3]))
        [2, 3]
    """
    if x.shape.as_list().count(None) <= 1:
        return [-1 if size is None else size for size in x.shape]
    return [tf.shape(x)[i] if size is None else size for i, size in enumerate(x.shape)]
