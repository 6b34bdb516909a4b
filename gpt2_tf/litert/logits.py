"""The filters of `generation/logits.py` in NumPy, for one row: pure functions from logits to logits, float32 [n_vocab].

They compute in the same types and in the same order as those, so that the float32 engine chooses the same tokens. The
arguments and sources are described there.
"""

from collections.abc import Sequence

import numpy as np

MASKED = np.finfo(np.float32).min


def mask_tokens(logits: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Mask the tokens for which `mask`, bool [n_vocab], is true.

    Example:
        >>> (mask_tokens(np.float32([1, 2]), np.array([True, False])) == MASKED).tolist()
        [True, False]
    """
    return np.where(mask, MASKED, logits)


def repetition_penalty(logits: np.ndarray, penalty: float, tokens: Sequence[int]) -> np.ndarray:
    """Make the tokens of the text less likely: divide a positive logit by `penalty`, multiply a negative logit by it.

    Example:
        >>> repetition_penalty(np.float32([2, -2, 3]), 2.0, [0, 1]).tolist()
        [1.0, -4.0, 3.0]
    """
    ids = np.unique(tokens)
    penalized, penalty = logits.copy(), np.float32(penalty)
    penalized[ids] = np.where(logits[ids] > 0, logits[ids] / penalty, logits[ids] * penalty)
    return penalized


def no_repeat_ngram(logits: np.ndarray, n: int, tokens: Sequence[int]) -> np.ndarray:
    """Mask each token that would complete a sequence of n tokens which the text already holds.

    Example:
        >>> (no_repeat_ngram(np.zeros(3, np.float32), 2, [0, 2, 0]) == MASKED).tolist()
        [False, False, True]
    """
    if len(tokens) < n:
        return logits
    ngrams = np.lib.stride_tricks.sliding_window_view(np.asarray(tokens), n)
    newest = np.asarray(tokens[len(tokens) - n + 1 :], int)
    mask = np.zeros(len(logits), bool)
    mask[ngrams[(ngrams[:, :-1] == newest).all(axis=1), -1]] = True
    return mask_tokens(logits, mask)


def top_k(logits: np.ndarray, k: int) -> np.ndarray:
    """Keep the k most likely tokens, and every token as likely as the k-th.

    Example:
        >>> (top_k(np.float32([1, 3, 2, 2]), 2) > MASKED).tolist()
        [False, True, True, True]
    """
    smallest = np.partition(logits, len(logits) - k)[len(logits) - k]
    return mask_tokens(logits, logits < smallest)


def top_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the most likely tokens whose cumulative probability is at most p, and at least one token.

    Example:
        >>> (top_p(np.log(np.float32([0.5, 0.3, 0.2])), 0.79) > MASKED).tolist()
        [True, False, False]
    """
    p = np.float64(np.float32(p))  # TensorFlow's p is a float32
    highest = np.float64(logits.max())
    log_total = highest + np.log(np.exp(logits.astype(np.float64) - highest).sum())
    # Sorting all logits takes far longer than sorting the 1,024 largest, which nearly always hold more than p.
    for size in (min(1024, len(logits)), len(logits)):
        largest = np.sort(np.partition(logits, len(logits) - size)[len(logits) - size :])[::-1]
        cumulative = np.cumsum(np.exp(largest.astype(np.float64) - log_total))
        if cumulative[-1] > p:
            break
    count = np.count_nonzero(cumulative <= p)
    return mask_tokens(logits, logits < largest[max(count - 1, 0)])


def min_p(logits: np.ndarray, p: float) -> np.ndarray:
    """Keep the tokens that are at least p times as likely as the most likely token.

    Example:
        >>> (min_p(np.log(np.float32([0.5, 0.3, 0.2])), 0.5) > MASKED).tolist()
        [True, True, False]
    """
    return mask_tokens(logits, logits < logits.max() + np.log(np.float32(p)))
