"""The loop of beam search in TensorFlow: token ids in, the best finished texts out. The beams are one batch."""

from collections.abc import Collection, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.files import interrupt
from gpt2_tf.generation.decoding import decode_one_token, prefill
from gpt2_tf.generation.engine import STEPS_PER_CHUNK
from gpt2_tf.generation.stop_strings import STOPPED
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2


class FinishedTexts(NamedTuple):
    """The best texts that have ended. The best comes first.

    Example:
        >>> stop_table = np.zeros([1, model.hparams.n_vocab])
        >>> best = search_beams(model, [10], stop_table, num_beams=2, num_return=2, length=3, length_penalty=1.0)
        >>> best.n_new.numpy().tolist()
        [3, 3]
    """

    tokens: tf.Tensor  # int32 [n, seq], with the context; shorter texts are right-padded
    logprobs: tf.Tensor  # float32 [n, new]
    n_new: tf.Tensor  # int32 [n]: the number of new tokens, with the token that ended the text
    stopped: tf.Tensor  # bool [n]: whether a stop ended the text, and not the length
    score: tf.Tensor  # float64 [n]


class BeamState(NamedTuple):
    """The state of the search: the beams, which are the texts still being continued, and the finished texts.

    Example:
        >>> list(BeamState._fields)
        ['tokens', 'logprobs', 'total', 'stop_state', 'past', 'finished']
    """

    tokens: tf.Tensor  # int32 [beams, seq], with the context
    logprobs: tf.Tensor  # float32 [beams, new]
    total: tf.Tensor  # float32 [beams]: the sum of `logprobs`
    stop_state: tf.Tensor  # int32 [beams]: the state in the stop table
    past: kv_cache.KVCache  # of all tokens but the last, which the model has not run yet
    finished: FinishedTexts


