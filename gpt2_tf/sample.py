"""Sampling: `prefill` reads the context, `decode_one_token` goes on from the cache, a `tf.function` loops over it."""

import random
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from encoder import Encoder
from gpt2_tf import cache, logits
from gpt2_tf.hparams import HParams
from gpt2_tf.model import GPT2


def prefill(model: GPT2, context: tf.Tensor) -> tuple[tf.Tensor, cache.Cache]:
    """Reads the context, int [batch, seq]; gives the next token's logits, [batch, n_vocab], and the cache."""
    h, past = model.hidden(context)
    return model.logits(h[:, -1]), past


def decode_one_token(model: GPT2, token: tf.Tensor, past: cache.Cache) -> tuple[tf.Tensor, cache.Cache]:
    """Reads one more token, int [batch]; gives the next one's logits, [batch, n_vocab], and the longer cache."""
    h, present = model.hidden(token[:, None], past)
    return model.logits(h[:, -1]), present


class Choice(NamedTuple):
    """How the next token is chosen from its logits; each field a number or a scalar tensor.

    In this order: temperature (0 takes the likeliest token), top-k (0 is off), top-p (1 is off).
    """

    temperature: tf.Tensor
    top_k: tf.Tensor
    top_p: tf.Tensor

    def check(self, n_vocab: int) -> None:
        """Raises ValueError where a value has no meaning; all three are numbers then."""
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(f"temperature is {self.temperature}, but must be at least 0 (0 takes the likeliest token)")
        if self.top_k not in range(n_vocab + 1):  # 2.5 isn't
            raise ValueError(f"top_k is {self.top_k}, but must be 0 (off) to {n_vocab}, the size of the vocabulary")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}, but must be above 0 and at most 1 (off)")

    def token(self, scores: tf.Tensor, noise: tf.Tensor) -> tf.Tensor:
        """Chooses by inversion: the token where the cumulative probability passes `noise`.

        Args:
            scores: the logits, [batch, n_vocab].
            noise: float64 [batch], uniform in [0, 1).

        Returns:
            int32 [batch].
        """

        def draw():
            # Below 0 at most, so that over a temperature near 0 not all are infinite.
            kept = tf.cast(scores - tf.reduce_max(scores, axis=-1, keepdims=True), tf.float32)
            kept = logits.temperature(kept, self.temperature)
            kept = tf.cond(self.top_k > 0, lambda: logits.top_k(kept, self.top_k), lambda: kept)
            kept = tf.cond(self.top_p < 1, lambda: logits.top_p(kept, self.top_p), lambda: kept)
            # float64, so that 50,257 small probabilities add up, and rare tokens keep theirs.
            cumulative = tf.cumsum(tf.nn.softmax(tf.cast(kept, tf.float64)), axis=-1)
            return tf.searchsorted(cumulative, noise[:, None] * cumulative[:, -1:], side="right")[:, 0]

        return tf.cond(self.temperature > 0, draw, lambda: tf.argmax(scores, axis=-1, output_type=tf.int32))


def uniform(seed: tf.Tensor, rows: tf.Tensor, length: tf.Tensor) -> tf.Tensor:
    """Noise in [0, 1), float64 [batch, length]; a row's depends on the seed and its number in `rows` alone."""

    def row_noise(row):
        return tf.random.stateless_uniform([length], tf.stack([seed, row]), dtype=tf.float64, alg="philox")

    return tf.map_fn(row_noise, rows, fn_output_signature=tf.float64)


