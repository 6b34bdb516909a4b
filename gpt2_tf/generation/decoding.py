"""Sampling: ids in, ids out. `prefill` reads the context, `decode` goes on from the cache in one compiled loop."""

import random
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from gpt2_tf.generation.sampler import Choice, Filter, Text, choice
from gpt2_tf.generation.stop_strings import STOPPED
from gpt2_tf.hparams import HParams, is_whole
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2

COLUMNS = 1024  # of noise at a time
STEPS = 8  # tokens from one look at the loop to the next: a Ctrl-C waits for no more


def prefill(
    model: GPT2, tokens: tf.Tensor, past: kv_cache.KVCache | None = None, start: tf.Tensor | None = None
) -> kv_cache.KVCache:
    """Reads the tokens, int [batch, seq], but for the last, with which `decode_one_token` begins; gives the cache.

    Not compiled for one text: that takes longer than it saves.
    """
    return model.hidden_states(tokens[:, :-1], past, start)[1]


def decode_one_token(
    model: GPT2, token: tf.Tensor, past: kv_cache.KVCache, start: tf.Tensor | None = None
) -> tuple[tf.Tensor, kv_cache.KVCache]:
    """Reads one more token, int [batch]; gives the next one's logits, [batch, n_vocab], and the longer cache."""
    h, present = model.hidden_states(token[:, None], past, start)
    return model.logits(h)[:, 0], present


class State(NamedTuple):
    """Where the loop stands; what it needs to go on."""

    tokens: tf.Tensor  # int32 [batch, seq]; rows of fewer tokens are filled up on the left
    start: tf.Tensor  # int32 [batch]: the column of each row's first token
    past: kv_cache.KVCache  # of all tokens but the last, which is not read yet; in two pieces
    stop: tf.Tensor  # int32 [batch]: the row's state in `Choice.stops`; STOPPED has ended its text
    count: tf.Tensor  # int32 [batch]: the row's new tokens, up to the one that ended its text
    logprobs: tf.Tensor  # float32 [batch, new]: of this loop's new tokens, before any filter

    def going(self, limit: tf.Tensor) -> tf.Tensor:
        """Booleans [batch]: the rows whose texts go on. `limit` is int32 [batch]."""
        return (self.stop != STOPPED) & (self.count < limit)

    def take(self, rows: np.ndarray) -> "State":
        """These rows alone, int [any], in this order."""
        return tf.nest.map_structure(lambda tensor: tf.gather(tensor, rows), self)


def _specs(model: GPT2, batch: int | None = None) -> tuple[State, Choice, tf.TensorSpec]:
    """The state, the choice and the noise, of any lengths and settings, so that each function has one trace."""
    integer, number = tf.TensorSpec([], tf.int32), tf.TensorSpec([], tf.float32)
    rows = tf.TensorSpec([batch], tf.int32)
    past = kv_cache.tensor_specs(model.hparams, model.compute_dtype, batch, segments=2)
    logprobs = tf.TensorSpec([batch, None], tf.float32)
    state = State(tf.TensorSpec([batch, None], tf.int32), rows, past, rows, rows, logprobs)
    stops = tf.TensorSpec([None, model.hparams.n_vocab], tf.int32)
    bias = tf.TensorSpec([None], tf.float32)
    choice = Choice(bias, number, integer, stops, integer, number, integer, number, number)
    return state, choice, tf.TensorSpec([batch, None], tf.float64)


def step(
    model: GPT2, state: State, choice: Choice, noise: tf.Tensor, limit: tf.Tensor, filters: Sequence[Filter] = ()
) -> State:
    """One token more for each row; `noise` is float64 [batch], `limit` int32 [batch]."""
    logits, past = decode_one_token(model, state.tokens[:, -1], state.past, state.start)
    logits = tf.cast(logits, tf.float32)
    text = Text(state.tokens, state.start, state.stop, state.count)
    token, logprob = choice.token(logits, text, noise, filters)
    going = state.going(limit)
    return State(
        tf.concat([state.tokens, token[:, None]], axis=1),
        state.start,
        past,
        tf.where(going, choice.next_stop(state.stop, token), state.stop),
        state.count + tf.cast(going, tf.int32),
        tf.concat([state.logprobs, logprob[:, None]], axis=1),
    )


