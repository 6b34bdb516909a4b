"""Beam search: the texts of the highest score, of all that a few beams find, read side by side as one batch."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from encoder import Encoder
from gpt2_tf.generation import stop_strings
from gpt2_tf.generation.decoding import STEPS, Piece, check_finite, decode_one_token, prefill
from gpt2_tf.generation.generate import STOP, Sample, check_vocabulary, length_limit, prompt_ids
from gpt2_tf.generation.stop_strings import STOPPED
from gpt2_tf.hparams import is_whole
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2


class Hypothesis(NamedTuple):
    """One text that the search found: a `Completion`, and its score."""

    prompt: str
    text: str
    ids: list[int]
    finish_reason: str
    logprobs: list[float]
    score: float  # counts the token that stopped the text, which `ids` and `logprobs` may not show


class Ended(NamedTuple):
    """The best texts that have ended, the best first."""

    tokens: tf.Tensor  # int32 [n, seq], the context included; shorter texts are filled up on the right
    logprobs: tf.Tensor  # float32 [n, new]
    count: tf.Tensor  # int32 [n]: new tokens, with the one that ended the text
    stopped: tf.Tensor  # bool [n]: by a stop, not by the length
    score: tf.Tensor  # float64 [n]


class State(NamedTuple):
    """Where the search stands: the beams, which are the texts that go on, and those that have ended."""

    tokens: tf.Tensor  # int32 [beams, seq], the context included
    logprobs: tf.Tensor  # float32 [beams, new]
    total: tf.Tensor  # float32 [beams]: the sum of `logprobs`
    stop: tf.Tensor  # int32 [beams]: the state in the table of stops
    past: kv_cache.KVCache  # of all tokens but the last, which is not read yet
    ended: Ended


class Search(NamedTuple):
    """What is searched for."""

    num_beams: tf.Tensor  # int32
    num_return: tf.Tensor  # int32: how many of those that have ended are kept
    length: tf.Tensor  # int32: new tokens at most
    length_penalty: tf.Tensor  # float64
    stops: tf.Tensor  # int32 [states, n_vocab], as `stop_strings.table` says

    def score(self, total: tf.Tensor, count: tf.Tensor) -> tf.Tensor:
        """float64, of texts of `count` new tokens whose log-probabilities add up to `total`."""
        return tf.cast(total, tf.float64) / tf.cast(count, tf.float64) ** self.length_penalty

    def going(self, state: State) -> tf.Tensor:
        """Whether a beam may still end among the best: a boolean.

        Its sum can only fall. Under a penalty above 0 the longest text scores best, else the shortest to come.
        """
        count = tf.where(self.length_penalty > 0, self.length, tf.shape(state.logprobs)[1] + 1)
        better = self.score(tf.reduce_max(state.total), count) > tf.reduce_min(state.ended.score)
        better &= self.num_beams > 1  # one beam is greedy, and doesn't go on beside its stop
        return (tf.size(state.total) > 0) & ((tf.size(state.ended.score) < self.num_return) | better)

    def step(self, model: GPT2, state: State) -> State:
        """Reads the last token of each beam, and goes on with the best of all that may come next."""
        logits, past = decode_one_token(model, state.tokens[:, -1], state.past)
        logprobs = tf.nn.log_softmax(tf.cast(logits, tf.float32))  # [beams, n_vocab], as total, stop and ends
        total = state.total[:, None] + logprobs
        stop = tf.gather(self.stops, state.stop)
        count = tf.shape(state.logprobs)[1] + 1
        ends = (stop == STOPPED) | (count == self.length)

        def best(total, wanted):
            """The `num_beams` best, or those of them that are wanted: int32 [any, 2], beam and token."""
            index = tf.math.top_k(tf.reshape(total, [-1]), tf.minimum(self.num_beams, tf.size(total))).indices
            pairs = tf.stack([index // total.shape[1], index % total.shape[1]], axis=1)
            return tf.boolean_mask(pairs, tf.gather_nd(wanted, pairs))

        def grown(pairs):
            """The beams' tokens and logprobs, each with one column more."""
            beam, token = tf.unstack(pairs, axis=1)
            logprob = tf.gather_nd(logprobs, pairs)
            return (
                tf.concat([tf.gather(state.tokens, beam), token[:, None]], axis=1),
                tf.concat([tf.gather(state.logprobs, beam), logprob[:, None]], axis=1),
            )

        over = best(total, ends)
        on = best(tf.where(ends, total.dtype.min, total), ~ends)
        counts = tf.fill([tf.shape(over)[0]], count)
        ended = Ended(
            *grown(over), counts, tf.gather_nd(stop, over) == STOPPED, self.score(tf.gather_nd(total, over), counts)
        )
        return State(
            *grown(on),
            tf.gather_nd(total, on),
            tf.gather_nd(stop, on),
            kv_cache.reorder(past, on[:, 0]),
            self._keep(state.ended, ended),
        )

    def _keep(self, old: Ended, new: Ended) -> Ended:
        """The best of both; the old ones have one column less."""
        column = [[0, 0], [0, 1]]
        old = old._replace(tokens=tf.pad(old.tokens, column), logprobs=tf.pad(old.logprobs, column))
        both = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), old, new)
        rows = tf.math.top_k(both.score, tf.minimum(self.num_return, tf.size(both.score))).indices
        return tf.nest.map_structure(lambda part: tf.gather(part, rows), both)


