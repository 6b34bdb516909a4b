"""LoRA: adapters that are trained beside frozen weights.

Source: "LoRA: Low-Rank Adaptation of Large Language Models" (Hu et al., 2021).
"""

import os
from collections.abc import Sequence

import keras
import tensorflow as tf

from gpt2_tf.hparams import is_whole
from gpt2_tf.model import ops
from gpt2_tf.weights import peft

TARGETS = ("c_attn", "c_fc", "c_proj")
DEFAULT_TARGETS = ("c_attn", "c_proj")


def layer_ranks(rank: int | None, targets: Sequence[str]) -> dict[str, int]:
    """Return the rank of the adapters by the name of the dense layer.

    Raises:
        ValueError: `rank` is not a positive integer, or a target is not one of `TARGETS`.

    Example:
        >>> layer_ranks(8, ["c_attn", "c_proj"])
        {'c_attn': 8, 'c_proj': 8}
    """
    if rank is None:
        return {}
    if not is_whole(rank, 1, 2**20):
        raise ValueError(f"lora_rank is {rank!r}, but must be a whole number of at least 1")
    if isinstance(targets, str) or not targets or not set(targets) <= set(TARGETS):
        raise ValueError(f"lora_targets is {targets!r}, but must list one or more of {', '.join(TARGETS)}")
    return dict.fromkeys(targets, rank)


def low_rank(x: tf.Tensor, a: tf.Tensor, b: tf.Tensor) -> tf.Tensor:
    """Multiply the last axis of `x`, [..., nx], by `a`, [nx, rank], and by `b`, [rank, nf]. Returns [..., nf].

    Example:
        >>> low_rank(tf.ones([5, 4]), a=tf.ones([4, 2]), b=tf.ones([2, 3])).shape.as_list()
        [5, 3]
    """
    y = tf.matmul(tf.matmul(tf.reshape(x, [-1, x.shape[-1]]), a), b)
    return tf.reshape(y, [*ops.sizes(x)[:-1], b.shape[-1]])


class Adapters:
    """The part of `GPT2` that names its weights, and reads, writes and merges its LoRA adapters."""

    def named_weights(self) -> dict[str, keras.Variable]:
        """Return the weights by OpenAI's names, without adapters, whatever the model's own name is.

        Example:
            >>> model.named_weights()["model/h0/attn/c_attn/w"].shape[0]
            1
        """
        return {name: variable for name, variable in self._named_variables().items() if "/lora_" not in name}

    def adapters(self) -> dict[str, keras.Variable]:
        """Return the trained variables of a model with a `lora_rank`, such as `model/h0/attn/c_attn/lora_a`.

        `lora_a` is [nx, lora_rank] and `lora_b` is [lora_rank, nf]. Without a `lora_rank` the result is empty.

        Example:
            >>> from gpt2_tf import GPT2, HParams
            >>> small = GPT2(HParams(n_vocab=260, n_ctx=32, n_embd=16, n_head=2, n_layer=1), lora_rank=4)
            >>> tuple(small.adapters()["model/h0/mlp/c_proj/lora_a"].shape)
            (64, 4)
            >>> model.adapters()
            {}
        """
        return {name: variable for name, variable in self._named_variables().items() if "/lora_" in name}

    def merged_weights(self) -> dict[str, keras.Variable | tf.Tensor]:
        """Return the weights by OpenAI's names, with the adapters added to them in float32.

        Example:
            >>> model.merged_weights().keys() == model.hparams.shapes.keys()
            True
        """
        weights, adapters = dict(self.named_weights()), self.adapters()
        for name in [name for name in adapters if name.endswith("/lora_a")]:
            scope = name.removesuffix("lora_a")
            w, a, b = weights[f"{scope}w"], adapters[name], adapters[f"{scope}lora_b"]
            w, a, b = (tf.cast(part, tf.float32) for part in (w, a, b))
            weights[f"{scope}w"] = w + tf.matmul(a, b)
        return weights

    def load_adapters(self, folder: str | os.PathLike) -> None:
        """Read adapters that `save_adapters` or PEFT wrote for the same weights.

        Their ranks may be smaller than `lora_rank`, and layers may be missing: the rest of `lora_b` becomes 0, so that
        it has no effect until it is trained.

        Args:
            folder: holds `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: this model has no adapters, or none of that rank in all the layers of the file; or the files
                are damaged, belong to another model, or need other arithmetic. The error names the setting.

        Example:
            >>> from gpt2_tf import GPT2, HParams
            >>> small = GPT2(HParams(n_vocab=260, n_ctx=32, n_embd=16, n_head=2, n_layer=1), lora_rank=4)
            >>> small.save_adapters("adapters")
            >>> small.load_adapters("adapters")
        """
        adapters = self._require_adapters()
        layers = {name[:-2]: shape[1:] for name, shape in self.hparams.shapes.items() if name.endswith("/w")}
        loaded = peft.read_adapters(folder, layers)
        rank = max((a.shape[1] for a, _ in loaded.values()), default=0)
        if rank > self.lora_rank:
            raise ValueError(f"{folder} has adapters of rank {rank}, but the model's lora_rank is {self.lora_rank}")
        targets = {name.rpartition("/")[2] for name in loaded} | set(self.lora_targets)
        if targets != set(self.lora_targets):
            raise ValueError(
                f"{folder} has adapters of layers that have none in this model, whose lora_targets is "
                f"{self.lora_targets}; make it with lora_targets={tuple(sorted(targets))}"
            )
        for name in adapters:
            layer, _, kind = name.rpartition("/")
            values = adapters[name].numpy()
            if kind == "lora_b":
                values[:] = 0
            if layer in loaded:
                a, b = loaded[layer]
                if kind == "lora_a":
                    values[:, : a.shape[1]] = a
                else:
                    values[: b.shape[0]] = b
            adapters[name].assign(values)

    def save_adapters(self, folder: str | os.PathLike) -> None:
        """Write the adapters alone, as PEFT reads them: `adapter_config.json` and `adapter_model.safetensors`.

        Raises:
            ValueError: this model has no adapters.

        Example:
            >>> import os
            >>> from gpt2_tf import GPT2, HParams
            >>> GPT2(HParams(n_vocab=260, n_ctx=32, n_embd=16, n_head=2, n_layer=1), lora_rank=4).save_adapters("lora")
            >>> sorted(os.listdir("lora"))
            ['adapter_config.json', 'adapter_model.safetensors']
        """
        peft.save_adapters(folder, self._require_adapters(), self.lora_rank)

    def _named_variables(self) -> dict[str, keras.Variable]:
        return {f"model{variable.path.removeprefix(self.path)}": variable for variable in self.weights}

    def _require_adapters(self) -> dict[str, keras.Variable]:
        if not self.lora_rank:
            raise ValueError("the model has no adapters; make it with a lora_rank, for example GPT2(..., lora_rank=8)")
        return self.adapters()