def decoder(model: GPT2, filters: tuple[Filter, ...], batch: int | None) -> tf.types.experimental.PolymorphicFunction:
    """The loop, `decode(state, choice, noise, limit) -> State`, for `GPT2.traced`; a `batch` of 1 has a faster one.

    It writes as many tokens as `noise`, float64 [batch, new], has columns; fewer where every row has stopped or has
    `limit`, int32 [batch], new tokens.
    """
    state, choice, noise = _specs(model, batch)
    shapes = tf.nest.map_structure(lambda spec: spec.shape, state)

    @tf.function(autograph=False, input_signature=[state, choice, noise, state.count])
    def decode(state, choice, noise, limit):
        def next_step(i, state):
            return i + 1, step(model, state, choice, noise[:, i], limit, filters)

        state = state._replace(past=kv_cache.split_tail(state.past), logprobs=state.logprobs[:, :0])
        return tf.while_loop(
            lambda i, state: (i < tf.shape(noise)[1]) & tf.reduce_any(state.going(limit)),
            next_step,
            (0, state),
            shape_invariants=(tf.TensorShape([]), shapes),
        )[1]

    return decode


def checker(model: GPT2, filters: tuple[Filter, ...]) -> tf.types.experimental.PolymorphicFunction:
    """One step with guesses, `check(state, guesses, choice, noise) -> State`, for `GPT2.traced`; a batch of one row.

    The guesses, int32 [n], are read at once, and the state goes on by each that `decode` would have written, and by one
    token more. `noise` is float64 [1, n + 1].
    """
    state, choice, noise = _specs(model)

    @tf.function(autograph=False, input_signature=[state, tf.TensorSpec([None], tf.int32), choice, noise])
    def check(state, guesses, choice, noise):
        n, seq = tf.size(guesses), tf.shape(state.tokens)[1]
        h, past = model.hidden_states(tf.concat([state.tokens[:, -1:], guesses[None]], axis=1), state.past, state.start)
        logits = tf.cast(model.logits(h)[0], tf.float32)  # [n + 1, n_vocab]
        # A row for each place, with the guesses before it: its text is filled up on the left as in any batch.
        short = n - tf.range(n + 1)  # [n + 1]
        text = tf.concat([state.tokens[0], guesses], axis=0)
        rows = tf.gather(text, tf.maximum(tf.range(seq + n) - short[:, None], 0))
        stops = tf.scan(lambda stop, token: choice.next_stop(stop, token[None]), guesses, state.stop)
        stops = tf.concat([state.stop, stops[:, 0]], axis=0)
        count = state.count + tf.range(n + 1)
        token, logprobs = choice.token(logits, Text(rows, state.start + short, stops, count), noise[0], filters)
        # Kept up to the first guess that fails, or the end of the text.
        stop = choice.next_stop(stops, token)
        fails = tf.concat([token[:-1] != guesses, [True]], axis=0) | (stop == STOPPED)
        new = tf.argmax(fails, output_type=tf.int32) + 1
        return State(
            tf.concat([state.tokens, token[None, :new]], axis=1),
            state.start,
            kv_cache.split_tail(kv_cache.truncate(past, seq - 1 + new)),
            stop[new - 1 : new],
            state.count + new,
            logprobs[None, :new],
        )

    return check


