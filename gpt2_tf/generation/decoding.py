"""The decode loop in TensorFlow: token ids in, token ids out.

`prefill` runs the model over the context once. The compiled loop then samples one token per step from the KV cache.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.files import interrupt
from gpt2_tf.generation.engine import STEPS_PER_CHUNK, Chunk, check_logprobs
from gpt2_tf.generation.noise import UniformNoise
from gpt2_tf.generation.sampler import Filter, History, Sampler, sampler_specs
from gpt2_tf.generation.stop_strings import STOPPED
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2

Proposer = Callable[[Sequence[int], int, int], list[int]]  # see `extend_rows`


def prefill(
    model: GPT2, tokens: tf.Tensor, past: kv_cache.KVCache | None = None, pad_lengths: tf.Tensor | None = None
) -> kv_cache.KVCache:
    """Run all tokens but the last, int [batch, seq], and return the KV cache.

    The last token is the first input of `decode_one_token`. This function is not compiled, because compiling it for one
    text takes longer than it saves.

    Example:
        >>> kv_cache.length(prefill(model, tf.constant([[10, 20, 30]])))
        2
    """
    return model.hidden_states(tokens[:, :-1], past, pad_lengths)[1]


def decode_one_token(
    model: GPT2, token: tf.Tensor, past: kv_cache.KVCache, pad_lengths: tf.Tensor | None = None
) -> tuple[tf.Tensor, kv_cache.KVCache]:
    """Run one more token per row, int [batch].

    Returns:
        The logits of the next token, [batch, n_vocab], and the KV cache with the token's keys and values appended.

    Example:
        >>> tokens = tf.constant([[10, 20, 30]])
        >>> logits, present = decode_one_token(model, tokens[:, -1], prefill(model, tokens))
        >>> logits.shape == [1, model.hparams.n_vocab], kv_cache.length(present)
        (True, 3)
    """
    h, present = model.hidden_states(token[:, None], past, pad_lengths)
    return model.logits(h)[:, 0], present


class DecodeState(NamedTuple):
    """Everything that the decode loop needs in order to continue.

    Example:
        >>> tokens, zero = tf.constant([[10, 20]]), tf.constant([0])
        >>> state = DecodeState(tokens, zero, prefill(model, tokens), zero, n_new=zero, logprobs=tf.zeros([1, 0]))
        >>> state.active(limit=tf.constant([5])).numpy().tolist()
        [True]
    """

    tokens: tf.Tensor  # int32 [batch, seq]; shorter rows are left-padded
    pad_lengths: tf.Tensor  # int32 [batch]: the length of each row's padding
    past: kv_cache.KVCache  # of all tokens but the last, which the model has not run yet; in two segments
    stop_state: tf.Tensor  # int32 [batch]: the row's state in `Sampler.stop_table`; STOPPED once its text has ended
    n_new: tf.Tensor  # int32 [batch]: the number of the row's new tokens, with the token that ended its text
    logprobs: tf.Tensor  # float32 [batch, new]: of this loop's new tokens, before any filter

    def active(self, limit: tf.Tensor) -> tf.Tensor:
        """bool [batch]: the rows that have neither stopped nor reached `limit`, int32 [batch], new tokens."""
        return (self.stop_state != STOPPED) & (self.n_new < limit)

    def select_rows(self, rows: np.ndarray) -> "DecodeState":
        """Return the state of these rows alone, int [any], in this order."""
        return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), self)


def _input_specs(model: GPT2, batch: int | None = None) -> tuple[DecodeState, Sampler, tf.TensorSpec]:
    """The specs of a state, a sampler and its noise. They fix no length and no setting, so one trace serves all."""
    rows, columns = tf.TensorSpec([batch], tf.int32), tf.TensorSpec([batch, None], tf.int32)
    past = kv_cache.tensor_specs(model.hparams, model.compute_dtype, batch, segments=2)
    state = DecodeState(columns, rows, past, rows, rows, tf.TensorSpec([batch, None], tf.float32))
    return state, sampler_specs(model.hparams.n_vocab), tf.TensorSpec([batch, None], tf.float64)


def decode_step(
    model: GPT2,
    state: DecodeState,
    sampler: Sampler,
    noise: tf.Tensor,
    limit: tf.Tensor,
    extra_filters: Sequence[Filter] = (),
) -> DecodeState:
    """Sample one more token per row. `noise` is float64 [batch], `limit` int32 [batch].

    A row that has ended gets tokens too, which have no meaning; its `stop_state` and `n_new` no longer change.

    Example:
        >>> from gpt2_tf.generation.params import SamplingParams
        >>> from gpt2_tf.generation.sampler import make_sampler
        >>> tokens, zero = tf.constant([[10, 20]]), tf.constant([0])
        >>> state = DecodeState(tokens, zero, prefill(model, tokens), zero, zero, tf.zeros([1, 0]))
        >>> sampler = make_sampler(SamplingParams(), model.hparams.n_vocab)
        >>> state = decode_step(model, state, sampler, noise=tf.constant([0.5], tf.float64), limit=tf.constant([5]))
        >>> state.tokens.shape.as_list(), state.n_new.numpy().tolist()
        ([1, 3], [1])
    """
    logits, past = decode_one_token(model, state.tokens[:, -1], state.past, state.pad_lengths)
    history = History(state.tokens, state.pad_lengths, state.stop_state, state.n_new)
    token, logprob = sampler.sample_token(tf.cast(logits, tf.float32), history, noise, extra_filters)
    active = state.active(limit)
    return DecodeState(
        tf.concat([state.tokens, token[:, None]], axis=1),
        state.pad_lengths,
        past,
        tf.where(active, sampler.next_stop_state(state.stop_state, token), state.stop_state),
        state.n_new + tf.cast(active, tf.int32),
        tf.concat([state.logprobs, logprob[:, None]], axis=1),
    )


def build_decode_loop(
    model: GPT2, extra_filters: tuple[Filter, ...], batch: int | None
) -> tf.types.experimental.PolymorphicFunction:
    """Build the compiled loop `decode(state, sampler, noise, limit) -> DecodeState`, for `GPT2.traced`.

    The loop writes one token per column of `noise`, float64 [batch, new]. It ends early once every row has stopped or
    has `limit`, int32 [batch], new tokens.

    Args:
        model: the model that the loop runs.
        extra_filters: the caller's own filters.
        batch: the number of rows. None compiles one loop for any number; a loop for exactly 1 row is faster.

    Example:
        >>> from gpt2_tf.generation.params import SamplingParams
        >>> from gpt2_tf.generation.sampler import make_sampler
        >>> decode = model.traced(build_decode_loop, (), 1)  # no extra filters, one row
        >>> tokens, zero = tf.constant([[10, 20]]), tf.constant([0])
        >>> past = kv_cache.split_tail(prefill(model, tokens))
        >>> state = DecodeState(tokens, zero, past, zero, zero, tf.zeros([1, 0]))
        >>> sampler = make_sampler(SamplingParams(), model.hparams.n_vocab)
        >>> state = decode(state, sampler, tf.constant(UniformNoise(seed=1, rows=[0]).columns(0, 4)), tf.constant([3]))
        >>> int(state.n_new[0])
        3
    """
    state, sampler, noise = _input_specs(model, batch)
    shapes = tf.nest.map_structure(lambda spec: spec.shape, state)

    @tf.function(autograph=False, input_signature=[state, sampler, noise, state.n_new])
    def decode(state, sampler, noise, limit):
        def next_step(i, state):
            return i + 1, decode_step(model, state, sampler, noise[:, i], limit, extra_filters)

        state = state._replace(past=kv_cache.split_tail(state.past), logprobs=state.logprobs[:, :0])
        return tf.while_loop(
            lambda i, state: (i < tf.shape(noise)[1]) & tf.reduce_any(state.active(limit)),
            next_step,
            (0, state),
            shape_invariants=(tf.TensorShape([]), shapes),
        )[1]

    return decode


def build_verify_step(model: GPT2, extra_filters: tuple[Filter, ...]) -> tf.types.experimental.PolymorphicFunction:
    """Build the compiled step `verify(state, proposals, sampler, noise) -> DecodeState`, for `GPT2.traced`.

    The step runs the proposed tokens, int32 [n], in one forward pass. It keeps each proposal that the decode loop would
    have written, and adds one token more. It takes a batch of one row. `noise` is float64 [1, n + 1].

    Example:
        >>> from gpt2_tf.generation.params import SamplingParams
        >>> from gpt2_tf.generation.sampler import make_sampler
        >>> tokens, zero = tf.constant([[10, 20]]), tf.constant([0])
        >>> past = kv_cache.split_tail(prefill(model, tokens))
        >>> state = DecodeState(tokens, zero, past, zero, zero, tf.zeros([1, 0]))
        >>> sampler = make_sampler(SamplingParams(), model.hparams.n_vocab)
        >>> noise = tf.constant(UniformNoise(seed=1, rows=[0]).columns(0, 3))
        >>> state = model.traced(build_verify_step, ())(state, tf.constant([30, 40]), sampler, noise)
        >>> 1 <= int(state.n_new[0]) <= 3  # the right proposals, and one token more
        True
    """
    state, sampler, noise = _input_specs(model)

    @tf.function(autograph=False, input_signature=[state, tf.TensorSpec([None], tf.int32), sampler, noise])
    def verify(state, proposals, sampler, noise):
        n, seq = tf.size(proposals), tf.shape(state.tokens)[1]
        h, past = model.hidden_states(
            tf.concat([state.tokens[:, -1:], proposals[None]], axis=1), state.past, state.pad_lengths
        )
        logits = tf.cast(model.logits(h)[0], tf.float32)  # [n + 1, n_vocab]
        # The sampler sees one row per position, which holds the text up to that position. Earlier positions have
        # shorter texts, so their rows are left-padded.
        padding = n - tf.range(n + 1)  # [n + 1]
        text = tf.concat([state.tokens[0], proposals], axis=0)
        rows = tf.gather(text, tf.maximum(tf.range(seq + n) - padding[:, None], 0))
        stop_states = tf.scan(
            lambda stop_state, token: sampler.next_stop_state(stop_state, token[None]), proposals, state.stop_state
        )
        stop_states = tf.concat([state.stop_state, stop_states[:, 0]], axis=0)
        history = History(rows, state.pad_lengths + padding, stop_states, state.n_new + tf.range(n + 1))
        token, logprobs = sampler.sample_token(logits, history, noise[0], extra_filters)
        # Keep everything up to the first wrong proposal or the end of the text.
        stop_states = sampler.next_stop_state(stop_states, token)
        last = tf.concat([token[:-1] != proposals, [True]], axis=0) | (stop_states == STOPPED)
        new = tf.argmax(last, output_type=tf.int32) + 1
        return DecodeState(
            tf.concat([state.tokens, token[None, :new]], axis=1),
            state.pad_lengths,
            kv_cache.split_tail(kv_cache.truncate(past, seq - 1 + new)),
            stop_states[new - 1 : new],
            state.n_new + new,
            logprobs[None, :new],
        )

    return verify


def extend_rows(
    model: GPT2,
    contexts: Sequence[Sequence[int]],
    sampler: Sampler,
    limits: Sequence[int],
    noise: UniformNoise,
    extra_filters: Sequence[Filter] = (),
    steps: int = STEPS_PER_CHUNK,
    proposer: Proposer | None = None,
) -> Iterator[list[Chunk]]:
    """Continue each context until its row has stopped or reached its limit. `Engine.extend` says what is yielded.

    Args:
        model: the model to run.
        contexts: token ids in range, at least one per row.
        sampler: how to sample.
        limits: the largest number of new tokens of each row, at least 1.
        noise: the random numbers, for as many rows.
        extra_filters: the caller's own filters.
        steps: yield after at most this many new tokens per row.
        proposer: proposes the next tokens; needs a batch of one row. `proposer(text, n_new, n)` gets the tokens in the
            window, how many of them are new, and how many it may propose. Its proposals change only the speed.

    Example:
        >>> from gpt2_tf.generation.params import SamplingParams
        >>> from gpt2_tf.generation.sampler import make_sampler
        >>> sampler = make_sampler(SamplingParams(), model.hparams.n_vocab)
        >>> for (chunk,) in extend_rows(model, [[10, 20]], sampler, limits=[9], noise=UniformNoise(seed=1, rows=[0])):
        ...     print(len(chunk.ids), chunk.finish_reason)
        8 None
        1 length
    """
    extra_filters = tuple(extra_filters)
    n_ctx = model.hparams.n_ctx
    texts = [list(context) for context in contexts]  # the part of each text that is in the window
    limits = np.asarray(limits, np.int32)
    rows = np.arange(len(texts))  # the active rows
    stop_state = n_new = np.zeros(len(texts), np.int32)
    state, n_steps = None, 0
    while len(rows):
        interrupt.raise_dropped_ctrl_c()
        if state is None:  # at the start, and whenever the window is full
            for row in rows:
                if len(texts[row]) > n_ctx:
                    texts[row] = texts[row][-max(n_ctx // 2, 1) :]
            tokens, pad_lengths = left_pad([texts[row] for row in rows])
            past = kv_cache.split_tail(prefill(model, tokens, pad_lengths=pad_lengths))
            state = DecodeState(
                tokens, pad_lengths, past, tf.constant(stop_state), tf.constant(n_new), tf.zeros([len(rows), 0])
            )
        seq = state.tokens.shape[1]
        # The last new token is not run, so n_ctx + 1 tokens fit.
        room = min(n_ctx + 1 - seq, limits[rows].max() - n_steps)
        if proposer is None:
            columns = tf.constant(noise.columns(n_steps, n_steps + min(steps, room))[rows])
            batch = 1 if len(texts) == 1 else None
            decode = model.traced(build_decode_loop, extra_filters, batch)
            state = decode(state, sampler, columns, tf.constant(limits[rows]))
        else:
            proposals = proposer(texts[0], n_steps, room - 1)
            columns = tf.constant(noise.columns(n_steps, n_steps + len(proposals) + 1))
            verify = model.traced(build_verify_step, extra_filters)
            state = verify(state, tf.constant(proposals, tf.int32), sampler, columns)
        n_steps += state.tokens.shape[1] - seq
        tokens, logprobs = state.tokens[:, seq:].numpy().tolist(), state.logprobs.numpy().tolist()
        n_before, stop_state, n_new = n_new, state.stop_state.numpy(), state.n_new.numpy()
        active = state.active(limits[rows]).numpy()
        chunks = []
        for i, row in enumerate(rows.tolist()):
            n = n_new[i] - n_before[i]
            check_logprobs(logprobs[i][:n])
            texts[row] += tokens[i][:n]
            reason = None if active[i] else "stop" if stop_state[i] == STOPPED else "length"
            chunks.append(Chunk(row, tokens[i][:n], logprobs[i][:n], reason))
        yield chunks
        if not active.all():
            rows, stop_state, n_new = rows[active], stop_state[active], n_new[active]
            state = state.select_rows(np.flatnonzero(active))
        if state.tokens.shape[1] > n_ctx:
            state = None


def left_pad(rows: Sequence[Sequence[int]]) -> tuple[tf.Tensor, tf.Tensor]:
    """Left-pad rows of different lengths: int32 [batch, seq], and the length of each row's padding, int32 [batch].

    Example:
        >>> tokens, pad_lengths = left_pad([[10, 20, 30], [40]])
        >>> tokens.numpy().tolist(), pad_lengths.numpy().tolist()
        ([[10, 20, 30], [0, 0, 40]], [0, 2])
    """
    seq = max(map(len, rows))
    pad_lengths = [seq - len(row) for row in rows]
    tokens = [[0] * n + list(row) for n, row in zip(pad_lengths, rows, strict=True)]
    return tf.constant(tokens, tf.int32), tf.constant(pad_lengths, tf.int32)