def _sampler(model: GPT2) -> Callable:
    """The model's sampling loop, traced once for all lengths, batches and settings; it lives as long as the model."""
    if (sampler := model.__dict__.get("_sampler")) is not None:
        return sampler

    def spec(shape, dtype):
        return tf.TensorSpec(shape, dtype)

    @tf.function(
        autograph=False,
        input_signature=[
            spec([None, None], tf.int32),
            spec([], tf.int32),
            Choice(spec([], tf.float32), spec([], tf.int32), spec([], tf.float32)),
            spec([], tf.int64),
            spec([None], tf.int64),
        ],
    )
    def sample(context, length, choice, seed, rows):
        """int32 [batch, seq], ... -> int32 [batch, seq + length]"""
        noise = uniform(seed, rows, length)
        scores, past = prefill(model, context)
        token = choice.token(scores, noise[:, 0])

        def step(i, tokens, token, past):
            scores, past = decode_one_token(model, token, past)
            token = choice.token(scores, noise[:, i])
            return i + 1, tokens.write(i, token), token, past

        tokens = tf.TensorArray(tf.int32, size=length, element_shape=[None]).write(0, token)
        _, tokens, _, _ = tf.while_loop(
            lambda i, *_: i < length,
            step,
            (1, tokens, token, past),
            shape_invariants=(tf.TensorShape([]), None, tf.TensorShape([None]), cache.shape(model.hparams)),
        )
        return tf.concat([context, tf.transpose(tokens.stack())], axis=1)

    # The one trace alone: TensorFlow would take the functions of several models for one that is traced anew each time,
    # and warn. Set past Keras's tracking of attributes, which is for layers and weights.
    model.__dict__["_sampler"] = sampler = sample.get_concrete_function()
    return sampler


def sample_sequence(
    model: GPT2,
    *,
    length: int,
    context: Sequence | np.ndarray | tf.Tensor | None = None,
    start_token: int | None = None,
    batch_size: int | None = None,
    temperature: float = 1,
    top_k: int = 0,
    top_p: float = 1,
    seed: int | None = None,
) -> tf.Tensor:
    """OpenAI's `sample_sequence`: `length` tokens after each row of the context, never stopping before.

    Args:
        context: int [seq], or [batch_size, seq]; or instead of it
        start_token: the one token that each row begins with.
        batch_size: rows; 1 unless the context says otherwise.
        temperature: divides the logits; 0 takes the likeliest token each time.
        top_k: keep the k likeliest tokens; 0 keeps all.
        top_p: keep the likeliest tokens whose probabilities add up to at most this; 1 keeps all.
        seed: row i of a batch depends on the seed and i alone; None draws a seed from Python's `random`.

    Returns:
        int32 [batch_size, seq + length], the context included.

    Raises:
        ValueError: an argument out of its range, with the range.

    Source: OpenAI's `src/sample.py`.
    """
    if (context is None) == (start_token is None):
        raise ValueError("give either a context or a start_token, not both and not neither")
    context = np.asarray([start_token] if context is None else context)
    if context.ndim == 1:
        context = np.tile(context, [1 if batch_size is None else batch_size, 1])
    if batch_size is not None and len(context) != batch_size:
        raise ValueError(f"the context has {len(context)} rows, but batch_size is {batch_size}")
    choice = Choice(temperature, top_k, top_p)
    check_context(model.hparams, context, length)
    choice.check(model.hparams.n_vocab)
    return _run(model, context, length, choice, draw_seed(seed), range(len(context)))


def check_context(hparams: HParams, context: np.ndarray, length: int) -> None:
    """Raises ValueError unless int [batch, seq] and `length` tokens more can go through the model.

    Ids must be checked here: on a GPU, `tf.gather` gives zeros for an id out of range, and says nothing.
    """
    if context.ndim != 2 or 0 in context.shape or context.dtype.kind not in "iu":
        raise ValueError(
            f"the context is {context.dtype} {list(context.shape)}, but must be whole numbers, [batch_size, seq], "
            "and at least one token a row"
        )
    wrong = context[(context < 0) | (context >= hparams.n_vocab)]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is out of range: the vocabulary's ids are 0 to {hparams.n_vocab - 1}")
    # The last new token is not read, so one more than n_ctx fits.
    room = hparams.n_ctx + 1 - context.shape[1]
    if room < 1:
        raise ValueError(
            f"the prompt has {context.shape[1]:,} tokens, but the model reads at most {hparams.n_ctx:,}; shorten it"
        )
    if length not in range(1, room + 1):
        raise ValueError(
            f"length is {length:,}, but must be 1 to {room:,}: the model's window is {hparams.n_ctx:,} tokens, "
            f"and the prompt has {context.shape[1]:,}"
        )


