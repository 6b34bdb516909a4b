"""How the next token is chosen from its logits: the filters in their order, then the draw."""

from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.generation import logits as filters
from gpt2_tf.generation.stop_strings import STOPPED
from gpt2_tf.hparams import is_whole

Filter = Callable[[tf.Tensor], tf.Tensor]
NONE = -1  # in place of a token, where there is none to choose
PENALTY = 1e-6, 1e6  # beyond, it takes logits out of float32's range


class Text(NamedTuple):
    """What a choice may go by: the text so far, and how far it is from its end."""

    tokens: tf.Tensor  # int32 [batch, seq], rows of fewer tokens filled up on the left
    start: tf.Tensor  # int32 [batch], the column of each row's first token
    stop: tf.Tensor  # int32 [batch], the row's state in `Choice.stops`
    count: tf.Tensor  # int32 [batch], the row's new tokens


class Choice(NamedTuple):
    """The settings as tensors, in the order in which they act; `choice` makes one of plain numbers and checks them.

    The last four may have a number for each row, [batch, 1].
    """

    logit_bias: tf.Tensor  # float32 [n_vocab], or [1] where there is none
    repetition_penalty: tf.Tensor  # float32
    no_repeat_ngram: tf.Tensor  # int32
    stops: tf.Tensor  # int32 [states, n_vocab], as `stops.table` says
    min_length: tf.Tensor  # int32
    temperature: tf.Tensor  # float32
    top_k: tf.Tensor  # int32
    top_p: tf.Tensor  # float32
    min_p: tf.Tensor  # float32

    def token(
        self, logits: tf.Tensor, text: Text, noise: tf.Tensor, more: Sequence[Filter] = ()
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Chooses by inversion: the token where the cumulative probability passes `noise`.

        Args:
            logits: float32 [batch, n_vocab].
            noise: float64 [batch], uniform in [0, 1).
            more: filters of the caller's own, which act before the temperature.

        Returns:
            The tokens, int32 [batch], and their natural log-probabilities before any filter, float32 [batch]: inf
            where the filters left no token to choose, as where all are -inf or one is no number.
        """
        x = logits + self.logit_bias
        x = _if(
            self.repetition_penalty != 1,
            lambda x: filters.repetition_penalty(x, self.repetition_penalty, text.tokens, text.start),
            x,
        )
        x = _if(
            self.no_repeat_ngram > 0,
            lambda x: filters.no_repeat_ngram(x, self.no_repeat_ngram, text.tokens, text.start),
            x,
        )
        early = text.count < self.min_length
        x = _if(early, lambda x: filters.cut(x, self._stopping(text.stop) & early[:, None]), x)
        for filter in more:
            x = filter(x)
        likeliest = tf.argmax(x, axis=-1, output_type=tf.int32)
        likeliest = tf.where(tf.math.is_finite(tf.gather(x, likeliest, batch_dims=1)), likeliest, NONE)
        draws = self.temperature > 0
        token = tf.cond(
            tf.reduce_any(draws),
            lambda: tf.where(tf.reshape(draws, [-1]), self._draw(x, noise), likeliest),
            lambda: likeliest,
        )
        found, token = token != NONE, tf.maximum(token, 0)
        logprob = tf.gather(tf.nn.log_softmax(logits), token, batch_dims=1)
        return token, logprob + tf.where(found, 0.0, float("inf"))  # of weights that diverged, it stays NaN

    def next_stop(self, stop: tf.Tensor, token: tf.Tensor) -> tf.Tensor:
        """int32 [batch]: the rows' states in `stops` after one more token each."""
        return tf.gather_nd(self.stops, tf.stack([tf.maximum(stop, 0), token], axis=1))

    def _stopping(self, stop: tf.Tensor) -> tf.Tensor:
        """Booleans [batch, n_vocab]: the tokens that would end each row's text."""
        return tf.gather(self.stops, tf.maximum(stop, 0)) == STOPPED

    def _draw(self, x: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        # Below 0 at most, so that over a temperature near 0 not all are infinite.
        # A row of temperature 0 isn't drawn, and is left as it is.
        temperature = tf.where(self.temperature > 0, self.temperature, 1.0)
        x = filters.temperature(x - tf.reduce_max(x, axis=-1, keepdims=True), temperature)
        x = _if(self.top_k > 0, lambda x: filters.top_k(x, self.top_k), x)
        x = _if(self.top_p < 1, lambda x: filters.top_p(x, self.top_p), x)
        x = _if(self.min_p > 0, lambda x: filters.min_p(x, self.min_p), x)
        # float64, so that 50,257 small probabilities add up, and rare tokens keep theirs.
        cumulative = tf.cumsum(tf.nn.softmax(tf.cast(x, tf.float64)), axis=-1)
        total = cumulative[:, -1:]  # no number, where a logit is none
        return tf.where(total > 0, tf.searchsorted(cumulative, noise[:, None] * total, side="right"), NONE)[:, 0]


def _if(condition: tf.Tensor, filter: Filter, x: tf.Tensor) -> tf.Tensor:
    return tf.cond(tf.reduce_any(condition), lambda: filter(x), lambda: x)


def choice(
    n_vocab: int,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0.0,
    repetition_penalty: float = 1.0,
    no_repeat_ngram: int = 0,
    logit_bias: Mapping[int, float] | None = None,
    stops: np.ndarray | None = None,
    min_length: int = 0,
) -> Choice:
    """The Choice of these settings, each as `generate` says.

    Raises:
        TypeError: what must be a number is none; ValueError: a number that has no meaning there.
    """
    numbers = {"temperature": temperature, "top_p": top_p, "min_p": min_p, "repetition_penalty": repetition_penalty}
    for name, value in [*numbers.items(), *((f"logit_bias of {id!r}", x) for id, x in (logit_bias or {}).items())]:
        if not isinstance(value, Real) and not (hasattr(value, "dtype") and np.ndim(value) == 0):  # an array's scalar
            raise TypeError(f"{name} is {value!r:.60}, of type {type(value).__name__}, but must be a number")
    greatest = float(np.finfo(np.float32).max)  # the settings act in float32
    if not 0 <= temperature <= greatest:
        raise ValueError(
            f"temperature is {temperature}, but must be at least 0 (0 takes the likeliest token) "
            f"and at most {greatest:.3g}"
        )
    if not is_whole(top_k, 0, n_vocab):
        raise ValueError(f"top_k is {top_k}, but must be 0 (off) to {n_vocab}, the size of the vocabulary")
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p is {top_p}, but must be above 0 and at most 1 (off)")
    if not 0 <= min_p <= 1:
        raise ValueError(f"min_p is {min_p}, but must be 0 (off) to 1")
    least, most = PENALTY
    if not least <= repetition_penalty <= most:
        raise ValueError(f"repetition_penalty is {repetition_penalty}, but must be {least:g} to {most:g} (1 is off)")
    for name, value in (("no_repeat_ngram", no_repeat_ngram), ("min_length", min_length)):
        if not is_whole(value, 0, 2**31 - 1):
            raise ValueError(f"{name} is {value}, but must be a whole number, 0 (off) or more")
    bias = np.zeros(n_vocab if logit_bias else 1, np.float32)
    for token, value in (logit_bias or {}).items():
        if not is_whole(token, 0, n_vocab - 1) or not value <= greatest:
            raise ValueError(
                f"logit_bias has {value} for {token!r}, but must have ids from 0 to {n_vocab - 1}, and numbers "
                f"up to {greatest:.3g} (-inf for never)"
            )
        bias[token] = value
    if np.isneginf(bias).all():
        raise ValueError("logit_bias forbids every token")
    return Choice(
        tf.constant(bias),
        tf.constant(repetition_penalty, tf.float32),
        tf.constant(int(no_repeat_ngram), tf.int32),
        tf.constant(np.zeros([1, n_vocab]) if stops is None else stops, tf.int32),
        tf.constant(int(min_length), tf.int32),
        tf.constant(temperature, tf.float32),
        tf.constant(int(top_k), tf.int32),
        tf.constant(top_p, tf.float32),
        tf.constant(min_p, tf.float32),
    )
