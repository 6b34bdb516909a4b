"""The functions that an export offers to its clients: text in, text out, all in the TensorFlow graph.

| signature         |        | name            | dtype and shape               | tensor in the graph           |
| ----------------- | ------ | --------------- | ----------------------------- | ----------------------------- |
| `serving_default` | input  | `text`          | string [batch]                | `serving_default_text:0`      |
|                   | output | `text`          | string [batch]                | `StatefulPartitionedCall_5:0` |
| `generate`        | input  | `text`          | string [batch]                | `generate_text:0`             |
|                   |        | `length`        | int32 [batch]                 | `generate_length:0`           |
|                   |        | `temperature`   | float32 [batch]               | `generate_temperature:0`      |
|                   |        | `top_k`         | int32 [batch]                 | `generate_top_k:0`            |
|                   |        | `top_p`         | float32 [batch]               | `generate_top_p:0`            |
|                   |        | `seed`          | int64 [batch]                 | `generate_seed:0`             |
|                   |        | `stop`          | string [batch]                | `generate_stop:0`             |
|                   | output | `text`          | string [batch]                | `StatefulPartitionedCall_2:3` |
|                   |        | `count`         | int32 [batch]                 | `StatefulPartitionedCall_2:0` |
|                   |        | `finish_reason` | string [batch]                | `StatefulPartitionedCall_2:1` |
|                   |        | `logprob`       | float32 [batch]               | `StatefulPartitionedCall_2:2` |
| `score`           | input  | `context`       | string [batch]                | `score_context:0`             |
|                   |        | `text`          | string [batch]                | `score_text:0`                |
|                   | output | `logprob`       | float32 [batch]               | `StatefulPartitionedCall_4:1` |
|                   |        | `count`         | int32 [batch]                 | `StatefulPartitionedCall_4:0` |
| `encode`          | input  | `text`          | string [batch]                | `encode_text:0`               |
|                   | output | `ids`           | int32 [batch, seq]            | `StatefulPartitionedCall_1:1` |
|                   |        | `count`         | int32 [batch]                 | `StatefulPartitionedCall_1:0` |
| `decode`          | input  | `ids`           | int32 [batch, seq]            | `decode_ids:0`                |
|                   |        | `count`         | int32 [batch]                 | `decode_count:0`              |
|                   | output | `text`          | string [batch]                | `StatefulPartitionedCall:0`   |
| `logits`          | input  | `ids`           | int32 [batch, seq]            | `logits_ids:0`                |
|                   | output | `logits`        | float32 [batch, seq, n_vocab] | `StatefulPartitionedCall_3:0` |

Every output `text` holds only the new text, without the prompt. A program in C finds a tensor by its name in the graph.
TensorFlow numbers the outputs in alphabetical order. `saved_model_cli show --dir gpt2/1 --all` lists the names too.

Rows do not influence each other: a server may put rows of several requests into one batch. `ids` and `logits` are
right-padded to the longest row of the batch.

A row of `generate` with an invalid input gets an empty text, and `finish_reason` is "error: " and the reason. When all
rows are invalid, the request fails with an InvalidArgumentError. The other signatures return no `finish_reason`, so one
invalid row fails the request.

Text is UTF-8. Bytes that are not UTF-8 are read as U+FFFD, as by Python's `bytes.decode("utf-8", "replace")`: no
signature treats them as an error.
"""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from encoder import Encoder
from encoder.graph import GraphEncoder
from gpt2_tf.generation.params import SamplingParams, sampling_settings
from gpt2_tf.generation.stop_strings import MAX_STOP_BYTES
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.model.loss import likelihood
from gpt2_tf.serving.generate_graph import Prompts, TextGenerator, left_pad_ragged

# The settings that a request for `generate` may give, in the order of the inputs.
SETTINGS = ("length", "temperature", "top_k", "top_p", "seed", "stop")
DEFAULT_LENGTH = 0  # as a request's `length`: the export's default, or as many new tokens as fit