def draw_seed(seed: int | None) -> int:
    """The seed, or one from Python's `random` where it is None. ValueError for what isn't a whole 64-bit number."""
    if seed is None:
        return random.getrandbits(31)
    if int(seed) != seed or not -(2**63) <= seed < 2**63:
        raise ValueError(f"seed is {seed}, but must be a whole number of 64 bits")
    return int(seed)


def _run(model: GPT2, context: np.ndarray, length: int, choice: Choice, seed: int, rows: Sequence[int]) -> tf.Tensor:
    return _sampler(model)(
        tf.constant(context, tf.int32),
        tf.constant(int(length), tf.int32),
        Choice(
            tf.constant(choice.temperature, tf.float32),
            tf.constant(int(choice.top_k), tf.int32),
            tf.constant(choice.top_p, tf.float32),
        ),
        tf.constant(seed, tf.int64),
        tf.constant(rows, tf.int64),
    )


class Completion(NamedTuple):
    """One sample: what was asked, and what came after it.

    `finish_reason` is "stop" where the model ended the text with `<|endoftext|>` (which is left out of `text` and
    `ids`), "length" where it had more to say.
    """

    prompt: str
    text: str
    ids: list[int]
    finish_reason: str


def generate(
    model: GPT2,
    enc: Encoder,
    prompts: str | Sequence[str] | None = None,
    *,
    length: int | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    num_samples: int = 1,
    seed: int | None = None,
    batch_size: int | None = None,
) -> list[Completion]:
    """Text in, text out: `num_samples` for each prompt, in order.

    Args:
        prompts: one or several; None starts from `<|endoftext|>`.
        length: new tokens at most; a sample ends before that at `<|endoftext|>`. None takes 100, or what fits.
        temperature, top_k, top_p: as for `sample_sequence`.
        seed: the same gives the same texts, whatever the batch size; a sample depends on it and the sample's number.
        batch_size: samples computed at a time; None takes all of a prompt's.

    Raises:
        ValueError: an argument out of its range, an empty prompt, or one longer than the model's window.
    """
    for name, value in (("num_samples", num_samples), ("batch_size", 1 if batch_size is None else batch_size)):
        if value < 1:
            raise ValueError(f"{name} is {value}, but must be at least 1")
    if enc.n_vocab != model.hparams.n_vocab:
        raise ValueError(f"the vocabulary has {enc.n_vocab} tokens, but the model {model.hparams.n_vocab}")
    prompts = [prompts] if prompts is None or isinstance(prompts, str) else list(prompts)
    contexts = [_context(enc, prompt) for prompt in prompts]
    choice = Choice(temperature, top_k, top_p)
    choice.check(model.hparams.n_vocab)
    lengths = []
    for context in contexts:
        room = model.hparams.n_ctx + 1 - context.shape[1]
        lengths.append(max(1, min(100, room)) if length is None else length)
        check_context(model.hparams, context, lengths[-1])
    seed = draw_seed(seed)
    completions = []
    for prompt, context, length in zip(prompts, contexts, lengths, strict=True):
        done = len(completions)
        for start in range(done, done + num_samples, batch_size or num_samples):
            rows = range(start, min(start + (batch_size or num_samples), done + num_samples))
            batch = _run(model, np.tile(context, [len(rows), 1]), length, choice, seed, rows)
            for row in batch[:, context.shape[1] :].numpy().tolist():
                ids = row[: row.index(enc.end_of_text)] if enc.end_of_text in row else row
                reason = "length" if len(ids) == length else "stop"
                completions.append(Completion(prompt or "", enc.decode(ids), ids, reason))
    return completions


def _context(enc: Encoder, prompt: str | None) -> np.ndarray:
    """int [1, seq]"""
    if prompt == "":
        raise ValueError("the prompt is empty; leave it out to start from <|endoftext|>")
    return np.array([[enc.end_of_text] if prompt is None else enc.encode(prompt)], np.int64)
