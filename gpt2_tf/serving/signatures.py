"""A model -> a SavedModel that takes text and gives text, with all of it in the graph: encoding, sampling, decoding.

TensorFlow alone runs it, in any language; TensorFlow Serving serves it. Its signatures:

    serving_default  text -> text: the completion alone
    generate         text, length, temperature, top_k, top_p, seed, stop -> text, count, finish_reason, logprob
    score            context, text -> logprob, count
    encode           text -> ids, count
    decode           ids, count -> text
    logits           ids -> logits

Each input has a row for each text; a server that puts rows of several requests together gives each what it would have
got alone, of `encode` and `logits` in as many columns as the longest row needs. A row of `generate` that is wrong gets
no text, and as finish_reason "error: " and what was expected; where no row is right, that is an InvalidArgumentError.
The other signatures have no place for it: one wrong row fails all.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from encoder import Encoder
from encoder.graph import CPU, GraphEncoder
from gpt2_tf.generation import stop_strings
from gpt2_tf.generation.decoding import State, prefill, step
from gpt2_tf.generation.sampler import choice
from gpt2_tf.generation.stop_strings import MAX_BYTES, STOPPED
from gpt2_tf.model import kv_cache
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.loss import likelihood


class Limits(NamedTuple):
    """What a request may ask for, and what it gets where it doesn't ask.

    `length` is new tokens of a text for which no length is given, or as many as fit; `max_length` is what may be given.
    """

    length: int
    max_length: int
    max_batch: int
    temperature: float
    top_k: int
    top_p: float
    seed: int


class Signatures:
    """The exported functions; each takes and gives tensors with a row for each text."""

    def __init__(self, model: GPT2, enc: Encoder, limits: Limits):
        self.model, self.enc, self.limits = model, enc, limits
        self.graph = GraphEncoder(enc)
        self.choice = choice(enc.n_vocab, stops=stop_strings.table(enc.tokens, [enc.end_of_text], []))
        self.write = tf.function(self._write, autograph=False)  # one trace for two signatures
        with tf.device(CPU):
            self.sizes = tf.constant([len(token) for token in enc.tokens])  # int32 [n_vocab]

    def functions(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """All of them by the names of the module's table, each with its signature."""
        string, integer, number = (tf.TensorSpec([None], dtype) for dtype in (tf.string, tf.int32, tf.float32))
        ids = tf.TensorSpec([None, None], tf.int32)
        limits = self.limits

        def serving_default(text):
            return {"text": self.generate(text, *defaults, fails=tf.reduce_any)["text"]}

        # TensorFlow Serving puts these in, of one row for all, where a gRPC request leaves them out; REST may not.
        defaults = (
            tf.constant([0]),
            tf.constant([limits.temperature], tf.float32),
            tf.constant([limits.top_k]),
            tf.constant([limits.top_p], tf.float32),
            tf.constant([limits.seed], tf.int64),
            tf.constant([b""]),
        )
        length, temperature, top_k, top_p, seed, stop = defaults

        def generate(text, length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop):
            return self.generate(text, length, temperature, top_k, top_p, seed, stop)

        def signature(function, *specs):
            return tf.function(function, autograph=False, input_signature=specs)

        return {
            "serving_default": signature(serving_default, string),
            "generate": signature(
                generate, string, integer, number, integer, number, tf.TensorSpec([None], tf.int64), string
            ),
            "score": signature(self.score, string, string),
            "encode": signature(self.encode, string),
            "decode": signature(self.decode, ids, integer),
            "logits": signature(self.logits, ids),
        }

    def generate(
        self,
        text: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
        stop: tf.Tensor,
        fails: Callable = tf.reduce_all,
    ) -> dict[str, tf.Tensor]:
        """As `gpt2_tf.generate`, for each row with its own settings, of which one may stand for all rows.

        An empty text starts from `<|endoftext|>`, which also ends it, as does `stop` where it isn't empty. A `length`
        of 0 is the default, or what fits. `logprob` is the sum over the `count` tokens of the text. `fails` tells from
        which rows are wrong, bool [batch], whether all fail.
        """
        text = self._checked(text)
        batch = tf.shape(text)[0]
        settings = {"length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings |= {"seed": seed, "stop": stop}
        with tf.control_dependencies(
            [
                _require((tf.size(x) == batch) | (tf.size(x) == 1), f"{name} must have a row for each text")
                for name, x in settings.items()
            ]
        ):
            length, temperature, top_k, top_p, seed, stop = (tf.broadcast_to(x, [batch]) for x in settings.values())
        ids = self._ids(text)
        size = tf.cast(ids.row_lengths(), tf.int32)
        wrong = self._wrong(size, length, temperature, top_k, top_p, stop)
        right = wrong == b""
        first = wrong[tf.argmax(tf.cast(~right, tf.int32))]
        with tf.control_dependencies([_require(~fails(~right), first)]):
            # A wrong row goes along as an empty text that is to have no tokens.
            ids = tf.cond(tf.reduce_all(right), lambda: ids, lambda: self._ids(tf.where(right, text, b"")))
        room = self.model.hparams.n_ctx + 1 - size  # the last new token is not read, so one more than n_ctx fits
        limit = tf.where(right, tf.where(length > 0, length, tf.minimum(self.limits.length, room)), 0)
        filters = tf.where(right, temperature, 1.0), tf.where(right, top_k, 0), tf.where(right, top_p, 1.0)
        outputs = self.write(*_pad(ids), limit, *filters, seed, tf.where(right, stop, b""))
        reason = tf.where(right, outputs["finish_reason"], tf.strings.join(["error: ", wrong]))
        return outputs | {"finish_reason": reason}

    def _wrong(self, size, length, temperature, top_k, top_p, stop) -> tf.Tensor:
        """string [batch]: what is wrong with each row of `size` tokens, '' where nothing is."""
        n_ctx, n_vocab = self.model.hparams.n_ctx, self.model.hparams.n_vocab
        most, default, room = self.limits.max_length, self.limits.length, n_ctx + 1 - size
        bytes_ = tf.strings.length(stop)
        wrong = tf.zeros_like(stop)
        for fine, *message in (
            (
                (length >= 0) & (length <= most),
                f"length must be 1 to {most}, or 0 for {default} or what fits; given: ",
                length,
            ),
            (
                (temperature >= 0) & (temperature < float("inf")),
                "temperature must be at least 0 (0 takes the likeliest token); given: ",
                temperature,
            ),
            ((top_k >= 0) & (top_k <= n_vocab), f"top_k must be 0 (off) to {n_vocab}; given: ", top_k),
            ((top_p > 0) & (top_p <= 1), "top_p must be above 0 and at most 1 (off); given: ", top_p),
            (bytes_ <= MAX_BYTES, f"stop must have at most {MAX_BYTES} bytes; given: ", bytes_),
            (room >= 1, f"a text has more tokens than the model reads, {n_ctx}; shorten it; it has: ", size),
            (
                length <= room,
                f"length and the text's tokens must be at most {n_ctx + 1} together; they are: ",
                length,
                " and ",
                size,
            ),
        ):
            said = [part if isinstance(part, str) else tf.strings.as_string(part) for part in message]
            wrong = tf.where(fine | (wrong != b""), wrong, tf.strings.join(said))
        return wrong

    def _write(self, tokens, start, limit, temperature, top_k, top_p, seed, stop) -> dict[str, tf.Tensor]:
        """`generate`'s outputs for texts that are padded, and settings that are right; `limit` is new tokens."""
        noise = tf.map_fn(
            lambda seed: tf.random.stateless_uniform(
                [tf.reduce_max(limit)], tf.stack([seed, 0]), dtype=tf.float64, alg="philox"
            ),
            seed,
            fn_output_signature=tf.float64,
        )
        choice = self.choice._replace(temperature=temperature[:, None], top_k=top_k[:, None], top_p=top_p[:, None])

        # Its shapes choose faster kernels. Not inlined: TensorFlow 2.20 and 2.21 fold its constants of one row into the
        # other loop.
        @tf.function(autograph=False, experimental_attributes={"_noinline": True})
        def one_row(*rows):
            return self._loop(choice, *(tf.reshape(x, [1, *[-1] * (x.shape.rank - 1)]) for x in rows))

        rows = (tokens, start, noise, limit, stop)
        written, new, logprobs, ended = tf.cond(
            tf.size(start) == 1, lambda: one_row(*rows), lambda: self._loop(choice, *rows)
        )
        # One of weights that have diverged would go on with any token.
        damaged = "the model's logits are not finite; its weights are damaged, or their training diverged"
        logprobs = tf.debugging.check_numerics(logprobs, damaged)
        with tf.device(CPU):
            # In columns beyond a text's end, tokens begin there or later.
            begins = tf.cumsum(tf.gather(self.sizes, new), axis=1, exclusive=True)
            own = begins < tf.strings.length(written)[:, None]
            return {
                "text": tf.strings.unicode_transcode(written, "UTF-8", "UTF-8", errors="replace"),
                "count": tf.reduce_sum(tf.cast(own, tf.int32), axis=1),
                "finish_reason": tf.where(ended, "stop", "length"),
                "logprob": tf.reduce_sum(tf.where(own, logprobs, 0.0), axis=1),
            }

    def _loop(self, choice, tokens, start, noise, limit, stop):
        """Writes until every row is done: the texts as bytes, the new tokens and their log-probabilities, and whether
        each text was stopped."""
        rows, columns = tf.TensorShape([tokens.shape[0]]), tf.TensorShape([tokens.shape[0], None])
        zeros, past = tf.zeros_like(start), prefill(self.model, tokens, start=start)
        state = State(tokens, start, past, zeros, zeros, tf.cast(noise[:, :0], tf.float32))
        text = tf.fill(tf.shape(start), b"")
        past = kv_cache.tensor_specs(self.model.hparams, self.model.compute_dtype, tokens.shape[0], segments=2)
        shapes = State(columns, rows, tf.nest.map_structure(lambda spec: spec.shape, past), rows, rows, columns)
        stopping = tf.reduce_any(stop != b"")

        def going(i, state, text):
            return tf.reduce_any(state.going(limit))

        def next_step(i, state, text):
            goes = state.going(limit)
            state = step(self.model, state, choice, noise[:, i], limit)
            with tf.device(CPU):
                news = tf.where(goes & (state.stop != STOPPED), tf.gather(self.graph.tokens, state.tokens[:, -1]), b"")
                text, stopped = tf.cond(
                    stopping, lambda: _until(stop, text, news), lambda: (text + news, tf.zeros_like(goes))
                )
            state = state._replace(stop=tf.where(stopped & goes, STOPPED, state.stop))
            # After a row's end, each column is at its last position again: others may have room for more.
            start = tf.where(state.going(limit), state.start, state.start + 1)
            return i + 1, state._replace(start=start), text

        def next_steps(i, state, text):
            last = i + kv_cache.TAIL_TOKENS
            state = state._replace(past=kv_cache.split_tail(state.past))
            return tf.while_loop(
                lambda i, state, text: (i < last) & going(i, state, text),
                next_step,
                (i, state, text),
                (tf.TensorShape([]), shapes, rows),
            )

        state = state._replace(past=kv_cache.split_tail(state.past))
        _, state, text = tf.while_loop(going, next_steps, (0, state, text), (tf.TensorShape([]), shapes, rows))
        return text, state.tokens[:, tf.shape(tokens)[1] :], state.logprobs, state.stop == STOPPED

    def score(self, context: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """The sum of the log-probabilities of each text's tokens, and their count; an empty context is
        `<|endoftext|>`."""
        context, text = self._checked(context), self._checked(text)
        n_ctx = self.model.hparams.n_ctx
        with tf.control_dependencies(
            [_require(tf.shape(context)[0] == tf.shape(text)[0], "there must be a context for each text")]
        ):
            ids = self.graph.encode(text)
        count = tf.cast(ids.row_lengths(), tf.int32)
        ids = tf.concat([self._ids(context), ids], axis=1)
        longest = tf.reduce_max(ids.row_lengths())
        require = _require(
            longest <= n_ctx + 1,
            f"a context and its text must have at most {n_ctx + 1} tokens together; they have:",
            longest,
        )
        with tf.control_dependencies([require]):
            tokens, start = _pad(ids)
        tokens, targets = tokens[:, :-1], tokens[:, 1:]
        h, _ = self.model.hidden_states(tokens, pad_lengths=start)
        none = tf.zeros([self.model.hparams.n_vocab], tf.bool)
        logprobs, _, _ = likelihood(
            tf.reshape(h, [-1, h.shape[-1]]), self.model.tied_embedding(), tf.reshape(targets, [-1]), none
        )
        logprobs = tf.reshape(logprobs, tf.shape(targets))
        seq = tf.shape(targets)[1]
        own = tf.range(seq) >= seq - count[:, None]
        return {"logprob": tf.reduce_sum(tf.where(own, logprobs, 0.0), axis=1), "count": count}

    def encode(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Each text's ids, filled up with zeros on the right, and how many there are."""
        ids = self.graph.encode(self._checked(text))
        return {"ids": ids.to_tensor(), "count": tf.cast(ids.row_lengths(), tf.int32)}

    def decode(self, ids: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        """The text of the first `count` ids of each row."""
        longest = tf.shape(ids)[1]
        with tf.control_dependencies(
            [
                self._require_batch(ids),
                _require(tf.shape(ids)[0] == tf.size(count), "count must have a row for each row of ids"),
                # Larger ones would be cut short without a word.
                _require((count >= 0) & (count <= longest), "count must be 0 to the ids in a row; given:", count),
            ]
        ):
            ragged = tf.RaggedTensor.from_tensor(ids, lengths=count)
        with tf.control_dependencies([self._require_ids(ragged.values)]):
            ragged = ragged.with_values(tf.identity(ragged.values))
        return {"text": self.graph.decode(ragged)}

    def logits(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """As `model(ids)`, float32 [batch, seq, n_vocab]."""
        n_ctx, seq = self.model.hparams.n_ctx, tf.shape(ids)[1]
        require = _require((seq >= 1) & (seq <= n_ctx), f"there must be 1 to {n_ctx} ids in a row; there are:", seq)
        with tf.control_dependencies([self._require_batch(ids), self._require_ids(ids), require]):
            ids = tf.identity(ids)
        return {"logits": tf.cast(self.model.logits(self.model.hidden_states(ids)[0]), tf.float32)}

    def _checked(self, text: tf.Tensor) -> tf.Tensor:
        with tf.control_dependencies([self._require_batch(text)]):
            return tf.identity(text)

    def _require_batch(self, x: tf.Tensor) -> tf.Operation:
        rows, most = tf.shape(x)[0], self.limits.max_batch
        return _require((rows >= 1) & (rows <= most), f"there must be 1 to {most} rows; there are:", rows)

    def _require_ids(self, ids: tf.Tensor) -> tf.Operation:
        # A GPU would give zeros for what is no id, and say nothing.
        n_vocab = self.model.hparams.n_vocab
        return _require(
            (ids >= 0) & (ids < n_vocab),
            f"ids must be 0 to {n_vocab - 1}; the least and the largest given are:",
            tf.reduce_min(ids),
            tf.reduce_max(ids),
        )

    def _ids(self, text: tf.Tensor) -> tf.RaggedTensor:
        """string [batch] -> int32 [batch, (ids)]; an empty text is `<|endoftext|>`."""
        ids = self.graph.encode(text)
        start = tf.RaggedTensor.from_row_lengths(
            tf.fill([tf.reduce_sum(tf.cast(text == b"", tf.int32))], self.enc.end_of_text),
            tf.cast(text == b"", tf.int64),
        )
        return tf.concat([start, ids], axis=1)


def _require(condition: tf.Tensor, *message: str | tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(tf.reduce_all(condition), message, summarize=16)


def _pad(ids: tf.RaggedTensor) -> tuple[tf.Tensor, tf.Tensor]:
    """As `sample.pad`: rows filled up on the left, int32 [batch, seq], and the column where each begins."""
    right = ids.to_tensor()
    seq = tf.shape(right)[1]
    start = seq - tf.cast(ids.row_lengths(), tf.int32)
    return tf.gather(right, tf.maximum(tf.range(seq) - start[:, None], 0), batch_dims=1), start


def _until(stop: tf.Tensor, text: tf.Tensor, news: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """Each text with its news, string [batch] each, up to its stop string, and whether that came; '' never does."""
    size = tf.strings.length(stop)
    whole = text + news
    # It hadn't come before, so it can only begin where less than itself is left of the old text.
    first = tf.maximum(tf.strings.length(text) - size + 1, 0)
    places = tf.strings.length(whole) - size - first + 1
    at = first[:, None] + tf.range(tf.maximum(tf.reduce_max(places), 1))
    length = tf.strings.length(whole)[:, None]
    found = tf.strings.substr(
        tf.broadcast_to(whole[:, None], tf.shape(at)),
        tf.minimum(at, length),
        tf.broadcast_to(size[:, None], tf.shape(at)),
    )
    here = (found == stop[:, None]) & (size > 0)[:, None]
    stopped = tf.reduce_any(here, axis=1)
    end = first + tf.argmax(here, axis=1, output_type=tf.int32)
    return tf.where(stopped, tf.strings.substr(whole, tf.zeros_like(end), end), whole), stopped
