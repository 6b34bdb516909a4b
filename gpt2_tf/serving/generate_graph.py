"""The TensorFlow graph that continues a batch of prompts: token ids and settings in, text out."""

from typing import NamedTuple

import tensorflow as tf

from encoder import Encoder
from encoder.graph import CPU, GraphEncoder
from gpt2_tf.generation.decoding import DecodeState, decode_step, prefill
from gpt2_tf.generation.params import SamplingParams
from gpt2_tf.generation.sampler import make_sampler
from gpt2_tf.generation.stop_strings import STOPPED, build_stop_table
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2


class Prompts(NamedTuple):
    """A batch of prompts and the settings of each row; all settings are in range.

    Example:
        >>> Prompts._fields
        ('tokens', 'pad_lengths', 'max_new', 'temperature', 'top_k', 'top_p', 'seed', 'stop')
    """

    tokens: tf.Tensor  # int32 [batch, seq], left-padded
    pad_lengths: tf.Tensor  # int32 [batch]: how many columns of padding each row has
    max_new: tf.Tensor  # int32 [batch]: write at most this many new tokens
    temperature: tf.Tensor  # float32 [batch]
    top_k: tf.Tensor  # int32 [batch]
    top_p: tf.Tensor  # float32 [batch]
    seed: tf.Tensor  # int64 [batch]
    stop: tf.Tensor  # string [batch]: end the text before this string; "" never ends it


class TextGenerator:
    """Continues prompts by the arithmetic and the random numbers of `gpt2_tf.generate`, but without Python.

    `generate(prompts)` is a `tf.function`, so that the two signatures which call it share one copy of its graph.

    Example:
        >>> generator = TextGenerator(model, enc, GraphEncoder(enc))
        >>> tokens, one = tf.constant([enc.encode("ROMEO:")]), tf.constant([1])
        >>> prompts = Prompts(
        ...     tokens,
        ...     pad_lengths=0 * one,
        ...     max_new=3 * one,
        ...     temperature=tf.constant([0.0]),
        ...     top_k=0 * one,
        ...     top_p=tf.constant([1.0]),
        ...     seed=tf.constant([0], tf.int64),
        ...     stop=tf.constant([""]),
        ... )
        >>> answer = generator.generate(prompts)
        >>> answer["count"].numpy().tolist(), answer["finish_reason"].numpy().tolist()
        ([3], [b'length'])
    """

    def __init__(self, model: GPT2, enc: Encoder, graph_encoder: GraphEncoder):
        self.model = model
        self.token_bytes = graph_encoder.tokens  # string [n_vocab]
        stop_table = build_stop_table(enc.tokens, [enc.end_of_text], [])
        self.sampler = make_sampler(SamplingParams().for_vocabulary(enc), enc.n_vocab, stop_table)
        with tf.device(CPU):
            self.token_lengths = tf.constant([len(token) for token in enc.tokens])  # int32 [n_vocab], in bytes
        self.generate = tf.function(self._generate, autograph=False)

    def _generate(self, prompts: Prompts) -> dict[str, tf.Tensor]:
        """Continue each row; return its text, token count, finish reason and log-probability."""
        noise = self._noise(prompts.seed, tf.reduce_max(prompts.max_new))

        # The static batch size of 1 lets TensorFlow choose faster kernels. The function must not be inlined: TensorFlow
        # 2.20 and 2.21 would fold its one-row constants into the loop for several rows.
        @tf.function(autograph=False, experimental_attributes={"_noinline": True})
        def write_one_row(prompts, noise):
            prompts, noise = tf.nest.map_structure(_with_one_row, (prompts, noise))
            return self._write(prompts, noise)

        text, new_tokens, logprobs, stopped = tf.cond(
            tf.size(prompts.pad_lengths) == 1,
            lambda: write_one_row(prompts, noise),
            lambda: self._write(prompts, noise),
        )
        # With NaN logits, sampling would return arbitrary tokens.
        damaged = "the model's logits are not finite: its weights are damaged or their training diverged"
        logprobs = tf.debugging.check_numerics(logprobs, damaged)
        with tf.device(CPU):
            # A row that has ended still gets tokens, which begin at the end of its text or later.
            first_bytes = tf.cumsum(tf.gather(self.token_lengths, new_tokens), axis=1, exclusive=True)
            in_text = first_bytes < tf.strings.length(text)[:, None]
            return {
                "text": tf.strings.unicode_transcode(text, "UTF-8", "UTF-8", errors="replace"),
                "count": tf.reduce_sum(tf.cast(in_text, tf.int32), axis=1),
                "finish_reason": tf.where(stopped, "stop", "length"),
                "logprob": tf.reduce_sum(tf.where(in_text, logprobs, 0.0), axis=1),
            }

    def _noise(self, seed: tf.Tensor, columns: tf.Tensor) -> tf.Tensor:
        """Uniform noise in [0, 1), float64 [batch, columns]; each row depends on its own seed only."""

        def row(seed):
            return tf.random.stateless_uniform([columns], tf.stack([seed, 0]), dtype=tf.float64, alg="philox")

        return tf.map_fn(row, seed, fn_output_signature=tf.float64)

    def _write(self, prompts: Prompts, noise: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor, tf.Tensor]:
        """Run the decoding loop until every row has stopped or has its `max_new` tokens.

        Returns:
            The texts as bytes, string [batch]; the new tokens, int32 [batch, new]; their log-probabilities, float32
            [batch, new]; and whether each text was stopped, bool [batch].
        """
        sampler = self.sampler._replace(
            temperature=prompts.temperature[:, None], top_k=prompts.top_k[:, None], top_p=prompts.top_p[:, None]
        )
        any_stop_string = tf.reduce_any(prompts.stop != b"")

        def any_active(i, state, text):
            return tf.reduce_any(state.active(prompts.max_new))

        def write_one_token(i, state, text):
            active = state.active(prompts.max_new)
            state = decode_step(self.model, state, sampler, noise[:, i], prompts.max_new)
            with tf.device(CPU):
                token_bytes = tf.gather(self.token_bytes, state.tokens[:, -1])
                token_bytes = tf.where(active & (state.stop_state != STOPPED), token_bytes, b"")
                text, stopped = tf.cond(
                    any_stop_string,
                    lambda: append_until_stop(text, token_bytes, prompts.stop),
                    lambda: (text + token_bytes, tf.zeros_like(active)),
                )
            state = state._replace(stop_state=tf.where(stopped & active, STOPPED, state.stop_state))
            # A row that has ended must not run out of positions while others continue. So it gets one more column of
            # padding per step, which keeps its last position where it is.
            still_active = state.active(prompts.max_new)
            pad_lengths = tf.where(still_active, state.pad_lengths, state.pad_lengths + 1)
            return i + 1, state._replace(pad_lengths=pad_lengths), text

        def write_tail(i, state, text):
            """Write up to TAIL_TOKENS tokens, so that the cache's growing segment stays short."""
            end = i + kv_cache.TAIL_TOKENS
            return tf.while_loop(
                lambda i, state, text: (i < end) & any_active(i, state, text),
                write_one_token,
                (i, state._replace(past=kv_cache.split_tail(state.past)), text),
                shape_invariants,
            )

        state, shapes = self._initial_state(prompts)
        state = state._replace(past=kv_cache.split_tail(state.past))
        text = tf.fill(tf.shape(prompts.pad_lengths), b"")
        shape_invariants = (tf.TensorShape([]), shapes, prompts.pad_lengths.shape)
        _, state, text = tf.while_loop(any_active, write_tail, (0, state, text), shape_invariants)
        new_tokens = state.tokens[:, tf.shape(prompts.tokens)[1] :]
        return text, new_tokens, state.logprobs, state.stop_state == STOPPED

    def _initial_state(self, prompts: Prompts) -> tuple[DecodeState, DecodeState]:
        """The state before the first new token, and the shapes that it keeps in a loop: any number of columns."""
        batch = prompts.tokens.shape[0]
        zeros = tf.zeros_like(prompts.pad_lengths)
        past = prefill(self.model, prompts.tokens, pad_lengths=prompts.pad_lengths)
        logprobs = tf.zeros([tf.size(zeros), 0], tf.float32)
        state = DecodeState(prompts.tokens, prompts.pad_lengths, past, zeros, zeros, logprobs)

        rows, columns = tf.TensorShape([batch]), tf.TensorShape([batch, None])
        specs = kv_cache.tensor_specs(self.model.hparams, self.model.compute_dtype, batch, segments=2)
        past_shapes = tf.nest.map_structure(lambda spec: spec.shape, specs)
        return state, DecodeState(columns, rows, past_shapes, rows, rows, columns)


