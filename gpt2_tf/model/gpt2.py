"""GPT-2, layer by layer as in OpenAI's `src/model.py`; read it from the bottom of the stack up.

The layers and weights carry OpenAI's names, and nested `build` scopes make Keras's variable paths of them
(`model/h0/attn/c_attn/w`), so that a checkpoint's tensors find their variables without a table of names.
"""

import os
from collections.abc import Callable
from dataclasses import replace
from math import gcd, pi, sqrt
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from encoder.bpe import Encoder
from gpt2_tf.hparams import HParams
from gpt2_tf.model import distribute, kv_cache
from gpt2_tf.model.loss import cross_entropy
from gpt2_tf.weights import checkpoint, huggingface, peft

if keras.backend.backend() != "tensorflow":
    raise ImportError(
        f"gpt2_tf needs Keras on TensorFlow, but its backend here is {keras.backend.backend()!r}; "
        "set the environment variable KERAS_BACKEND=tensorflow before Keras is imported"
    )


CORES = min(os.cpu_count() or 1, 8)
MOST_TRACES = 12


@tf.custom_gradient
def gelu(x: tf.Tensor) -> tf.Tensor:
    """The tanh form of the Gaussian error linear unit (Hendrycks and Gimpel, 2016), which OpenAI used.

    Its gradient is written out, so that training keeps x alone, and not seven more of its size.
    """

    def tanh():
        return tf.tanh(sqrt(2 / pi) * (x + 0.044715 * x * x * x))

    def gradient(upstream):
        t = tanh()
        slope = sqrt(2 / pi) * (1 + 3 * 0.044715 * x * x)
        return upstream * 0.5 * (1 + t + x * (1 - t * t) * slope)

    return 0.5 * x * (1 + tanh()), gradient


