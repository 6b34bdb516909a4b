"""The next token's cross-entropy, a part of the logits at a time: [batch, seq, n_vocab] is never whole in memory."""

import tensorflow as tf

CHUNK = 2**24  # logits at a time, 64 MB in float32


def cross_entropy(
    h: tf.Tensor, wte: tf.Tensor, targets: tf.Tensor, training: bool = False, frozen: bool = False
) -> tf.Tensor:
    """The sum of -log p(target) in nats, float32 [], over the targets that aren't negative.

    In training its gradients are computed on the way, so that no logits are kept, or computed twice.

    Args:
        h: [batch, seq, n_embd], what the head reads.
        wte: [n_vocab, n_embd], the head, of the same dtype.
        targets: int [batch, seq]; those below 0 are padding.
        frozen: whether the head is to have no gradient, which is a third of the work.
    """
    h, targets = tf.reshape(h, [-1, h.shape[-1]]), tf.reshape(targets, [-1])
    rows, size = tf.shape(h)[0], max(1, CHUNK // wte.shape[0])

    def chunk(first: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        """Some rows of h, the sum of their losses, and its gradient by their logits."""
        part, target = h[first : first + size], targets[first : first + size]
        kept = tf.cast(target >= 0, tf.float32)
        losses, gradients = tf.raw_ops.SparseSoftmaxCrossEntropyWithLogits(
            features=tf.cast(tf.matmul(part, wte, transpose_b=True), tf.float32), labels=tf.maximum(target, 0)
        )
        return part, tf.reduce_sum(losses * kept), tf.cast(gradients * kept[:, None], h.dtype)

    def loop(body, *variables):
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
        sums = [] if frozen else [tf.zeros(wte.shape)]  # float32: of many chunks
        total, parts, *wte_gradient = loop(body, parts, *sums)
        h_gradient = parts.concat()

        def gradient(upstream):
            by_wte = None if frozen else tf.cast(upstream * wte_gradient[0], wte.dtype)
            return tf.cast(upstream, h.dtype) * h_gradient, by_wte

        return total, gradient

    return summed(h, wte)


def likelihood(h: tf.Tensor, wte: tf.Tensor, targets: tf.Tensor, never: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """Of each target, [n]: log p in nats, float32; whether no token is likelier; whether none is, but those of `never`.

    Args:
        h: [n, n_embd], what the head reads.
        wte: [n_vocab, n_embd], the head, of the same dtype.
        targets: int [n].
        never: bool [n_vocab]; a target that is one of them isn't the likeliest of the others.
    """
    n, size = tf.shape(h)[0], max(1, CHUNK // wte.shape[0])
    pieces = (n + size - 1) // size

    def chunk(i: tf.Tensor, *arrays: tf.TensorArray) -> tuple:
        target = targets[i * size : (i + 1) * size]
        logits = tf.cast(tf.matmul(h[i * size : (i + 1) * size], wte, transpose_b=True), tf.float32)
        logprobs = -tf.nn.sparse_softmax_cross_entropy_with_logits(target, logits)
        logit = tf.gather(logits, target, batch_dims=1)
        others = tf.reduce_max(tf.where(never, -float("inf"), logits), axis=-1)
        found = logprobs, logit >= tf.reduce_max(logits, axis=-1), (logit >= others) & ~tf.gather(never, target)
        return i + 1, *(array.write(i, values) for array, values in zip(arrays, found, strict=True))

    dtypes = (tf.float32, tf.bool, tf.bool)
    arrays = [tf.TensorArray(dtype, pieces, infer_shape=False, element_shape=[None]) for dtype in dtypes]
    _, *arrays = tf.while_loop(lambda i, *_: i < pieces, chunk, (0, *arrays), parallel_iterations=1)
    return tuple(array.concat() for array in arrays)
