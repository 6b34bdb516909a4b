"""GPT-2, layer by layer as in OpenAI's `src/model.py`; read it from the bottom of the stack up.

The layers and weights carry OpenAI's names, and nested `build` scopes make Keras's variable paths of them
(`model/h0/attn/c_attn/w`), so that a checkpoint's tensors find their variables without a table of names.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from math import pi, sqrt
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from encoder.bpe import Encoder
from gpt2_tf import bundle, cache, checkpoint, huggingface
from gpt2_tf.hparams import HParams

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"gpt2_tf needs Keras on TensorFlow, but its backend here is {keras.backend.backend()!r}; "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )


MOST_TRACES = 12


def gelu(x: tf.Tensor) -> tf.Tensor:
    """The tanh form of the Gaussian error linear unit (Hendrycks and Gimpel, 2016), which OpenAI used."""
    return 0.5 * x * (1 + tf.tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x)))


def normal(stdev: float):
    """A fresh initializer (one instance would draw the same numbers at each use); zeros where `stdev` is 0."""
    return keras.initializers.RandomNormal(stddev=stdev) if stdev else "zeros"


def split_heads(x: tf.Tensor, n_head: int) -> tf.Tensor:
    """[batch, seq, n_embd] -> [batch, n_head, seq, head_dim]"""
    batch, seq = tf.unstack(tf.shape(x)[:2])
    return tf.transpose(tf.reshape(x, [batch, seq, n_head, x.shape[-1] // n_head]), [0, 2, 1, 3])


def merge_heads(x: tf.Tensor) -> tf.Tensor:
    """[batch, n_head, seq, head_dim] -> [batch, seq, n_embd]"""
    batch, seq = tf.shape(x)[0], tf.shape(x)[2]
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [batch, seq, x.shape[1] * x.shape[3]])


def attention_mask(nd: tf.Tensor, ns: tf.Tensor, start: tf.Tensor | None = None) -> tf.Tensor:
    """Booleans [nd, ns]: which of ns columns each of the last nd may look at, itself and all before it.

    With `start`, int [batch], they are [batch, 1, nd, ns], and none may look at what lies before its row's start.
    """
    mask = tf.range(nd)[:, None] >= tf.range(ns) - ns + nd
    return mask if start is None else mask & (tf.range(ns) >= start[:, None, None, None])


class Norm(keras.layers.Layer):
    """Layer normalisation over the last axis: biased variance, epsilon 1e-5, then gain `g` and bias `b`."""

    def build(self, input_shape):
        self.g = self.add_weight(name="g", shape=input_shape[-1:], initializer="ones")
        self.b = self.add_weight(name="b", shape=input_shape[-1:], initializer="zeros")

    def call(self, x):
        x = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        variance = tf.reduce_mean(tf.square(x), axis=-1, keepdims=True)
        return x * tf.math.rsqrt(variance + 1e-5) * self.g + self.b


class Conv1D(keras.layers.Layer):
    """A dense layer over the last axis, [..., nx] -> [..., nf]; OpenAI keeps `w` as [1, nx, nf]."""

    def __init__(self, nf: int, w_init_stdev: float, **kwargs):
        super().__init__(**kwargs)
        self.nf = nf
        self.w_init_stdev = w_init_stdev

    def build(self, input_shape):
        nx = input_shape[-1]
        self.w = self.add_weight(name="w", shape=[1, nx, self.nf], initializer=normal(self.w_init_stdev))
        self.b = self.add_weight(name="b", shape=[self.nf], initializer="zeros")

    def call(self, x):
        flat = tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), tf.squeeze(self.w, 0)) + self.b
        return tf.reshape(flat, tf.concat([tf.shape(x)[:-1], [self.nf]], axis=0))


class Attention(keras.layers.Layer):
    """Masked multi-head self-attention over past and present."""

    def __init__(self, hparams: HParams, w_init_stdev: float, **kwargs):
        super().__init__(**kwargs)
        self.n_head = hparams.n_head
        c_proj_stdev = w_init_stdev / sqrt(2 * hparams.n_layer)
        self.c_attn = Conv1D(3 * hparams.n_embd, w_init_stdev, name="c_attn", dtype=self.dtype_policy)
        self.c_proj = Conv1D(hparams.n_embd, c_proj_stdev, name="c_proj", dtype=self.dtype_policy)
        self.attn_dropout = keras.layers.Dropout(hparams.dropout, dtype=self.dtype_policy)
        self.resid_dropout = keras.layers.Dropout(hparams.dropout, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.c_attn.build(input_shape)
        self.c_proj.build(input_shape)

    def call(self, x, mask, past=None, training=None):
        q, k, v = (split_heads(part, self.n_head) for part in tf.split(self.c_attn(x), 3, axis=-1))
        k, v = cache.append(past, k, v)  # [batch, n_head, past + seq, head_dim]
        w = tf.matmul(q, k, transpose_b=True) / sqrt(q.shape[-1])  # [batch, n_head, seq, past + seq]
        w = tf.cast(w, self.variable_dtype)  # the softmax wants float32's range
        w = tf.where(mask, w, w.dtype.min)
        w = self.attn_dropout(tf.cast(tf.nn.softmax(w), v.dtype), training=training)
        x = self.c_proj(merge_heads(tf.matmul(w, v)))
        return self.resid_dropout(x, training=training), (k, v)


class MLP(keras.layers.Layer):
    """Two dense layers with a GELU between them, four times as wide."""

    def __init__(self, hparams: HParams, w_init_stdev: float, **kwargs):
        super().__init__(**kwargs)
        self.n_state = 4 * hparams.n_embd
        c_proj_stdev = w_init_stdev / sqrt(2 * hparams.n_layer)
        self.c_fc = Conv1D(self.n_state, w_init_stdev, name="c_fc", dtype=self.dtype_policy)
        self.c_proj = Conv1D(hparams.n_embd, c_proj_stdev, name="c_proj", dtype=self.dtype_policy)
        self.dropout = keras.layers.Dropout(hparams.dropout, dtype=self.dtype_policy)

    def build(self, input_shape):
        self.c_fc.build(input_shape)
        self.c_proj.build([*input_shape[:-1], self.n_state])

    def call(self, x, training=None):
        return self.dropout(self.c_proj(gelu(self.c_fc(x))), training=training)


class Block(keras.layers.Layer):
    """One layer of the transformer: attention, then the MLP, each on a normalised input and added to it."""

    def __init__(self, hparams: HParams, w_init_stdev: float, **kwargs):
        super().__init__(**kwargs)
        # Under mixed precision, norms compute in the variables' float32.
        self.ln_1 = Norm(name="ln_1", dtype=self.variable_dtype)
        self.attn = Attention(hparams, w_init_stdev, name="attn", dtype=self.dtype_policy)
        self.ln_2 = Norm(name="ln_2", dtype=self.variable_dtype)
        self.mlp = MLP(hparams, w_init_stdev, name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape):
        for layer in (self.ln_1, self.attn, self.ln_2, self.mlp):
            layer.build(input_shape)

    def call(self, x, mask, past=None, training=None):
        a, present = self.attn(self.ln_1(x), mask, past=past, training=training)
        x = x + a
        return x + self.mlp(self.ln_2(x), training=training), present


@keras.saving.register_keras_serializable(package="gpt2_tf")
class GPT2(keras.Model):
    """OpenAI's GPT-2. `model(tokens)` maps token ids, int [batch, seq], to logits, [batch, seq, n_vocab].

    The logits have the variables' dtype, float32 under mixed precision too. The ids are taken to be in range: on a GPU,
    TensorFlow would read zeros for one that isn't, and say nothing; `sample_sequence` checks them.

    The weights are there at once, drawn as for training from scratch: normal with deviation `w_init_stdev`, half of
    that for `wpe`, and for the two projections into each block's residual over sqrt(2 n_layer), as the paper says.
    With a `w_init_stdev` of 0 nothing is drawn: for weights that come from elsewhere.

    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019) and OpenAI's `src/model.py`.
    """

    def __init__(self, hparams: HParams, *, w_init_stdev: float = 0.02, name: str = "model", **kwargs):
        super().__init__(name=name, **kwargs)
        if not isinstance(hparams, HParams):
            raise TypeError(f"GPT2 takes HParams, not {hparams!r}; gpt2_tf.load takes a model's name or folder")
        self.hparams = hparams
        self.w_init_stdev = w_init_stdev
        self.dropout = keras.layers.Dropout(hparams.dropout, dtype=self.dtype_policy)
        self.h = [Block(hparams, w_init_stdev, name=f"h{i}", dtype=self.dtype_policy) for i in range(hparams.n_layer)]
        self.ln_f = Norm(name="ln_f", dtype=self.variable_dtype)
        self.build([None, None])

    def build(self, input_shape):
        n_vocab, n_ctx, n_embd = self.hparams.n_vocab, self.hparams.n_ctx, self.hparams.n_embd
        self.wpe = self.add_weight(name="wpe", shape=[n_ctx, n_embd], initializer=normal(self.w_init_stdev / 2))
        self.wte = self.add_weight(name="wte", shape=[n_vocab, n_embd], initializer=normal(self.w_init_stdev))
        for layer in (*self.h, self.ln_f):
            layer.build([*input_shape, n_embd])

    def call(self, tokens, training=None):
        return self.logits(self.hidden(tokens, training=training)[0])

    def forward(self, tokens: tf.Tensor, past: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """OpenAI's `model()`: the logits, and what to keep so that the next tokens need not read these again.

        Args:
            tokens: int [batch, seq].
            past: the `present`s of all the tokens before, joined along their axis of `seq`.

        Returns:
            `logits` [batch, seq, n_vocab]; `present` [batch, n_layer, 2, n_head, seq, head_dim], of `tokens` alone.

        Raises:
            ValueError: the tokens are no integers [batch, seq], or with the past longer than n_ctx. In a graph that
                can't know the length, the latter is an InvalidArgumentError when it runs.
        """
        h, full = self.hidden(tokens, None if past is None else cache.unpack(past))
        return {"logits": self.logits(h), "present": cache.pack(cache.last(full, tf.shape(tokens)[1]))}

    def hidden(
        self,
        tokens: tf.Tensor,
        past: cache.Cache | None = None,
        start: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, cache.Cache]:
        """The stack up to `ln_f`: [batch, seq, n_embd], and the cache of past and present.

        Rows of fewer tokens are filled up on the left: `start`, int [batch], is the column, past and present counted,
        where each row's text begins. What comes out for the columns before it has no meaning.
        """
        tokens = tf.convert_to_tensor(tokens)
        self._check(tokens, past)
        seq = tf.shape(tokens)[1]
        n_past = 0 if past is None else tf.shape(past[0][0])[2]
        # A graph's lengths may be unknown before; a slice beyond the end would be cut short without a word.
        tf.debugging.assert_less_equal(n_past + seq, self.hparams.n_ctx, "more tokens than the model's window, n_ctx")
        if start is None:
            positions = self.wpe[n_past : n_past + seq]
        else:
            positions = tf.gather(
                tf.convert_to_tensor(self.wpe), tf.maximum(tf.range(n_past, n_past + seq) - start[:, None], 0)
            )
        h = tf.gather(self._wte(), tokens) + tf.cast(positions, self.compute_dtype)
        h = self.dropout(h, training=training)
        mask = attention_mask(seq, n_past + seq, start)
        presents = []
        for i, block in enumerate(self.h):
            h, present = block(h, mask, past=past and past[i], training=training)
            presents.append(present)
        return tf.cast(self.ln_f(h), self.compute_dtype), tuple(presents)

    def logits(self, h: tf.Tensor) -> tf.Tensor:
        """[batch, seq, n_embd] -> [batch, seq, n_vocab]; the head is `wte` again."""
        return tf.cast(tf.matmul(h, self._wte(), transpose_b=True), self.variable_dtype)

    def traced(self, build: Callable, *arguments) -> Callable:
        """The one trace of the `tf.function` that `build(self, *arguments)` makes; the latest few are kept.

        The trace alone: TensorFlow would take the functions of several models for one that is traced anew each time,
        and warn.
        """
        traces = self.__dict__.setdefault("_traces", {})  # past Keras's tracking of attributes, which is for weights
        key = (build, *arguments)
        traces[key] = traces.pop(key, None) or build(self, *arguments).get_concrete_function()
        if len(traces) > MOST_TRACES:  # of filters that were made anew for each call, say
            del traces[next(iter(traces))]
        return traces[key]

    def _wte(self) -> tf.Tensor:
        # Its value, since a gather from the variable itself makes every other read of it a copy; and cast by hand,
        # since Keras casts under `call` alone, and `forward` must give the same numbers.
        return tf.cast(tf.convert_to_tensor(self.wte), self.compute_dtype)

    def _check(self, tokens: tf.Tensor, past: cache.Cache | None) -> None:
        if tokens.shape.rank != 2 or not tokens.dtype.is_integer:
            raise ValueError(f"tokens are {tokens.dtype.name} {tokens.shape}, but must be integers [batch, seq]")
        lengths = [tokens.shape[1]] + ([past[0][0].shape[2]] if past else [])
        known = sum(length or 0 for length in lengths)
        if known > self.hparams.n_ctx:
            raise ValueError(f"{known} tokens are more than the model's window, n_ctx {self.hparams.n_ctx}")

    def _named_weights(self) -> dict[str, keras.Variable]:
        """The weights by OpenAI's names, whatever this model's own name and the scope that it was made in."""
        return {f"model{variable.path.removeprefix(self.path)}": variable for variable in self.weights}

    def get_config(self):
        return {"hparams": self.hparams.to_dict(), "name": self.name, "dtype": self.dtype_policy.name}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "hparams": HParams.from_dict(config["hparams"])})

    @classmethod
    def from_checkpoint(cls, folder: str | os.PathLike) -> "GPT2":
        """The model in a folder of OpenAI's files: `hparams.json` and `model.ckpt.*`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the files are damaged, or don't fit one another; all differences are named at once.
        """
        hparams = HParams.from_json(Path(folder, "hparams.json"))
        bundle.check_count(bundle.prefix(folder), hparams.n_params)
        model = cls(hparams, w_init_stdev=0)
        checkpoint.restore(folder, model._named_weights())
        return model

    def save_checkpoint(self, folder: str | os.PathLike, step: int | None = None) -> None:
        """Writes `hparams.json` and `model.ckpt.*` as OpenAI's, so that OpenAI's own graph restores them.

        With a `step` it is `model-1000.*` and `counter`, as gpt-2-simple and nshepperd's fork keep a run's folder.
        """
        checkpoint.save(folder, self._named_weights(), step)
        # Dropout is a matter of training, and OpenAI's code reads no key but its five.
        replace(self.hparams, dropout=0).to_json(Path(folder, "hparams.json"))

    @classmethod
    def from_pretrained(cls, model: str | os.PathLike, revision: str | None = None) -> "GPT2":
        """A model of Hugging Face's form: "gpt2" or "user/name" on the hub (the extra `[hf]`), or a folder.

        Its dropout is 0, as with `from_checkpoint`. Weights are read from safetensors alone; of 16 bits, they become
        float32.

        Raises:
            OSError: it isn't there, or the download failed.
            ValueError: a GPT-2 with other arithmetic (its settings are named), or damaged files.
        """
        folder = huggingface.find(model, revision)
        hparams = huggingface.hparams(folder)
        tensors = huggingface.tensors(folder, hparams)
        gpt2 = cls(hparams, w_init_stdev=0)
        for name, variable in gpt2._named_weights().items():
            variable.assign(np.asarray(tensors[name]))
        return gpt2

    def save_pretrained(self, folder: str | os.PathLike, enc: Encoder | None = None) -> None:
        """Writes `config.json` and `model.safetensors`, as transformers reads them; with `enc`, a tokenizer too."""
        weights = self._named_weights()
        arrays = (weights[name].numpy() for name in self.hparams.shapes)
        huggingface.save(folder, self.hparams, arrays, enc)
