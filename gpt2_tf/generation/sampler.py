"""The sampler: logits -> the next token. It applies the filters in their documented order, then draws a token."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.generation import logits as filters
from gpt2_tf.generation.params import SamplingParams, sampling_settings
from gpt2_tf.generation.stop_strings import STOPPED

Filter = Callable[[tf.Tensor], tf.Tensor]
NO_TOKEN = -1  # stands for the token where the filters have left none
DTYPES = {int: tf.int32, float: tf.float32}


class History(NamedTuple):
    """What the sampler knows about each row's text so far.

    Example:
        >>> zero = tf.zeros([1], tf.int32)
        >>> history = History(tf.constant([[10, 20]]), pad_lengths=zero, stop_state=zero, n_new=zero)
        >>> history.tokens.shape.as_list()
        [1, 2]
    """

    tokens: tf.Tensor  # int32 [batch, seq]; shorter rows are left-padded
    pad_lengths: tf.Tensor  # int32 [batch]: the length of each row's padding
    stop_state: tf.Tensor  # int32 [batch]: each row's state in `Sampler.stop_table`
    n_new: tf.Tensor  # int32 [batch]: the number of each row's new tokens


class Sampler(NamedTuple):
    """The sampling settings as tensors, in the order in which they act. `make_sampler` makes a Sampler.

    `temperature`, `top_k`, `top_p` and `min_p` may instead hold one number per row, [batch, 1].

    Example:
        >>> make_sampler(SamplingParams(top_k=40), n_vocab=50257).top_k.numpy().item()
        40
    """

    logit_bias: tf.Tensor  # float32 [n_vocab], or [1] where no token has a bias
    repetition_penalty: tf.Tensor  # float32
    no_repeat_ngram: tf.Tensor  # int32
    stop_table: tf.Tensor  # int32 [states, n_vocab], from `stop_strings.build_stop_table`
    min_length: tf.Tensor  # int32
    temperature: tf.Tensor  # float32
    top_k: tf.Tensor  # int32
    top_p: tf.Tensor  # float32
    min_p: tf.Tensor  # float32

    def sample_token(
        self, logits: tf.Tensor, history: History, noise: tf.Tensor, extra_filters: Sequence[Filter] = ()
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Sample each row's next token by inversion: the token at which the cumulative probability passes `noise`.

        Args:
            logits: float32 [batch, n_vocab].
            history: each row's text so far.
            noise: float64 [batch], uniform in [0, 1).
            extra_filters: the caller's own filters, which act before the temperature.

        Returns:
            tokens: int32 [batch].
            logprobs: float32 [batch], the tokens' natural log-probabilities before any filter. A row whose filters
                leave no token gets inf. Filters leave no token where all logits are -inf or one is NaN.
        """
        x = logits + self.logit_bias
        x = _apply_if(
            self.repetition_penalty != 1,
            lambda x: filters.repetition_penalty(x, self.repetition_penalty, history.tokens, history.pad_lengths),
            x,
        )
        x = _apply_if(
            self.no_repeat_ngram > 0,
            lambda x: filters.no_repeat_ngram(x, self.no_repeat_ngram, history.tokens, history.pad_lengths),
            x,
        )
        too_short = history.n_new < self.min_length
        x = _apply_if(
            too_short,
            lambda x: filters.mask_tokens(x, self._stopping_tokens(history.stop_state) & too_short[:, None]),
            x,
        )
        for extra_filter in extra_filters:
            x = extra_filter(x)
        argmax = tf.argmax(x, axis=-1, output_type=tf.int32)
        argmax = tf.where(tf.math.is_finite(tf.gather(x, argmax, batch_dims=1)), argmax, NO_TOKEN)
        random = self.temperature > 0
        token = tf.cond(
            tf.reduce_any(random),
            lambda: tf.where(tf.reshape(random, [-1]), self._draw_token(x, noise), argmax),
            lambda: argmax,
        )
        found, token = token != NO_TOKEN, tf.maximum(token, 0)
        logprob = tf.gather(tf.nn.log_softmax(logits), token, batch_dims=1)
        # NaN + inf is NaN, so the NaN of diverged weights is not mistaken for a filter's mistake.
        return token, logprob + tf.where(found, 0.0, float("inf"))

    def next_stop_state(self, stop_state: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
        """Return the rows' states in `stop_table` after one more token each, int32 [batch]."""
        return tf.gather_nd(self.stop_table, tf.stack([tf.maximum(stop_state, 0), token], axis=1))

    def _stopping_tokens(self, stop_state: tf.Tensor) -> tf.Tensor:
        """bool [batch, n_vocab]: the tokens that would end each row's text."""
        return tf.gather(self.stop_table, tf.maximum(stop_state, 0)) == STOPPED

    def _draw_token(self, x: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        # A row of temperature 0 takes its argmax instead, so its temperature here only has to be valid.
        temperature = tf.where(self.temperature > 0, self.temperature, 1.0)
        # Subtract the maximum, so that a tiny temperature cannot make every logit infinite.
        x = filters.temperature(x - tf.reduce_max(x, axis=-1, keepdims=True), temperature)
        x = _apply_if(self.top_k > 0, lambda x: filters.top_k(x, self.top_k), x)
        x = _apply_if(self.top_p < 1, lambda x: filters.top_p(x, self.top_p), x)
        x = _apply_if(self.min_p > 0, lambda x: filters.min_p(x, self.min_p), x)
        # In float32, the sum of 50,257 small probabilities would be rounded and rare tokens would be lost.
        cumulative = tf.cumsum(tf.nn.softmax(tf.cast(x, tf.float64)), axis=-1)
        total = cumulative[:, -1:]  # NaN where a logit is NaN
        return tf.where(total > 0, tf.searchsorted(cumulative, noise[:, None] * total, side="right"), NO_TOKEN)[:, 0]


def _apply_if(condition: tf.Tensor, function: Filter, x: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_any(condition), lambda: function(x), lambda: x)


def make_sampler(params: SamplingParams, n_vocab: int, stop_table: np.ndarray | None = None) -> Sampler:
    """Make the Sampler of these settings.

    Args:
        params: the settings; `length`, `filters`, `seed` and `window` are not the sampler's.
        n_vocab: the number of tokens in the vocabulary.
        stop_table: int32 [states, n_vocab], from `stop_strings.build_stop_table`; None never ends a text.

    Raises:
        ValueError: `top_k` or `logit_bias` does not fit the vocabulary.

    Example:
        >>> sampler = make_sampler(SamplingParams(temperature=0), n_vocab=3)
        >>> zero = tf.zeros([1], tf.int32)
        >>> history = History(tokens=zero[:, None], pad_lengths=zero, stop_state=zero, n_new=zero)
        >>> token, logprob = sampler.sample_token(tf.math.log([[0.2, 0.5, 0.3]]), history, noise=[0.9])
        >>> token.numpy().tolist(), tf.exp(logprob).numpy().round(3).tolist()
        ([1], [0.5])
    """
    params.check_vocabulary_size(n_vocab)
    logit_bias = np.zeros(n_vocab if params.logit_bias else 1, np.float32)
    for token, value in (params.logit_bias or {}).items():
        logit_bias[token] = value
    numbers = {
        name: tf.constant(getattr(params, name), DTYPES[setting.kind])
        for name, setting in sampling_settings().items()
        if name in Sampler._fields and setting.kind in DTYPES
    }
    stop_table = np.zeros([1, n_vocab]) if stop_table is None else stop_table
    return Sampler(logit_bias=tf.constant(logit_bias), stop_table=tf.constant(stop_table, tf.int32), **numbers)


def sampler_specs(n_vocab: int) -> Sampler:
    """Return the tensor specs of a Sampler with any settings, so that one trace serves them all.

    Example:
        >>> sampler_specs(n_vocab=50257).stop_table.shape.as_list()
        [None, 50257]
    """
    specs = tf.nest.map_structure(lambda x: tf.TensorSpec(x.shape, x.dtype), make_sampler(SamplingParams(), n_vocab))
    return specs._replace(
        logit_bias=tf.TensorSpec([None], tf.float32), stop_table=tf.TensorSpec([None, n_vocab], tf.int32)
    )
