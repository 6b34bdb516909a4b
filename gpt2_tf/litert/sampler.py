"""The sampler of `generation/sampler.py` in NumPy: one row's logits -> its next token."""

import copy
from collections.abc import Sequence

import numpy as np

from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.generation.stop_strings import STOPPED
from gpt2_tf.litert import logits as filters


class NumpySampler:
    """Applies the filters in their documented order, then draws a token.

    Args:
        params: the settings. A function in `params.filters` gets and returns NumPy arrays, float32 [1, n_vocab].
        n_vocab: the number of tokens in the vocabulary.
        stop_table: int32 [states, n_vocab], from `stop_strings.build_stop_table`.

    Raises:
        ValueError: `top_k` or `logit_bias` does not fit the vocabulary.

    Example:
        >>> sampler = NumpySampler(SamplingParams(temperature=0), n_vocab=3, stop_table=np.zeros([1, 3], np.int32))
        >>> token, logprob = sampler.sample_token(np.log(np.float32([0.2, 0.5, 0.3])), [0], 0, 0, noise=0.9)
        >>> token, round(float(np.exp(logprob)), 3)
        (1, 0.5)
    """

    def __init__(self, params: SamplingParams, n_vocab: int, stop_table: np.ndarray):
        params.check_vocabulary_size(n_vocab)
        self.params, self.stop_table = params, stop_table
        # As in TensorFlow, a number counts as float32 has it: a temperature of 1e-50 is 0.
        self.temperature, self.top_p = np.float32(params.temperature), np.float32(params.top_p)
        self.min_p, self.repetition_penalty = np.float32(params.min_p), np.float32(params.repetition_penalty)
        self.logit_bias = np.zeros(n_vocab, np.float32) if params.logit_bias else None
        for token, value in (params.logit_bias or {}).items():
            self.logit_bias[token] = value

    def sample_token(
        self, logits: np.ndarray, tokens: Sequence[int], stop_state: int, n_new: int, noise: float
    ) -> tuple[int, float]:
        """Sample the next token by inversion: the token at which the cumulative probability passes `noise`.

        Args:
            logits: float32 [n_vocab].
            tokens: the text so far, as far as it is in the window.
            stop_state: the text's state in the stop table.
            n_new: how many of the text's tokens are new.
            noise: uniform in [0, 1).

        Returns:
            The token, and its natural log-probability before any filter. It is inf where the filters leave no token,
            and NaN where the model's logits have a NaN.
        """
        with np.errstate(all="ignore"):  # infinite and invalid numbers are reported by what the engine does with them
            token = self._choose(self._filter(logits, tokens, stop_state, n_new), noise)
            # As in TensorFlow, inf says that no token is left, unless the logits themselves have a NaN.
            highest = logits.max()
            shifted = logits[max(token, 0)] - highest
            logprob = float(shifted - np.log(np.exp(logits - highest).sum()))
        return max(token, 0), logprob + (float("inf") if token < 0 else 0.0)

    def next_stop_state(self, stop_state: int, token: int) -> int:
        """Return the state in the stop table after one more token."""
        return int(self.stop_table[max(stop_state, 0), token])

    def _filter(self, x: np.ndarray, tokens: Sequence[int], stop_state: int, n_new: int) -> np.ndarray:
        params = self.params
        if self.logit_bias is not None:
            x = x + self.logit_bias
        if self.repetition_penalty != 1:
            x = filters.repetition_penalty(x, self.repetition_penalty, tokens)
        if params.no_repeat_ngram > 0:
            x = filters.no_repeat_ngram(x, params.no_repeat_ngram, tokens)
        if n_new < params.min_length:
            x = filters.mask_tokens(x, self.stop_table[max(stop_state, 0)] == STOPPED)
        for function in params.filters:
            x = np.broadcast_to(np.asarray(function(x[None].copy()), np.float32), (1, len(x)))[0]
        return x

    def _choose(self, x: np.ndarray, noise: float) -> int:
        """Return the token, or -1 where no token can be chosen."""
        highest, top_k = x.max(), self.params.top_k
        if not np.isfinite(highest):
            return -1
        if self.temperature == 0:
            return int(np.argmax(x))
        # Subtract the maximum, so that a tiny temperature cannot make every logit infinite.
        x = (x - highest) / self.temperature
        if top_k > 0:
            x = filters.top_k(x, top_k)
        if self.top_p < 1:
            x = filters.top_p(x, self.top_p)
        if self.min_p > 0:
            x = filters.min_p(x, self.min_p)
        # exp() of most logits is 0 after top_k or top_p, so only the others are computed.
        kept = np.flatnonzero(x > filters.MASKED) if top_k > 0 or self.top_p < 1 else None
        cumulative = np.cumsum(np.exp((x if kept is None else x[kept]).astype(np.float64)))
        index = int(np.searchsorted(cumulative, noise * cumulative[-1], side="right"))
        return index if kept is None else int(kept[index])


class Text:
    """One text while it is written.

    Args:
        tokens: the context's token ids.
        limit: the largest number of new tokens.

    Example:
        >>> Text([10, 20], limit=5).finish_reason is None
        True
    """

    def __init__(self, tokens: list[int], limit: int):
        self.tokens, self.limit = tokens, limit  # the part of the text that is in the window
        self.stop_state = self.n_new = 0
        self.finish_reason: str | None = None

    def copy(self) -> "Text":
        """Return a copy, to try how the text may go on."""
        text = copy.copy(self)
        text.tokens = list(self.tokens)
        return text

    def slide(self, n_ctx: int) -> None:
        """Forget the older half of a text that has filled the window."""
        if len(self.tokens) > n_ctx:
            self.tokens = self.tokens[-max(n_ctx // 2, 1) :]

    def sample(self, sampler: NumpySampler, logits: np.ndarray, noise: float) -> tuple[int, float]:
        """Sample the next token, append it, and return it with its log-probability."""
        token, logprob = sampler.sample_token(logits, self.tokens, self.stop_state, self.n_new, noise)
        self.stop_state = sampler.next_stop_state(self.stop_state, token)
        self.tokens.append(token)
        self.n_new += 1
        if self.stop_state == STOPPED:
            self.finish_reason = "stop"
        elif self.n_new == self.limit:
            self.finish_reason = "length"
        return token, logprob
