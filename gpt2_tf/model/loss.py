"""The cross-entropy of the next token. It is computed in chunks, so [batch, seq, n_vocab] is never in memory."""

import tensorflow as tf

CHUNK = 2**24  # logits per chunk: 64 MB in float32


def cross_entropy(
    h: tf.Tensor, wte: tf.Tensor, targets: tf.Tensor, training: bool = False, frozen: bool = False
) -> tf.Tensor:
    """Sum -log p(target) over all targets that are not negative.

    With `training`, the gradients are computed together with the loss, so that no logits are kept or computed twice.

    Args:
        h: hidden states, [batch, seq, n_embd].
        wte: tied embedding, [n_vocab, n_embd], of the same dtype.
        targets: int [batch, seq]; a target below 0 is padding.
        training: whether a gradient will be asked for; False by default.
        frozen: whether `wte` needs no gradient, which saves a third of the work; False by default.

    Returns:
        The sum in nats, float32 [].

    Example:
        >>> import tensorflow as tf
        >>> from gpt2_tf.model.loss import cross_entropy
        >>> h, wte = tf.zeros([1, 2, 8]), tf.zeros([16, 8])
        >>> round(float(cross_entropy(h, wte, tf.constant([[3, -1]]))), 4)  # one target of 16 equal ones: log 16
        2.7726
    """
    h, targets = tf.reshape(h, [-1, h.shape[-1]]), tf.reshape(targets, [-1])
    rows, size = tf.shape(h)[0], max(1, CHUNK // wte.shape[0])

    def chunk(first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Return `size` rows of `h` from row `first`, the sum of their losses, and its gradient by their logits."""
        part, target = h[first : first + size], targets[first : first + size]
        counted = tf.cast(target >= 0, tf.float32)
        losses, gradients = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
            features=tf.cast(tf.matmul(part, wte, transpose_b=True), tf.float32), labels=tf.maximum(target, 0)
        )
        return part, tf.reduce_sum(losses * counted), tf.cast(gradients * counted[:, None], h.dtype)

    def loop(body, *variables):
        """Run `body` for each chunk; the first variable is the sum of the losses."""
        return tf.while_loop(
            lambda first, *_: first < rows,
            lambda first, *variables: (first + size, *body(first, *variables)),
            (tf.constant(0), tf.constant(0.0), *variables),
            parallel_iterations=1,
        )[1:]

    if not training:
        return loop(lambda first, total: (total + chunk(first)[1],))[0]

    def body(first, total, h_gradient, *wte_gradient):
        part, losses, gradient = chunk(first)
        return (
            total + losses,
            h_gradient.write(first // size, tf.matmul(gradient, wte)),
            *(before + tf.cast(tf.matmul(gradient, part, transpose_a=True), before.dtype) for before in wte_gradient),
        )

    @tf.custom_gradient
    def summed(h, wte):
        parts = tf.TensorArray(h.dtype, -(-rows // size), infer_shape=False, element_shape=[None, h.shape[1]])
        # The gradient of `wte` is a sum over many chunks, so it is kept in float32.
        sums = [] if frozen else [tf.zeros(wte.shape)]
        total, parts, *wte_gradient = loop(body, parts, *sums)
        h_gradient = parts.concat()

        def gradient(upstream):
            by_wte = None if frozen else tf.cast(upstream * wte_gradient[0], wte.dtype)
            return tf.cast(upstream, h.dtype) * h_gradient, by_wte

        return total, gradient

    return summed(h, wte)


def likelihood(
    h: tf.Tensor, wte: tf.Tensor, targets: tf.Tensor, never: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Compute how likely each target is.

    Args:
        h: hidden states, [n, n_embd].
        wte: tied embedding, [n_vocab, n_embd], of the same dtype.
        targets: int [n].
        never: bool [n_vocab], the tokens that the third result leaves out.

    Returns:
        Three tensors [n]: log p of the target in nats, float32; whether the target is the most likely token; whether it
        is the most likely token outside `never`. The third is False for a target in `never`.

    Example:
        >>> import tensorflow as tf
        >>> from gpt2_tf.model.loss import likelihood
        >>> h, wte = tf.constant([[1.0]]), tf.constant([[3.0], [2.0], [1.0]])  # logits 3, 2, 1
        >>> logprob, first, first_allowed = likelihood(h, wte, tf.constant([1]), tf.constant([True, False, False]))
        >>> bool(first[0]), bool(first_allowed[0])
        (False, True)
    """
    n, size = tf.shape(h)[0], max(1, CHUNK // wte.shape[0])
    chunks = (n + size - 1) // size

    def chunk(i: tf.Tensor, *arrays: tf.TensorArray) -> tuple:
        target = targets[i * size : (i + 1) * size]
        logits = tf.cast(tf.matmul(h[i * size : (i + 1) * size], wte, transpose_b=True), tf.float32)
        logprobs = -tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits)
        logit = tf.gather(logits, target, batch_dims=1)
        others = tf.reduce_max(tf.where(never, -float("inf"), logits), axis=-1)
        found = logprobs, logit >= tf.reduce_max(logits, axis=-1), (logit >= others) & ~tf.gather(never, target)
        return i + 1, *(array.write(i, values) for array, values in zip(arrays, found, strict=True))

    dtypes = (tf.float32, tf.bool, tf.bool)
    arrays = [tf.TensorArray(dtype, chunks, infer_shape=False, element_shape=[None]) for dtype in dtypes]
    _, *arrays = tf.while_loop(lambda i, *_: i < chunks, chunk, (0, *arrays), parallel_iterations=1)
    return tuple(array.concat() for array in arrays)