class Limits(NamedTuple):
    """The largest request that an export answers.

    Example:
        >>> Limits(max_length=200, max_batch=8).max_batch
        8
    """

    max_length: int  # new tokens per text
    max_batch: int  # rows per request


class Signatures:
    """The exported functions of one model; every tensor has one row per text.

    Example:
        >>> signatures = Signatures(model, enc, SamplingParams(length=20, seed=0), Limits(max_length=200, max_batch=8))
        >>> sorted(signatures.functions())
        ['decode', 'encode', 'generate', 'logits', 'score', 'serving_default']
    """

    def __init__(self, model: GPT2, enc: Encoder, defaults: SamplingParams, limits: Limits):
        """Build the tables that the functions share.

        Args:
            model: the model to export.
            enc: its encoder, of the same vocabulary.
            defaults: the settings of requests that do not give their own; `length` and `seed` must not be None.
            limits: larger requests are refused.
        """
        self.model, self.enc, self.defaults, self.limits = model, enc, defaults, limits
        self.graph_encoder = GraphEncoder(enc)
        self.generator = TextGenerator(model, enc, self.graph_encoder)

    def functions(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """All functions by signature name, each with the input types of the table above."""
        text, count, ids = (
            tf.TensorSpec(shape, dtype, name)
            for name, shape, dtype in (
                ("text", [None], tf.string),
                ("count", [None], tf.int32),
                ("ids", [None, None], tf.int32),
            )
        )
        context = tf.TensorSpec([None], tf.string, "context")
        settings = [tf.TensorSpec([None], value.dtype, name) for name, value in self._default_inputs().items()]

        def signature(function, *specs):
            return tf.function(function, autograph=False, input_signature=specs)

        return {
            "serving_default": signature(self._serving_default, text),
            "generate": signature(self._generate_with_defaults(), text, *settings),
            "score": signature(self.score, context, text),
            "encode": signature(self.encode, text),
            "decode": signature(self.decode, ids, count),
            "logits": signature(self.logits, ids),
        }

    def _default_inputs(self) -> dict[str, tf.Tensor]:
        """The value of each setting, [1], where a request for `generate` leaves it out."""
        values = {name: getattr(self.defaults, name) for name in SETTINGS}
        values |= {"length": DEFAULT_LENGTH, "stop": ""}
        return {name: tf.constant([value], _input_dtype(name)) for name, value in values.items()}

    def _serving_default(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        # There is no output for an error message, so any invalid row fails the request.
        return {"text": self.generate(text, **self._default_inputs(), fail_if=tf.reduce_any)["text"]}

    def _generate_with_defaults(self) -> Callable:
        """`generate` with default arguments, which TensorFlow writes into the SavedModel.

        TensorFlow Serving uses them for inputs that a gRPC request leaves out; a REST request must give all inputs.
        """
        length, temperature, top_k, top_p, seed, stop = self._default_inputs().values()

        def generate(text, length=length, temperature=temperature, top_k=top_k, top_p=top_p, seed=seed, stop=stop):
            return self.generate(text, length, temperature, top_k, top_p, seed, stop)

        return generate

    def generate(
        self,
        text: tf.Tensor,
        length: tf.Tensor,
        temperature: tf.Tensor,
        top_k: tf.Tensor,
        top_p: tf.Tensor,
        seed: tf.Tensor,
        stop: tf.Tensor,
        fail_if: Callable = tf.reduce_all,
    ) -> dict[str, tf.Tensor]:
        """Continue each text, as `gpt2_tf.generate` does with the row's settings.

        Args:
            text: string [batch]; "" starts from `<|endoftext|>`.
            length: int32 [batch] or [1], at most this many new tokens; 0 is the export's default, or as many as fit.
            temperature: float32 [batch] or [1].
            top_k: int32 [batch] or [1].
            top_p: float32 [batch] or [1].
            seed: int64 [batch] or [1].
            stop: string [batch] or [1]; the text ends before this string, and before `<|endoftext|>`. "" is no string.
            fail_if: whether the whole request fails, from bool [batch]: which rows are invalid.

        Returns:
            `text`, string [batch]: the new text. `count`, int32 [batch]: its tokens. `logprob`, float32 [batch]: the
            sum of their natural log-probabilities. `finish_reason`, string [batch]: "stop", "length", or "error: ..."
        """
        text = self._check_rows(text, "text")
        settings = {"length": length, "temperature": temperature, "top_k": top_k, "top_p": top_p}
        settings = _one_value_per_row(settings | {"seed": seed, "stop": stop}, tf.shape(text)[0])
        ids = self._prompt_ids(text)
        prompt_length = tf.cast(ids.row_lengths(), tf.int32)
        errors = self._row_errors(prompt_length, settings)
        valid = errors == b""
        first_error = errors[tf.argmax(tf.cast(~valid, tf.int32))]
        with tf.control_dependencies([require(~fail_if(~valid), first_error)]):
            # An invalid row becomes an empty prompt, to which no tokens are added.
            ids = tf.cond(tf.reduce_all(valid), lambda: ids, lambda: self._prompt_ids(tf.where(valid, text, b"")))
        prompts = Prompts(
            *left_pad_ragged(ids),
            max_new=tf.where(valid, self._max_new(settings["length"], prompt_length), 0),
            temperature=tf.where(valid, settings["temperature"], 1.0),
            top_k=tf.where(valid, settings["top_k"], 0),
            top_p=tf.where(valid, settings["top_p"], 1.0),
            seed=settings["seed"],
            stop=tf.where(valid, settings["stop"], b""),
        )
        outputs = self.generator.generate(prompts)
        reason = tf.where(valid, outputs["finish_reason"], tf.strings.join(["error: ", errors]))
        return outputs | {"finish_reason": reason}

    def score(self, context: tf.Tensor, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Compute the log-probability of each text after its context.

        Args:
            context: string [batch]; "" is `<|endoftext|>`.
            text: string [batch].

        Returns:
            `logprob`, float32 [batch]: the sum over the text's tokens, in nats. `count`, int32 [batch]: these tokens.
        """
        context, text = self._check_rows(context, "context"), self._check_rows(text, "text")
        same_rows = require(tf.shape(context)[0] == tf.shape(text)[0], "context must have as many rows as text")
        with tf.control_dependencies([same_rows]):
            ids = self.graph_encoder.encode(text)
        count = tf.cast(ids.row_lengths(), tf.int32)
        ids = tf.concat([self._prompt_ids(context), ids], axis=1)
        longest = tf.reduce_max(ids.row_lengths())
        most = self.model.hparams.n_ctx + 1  # the model never reads the last token
        with tf.control_dependencies(
            [
                require(
                    longest <= most, f"a context and its text must have at most {most} tokens together; given:", longest
                )
            ]
        ):
            tokens, pad_lengths = left_pad_ragged(ids)
        logprobs = self._logprobs(tokens, pad_lengths)  # [batch, seq - 1]
        seq = tf.shape(logprobs)[1]
        of_text = tf.range(seq) >= seq - count[:, None]
        return {"logprob": tf.reduce_sum(tf.where(of_text, logprobs, 0.0), axis=1), "count": count}

    def encode(self, text: tf.Tensor) -> dict[str, tf.Tensor]:
        """Encode each text, string [batch], to `ids`, right-padded with zeros, and their `count`."""
        ids = self.graph_encoder.encode(self._check_rows(text, "text"))
        return {"ids": ids.to_tensor(), "count": tf.cast(ids.row_lengths(), tf.int32)}

    def decode(self, ids: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        """Decode the first `count` ids, int32 [batch], of each row of `ids`, int32 [batch, seq]."""
        ids, count = self._check_rows(ids, "ids"), check_shape(count, "count")
        columns = tf.shape(ids)[1]
        with tf.control_dependencies(
            [
                require(tf.shape(ids)[0] == tf.size(count), "count must have one value per row of ids"),
                # `RaggedTensor.from_tensor` would silently cut a larger count to the number of columns.
                require(
                    (count >= 0) & (count <= columns),
                    "count must be at least 0 and at most the number of columns of ids; given:",
                    count,
                ),
            ]
        ):
            ragged = tf.RaggedTensor.from_tensor(ids, lengths=count)
        with tf.control_dependencies([self._require_ids(ragged.values)]):
            ragged = ragged.with_values(tf.identity(ragged.values))
        return {"text": self.graph_encoder.decode(ragged)}

    def logits(self, ids: tf.Tensor) -> dict[str, tf.Tensor]:
        """Compute the model's logits, float32 [batch, seq, n_vocab], for ids, int32 [batch, seq]."""
        ids = self._check_rows(ids, "ids")
        n_ctx, seq = self.model.hparams.n_ctx, tf.shape(ids)[1]
        fits = require((seq >= 1) & (seq <= n_ctx), f"ids must have 1 to {n_ctx} columns; given:", seq)
        with tf.control_dependencies([self._require_ids(ids), fits]):
            ids = tf.identity(ids)
        return {"logits": tf.cast(self.model.logits(self.model.hidden_states(ids)[0]), tf.float32)}

    def _prompt_ids(self, text: tf.Tensor) -> tf.RaggedTensor:
        """Encode string [batch] to int32 [batch, (ids)]; an empty text becomes `<|endoftext|>`."""
        empty = text == b""
        end_of_text = tf.RaggedTensor.from_row_lengths(
            tf.fill([tf.reduce_sum(tf.cast(empty, tf.int32))], self.enc.end_of_text), tf.cast(empty, tf.int64)
        )
        return tf.concat([end_of_text, self.graph_encoder.encode(text)], axis=1)

    def _max_new(self, length: tf.Tensor, prompt_length: tf.Tensor) -> tf.Tensor:
        """Return the largest number of new tokens of each row, int32 [batch]. `length` must be valid."""
        default = tf.minimum(self.defaults.length, self._room(prompt_length))
        return tf.where(length == DEFAULT_LENGTH, default, length)

    def _room(self, prompt_length: tf.Tensor) -> tf.Tensor:
        """How many new tokens fit after each prompt, int32 [batch]."""
        return self.model.hparams.n_ctx + 1 - prompt_length  # the model never reads the last new token

    def _logprobs(self, tokens: tf.Tensor, pad_lengths: tf.Tensor) -> tf.Tensor:
        """The log-probability of each token but the first, float32 [batch, seq - 1], for int32 [batch, seq]."""
        targets = tokens[:, 1:]
        h, _ = self.model.hidden_states(tokens[:, :-1], pad_lengths=pad_lengths)
        nothing_excluded = tf.zeros([self.model.hparams.n_vocab], tf.bool)
        logprobs, _, _ = likelihood(
            tf.reshape(h, [-1, h.shape[-1]]),
            self.model.tied_embedding(),
            tf.reshape(targets, [-1]),
            nothing_excluded,
        )
        return tf.reshape(logprobs, tf.shape(targets))

    def _row_errors(self, prompt_length: tf.Tensor, settings: dict[str, tf.Tensor]) -> tf.Tensor:
        """What is wrong with each row, string [batch]; "" for a valid row.

        Args:
            prompt_length: int32 [batch], tokens per prompt.
            settings: each input of `generate` but `text`, [batch].
        """
        n_ctx, n_vocab = self.model.hparams.n_ctx, self.model.hparams.n_vocab
        length, top_k = settings["length"], settings["top_k"]
        stop_bytes = tf.strings.length(settings["stop"])
        checks = [
            (
                (length >= 0) & (length <= self.limits.max_length),
                f"length must be 1 to {self.limits.max_length}, or 0 for the default, which is {self.defaults.length} "
                "or as many as fit; given: ",
                length,
            )
        ]
        for name in ("temperature", "top_p"):
            setting, value = sampling_settings()[name], settings[name]
            enough = value > setting.least if setting.above else value >= setting.least
            checks.append((enough & (value <= setting.most), f"{name} must be {setting.expected}; given: ", value))
        checks += [
            ((top_k >= 0) & (top_k <= n_vocab), f"top_k must be 1 to {n_vocab}, or 0 to keep all; given: ", top_k),
            (stop_bytes <= MAX_STOP_BYTES, f"stop must have at most {MAX_STOP_BYTES} bytes; given: ", stop_bytes),
            (
                prompt_length <= n_ctx,
                f"text must have at most {n_ctx} tokens, the window of the model; shorten it; given: ",
                prompt_length,
            ),
            (
                length <= self._room(prompt_length),
                f"the tokens of text and length must add up to at most {n_ctx + 1}; given: ",
                prompt_length,
                " and ",
                length,
            ),
        ]
        errors = tf.zeros_like(settings["stop"])
        for valid, *message in checks:
            parts = [part if isinstance(part, str) else tf.strings.as_string(part) for part in message]
            errors = tf.where(valid | (errors != b""), errors, tf.strings.join(parts))  # keep a row's first error
        return errors

    def _check_rows(self, x: tf.Tensor, name: str) -> tf.Tensor:
        """The same tensor, once the request's shape and number of rows are checked."""
        x, most = check_shape(x, name), self.limits.max_batch
        rows = tf.shape(x)[0]
        with tf.control_dependencies(
            [require((rows >= 1) & (rows <= most), f"{name} must have 1 to {most} rows; given:", rows)]
        ):
            return tf.identity(x)

    def _require_ids(self, ids: tf.Tensor) -> tf.Operation:
        # On a GPU, `tf.gather` returns zeros for an id out of range instead of failing.
        n_vocab = self.model.hparams.n_vocab
        return require(
            (ids >= 0) & (ids < n_vocab),
            f"ids must be 0 to {n_vocab - 1}; the smallest and the largest given:",
            tf.reduce_min(ids),
            tf.reduce_max(ids),
        )


def check_shape(x: tf.Tensor, name: str) -> tf.Tensor:
    """The same tensor, once it has as many axes as its signature says.

    TensorFlow does not check the shape of a request. It believes the signature, and folds `tf.rank(x)` to a constant.
    So this function appends end marks to the sizes, and looks where they begin.

    Example:
        >>> check_shape(tf.constant([1, 2]), "ids").numpy().tolist()
        [1, 2]
    """
    rank = x.shape.rank
    sizes = tf.concat([tf.shape(x), [-1] * (rank + 1)], axis=0)
    right_rank = tf.reduce_all(sizes[:rank] >= 0) & (sizes[rank] == -1)
    axes = {1: "[batch]", 2: "[batch, seq]"}[rank]
    with tf.control_dependencies([require(right_rank, f"{name} must have the shape {axes}; given:", tf.shape(x))]):
        return tf.identity(x)


def require(condition: tf.Tensor, *message: str | tf.Tensor) -> tf.Operation:
    """Fail with the message as an InvalidArgumentError unless the condition holds everywhere.

    Example:
        >>> _ = require(tf.constant([1, 2]) > 0, "ids must be above 0")
    """
    return tf.debugging.Assert(tf.reduce_all(condition), message, summarize=16)


def _input_dtype(name: str) -> tf.DType:
    """The dtype of a setting as an input."""
    setting = sampling_settings()[name]
    if setting.kind is int:
        return tf.int32 if setting.least >= tf.int32.min else tf.int64
    return {float: tf.float32, str: tf.string}[setting.kind]


def _one_value_per_row(settings: dict[str, tf.Tensor], batch: tf.Tensor) -> dict[str, tf.Tensor]:
    """Repeat settings of a single row, [1], for all rows: [batch]."""
    settings = {name: check_shape(x, name) for name, x in settings.items()}
    checks = [
        require((tf.size(x) == batch) | (tf.size(x) == 1), f"{name} must have one value per row of text, or one value")
        for name, x in settings.items()
    ]
    with tf.control_dependencies(checks):
        return {name: tf.broadcast_to(x, [batch]) for name, x in settings.items()}