class BeamSearch(NamedTuple):
    """The settings of a search, and its steps.

    Example:
        >>> search = BeamSearch(2, 1, 9, length_penalty=tf.constant(1.0, tf.float64), stop_table=None, forbidden=None)
        >>> search.score(total=tf.constant(-6.0), n_new=tf.constant(3)).numpy().item()
        -2.0
    """

    num_beams: tf.Tensor  # int32
    num_return: tf.Tensor  # int32: how many finished texts are kept
    length: tf.Tensor  # int32: at most this many new tokens
    length_penalty: tf.Tensor  # float64
    stop_table: tf.Tensor  # int32 [states, n_vocab], from `stop_strings.build_stop_table`
    forbidden: tf.Tensor  # bool [n_vocab]: the tokens that no text may hold

    def score(self, total: tf.Tensor, n_new: tf.Tensor) -> tf.Tensor:
        """float64: the score of texts of `n_new` new tokens whose log-probabilities sum to `total`."""
        return tf.cast(total, tf.float64) / tf.cast(n_new, tf.float64) ** self.length_penalty

    def active(self, state: BeamState) -> tf.Tensor:
        """bool []: whether a beam may still end among the best texts.

        A beam's sum can only fall. So its best possible score is its present sum at the longest length where the
        penalty is above 0, and at the next length otherwise.
        """
        n_new = tf.where(self.length_penalty > 0, self.length, tf.shape(state.logprobs)[1] + 1)
        can_improve = self.score(tf.reduce_max(state.total), n_new) > tf.reduce_min(state.finished.score)
        can_improve &= self.num_beams > 1  # One beam is greedy decoding, which ends at its stop.
        has_beams = tf.size(state.total) > 0
        return has_beams & ((tf.size(state.finished.score) < self.num_return) | can_improve)

    def step(self, model: GPT2, state: BeamState) -> BeamState:
        """Run the last token of each beam, and continue with the best of all possible next tokens."""
        logits, past = decode_one_token(model, state.tokens[:, -1], state.past)
        logprobs = tf.nn.log_softmax(tf.cast(logits, tf.float32))  # [beams, n_vocab], as the next four
        total = tf.where(self.forbidden, -float("inf"), state.total[:, None] + logprobs)
        stop_state = tf.gather(self.stop_table, state.stop_state)
        n_new = tf.shape(state.logprobs)[1] + 1
        ends = (stop_state == STOPPED) | (n_new == self.length)

        def select_best(total, wanted):
            """Select the `num_beams` best, then of these the wanted ones: int32 [any, 2], beam and token."""
            index = tf.math.top_k(tf.reshape(total, [-1]), tf.minimum(self.num_beams, tf.size(total))).indices
            pairs = tf.stack([index // total.shape[1], index % total.shape[1]], axis=1)
            return tf.boolean_mask(pairs, tf.gather_nd(wanted & ~self.forbidden, pairs))

        def append_tokens(pairs):
            """Return the beams' tokens and logprobs with one column more."""
            beam, token = tf.unstack(pairs, axis=1)
            logprob = tf.gather_nd(logprobs, pairs)
            return (
                tf.concat([tf.gather(state.tokens, beam), token[:, None]], axis=1),
                tf.concat([tf.gather(state.logprobs, beam), logprob[:, None]], axis=1),
            )

        ending = select_best(total, ends)
        continuing = select_best(tf.where(ends, total.dtype.min, total), ~ends)
        counts = tf.fill([tf.shape(ending)[0]], n_new)
        finished = FinishedTexts(
            *append_tokens(ending),
            counts,
            tf.gather_nd(stop_state, ending) == STOPPED,
            self.score(tf.gather_nd(total, ending), counts),
        )
        return BeamState(
            *append_tokens(continuing),
            tf.gather_nd(total, continuing),
            tf.gather_nd(stop_state, continuing),
            kv_cache.reorder(past, continuing[:, 0]),
            self._keep_best(state.finished, finished),
        )

    def _keep_best(self, old: FinishedTexts, new: FinishedTexts) -> FinishedTexts:
        """Return the best of both. The old texts have one column less than the new texts."""
        column = [[0, 0], [0, 1]]
        old = old._replace(tokens=tf.pad(old.tokens, column), logprobs=tf.pad(old.logprobs, column))
        both = tf.nest.map_structure(lambda *parts: tf.concat(parts, axis=0), old, new)
        rows = tf.math.top_k(both.score, tf.minimum(self.num_return, tf.size(both.score))).indices
        return tf.nest.map_structure(lambda part: tf.gather(part, rows), both)


def build_search_loop(model: GPT2) -> tf.types.experimental.PolymorphicFunction:
    """Build the compiled loop `search_on(state, search) -> BeamState`, for `GPT2.traced`.

    One call takes at most `STEPS_PER_CHUNK` steps, so that Ctrl-C takes effect soon.

    Example:
        >>> search_on = model.traced(build_search_loop)  # `search_beams` calls it
    """
    integers, integer = tf.TensorSpec([None, None], tf.int32), tf.TensorSpec([], tf.int32)
    numbers, rows = tf.TensorSpec([None, None], tf.float32), tf.TensorSpec([None], tf.int32)
    past = kv_cache.tensor_specs(model.hparams, model.compute_dtype)
    finished = FinishedTexts(integers, numbers, rows, tf.TensorSpec([None], tf.bool), tf.TensorSpec([None], tf.float64))
    state = BeamState(integers, numbers, tf.TensorSpec([None], tf.float32), rows, past, finished)
    n_vocab = model.hparams.n_vocab
    search = BeamSearch(
        num_beams=integer,
        num_return=integer,
        length=integer,
        length_penalty=tf.TensorSpec([], tf.float64),
        stop_table=tf.TensorSpec([None, n_vocab], tf.int32),
        forbidden=tf.TensorSpec([n_vocab], tf.bool),
    )
    shapes = tf.nest.map_structure(lambda spec: spec.shape, state)

    @tf.function(autograph=False, input_signature=[state, search])
    def search_on(state, search):
        return tf.while_loop(
            search.active,
            lambda state: (search.step(model, state),),
            (state,),
            shape_invariants=(shapes,),
            maximum_iterations=STEPS_PER_CHUNK,
        )[0]

    return search_on


def search_beams(
    model: GPT2,
    context: Sequence[int],
    stop_table: np.ndarray,
    *,
    num_beams: int,
    num_return: int,
    length: int,
    length_penalty: float,
    forbidden: Collection[int] = (),
) -> FinishedTexts:
    """Search for the best continuations of the context. `Engine.search_beams` describes the arguments.

    Example:
        >>> stop_table = np.zeros([1, model.hparams.n_vocab])  # one state, which no token leaves: nothing stops a text
        >>> best = search_beams(model, [10], stop_table, num_beams=3, num_return=1, length=4, length_penalty=1.0)
        >>> best.tokens.shape.as_list()  # with the context
        [1, 5]
    """
    tokens, zero = tf.constant([context], tf.int32), tf.constant([0])
    past = prefill(model, tokens, pad_lengths=zero)
    none = tf.zeros([0], tf.int32)
    finished = FinishedTexts(tokens[:0], tf.zeros([0, 0]), none, tf.cast(none, tf.bool), tf.cast(none, tf.float64))
    state = BeamState(tokens, tf.zeros([1, 0]), tf.zeros([1]), zero, past, finished)
    forbidden_mask = np.zeros(model.hparams.n_vocab, bool)
    forbidden_mask[list(forbidden)] = True
    search = BeamSearch(
        num_beams=tf.constant(num_beams),
        num_return=tf.constant(num_return),
        length=tf.constant(length),
        length_penalty=tf.constant(length_penalty, tf.float64),
        stop_table=tf.constant(stop_table, tf.int32),
        forbidden=tf.constant(forbidden_mask),
    )
    while search.active(state):
        interrupt.raise_dropped_ctrl_c()
        state = model.traced(build_search_loop)(state, search)
    return state.finished
