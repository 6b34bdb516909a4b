"""The `Engine` protocol: what generation and evaluation ask of a model. A new decoder implements it and is done.

`generate`, `stream`, `score`, `beam_search`, the evaluation tasks and the test harness use a model through an Engine
only. `tensorflow_engine.TensorFlowEngine` is the implementation for a `GPT2`. This module imports no TensorFlow, so a
decoder without TensorFlow can stand in.

Everything that crosses the protocol is plain Python or NumPy: token ids in, token ids and log-probabilities out. Text,
prompts, batching by length and the order of samples stay on this side of it.
"""

from collections.abc import Collection, Iterator, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

import numpy as np

from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.hparams import HParams

if TYPE_CHECKING:
    from gpt2_tf.model.gpt2 import GPT2

LOOKUP = "lookup"  # as `draft`: propose tokens by prompt lookup, without a second model
STEPS_PER_CHUNK = 8  # Ctrl-C takes effect between two chunks, so this many tokens are the longest wait


class Chunk(NamedTuple):
    """The new tokens of one row since its previous chunk.

    `finish_reason` is "stop" or "length" in the row's last chunk, and None before it. A token that stopped the row is
    the last of `ids`.

    Example:
        >>> Chunk(row=0, ids=[15496], logprobs=[-9.5], finish_reason=None).ids
        [15496]
    """

    row: int
    ids: list[int]
    logprobs: list[float]
    finish_reason: str | None


class Row(NamedTuple):
    """Token ids, and how many at their end are to be scored: `count`, at most len(ids) - 1.

    Example:
        >>> Row(ids=[10, 20, 30], count=2).count  # 20 and 30 are scored, each after the tokens before it
        2
    """

    ids: Sequence[int] | np.ndarray
    count: int


class Likelihood(NamedTuple):
    """The scores of one row's last `count` tokens, [count] each.

    Example:
        >>> scores = Likelihood(np.float32([-0.5, -2]), np.array([True, False]), np.array([True, False]))
        >>> float(scores.logprobs.sum())
        -2.5
    """

    logprobs: np.ndarray  # float32: natural log-probabilities
    greedy: np.ndarray  # bool: no token of the vocabulary is more likely
    filtered: np.ndarray  # bool: the token is the most likely of all tokens that are not excluded


class Beam(NamedTuple):
    """One finished text of a beam search. A token that stopped it is the last of `ids`.

    Example:
        >>> Beam(ids=[10, 20], logprobs=[-0.5, -1.5], finish_reason="length", score=-1.0).score
        -1.0
    """

    ids: list[int]
    logprobs: list[float]
    finish_reason: str  # "stop" or "length"
    score: float  # sum(logprobs) / len(ids) ** length_penalty


@runtime_checkable
class Engine(Protocol):
    """A decoder: a model's hyperparameters, and three ways to run the model.

    Attributes:
        hparams: the model's hyperparameters. Callers use `n_vocab` and `n_ctx`.

    Example:
        >>> from gpt2_tf.generation import TensorFlowEngine
        >>> engine = TensorFlowEngine(model)
        >>> isinstance(engine, Engine), isinstance(model, Engine)
        (True, False)
        >>> (likelihood,) = engine.likelihoods([Row(enc.encode("ROMEO:"), count=1)])
        >>> likelihood.logprobs.shape, bool(likelihood.logprobs[0] < 0)
        ((1,), True)
    """

    hparams: HParams

    def extend(
        self,
        contexts: Sequence[Sequence[int]],
        params: SamplingParams,
        *,
        limits: Sequence[int],
        row_numbers: Sequence[int],
        stop_table: np.ndarray,
        steps: int = STEPS_PER_CHUNK,
        draft: "Engine | str | None" = None,
    ) -> Iterator[list[Chunk]]:
        """Continue each context, all of them as one batch, until each row has stopped or reached its limit.

        A row's tokens depend neither on its neighbours nor on `steps` and `draft`, except where rounding decides
        between two tokens. A row that fills the model's window continues from the newer half of the window.

        Args:
            contexts: token ids in range, at least one per row.
            params: how to sample. `params.seed` is a number here. `params.length` and `params.stop` are ignored:
                `limits` and `stop_table` stand for them.
            limits: the largest number of new tokens of each row, at least 1.
            row_numbers: the number of each row. A row's random numbers depend on `params.seed` and on this number.
            stop_table: int32 [states, n_vocab], from `stop_strings.build_stop_table`: when to stop.
            steps: yield after at most this many new tokens per row.
            draft: a smaller model, or "lookup", that proposes tokens which this model then verifies together. It can
                only change the speed. It needs a batch of one row.

        Yields:
            Lists of chunks, with `row` counted from 0. Every row that has not ended has a chunk in each list.

        Raises:
            ValueError: the model's logits are not finite, or the settings leave no token to choose.
        """
        ...

    def likelihoods(self, rows: Sequence[Row], excluded: Collection[int] = ()) -> list[Likelihood]:
        """Score the last `count` tokens of each row, all rows as one batch.

        Args:
            rows: token ids, at most n_ctx + 1 per row: the last token of a row is scored, but not read.
            excluded: token ids that `Likelihood.filtered` does not count.

        Raises:
            ValueError: the model's logits are not finite.
        """
        ...

    def search_beams(
        self,
        context: Sequence[int],
        *,
        num_beams: int,
        num_return: int,
        length: int,
        length_penalty: float,
        stop_table: np.ndarray,
        forbidden: Collection[int] = (),
    ) -> list[Beam]:
        """Search for the continuations of the highest score, as `beam_search` describes. The best comes first.

        Args:
            context: token ids in range, at least one.
            num_beams: how many texts are continued side by side.
            num_return: how many finished texts to return, at most `num_beams`. Fewer are returned where `length`
                new tokens have fewer values.
            length: the largest number of new tokens; context and new tokens are at most n_ctx + 1 together.
            length_penalty: the exponent of the length in a text's score.
            stop_table: int32 [states, n_vocab], from `stop_strings.build_stop_table`: when to stop.
            forbidden: token ids that no text may hold.

        Raises:
            ValueError: the model's logits are not finite.
        """
        ...


def check_logprobs(logprobs: Sequence[float] | np.ndarray) -> None:
    """Raise ValueError for a log-probability that is not finite.

    A sampler gives inf where the filters left no token. NaN comes from weights that have diverged.

    Example:
        >>> check_logprobs([-0.5, float("nan")])
        Traceback (most recent call last):
        ValueError: the model's logits are not finite: ...
    """
    if np.isposinf(logprobs).any():
        raise ValueError(
            "no token is left to choose: every logit is -inf or one is NaN; check what filters, logit_bias and "
            "repetition_penalty do to the logits"
        )
    if not np.isfinite(logprobs).all():
        raise ValueError(
            "the model's logits are not finite: its weights are damaged or their training diverged; "
            "load an earlier checkpoint"
        )


def as_engine(model: "GPT2 | Engine") -> Engine:
    """Return an Engine unchanged, and a GPT2, with or without interventions, wrapped in a `TensorFlowEngine`.

    Raises:
        TypeError: the model is neither.

    Example:
        >>> type(as_engine(model)).__name__
        'TensorFlowEngine'
    """
    if isinstance(model, Engine):
        return model
    from gpt2_tf.generation.tensorflow_engine import TensorFlowEngine

    return TensorFlowEngine(model)
