"""How much arithmetic training takes per token, and how much of it this machine can do per second."""

import time

import tensorflow as tf

from gpt2_tf.hparams import HParams


def flops_per_token(hparams: HParams, window: int, frozen: bool = False) -> int:
    """Floating-point operations that one training step takes per token; a multiplication and an addition are two.

    Each weight takes 2 in the forward pass and 4 in the backward pass: 2 for the gradient of the layer's input and 2
    for the gradient of the weight. Attention has two products without weights, queries by keys and probabilities by
    values. Each takes 2 * n_embd per position of the window forward, and twice that backward. Position embeddings are
    added, not multiplied, so they take nothing.

    Source: "PaLM: Scaling Language Modeling with Pathways" (Chowdhery et al., 2022), appendix B.

    Args:
        hparams: the size of the model.
        window: tokens per row; attention is counted over the full window, as TensorFlow computes it.
        frozen: whether the weights are frozen beside small adapters; then they have no gradient of their own.

    Example:
        >>> flops_per_token(HParams.from_size("124M"), window=256) / 1e6  # MFLOP per token
        770.231808
    """
    position_embeddings = hparams.n_ctx * hparams.n_embd
    per_weight = 4 if frozen else 6
    return per_weight * (hparams.n_params - position_embeddings) + 12 * hparams.n_layer * hparams.n_embd * window


def matmul_peak(size: int = 1536) -> float:
    """FLOP per second of a float32 matrix product on this machine: the fastest of five, after one to warm up.

    Args:
        size: rows and columns of the two square matrices.

    Example:
        >>> matmul_peak(256) > 1e6
        True
    """
    x = tf.random.normal([size, size])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(x, x)))
    seconds = []
    for _ in range(6):
        started = time.perf_counter()
        product().numpy()
        seconds.append(time.perf_counter() - started)
    return 2 * size**3 / min(seconds)