@tf.custom_gradient
def norm(x: tf.Tensor, g: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Layer normalisation over the last axis: biased variance, epsilon 1e-5, then gain and bias, [n_embd] each.

    Its gradient is written out, so that training keeps x alone.
    """

    def normalized():
        centered = x - tf.reduce_mean(x, axis=-1, keepdims=True)
        scale = tf.math.rsqrt(tf.reduce_mean(tf.square(centered), axis=-1, keepdims=True) + 1e-5)
        return centered * scale, scale

    def gradient(upstream):
        y, scale = normalized()
        inner = upstream * g
        along = tf.reduce_mean(inner, axis=-1, keepdims=True) + y * tf.reduce_mean(inner * y, axis=-1, keepdims=True)
        rows = tf.range(tf.rank(x) - 1)
        return scale * (inner - along), tf.reduce_sum(upstream * y, rows), tf.reduce_sum(upstream, rows)

    return normalized()[0] * g + b, gradient


def softmax(x: tf.Tensor) -> tf.Tensor:
    """`tf.nn.softmax`, at its fastest where x is a vector, [..., 1, n]: oneDNN's compiles anew for each n."""
    if x.shape[-2] != 1:
        return tf.nn.softmax(x)
    ex = tf.exp(x - tf.reduce_max(x, axis=-1, keepdims=True))
    return ex / tf.reduce_sum(ex, axis=-1, keepdims=True)


def normal(stdev: float | None) -> keras.initializers.Initializer | Callable | str:
    """A fresh initializer (one instance would draw the same numbers at each use); `stdev` None leaves them unset."""
    if stdev is None:
        return unset
    return keras.initializers.RandomNormal(stddev=stdev) if stdev else "zeros"


def unset(shape: tuple[int, ...], dtype: str) -> tf.Tensor:
    """Whatever the memory holds: not written to, it takes none until the weights come."""
    return tf.raw_ops.Empty(shape=shape, dtype=dtype)


def dropout(x: tf.Tensor, rate: float, seed: tf.Tensor | None, site: int) -> tf.Tensor:
    """Zeros a share `rate` of x and scales up the rest; nothing without a seed, int32 [2].

    The same seed and site drop the same, when it is computed again for its gradient, or by a run that goes on.
    """
    if seed is None or not rate:
        return x
    return tf.nn.experimental.stateless_dropout(x, rate, tf.random.fold_in(seed, site), rng_alg="philox")


def sizes(x: tf.Tensor) -> list[int | tf.Tensor]:
    """The sizes of x's axes, to reshape by: numbers where they are known, and -1 for a single one that isn't."""
    if x.shape.as_list().count(None) <= 1:
        return [-1 if size is None else size for size in x.shape]
    return [tf.shape(x)[i] if size is None else size for i, size in enumerate(x.shape)]


def matmul(x: tf.Tensor, y: tf.Tensor, transpose_b: bool = False) -> tf.Tensor:
    """`tf.matmul`, at its fastest where x is one float32 vector for each y, [..., 1, n]."""
    if x.shape[-2] != 1 or x.dtype != tf.float32:
        return tf.matmul(x, y, transpose_b=transpose_b)
    # By this name it isn't given to oneDNN, which reads slower for one vector, and compiles anew for each length.
    return tf.raw_ops.BatchMatMulV3(x=x, y=y, Tout=x.dtype, adj_y=transpose_b)


def split_heads(x: tf.Tensor, n_head: int) -> list[tf.Tensor]:
    """[batch, seq, 3 n_embd] -> queries, keys and values, [batch, n_head, seq, head_dim] each"""
    batch, seq, n_state = sizes(x)
    return tf.unstack(tf.transpose(tf.reshape(x, [batch, seq, 3, n_head, n_state // n_head // 3]), [2, 0, 3, 1, 4]))


def merge_heads(x: tf.Tensor) -> tf.Tensor:
    """[batch, n_head, seq, head_dim] -> [batch, seq, n_embd]"""
    batch, n_head, seq, head_dim = sizes(x)
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [batch, seq, n_head * head_dim])


def attention_mask(nd: tf.Tensor, ns: tf.Tensor, pad_lengths: tf.Tensor | None = None) -> tf.Tensor:
    """Booleans [nd, ns]: which of ns columns each of the last nd may look at, itself and all before it.

    With `pad_lengths`, int [batch], they are [batch, 1, nd, ns], and each row's left padding is masked too.
    """
    mask = tf.range(nd)[:, None] >= tf.range(ns) - ns + nd
    return mask if pad_lengths is None else mask & (tf.range(ns) >= pad_lengths[:, None, None, None])


class Norm(keras.layers.Layer):
    """`norm` with gain `g` and bias `b`."""

    def build(self, input_shape):
        self.g = self.add_weight(name="g", shape=input_shape[-1:], initializer="ones")
        self.b = self.add_weight(name="b", shape=input_shape[-1:], initializer="zeros")

    def call(self, x):
        return norm(x, tf.convert_to_tensor(self.g), tf.convert_to_tensor(self.b))


class Conv1D(keras.layers.Layer):
    """A dense layer over the last axis, [..., nx] -> [..., nf]; OpenAI keeps `w` as [1, nx, nf].

    With a `lora_rank` it is as if `w` were `w + lora_a @ lora_b`, [nx, lora_rank] and [lora_rank, nf], a 0 at first.
    """

    def __init__(self, nf: int, w_init_stdev: float | None, lora_rank: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.nf = nf
        self.w_init_stdev = w_init_stdev
        self.lora_rank = lora_rank

    def build(self, input_shape):
        nx = input_shape[-1]
        stdev = self.w_init_stdev
        self.w = self.add_weight(name="w", shape=[1, nx, self.nf], initializer=normal(stdev), autocast=False)
        self.b = self.add_weight(name="b", shape=[self.nf], initializer="zeros")
        if self.lora_rank:
            self.lora_a = self.add_weight(name="lora_a", shape=[nx, self.lora_rank], initializer=normal(0.02))
            self.lora_b = self.add_weight(name="lora_b", shape=[self.lora_rank, self.nf], initializer="zeros")

    def call(self, x):
        nx = x.shape[-1]
        w = tf.convert_to_tensor(self.w)
        # A cast, of mixed precision, waits for x: else those of all blocks would come at once, and be kept. The read
        # must not wait: with `recompute_grad`, TensorFlow then lets it see the optimizer's update now and then.
        with tf.control_dependencies([x]):
            w = tf.cast(w, x.dtype)
        if x.shape[:-1].num_elements() == 1:  # a single token: each core reads its part of w
            n = gcd(nx, CORES)
            parts = matmul(tf.reshape(x, [n, 1, nx // n]), tf.reshape(w, [n, nx // n, self.nf]))
            y = tf.reduce_sum(parts, axis=0)
        else:
            y = tf.matmul(tf.reshape(x, [1, -1, nx]), w)
        if self.lora_rank:
            y += tf.matmul(tf.matmul(tf.reshape(x, [-1, nx]), self.lora_a), self.lora_b)
        return tf.reshape(y + self.b, [*sizes(x)[:-1], self.nf])


class Attention(keras.layers.Layer):
    """Masked multi-head self-attention over past and present."""

    def __init__(self, hparams: HParams, w_init_stdev: float | None, lora_rank: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.n_head = hparams.n_head
        c_proj_stdev = w_init_stdev and w_init_stdev / sqrt(2 * hparams.n_layer)
        self.c_attn = Conv1D(3 * hparams.n_embd, w_init_stdev, lora_rank, name="c_attn", dtype=self.dtype_policy)
        self.c_proj = Conv1D(hparams.n_embd, c_proj_stdev, lora_rank, name="c_proj", dtype=self.dtype_policy)
        self.dropout = hparams.dropout

    def build(self, input_shape):
        self.c_attn.build(input_shape)
        self.c_proj.build(input_shape)

    def call(self, x, mask, past=None, seed=None):
        q, k, v = split_heads(self.c_attn(x), self.n_head)
        present = kv_cache.append(past, k, v)
        keys, values = zip(*present, strict=True)
        q = q / sqrt(q.shape[-1])  # here, where it is smallest
        w = tf.concat([matmul(q, k, transpose_b=True) for k in keys], axis=-1)  # [batch, n_head, seq, past + seq]
        w = tf.cast(w, self.variable_dtype)  # the softmax wants float32's range
        w = tf.where(mask, w, w.dtype.min)
        w = dropout(tf.cast(softmax(w), v.dtype), self.dropout, seed, 0)
        w = tf.split(w, [tf.shape(k)[2] for k in keys], axis=-1)
        x = tf.add_n([matmul(part, v) for part, v in zip(w, values, strict=True)])  # [batch, n_head, seq, head_dim]
        return dropout(self.c_proj(merge_heads(x)), self.dropout, seed, 1), present


class MLP(keras.layers.Layer):
    """Two dense layers with a GELU between them, four times as wide."""

    def __init__(self, hparams: HParams, w_init_stdev: float | None, lora_rank: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.n_state = 4 * hparams.n_embd
        c_proj_stdev = w_init_stdev and w_init_stdev / sqrt(2 * hparams.n_layer)
        self.c_fc = Conv1D(self.n_state, w_init_stdev, name="c_fc", dtype=self.dtype_policy)
        self.c_proj = Conv1D(hparams.n_embd, c_proj_stdev, lora_rank, name="c_proj", dtype=self.dtype_policy)
        self.dropout = hparams.dropout

    def build(self, input_shape):
        self.c_fc.build(input_shape)
        self.c_proj.build([*input_shape[:-1], self.n_state])

    def call(self, x, seed=None):
        return dropout(self.c_proj(gelu(self.c_fc(x))), self.dropout, seed, 2)


class Block(keras.layers.Layer):
    """One layer of the transformer: attention, then the MLP, each on a normalised input and added to it."""

    def __init__(self, hparams: HParams, w_init_stdev: float | None, lora_rank: int | None = None, **kwargs):
        super().__init__(**kwargs)
        # Under mixed precision, norms compute in the variables' float32.
        self.ln_1 = Norm(name="ln_1", dtype=self.variable_dtype)
        self.attn = Attention(hparams, w_init_stdev, lora_rank, name="attn", dtype=self.dtype_policy)
        self.ln_2 = Norm(name="ln_2", dtype=self.variable_dtype)
        self.mlp = MLP(hparams, w_init_stdev, lora_rank, name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape):
        for layer in (self.ln_1, self.attn, self.ln_2, self.mlp):
            layer.build(input_shape)

    def call(self, x, mask, past=None, seed=None):
        a, present = self.attn(self.ln_1(x), mask, past=past, seed=seed)
        x = x + a
        return x + self.mlp(self.ln_2(x), seed=seed), present


def unpacked(data: tuple) -> tuple[tf.Tensor, tf.Tensor]:
    """Tokens and targets of what Keras hands to a step. ValueError where there are none, or weights too."""
    tokens, targets, sample_weight = keras.utils.unpack_x_y_sample_weight(data)
    if targets is None or sample_weight is not None:
        raise ValueError("the model's own loss takes tokens and targets, without weights: a target below 0 has none")
    return tokens, targets


@keras.saving.register_keras_serializable(package="gpt2_tf")
class GPT2(keras.Model):
    """OpenAI's GPT-2. `model(tokens)` maps token ids, int [batch, seq], to logits, [batch, seq, n_vocab].

    The logits have the variables' dtype, float32 under mixed precision too. The ids are taken to be in range: on a GPU,
    TensorFlow would read zeros for one that isn't, and say nothing; `sample_sequence` checks them.

    The weights are there at once, drawn as for training from scratch: normal with deviation `w_init_stdev`, half of
    that for `wpe`, and for the two projections into each block's residual over sqrt(2 n_layer), as the paper says.
    A `w_init_stdev` of None leaves them unset: for weights that come from elsewhere.

    With a `lora_rank` they are frozen, and adapters of that rank are trained, beside `c_attn` and both `c_proj` of each
    block (Hu et al., 2021; alpha is the rank, so that nothing is scaled). What is written of the model has them merged.

    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019) and OpenAI's `src/model.py`.
    """

    def __init__(
        self,
        hparams: HParams,
        *,
        w_init_stdev: float | None = 0.02,
        remat: bool = False,
        lora_rank: int | None = None,
        name: str = "model",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if not isinstance(hparams, HParams):
            raise TypeError(f"GPT2 takes HParams, not {hparams!r}; gpt2_tf.load takes a model's name or folder")
        self.hparams = hparams
        self.w_init_stdev = w_init_stdev
        self.remat = remat
        self.lora_rank = lora_rank
        self.seeds = keras.random.SeedGenerator()
        self.h = [
            Block(hparams, w_init_stdev, lora_rank, name=f"h{i}", dtype=self.dtype_policy)
            for i in range(hparams.n_layer)
        ]
        self.ln_f = Norm(name="ln_f", dtype=self.variable_dtype)
        self.build([None, None])
        if lora_rank:
            for variable in self.named_weights().values():
                variable.trainable = False

    def build(self, input_shape):
        n_vocab, n_ctx, n_embd = self.hparams.n_vocab, self.hparams.n_ctx, self.hparams.n_embd
        self.wpe = self.add_weight(
            name="wpe", shape=[n_ctx, n_embd], initializer=normal(self.w_init_stdev and self.w_init_stdev / 2)
        )
        self.wte = self.add_weight(name="wte", shape=[n_vocab, n_embd], initializer=normal(self.w_init_stdev))
        for layer in (*self.h, self.ln_f):
            layer.build([*input_shape, n_embd])

    def call(self, tokens, training=None):
        return self.logits(self.hidden_states(tokens, training=training)[0])

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
        h, full = self.hidden_states(tokens, None if past is None else kv_cache.from_past(past))
        return {"logits": self.logits(h), "present": kv_cache.to_past(kv_cache.newest(full, tf.shape(tokens)[1]))}

    def hidden_states(
        self,
        tokens: tf.Tensor,
        past: kv_cache.KVCache | None = None,
        pad_lengths: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tuple[tf.Tensor, kv_cache.KVCache]:
        """The stack up to `ln_f`: [batch, seq, n_embd], and the cache of past and present.

        Shorter rows are left-padded: `pad_lengths`, int [batch], is the number of padding tokens at the start of each
        row, `past` included. The outputs in those columns have no meaning.
        """
        tokens = tf.convert_to_tensor(tokens)
        self._check(tokens, past)
        seq = tokens.shape[1] or tf.shape(tokens)[1]
        n_past = 0 if past is None else kv_cache.length(past)
        # A graph's lengths may be unknown before; a slice beyond the end would be cut short without a word.
        longest = n_past + seq - (0 if pad_lengths is None else tf.reduce_min(pad_lengths))
        tf.debugging.assert_less_equal(longest, self.hparams.n_ctx, "more tokens than the model's window, n_ctx")
        if pad_lengths is None:
            positions = self.wpe[n_past : n_past + seq]
        else:
            positions = tf.gather(
                tf.convert_to_tensor(self.wpe), tf.maximum(n_past + tf.range(seq) - pad_lengths[:, None], 0)
            )
        h = tf.gather(self.tied_embedding(), tokens) + tf.cast(positions, self.compute_dtype)
        seed = None
        if training and self.hparams.dropout:
            seed = distribute.per_replica_seed(tf.cast(self.seeds.next(), tf.int32))
        h = dropout(h, self.hparams.dropout, seed, 0)
        mask = attention_mask(seq, n_past + seq, pad_lengths)
        if past is not None and tokens.shape[1] != 1:  # pieces are of use for one token alone
            past = kv_cache.concat(past)
        presents = []
        for i, block in enumerate(self.h):
            block_seed = seed if seed is None else tf.random.fold_in(seed, 1 + i)
            if training and self.remat:
                h = tf.recompute_grad(lambda h, block=block, seed=block_seed: block(h, mask, seed=seed)[0])(h)
            else:
                h, present = block(h, mask, past=past and past[i], seed=block_seed)
                presents.append(present)
        return tf.cast(self.ln_f(h), self.compute_dtype), tuple(presents)

    def logits(self, h: tf.Tensor) -> tf.Tensor:
        """[batch, seq, n_embd] -> [batch, seq, n_vocab]; the head is `wte` again."""
        wte = self.tied_embedding()
        if h.shape[1] != 1:
            x = tf.matmul(h, wte, transpose_b=True)
        elif h.shape[0] == 1:  # twice: two rows take less time than one
            x = tf.matmul(tf.tile(h[0], [2, 1]), wte, transpose_b=True)[None, :1]
        else:  # the other way round, which takes half the time
            x = tf.transpose(tf.matmul(wte[None], tf.transpose(h, [1, 2, 0])), [2, 0, 1])
        return tf.cast(x, self.variable_dtype)

    def compile(
        self,
        optimizer: str | keras.optimizers.Optimizer = "adamw",
        loss: Any = None,
        *,
        grad_accumulation: int = 1,
        jit_compile: bool = False,
        **kwargs,
    ):
        """As Keras's, but that without a `loss` the model is trained on its own: the mean cross-entropy of the targets.

        `fit` then takes batches `(tokens, targets)`, int [batch, seq] each; targets below 0 are padding. The logits are
        never whole in memory.

        Args:
            grad_accumulation: in how many parts a batch is read, one after the other; it divides the batch.
            jit_compile: by XLA, which on a CPU takes longer than it saves.

        Raises:
            ValueError: grad_accumulation with a `loss`, for which it is the optimizer's `gradient_accumulation_steps`.
        """
        if loss is not None and grad_accumulation != 1:
            raise ValueError(
                "grad_accumulation is of the model's own loss; with another, give the optimizer "
                "gradient_accumulation_steps"
            )
        self.grad_accumulation = grad_accumulation
        super().compile(optimizer=optimizer, loss=loss, jit_compile=jit_compile, **kwargs)
        if loss is None and self.distribute_strategy.num_replicas_in_sync > 1:
            # Keras would clip what each replica has, and then sum; `train_step` sums before, and it is enough.
            getattr(self.optimizer, "inner_optimizer", self.optimizer)._all_reduce_sum_gradients = list

    def get_compile_config(self):
        config = super().get_compile_config()
        return config and {**config, "grad_accumulation": self.grad_accumulation}

    def compile_from_config(self, config):
        self.compile(**keras.saving.deserialize_keras_object(config))
        self.optimizer.build(self.trainable_variables)

    def train_step(self, data):
        if self.loss is not None:
            return super().train_step(data)
        tokens, targets = unpacked(data)
        count = distribute.all_reduce_sum(tf.reduce_sum(tf.cast(targets >= 0, tf.float32)))

        def gradients(tokens, targets):
            with tf.GradientTape() as tape:
                h = self.hidden_states(tokens, training=True)[0]
                loss = (
                    cross_entropy(h, self.tied_embedding(), targets, training=True, frozen=bool(self.lora_rank)) / count
                )
                scaled = self.optimizer.scale_loss(loss)
            return loss, tape.gradient(scaled, self.trainable_variables)

        n = self.grad_accumulation
        if n == 1:
            loss, total = gradients(tokens, targets)
        else:
            tokens, targets = (tf.reshape(part, [n, -1, part.shape[1]]) for part in (tokens, targets))
            zeros = (0.0, [tf.zeros(variable.shape, variable.dtype) for variable in self.trainable_variables])

            def add(i, sums):
                return i + 1, tf.nest.map_structure(tf.add, sums, gradients(tokens[i], targets[i]))

            _, (loss, total) = tf.while_loop(lambda i, _: i < n, add, (0, zeros), parallel_iterations=1)
        loss, total = distribute.all_reduce_sum((loss, total))
        self.optimizer.apply(total, self.trainable_variables)
        return self._result(loss, count)

    def test_step(self, data):
        if self.loss is not None:
            return super().test_step(data)
        tokens, targets = unpacked(data)
        count = tf.reduce_sum(tf.cast(targets >= 0, tf.float32))
        nats = cross_entropy(self.hidden_states(tokens, training=False)[0], self.tied_embedding(), targets)
        nats, count = distribute.all_reduce_sum((nats, count))
        return self._result(nats / count, count)

    def _result(self, loss: tf.Tensor, count: tf.Tensor) -> dict[str, tf.Tensor]:
        """What a step returns: the mean loss of the epoch's targets so far."""
        self._loss_tracker.update_state(loss, sample_weight=count)
        result = self.get_metrics_result()
        if distribute.is_multi_worker(self.distribute_strategy):  # of which Keras takes the mean over an axis
            result = {name: value[None] for name, value in result.items()}
        return result

    def _maybe_symbolic_build(self, iterator=None, data_batch=None):
        # Keras would read a batch to build what isn't, which under some strategies fails; with its own loss, all is.
        if self.loss is not None:
            super()._maybe_symbolic_build(iterator, data_batch)

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

    def tied_embedding(self) -> tf.Tensor:
        """`wte` in the dtype that the model computes in, [n_vocab, n_embd]."""
        # Its value, since a gather from the variable itself makes every other read of it a copy; and cast by hand,
        # since Keras casts under `call` alone, and `forward` must give the same numbers.
        return tf.cast(tf.convert_to_tensor(self.wte), self.compute_dtype)

    def _check(self, tokens: tf.Tensor, past: kv_cache.KVCache | None) -> None:
        if tokens.shape.rank != 2 or not tokens.dtype.is_integer:
            raise ValueError(f"tokens are {tokens.dtype.name} {tokens.shape}, but must be integers [batch, seq]")
        known = (tokens.shape[1] or 0) + sum(k.shape[2] or 0 for k, _ in (past[0] if past else ()))
        if known > self.hparams.n_ctx:
            raise ValueError(f"{known} tokens are more than the model's window, n_ctx {self.hparams.n_ctx}")

    def named_weights(self) -> dict[str, keras.Variable]:
        """The weights by OpenAI's names, whatever this model's own name and the scope that it was made in."""
        return {name: variable for name, variable in self._named().items() if "/lora_" not in name}

    def adapters(self) -> dict[str, keras.Variable]:
        """With a `lora_rank`, what is trained: `model/h0/attn/c_attn/lora_a`, [nx, lora_rank], and so on."""
        return {name: variable for name, variable in self._named().items() if "/lora_" in name}

    def merged_weights(self) -> dict[str, keras.Variable | tf.Tensor]:
        """`named_weights`, where there are adapters with them added, float32: the same model for any reader."""
        weights, adapters = dict(self.named_weights()), self.adapters()
        for name in [name for name in adapters if name.endswith("/lora_a")]:
            scope = name.removesuffix("lora_a")
            w, a, b = weights[f"{scope}w"], adapters[name], adapters[f"{scope}lora_b"]
            w, a, b = (tf.cast(part, tf.float32) for part in (w, a, b))
            weights[f"{scope}w"] = w + tf.matmul(a, b)
        return weights

    def _named(self) -> dict[str, keras.Variable]:
        return {f"model{variable.path.removeprefix(self.path)}": variable for variable in self.weights}

    def get_config(self):
        config = {"hparams": self.hparams.to_dict(), "name": self.name, "dtype": self.dtype_policy.name}
        return {**config, "remat": self.remat, "lora_rank": self.lora_rank}

    @classmethod
    def from_config(cls, config):
        return cls(**{**config, "hparams": HParams.from_dict(config["hparams"])})

    @classmethod
    def from_checkpoint(cls, folder: str | os.PathLike, *, dropout: float = 0, **kwargs) -> "GPT2":
        """The model in a folder of OpenAI's files: `hparams.json` and `model.ckpt.*`.

        `dropout` and `kwargs` are for training, as HParams and GPT2 say.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: the files are damaged, or don't fit one another; all differences are named at once.
        """
        hparams = replace(HParams.from_json(Path(folder, "hparams.json")), dropout=dropout)
        checkpoint.check_parameter_count(folder, hparams.n_params)
        model = cls(hparams, w_init_stdev=None, **kwargs)
        checkpoint.restore(folder, model.named_weights())
        return model

    def save_checkpoint(self, folder: str | os.PathLike, step: int | None = None) -> None:
        """Writes `hparams.json` and `model.ckpt.*` as OpenAI's, so that OpenAI's own graph restores them.

        With a `step` it is `model-1000.*` and `counter`, as gpt-2-simple and nshepperd's fork keep a run's folder.
        """
        checkpoint.save(folder, self.merged_weights(), step)
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
        folder = huggingface.find_folder(model, revision)
        hparams = huggingface.read_hparams(folder)
        tensors = huggingface.read_tensors(folder, hparams)
        gpt2 = cls(hparams, w_init_stdev=None)
        for name, variable in gpt2.named_weights().items():
            variable.assign(np.asarray(tensors[name]))
        return gpt2

    def save_pretrained(self, folder: str | os.PathLike, enc: Encoder | None = None) -> None:
        """Writes `config.json` and `model.safetensors`, as transformers reads them; with `enc`, a tokenizer too."""
        weights = self.merged_weights()
        arrays = (weights[name].numpy() for name in self.hparams.shapes)
        huggingface.save(folder, self.hparams, arrays, enc)

    def load_adapters(self, folder: str | os.PathLike) -> None:
        """Takes adapters that `save_adapters` or PEFT has written of the same weights at the same `lora_rank`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: they are of another rank, another model or other arithmetic, or damaged.
        """
        adapters = self._own_adapters()
        shapes = {name: variable.shape for name, variable in adapters.items()}
        for name, array in peft.read_adapters(folder, shapes, self.lora_rank).items():
            adapters[name].assign(array)

    def save_adapters(self, folder: str | os.PathLike) -> None:
        """Writes the adapters alone, as PEFT reads them: `adapter_config.json`, `adapter_model.safetensors`."""
        peft.save_adapters(folder, self._own_adapters(), self.lora_rank)

    def _own_adapters(self) -> dict[str, keras.Variable]:
        if not self.lora_rank:
            raise ValueError("the model has no adapters; make it with a lora_rank, as from_checkpoint takes too")
        return self.adapters()