def searcher(model: GPT2) -> tf.types.experimental.PolymorphicFunction:
    """The loop, `go_on(state, search) -> State`, for `GPT2.traced`: some steps, or as many as there are to the end."""
    integers, integer = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([], tf.int32)
    numbers, rows = tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None], tf.int32)
    past = kv_cache.tensor_specs(model.hparams, model.compute_dtype)
    ended = Ended(integers, numbers, rows, tf.TensorSpec([None], tf.bool), tf.TensorSpec([None], tf.float64))
    state = State(integers, numbers, tf.TensorSpec([None], tf.float32), rows, past, ended)
    table = tf.TensorSpec([None, model.hparams.n_vocab], tf.int32)
    search = Search(integer, integer, integer, tf.TensorSpec([], tf.float64), table)
    shapes = tf.nest.map_structure(lambda spec: spec.shape, state)

    @tf.function(autograph=False, input_signature=[state, search])
    def go_on(state, search):
        return tf.while_loop(
            search.going,
            lambda state: (search.step(model, state),),
            (state,),
            shape_invariants=(shapes,),
            maximum_iterations=STEPS,
        )[0]

    return go_on


def find(
    model: GPT2,
    context: Sequence[int],
    table: np.ndarray,
    *,
    num_beams: int,
    num_return: int,
    length: int,
    length_penalty: float,
) -> Ended:
    """`beam_search` on ids in range: what to stop at is `stop_strings.table`'s, int32 [states, n_vocab].

    Fewer than `num_return` come only where there are fewer: `length` new tokens have few values.
    """
    tokens, zero = tf.constant([context], tf.int32), tf.constant([0])
    past = prefill(model, tokens, start=zero)
    none = tf.zeros([0], tf.int32)
    ended = Ended(tokens[:0], tf.zeros([0, 0]), none, tf.cast(none, tf.bool), tf.cast(none, tf.float64))
    state = State(tokens, tf.zeros([1, 0]), tf.zeros([1]), zero, past, ended)
    search = Search(
        tf.constant(num_beams),
        tf.constant(num_return),
        tf.constant(length),
        tf.constant(length_penalty, tf.float64),
        tf.constant(table, tf.int32),
    )
    while search.going(state):
        state = model.traced(searcher)(state, search)
    return state.ended


def beam_search(
    model: GPT2,
    enc: Encoder,
    prompt: str | None = None,
    *,
    num_beams: int = 4,
    num_return: int = 1,
    length: int | None = None,
    length_penalty: float = 1.0,
    stop: str | int | Collection[str | int] = STOP,
) -> list[Hypothesis]:
    """The `num_return` texts of the highest score that `num_beams` beams find after the prompt, the best first.

    A text's score is the sum of its new tokens' natural log-probabilities over their number ** `length_penalty`. At
    each step, of all beams with one token more, the `num_beams` likeliest that have not ended go on. A text has ended
    at a stop, if it was then among the `num_beams` likeliest, ended or not, or at `length`. The search ends as soon as
    no beam can come to a better score than those found. One beam is greedy: it ends at its stop.

    With stop ids these are the texts of transformers' `generate(num_beams=..., early_stopping="never")`; its other
    settings of that end on a guess, and may miss the best.

    Args:
        prompt: None starts from `<|endoftext|>`.
        num_beams: texts that go on side by side; with enough of them the search is exhaustive.
        num_return: how many texts; at most `num_beams`.
        length: new tokens at most. None takes 100, or what fits.
        length_penalty: above 0 favours longer texts, below 0 shorter ones; 0 compares the plain sums.
        stop: ids, strings, and names of special tokens, any of which ends the text; () for none.

    Raises:
        ValueError: an argument out of its range, an empty prompt, or more tokens than the model's window has.

    Source: "Sequence to Sequence Learning with Neural Networks" (Sutskever et al., 2014), and transformers for the
    score and for which texts go on.
    """
    check_vocabulary(model, enc)
    # With no more beams than tokens, as many texts come as are asked for.
    if not is_whole(num_beams, 1, enc.n_vocab):
        raise ValueError(f"num_beams is {num_beams}, but must be 1 to {enc.n_vocab}, the size of the vocabulary")
    if not is_whole(num_return, 1, num_beams):
        raise ValueError(f"num_return is {num_return}, but must be 1 to {num_beams}, as many as there are beams")
    if not -10 <= length_penalty <= 10:  # beyond, the scores of long texts leave float64's range
        raise ValueError(f"length_penalty is {length_penalty}, but must be -10 to 10 (0 compares the plain sums)")
    context = prompt_ids(enc, prompt)
    ids, strings = stop_strings.parse(enc, stop)
    ended = find(
        model,
        context,
        stop_strings.table(enc.tokens, ids, strings),
        num_beams=int(num_beams),
        num_return=int(num_return),
        length=length_limit(model.hparams, len(context), length, window=False),
        length_penalty=length_penalty,
    )
    check_finite(ended.score)
    hypotheses = []
    for tokens, logprobs, count, stopped, score in zip(*(part.numpy().tolist() for part in ended), strict=True):
        sample = Sample(enc, prompt, ids, strings)
        new = tokens[len(context) :][:count]
        sample.add(Piece(0, new, logprobs[:count], "stop" if stopped else "length"))
        hypotheses.append(Hypothesis(*sample.completion(), score))
    return hypotheses