def uniform(seed: int, rows: Sequence[int], length: int, first: int = 0) -> np.ndarray:
    """Noise in [0, 1), float64 [batch, length]; a row's depends on the seed and its number in `rows` alone.

    It is that of `tf.random.stateless_uniform`, from column `first`, an even number, on.
    """

    def drawn(row: int) -> np.ndarray:
        key, (low, high) = tf.raw_ops.StatelessRandomGetKeyCounter(seed=np.array([seed, row], np.int64))
        counter = tf.stack([low + tf.constant(first // 2, tf.uint64), high])  # each count of Philox gives two
        return tf.raw_ops.StatelessRandomUniformV2(
            shape=[length], key=key, counter=counter, alg=tf.random.Algorithm.PHILOX.value, dtype=tf.float64
        ).numpy()

    return np.stack([drawn(row) for row in rows])


class Noise:
    """`uniform` noise for texts of any length, some columns at a time: a text that stops early needs no more."""

    def __init__(self, seed: int, rows: Sequence[int]):
        self.seed, self.rows = seed, list(rows)
        self.first, self.drawn = 0, np.zeros([len(self.rows), 0])

    def columns(self, first: int, last: int) -> np.ndarray:
        """Those from `first` on and before `last`, float64 [batch, last - first]."""
        if not self.first <= first <= last <= self.first + self.drawn.shape[1]:
            self.first = first - first % 2
            self.drawn = uniform(self.seed, self.rows, max(COLUMNS, last - self.first), self.first)
        return self.drawn[:, first - self.first : last - self.first]


class Piece(NamedTuple):
    """What one row got since the piece before: ids, their log-probabilities, and why it ends here, if it does."""

    row: int
    ids: list[int]
    logprobs: list[float]
    finish_reason: str | None  # "stop", "length", or None: more comes


Guess = Callable[[Sequence[int], int, int], list[int]]


def extend(
    model: GPT2,
    contexts: Sequence[Sequence[int]],
    choice: Choice,
    limits: Sequence[int],
    noise: Noise,
    filters: Sequence[Filter] = (),
    steps: int = STEPS,
    guess: Guess | None = None,
) -> Iterator[list[Piece]]:
    """Writes on from each context, in one batch, until each row has stopped or has its limit; a list each `steps`.

    Each row goes as if it were alone, and leaves the batch at its end. One that has filled the model's window goes on
    from the newer half of it.

    Args:
        contexts: ids in range, at least one in each.
        limits: new tokens at most, for each row; at least one.
        noise: of as many rows.
        guess: for a batch of one row alone; called with the text in the window, how many tokens are new, and how many
            more there may be, it gives tokens that may come next. They change nothing but the time that it takes.
    """
    filters = tuple(filters)
    n_ctx = model.hparams.n_ctx
    texts = [list(context) for context in contexts]  # what is in the window
    limits = np.asarray(limits, np.int32)
    rows = np.arange(len(texts))  # that go on
    stop = count = np.zeros(len(texts), np.int32)
    state, done = None, 0
    while len(rows):
        if state is None:
            for row in rows:
                if len(texts[row]) > n_ctx:
                    texts[row] = texts[row][-max(n_ctx // 2, 1) :]
            tokens, start = pad([texts[row] for row in rows])
            past = kv_cache.split_tail(prefill(model, tokens, start=start))
            state = State(tokens, start, past, tf.constant(stop), tf.constant(count), tf.zeros([len(rows), 0]))
        seq = state.tokens.shape[1]
        # The last new token is not read, so one more than n_ctx fits.
        room = min(n_ctx + 1 - seq, limits[rows].max() - done)
        if guess is None:
            new = tf.constant(noise.columns(done, done + min(steps, room))[rows])
            batch = 1 if len(texts) == 1 else None
            state = model.traced(decoder, filters, batch)(state, choice, new, tf.constant(limits[rows]))
        else:
            guesses = guess(texts[0], done, room - 1)
            new = tf.constant(noise.columns(done, done + len(guesses) + 1))
            state = model.traced(checker, filters)(state, tf.constant(guesses, tf.int32), choice, new)
        done += state.tokens.shape[1] - seq
        tokens, logprobs = state.tokens[:, seq:].numpy().tolist(), state.logprobs.numpy().tolist()
        before, stop, count = count, state.stop.numpy(), state.count.numpy()
        going = state.going(limits[rows]).numpy()
        pieces = []
        for i, row in enumerate(rows.tolist()):
            n = count[i] - before[i]
            check_finite(logprobs[i][:n])
            texts[row] += tokens[i][:n]
            reason = None if going[i] else "stop" if stop[i] == STOPPED else "length"
            pieces.append(Piece(row, tokens[i][:n], logprobs[i][:n], reason))
        yield pieces
        if not going.all():
            rows, stop, count = rows[going], stop[going], count[going]
            state = state.take(np.flatnonzero(going))
        if state.tokens.shape[1] > n_ctx:
            state = None


def check_finite(logprobs: Sequence[float] | tf.Tensor) -> None:
    """Raises ValueError where one is no number, as no logits are of weights that have diverged.

    One is inf where there was no token to choose, as `Choice.token` says.
    """
    if np.isposinf(logprobs).any():
        raise ValueError(
            "no token is left to choose: the greatest logit must be finite, and none NaN; see what the filters, "
            "logit_bias and repetition_penalty make of them"
        )
    if not np.isfinite(logprobs).all():
        raise ValueError("the model's logits are not finite; its weights are damaged, or their training diverged")


def pad(rows: Sequence[Sequence[int]]) -> tuple[tf.Tensor, tf.Tensor]:
    """Rows of different lengths as int32 [batch, seq], filled up on the left, and the column where each begins."""
    seq = max(map(len, rows))
    start = [seq - len(row) for row in rows]
    tokens = [[0] * n + list(row) for n, row in zip(start, rows, strict=True)]
    return tf.constant(tokens, tf.int32), tf.constant(start, tf.int32)


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
    if batch_size is not None and not is_whole(batch_size, 1, 2**31 - 1):
        raise ValueError(f"batch_size is {batch_size!r}, but must be a whole number, at least 1")
    try:
        context = np.asarray([start_token] if context is None else context)
    except ValueError:
        raise ValueError("the context's rows must be equally long; `generate` takes prompts of any lengths") from None
    if context.ndim == 1:
        context = np.tile(context, [1 if batch_size is None else batch_size, 1])
    if batch_size is not None and len(context) != batch_size:
        raise ValueError(f"the context has {len(context)} rows, but batch_size is {batch_size}")
    if context.ndim != 2 or 0 in context.shape or context.dtype.kind not in "iu":
        raise ValueError(
            f"the context is {context.dtype} {list(context.shape)}, but must be whole numbers, [batch_size, seq], "
            "and at least one token a row"
        )
    check_context(model.hparams, context)
    check_length(model.hparams, context.shape[1], length)
    settings = choice(model.hparams.n_vocab, temperature=temperature, top_k=top_k, top_p=top_p)
    noise = Noise(draw_seed(seed), range(len(context)))
    rows = context.tolist()
    for pieces in extend(model, rows.copy(), settings, [length] * len(rows), noise):
        for piece in pieces:
            rows[piece.row] += piece.ids
    return tf.constant(rows, tf.int32)


def check_context(hparams: HParams, ids: np.ndarray) -> None:
    """Raises ValueError for an id that is out of range: on a GPU, `tf.gather` gives zeros for it, and says nothing."""
    wrong = ids[(ids < 0) | (ids >= hparams.n_vocab)]
    if wrong.size:
        raise ValueError(f"token id {wrong[0]} is out of range: the vocabulary's ids are 0 to {hparams.n_vocab - 1}")


def check_length(hparams: HParams, seq: int, length: int) -> None:
    """Raises ValueError unless a context of `seq` tokens and `length` more fit the model's window."""
    room = hparams.n_ctx + 1 - seq  # the last new token is not read, so one more than n_ctx fits
    if room < 1:
        raise ValueError(f"the prompt has {seq:,} tokens, but the model reads at most {hparams.n_ctx:,}; shorten it")
    if not is_whole(length, 1, room):
        raise ValueError(
            f"length is {length!r}, but must be 1 to {room:,}: the model's window is {hparams.n_ctx:,} tokens, "
            f"and the prompt has {seq:,}"
        )


def draw_seed(seed: int | None) -> int:
    """The seed, or one from Python's `random` where it is None. ValueError for what isn't a whole 64-bit number."""
    if seed is None:
        return random.getrandbits(31)
    if not is_whole(seed, -(2**63), 2**63 - 1):
        raise ValueError(f"seed is {seed!r}, but must be a whole number of 64 bits")
    return int(seed)