def _with_one_row(x: tf.Tensor) -> tf.Tensor:
    """The same tensor with a static batch size of 1."""
    return tf.reshape(x, [1, *[-1] * (x.shape.rank - 1)])


def left_pad_ragged(ids: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Left-pad rows of ids, each of at least one id.

    Returns:
        The padded rows, int32 [batch, seq], and how many columns of padding each has, int32 [batch]. The padding
        repeats a row's first id: any id will do, since padding is masked.

    Example:
        >>> tokens, pad_lengths = left_pad_ragged(tf.ragged.constant([[10, 20, 30], [40]], dtype=tf.int32))
        >>> tokens.numpy().tolist(), pad_lengths.numpy().tolist()
        ([[10, 20, 30], [40, 40, 40]], [0, 2])
    """
    right_padded = ids.to_tensor()
    seq = tf.shape(right_padded)[1]
    pad_lengths = seq - tf.cast(ids.row_lengths(), tf.int32)
    columns = tf.maximum(tf.range(seq) - pad_lengths[:, None], 0)
    return tf.gather(right_padded, columns, batch_dims=1), pad_lengths


def append_until_stop(text: tf.Tensor, new: tf.Tensor, stop: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Append new bytes to each text, and cut it before its stop string.

    Args:
        text: string [batch]; holds no stop string yet.
        new: string [batch].
        stop: string [batch]; "" never stops a text.

    Returns:
        The texts, string [batch], and whether each now ends before its stop string, bool [batch].

    Example:
        >>> text, stopped = append_until_stop(*map(tf.constant, (["good ni"], ["ght, sir"], ["night"])))
        >>> text.numpy().tolist(), stopped.numpy().tolist()
        ([b'good '], [True])
    """
    stop_length = tf.strings.length(stop)
    whole = text + new
    # The old text holds no stop string, so a stop string begins at its last stop_length - 1 bytes or later.
    first = tf.maximum(tf.strings.length(text) - stop_length + 1, 0)
    candidates = tf.strings.length(whole) - stop_length - first + 1
    begins = first[:, None] + tf.range(tf.maximum(tf.reduce_max(candidates), 1))  # [batch, candidates]
    shape = tf.shape(begins)
    found = tf.strings.substr(
        tf.broadcast_to(whole[:, None], shape),
        tf.minimum(begins, tf.strings.length(whole)[:, None]),
        tf.broadcast_to(stop_length[:, None], shape),
    )
    matches = (found == stop[:, None]) & (stop_length > 0)[:, None]
    stopped = tf.reduce_any(matches, axis=1)
    end = first + tf.argmax(matches, axis=1, output_type=tf.int32)
    return tf.where(stopped, tf.strings.substr(whole, tf.zeros_like(end), end), whole), stopped
