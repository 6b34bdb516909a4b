"""GPT-2 on one page, bottom up: Norm, Conv1D, Attention, MLP, Block, GPT2. Read it beside OpenAI's `src/model.py`.

Layers and weights have OpenAI's names. Keras joins the names of nested `build` scopes to a path, such as
`model/h0/attn/c_attn/w`, so the tensors of OpenAI's checkpoints are found by their path, without a table of names.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import sqrt

import keras
import tensorflow as tf

from gpt2_tf.hparams import HParams
from gpt2_tf.model import backend, distribute, kv_cache, ops  # noqa: F401 - `backend` checks Keras
from gpt2_tf.model.inspection import Inspecting
from gpt2_tf.model.interventions import Intervening
from gpt2_tf.model.lora import DEFAULT_TARGETS, Adapters, layer_ranks, low_rank
from gpt2_tf.model.persistence import Persistence
from gpt2_tf.model.summary import Summary
from gpt2_tf.model.taps import Tap, no_tap
from gpt2_tf.model.traces import Traces
from gpt2_tf.model.training_step import TrainingStep


def normal(stdev: float | None) -> keras.initializers.Initializer | Callable | str:
    """Return an initializer that draws from a normal distribution of mean 0.

    Each call returns a new initializer, since one initializer draws the same numbers each time.

    Args:
        stdev: standard deviation; 0 gives zeros, None leaves the memory uninitialised until weights are loaded.

    Example:
        >>> float(tf.reduce_sum(tf.abs(normal(0.02)([2, 3]))) > 0)
        1.0
    """
    if stdev is None:
        return lambda shape, dtype: tf.raw_ops.Empty(shape=shape, dtype=dtype)
    return keras.initializers.RandomNormal(stddev=stdev) if stdev else "zeros"


def split_heads(x: tf.Tensor, n_head: int) -> list[tf.Tensor]:
    """[batch, seq, 3 n_embd] -> queries, keys and values, each [batch, n_head, seq, head_dim]

    Example:
        >>> q, k, v = split_heads(tf.zeros([1, 5, 3 * 8]), n_head=2)
        >>> q.shape.as_list()
        [1, 2, 5, 4]
    """
    batch, seq, n_state = ops.sizes(x)
    return tf.unstack(tf.transpose(tf.reshape(x, [batch, seq, 3, n_head, n_state // n_head // 3]), [2, 0, 3, 1, 4]))


def merge_heads(x: tf.Tensor) -> tf.Tensor:
    """[batch, n_head, seq, head_dim] -> [batch, seq, n_embd]

    Example:
        >>> merge_heads(tf.zeros([1, 2, 5, 4])).shape.as_list()
        [1, 5, 8]
    """
    batch, n_head, seq, head_dim = ops.sizes(x)
    return tf.reshape(tf.transpose(x, [0, 2, 1, 3]), [batch, seq, n_head * head_dim])


def attention_mask(nd: tf.Tensor | int, ns: tf.Tensor | int, pad_lengths: tf.Tensor | None = None) -> tf.Tensor:
    """Return which of `ns` tokens each of the last `nd` tokens attends to: itself and all before it.

    Args:
        pad_lengths: number of padding tokens at the start of each row, int [batch]; padding is masked too.

    Returns:
        bool [nd, ns], or with `pad_lengths` [batch, 1, nd, ns].

    Example:
        >>> attention_mask(2, 3).numpy().astype(int).tolist()  # the last 2 of 3 tokens
        [[1, 1, 0], [1, 1, 1]]
    """
    mask = tf.range(nd)[:, None] >= tf.range(ns) - ns + nd
    return mask if pad_lengths is None else mask & (tf.range(ns) >= pad_lengths[:, None, None, None])


class Norm(keras.layers.Layer):
    """Layer normalisation with gain `g` and bias `b`.

    Example:
        >>> Norm()(tf.constant([[1.0, 3.0]])).numpy().round(3).tolist()
        [[-1.0, 1.0]]
    """

    def build(self, input_shape):
        self.g = self.add_weight(name="g", shape=input_shape[-1:], initializer="ones")
        self.b = self.add_weight(name="b", shape=input_shape[-1:], initializer="zeros")

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, training=None):
        return ops.norm(x, tf.convert_to_tensor(self.g), tf.convert_to_tensor(self.b), training)


class Conv1D(keras.layers.Layer):
    """A dense layer, [..., nx] -> [..., nf]. OpenAI stores `w` as [1, nx, nf].

    With a `lora_rank`, the layer computes with `w + lora_a @ lora_b`, of shapes [nx, lora_rank] and [lora_rank, nf].

    Example:
        >>> layer = Conv1D(nf=3, w_init_stdev=0.02)
        >>> layer(tf.zeros([2, 5, 4])).shape.as_list()
        [2, 5, 3]
        >>> tuple(layer.w.shape)
        (1, 4, 3)
    """

    def __init__(self, nf: int, w_init_stdev: float | None, lora_rank: int | None = None, **kwargs):
        super().__init__(**kwargs)
        self.nf = nf
        self.w_init_stdev = w_init_stdev
        self.lora_rank = lora_rank

    def build(self, input_shape):
        nx, nf, rank = input_shape[-1], self.nf, self.lora_rank
        # Keras's autocast is off for `w`, since `call` casts it.
        self.w = self.add_weight(name="w", shape=[1, nx, nf], initializer=normal(self.w_init_stdev), autocast=False)
        self.b = self.add_weight(name="b", shape=[nf], initializer="zeros")
        if rank:
            self.lora_a = self.add_weight(name="lora_a", shape=[nx, rank], initializer=normal(0.02))
            self.lora_b = self.add_weight(name="lora_b", shape=[rank, nf], initializer="zeros")

    def call(self, x):
        w = tf.convert_to_tensor(self.w)
        # Under mixed precision, the cast waits for `x`; otherwise TensorFlow would cast the weights of all blocks at
        # once and keep them. The read does not wait: with `tf.recompute_grad`, a read that waits sometimes sees the
        # weights after the optimizer's update.
        with tf.control_dependencies([x]):
            w = tf.cast(w, x.dtype)
        y = ops.linear(x, w)  # [..., nf]
        if self.lora_rank:
            y += low_rank(x, self.lora_a, self.lora_b)
        return y + self.b


class Attention(keras.layers.Layer):
    """Masked multi-head self-attention over cached and new tokens.

    Example:
        >>> x = tf.zeros([1, 5, model.hparams.n_embd])
        >>> a, present = model.get_layer("h0").attn(x, attention_mask(5, 5))
        >>> a.shape == x.shape, kv_cache.length([present])
        (True, 5)
    """

    def __init__(self, hparams: HParams, w_init_stdev: float | None, lora_ranks: Mapping[str, int], **kwargs):
        super().__init__(**kwargs)
        self.n_head = hparams.n_head
        c_proj_stdev = w_init_stdev and w_init_stdev / sqrt(2 * hparams.n_layer)
        rank, proj_rank = lora_ranks.get("c_attn"), lora_ranks.get("c_proj")
        self.c_attn = Conv1D(3 * hparams.n_embd, w_init_stdev, rank, name="c_attn", dtype=self.dtype_policy)
        self.c_proj = Conv1D(hparams.n_embd, c_proj_stdev, proj_rank, name="c_proj", dtype=self.dtype_policy)
        self.dropout = hparams.dropout

    def build(self, input_shape):
        self.c_attn.build(input_shape)
        self.c_proj.build(input_shape)

    def call(self, x, mask, past=None, seed=None, tap=no_tap):
        q, k, v = split_heads(self.c_attn(x), self.n_head)  # [batch, n_head, seq, head_dim]
        present = kv_cache.append(past, k, v)
        keys, values = zip(*present, strict=True)
        q = q / sqrt(q.shape[-1])  # The scores are larger than `q`, so `q` is scaled instead.
        w = tf.concat([ops.matmul(q, k, transpose_b=True) for k in keys], axis=-1)  # [batch, n_head, seq, past + seq]
        w = tf.cast(w, self.variable_dtype)  # The softmax needs the range of float32.
        w = tf.where(mask, w, w.dtype.min)
        w = tap("weights", ops.dropout(tf.cast(ops.softmax(w), v.dtype), self.dropout, seed, site=0))
        w = tf.split(w, [tf.shape(k)[2] for k in keys], axis=-1)
        x = tf.add_n([ops.matmul(part, v) for part, v in zip(w, values, strict=True)])  # [batch, n_head, seq, head_dim]
        x = self.c_proj(merge_heads(tap("heads", x)))  # [batch, seq, n_embd]
        return ops.dropout(x, self.dropout, seed, site=1), present


class MLP(keras.layers.Layer):
    """Two dense layers with a GELU between them; the inner width is 4 n_embd.

    Example:
        >>> x = tf.zeros([1, 5, model.hparams.n_embd])
        >>> model.get_layer("h0").mlp(x).shape == x.shape
        True
    """

    def __init__(self, hparams: HParams, w_init_stdev: float | None, lora_ranks: Mapping[str, int], **kwargs):
        super().__init__(**kwargs)
        self.n_state = 4 * hparams.n_embd
        c_proj_stdev = w_init_stdev and w_init_stdev / sqrt(2 * hparams.n_layer)
        rank, proj_rank = lora_ranks.get("c_fc"), lora_ranks.get("c_proj")
        self.c_fc = Conv1D(self.n_state, w_init_stdev, rank, name="c_fc", dtype=self.dtype_policy)
        self.c_proj = Conv1D(hparams.n_embd, c_proj_stdev, proj_rank, name="c_proj", dtype=self.dtype_policy)
        self.dropout = hparams.dropout

    def build(self, input_shape):
        self.c_fc.build(input_shape)
        self.c_proj.build([*input_shape[:-1], self.n_state])

    def call(self, x, seed=None, training=None):
        h = ops.gelu(self.c_fc(x), training)  # [batch, seq, 4 n_embd]
        return ops.dropout(self.c_proj(h), self.dropout, seed, site=2)  # [batch, seq, n_embd]


class Block(keras.layers.Layer):
    """One transformer block: attention and MLP, each with a normalised input and a residual connection.

    Example:
        >>> x = tf.zeros([1, 5, model.hparams.n_embd])
        >>> y, present = model.get_layer("h0")(x, attention_mask(5, 5))
        >>> y.shape == x.shape
        True
    """

    def __init__(self, hparams: HParams, w_init_stdev: float | None, lora_ranks: Mapping[str, int], **kwargs):
        super().__init__(**kwargs)
        # Under mixed precision, the norms compute in float32, the dtype of their variables.
        self.ln_1 = Norm(name="ln_1", dtype=self.variable_dtype)
        self.attn = Attention(hparams, w_init_stdev, lora_ranks, name="attn", dtype=self.dtype_policy)
        self.ln_2 = Norm(name="ln_2", dtype=self.variable_dtype)
        self.mlp = MLP(hparams, w_init_stdev, lora_ranks, name="mlp", dtype=self.dtype_policy)

    def build(self, input_shape):
        for layer in (self.ln_1, self.attn, self.ln_2, self.mlp):
            layer.build(input_shape)

    def compute_output_shape(self, input_shape):
        return input_shape

    def call(self, x, mask, past=None, seed=None, training=None, tap=no_tap):
        a, present = self.attn(self.ln_1(x, training=training), mask, past=past, seed=seed, tap=partial(tap, "attn"))
        x = x + tap("attn", "out", a)
        m = self.mlp(self.ln_2(x, training=training), seed=seed, training=training)
        return tap(x + tap("mlp", "out", m)), present  # [batch, seq, n_embd]


def recompute(block: Block, x: tf.Tensor, mask: tf.Tensor, seed: tf.Tensor | None, tap: Tap = no_tap) -> tf.Tensor:
    """Run a block in training. Its activations are not kept, but computed again for the gradient.

    Example:
        >>> x = tf.zeros([1, 5, model.hparams.n_embd])
        >>> recompute(model.get_layer("h0"), x, attention_mask(5, 5), seed=None).shape == x.shape
        True
    """
    return tf.recompute_grad(lambda x: block(x, mask, seed=seed, training=True, tap=tap)[0])(x)


@keras.saving.register_keras_serializable(package="gpt2_tf")
class GPT2(Inspecting, Intervening, Persistence, Adapters, Summary, Traces, TrainingStep):
    """OpenAI's GPT-2, a `keras.Model`. `model(tokens)` maps token ids to the logits of each next token.

    The weights exist at once, initialised as the paper says: normal with standard deviation `w_init_stdev`; half of it
    for `wpe`; divided by sqrt(2 n_layer) for the two projections of each block onto the residual stream.

    Token ids must lie in the vocabulary. `sample_sequence` checks this; `GPT2` itself does not, and on a GPU TensorFlow
    reads zeros for an id out of range.

    Args:
        hparams: the sizes of the model.
        w_init_stdev: standard deviation of the initial weights; 0.02 by default. None leaves them uninitialised, for
            weights that are loaded afterwards.
        remat: recompute each block's activations for its gradient instead of keeping them: less memory, more time.
        lora_rank: None (the default) trains all weights. A number freezes them and trains adapters of that rank beside
            them (LoRA, Hu et al., 2021; alpha equals the rank).
        lora_targets: names of the dense layers that have adapters: "c_attn", "c_fc" and "c_proj". By default, `c_attn`
            and both `c_proj` of each block.
        name: the name of the Keras model.
        kwargs: arguments of `keras.Model`, such as `dtype="mixed_bfloat16"`.

    Input:
        int [batch, seq], with seq at most `n_ctx`.

    Output:
        logits [batch, seq, n_vocab] in the dtype of the variables: float32, also under mixed precision.

    Raises:
        TypeError: `hparams` is not an `HParams`.
        ValueError: the input is not integers [batch, seq], or longer than `n_ctx`.

    Source: "Language Models are Unsupervised Multitask Learners" (Radford et al., 2019) and OpenAI's `src/model.py`.

    Example:
        >>> import numpy as np
        >>> from gpt2_tf import GPT2, HParams
        >>> small = GPT2(HParams(n_vocab=260, n_ctx=32, n_embd=16, n_head=2, n_layer=2))
        >>> small(np.array([[1, 2, 3]])).shape
        TensorShape([1, 3, 260])
    """

    def __init__(
        self,
        hparams: HParams,
        *,
        w_init_stdev: float | None = 0.02,
        remat: bool = False,
        lora_rank: int | None = None,
        lora_targets: Sequence[str] = DEFAULT_TARGETS,
        name: str = "model",
        **kwargs,
    ):
        super().__init__(name=name, **kwargs)
        if not isinstance(hparams, HParams):
            raise TypeError(
                f"GPT2 takes HParams, not {hparams!r}; to load a model by its name or folder, call gpt2_tf.load"
            )
        self.hparams = hparams
        self.w_init_stdev = w_init_stdev
        self.remat = remat
        self.lora_rank = lora_rank
        self.lora_targets = tuple(lora_targets)
        ranks = layer_ranks(lora_rank, lora_targets)
        self.seeds = keras.random.SeedGenerator()
        self.h = [
            Block(hparams, w_init_stdev, ranks, name=f"h{i}", dtype=self.dtype_policy) for i in range(hparams.n_layer)
        ]
        for block in self.h:
            setattr(self, block.name, block)  # `tf.train.Checkpoint` finds layers in attributes, but not in a list.
        self.ln_f = Norm(name="ln_f", dtype=self.variable_dtype)
        self.build([None, None])
        if lora_rank:
            for variable in self.named_weights().values():
                variable.trainable = False

    def build(self, input_shape):
        n_vocab, n_ctx, n_embd = self.hparams.n_vocab, self.hparams.n_ctx, self.hparams.n_embd
        stdev = self.w_init_stdev
        self.wpe = self.add_weight(name="wpe", shape=[n_ctx, n_embd], initializer=normal(stdev and stdev / 2))
        self.wte = self.add_weight(name="wte", shape=[n_vocab, n_embd], initializer=normal(stdev))
        for layer in (*self.h, self.ln_f):
            layer.build([*input_shape, n_embd])

    def call(self, tokens, training=None):
        return self.logits(self.hidden_states(tokens, training=training)[0])

    def forward(self, tokens: tf.Tensor, past: tf.Tensor | None = None) -> dict[str, tf.Tensor]:
        """Compute what OpenAI's `model()` returns: the logits, and the keys and values for the tokens that follow.

        Args:
            tokens: int [batch, seq].
            past: the `present` tensors of all earlier tokens, concatenated along `seq` (axis 4).
                Default: None, no earlier tokens.

        Returns:
            `logits`, [batch, seq, n_vocab], and `present`, [batch, n_layer, 2, n_head, seq, head_dim], of these tokens.

        Raises:
            ValueError: `tokens` is not integers [batch, seq], or longer than `n_ctx` together with `past`. In a graph
                whose lengths are unknown, the latter is a `tf.errors.InvalidArgumentError` when the graph runs.

        Example:
            >>> import numpy as np
            >>> first = model.forward([[10, 20, 30]])
            >>> then = model.forward([[40]], past=first["present"])  # does not read the first three again
            >>> bool(abs(then["logits"][0, 0] - model(np.array([[10, 20, 30, 40]]))[0, 3]).numpy().max() < 1e-3)
            True
        """
        h, cache = self.hidden_states(tokens, None if past is None else kv_cache.from_past(past))
        return {"logits": self.logits(h), "present": kv_cache.to_past(kv_cache.newest(cache, tf.shape(tokens)[1]))}

    def hidden_states(
        self,
        tokens: tf.Tensor,
        past: kv_cache.KVCache | None = None,
        pad_lengths: tf.Tensor | None = None,
        training: bool | None = None,
        tap: Tap = no_tap,
    ) -> tuple[tf.Tensor, kv_cache.KVCache]:
        """Run the blocks and `ln_f`. Returns the hidden states, [batch, seq, n_embd], and the extended cache.

        Args:
            tokens: int [batch, seq].
            past: the cache of all earlier tokens. Default: None, no earlier tokens.
            pad_lengths: number of padding tokens at the start of each row, int [batch], counted from the first cached
                token. Padding is masked, and its hidden states have no meaning. Default: None.
            training: whether dropout is applied. With `remat`, the cache is then empty.
            tap: called at the named places of the forward pass, as `taps` says. Default: changes nothing.

        Raises:
            ValueError, tf.errors.InvalidArgumentError: as `forward`.

        Example:
            >>> h, cache = model.hidden_states([[10, 20, 30]])
            >>> h.shape == [1, 3, model.hparams.n_embd]
            True
        """
        tokens = tf.convert_to_tensor(tokens)
        self._check(tokens, past)
        seq = tokens.shape[1] or tf.shape(tokens)[1]
        n_past = 0 if past is None else kv_cache.length(past)
        # A graph may not know its lengths when it is traced. A slice of `wpe` beyond its end would be shorter, without
        # an error, so the length is checked when the graph runs.
        longest = n_past + seq - (0 if pad_lengths is None else tf.reduce_min(pad_lengths))
        tf.debugging.assert_less_equal(longest, self.hparams.n_ctx, "more tokens than the model's window, n_ctx")
        if pad_lengths is None:
            positions = self.wpe[n_past : n_past + seq]  # [seq, n_embd]
        else:
            columns = tf.maximum(n_past + tf.range(seq) - pad_lengths[:, None], 0)
            positions = tf.gather(tf.convert_to_tensor(self.wpe), columns)  # [batch, seq, n_embd]
        h = tf.gather(self.tied_embedding(), tokens) + tf.cast(positions, self.compute_dtype)  # [batch, seq, n_embd]
        seed = None
        if training and self.hparams.dropout:
            seed = distribute.per_replica_seed(tf.cast(self.seeds.next(), tf.int32))
        h = tap("embed", ops.dropout(h, self.hparams.dropout, seed, site=0))
        mask = attention_mask(seq, n_past + seq, pad_lengths)
        if past is not None and tokens.shape[1] != 1:  # A second segment saves time for single tokens only.
            past = kv_cache.concat(past)
        presents = []
        for i, block in enumerate(self.h):
            block_seed = seed if seed is None else tf.random.fold_in(seed, 1 + i)
            block_tap = partial(tap, f"h{i}")
            if training and self.remat:
                h = recompute(block, h, mask, block_seed, block_tap)
            else:
                h, present = block(h, mask, past=past and past[i], seed=block_seed, training=training, tap=block_tap)
                presents.append(present)
        return tf.cast(self.ln_f(h, training=training), self.compute_dtype), tuple(presents)

    def logits(self, h: tf.Tensor) -> tf.Tensor:
        """Map hidden states, [batch, seq, n_embd], to logits, [batch, seq, n_vocab], by the tied embedding.

        Example:
            >>> model.logits(model.hidden_states([[10, 20]])[0]).shape == [1, 2, model.hparams.n_vocab]
            True
        """
        return tf.cast(ops.tied_logits(h, self.tied_embedding()), self.variable_dtype)

    def tied_embedding(self) -> tf.Tensor:
        """Return `wte`, [n_vocab, n_embd], in the dtype that the model computes in.

        The result is a tensor, since a gather from the variable makes TensorFlow copy the variable at every other read.
        The cast is explicit, since Keras casts variables within `call` only, and `forward` must give the same numbers.

        Example:
            >>> model.tied_embedding().shape == [model.hparams.n_vocab, model.hparams.n_embd]
            True
        """
        return tf.cast(tf.convert_to_tensor(self.wte), self.compute_dtype)

    def _check(self, tokens: tf.Tensor, past: kv_cache.KVCache | None) -> None:
        if tokens.dtype == tf.string:
            raise ValueError(
                "tokens are text, but must be integers [batch, seq]; encode the text first: enc.encode(text)"
            )
        if tokens.shape.rank != 2 or not tokens.dtype.is_integer:
            raise ValueError(f"tokens are {tokens.dtype.name} {tokens.shape}, but must be integers [batch, seq]")
        known = (tokens.shape[1] or 0) + sum(k.shape[2] or 0 for k, _ in (past[0] if past else ()))
        if known > self.hparams.n_ctx:
            raise ValueError(f"{known} tokens are more than the model's window, n_ctx {self.hparams.n_ctx}")
