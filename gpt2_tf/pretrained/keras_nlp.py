"""KerasNLP's GPT-2 backbone (KerasHub's, as it is called now) <-> our model, and its preset folders."""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import keras
import numpy as np

from encoder import Encoder
from gpt2_tf.hparams import HParams
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.weights import huggingface

VOCABULARY = ("assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt")


def to_keras_nlp(model: GPT2) -> keras.Model:
    """A `GPT2Backbone` with copies of the model's weights, its dropout and its dtype policy.

    Raises:
        ImportError: the extra `[keras-nlp]` is missing.
    """
    weights = model.merged_weights()
    arrays = (weights[name].numpy() for name in model.hparams.shapes)
    return _backbone(model.hparams, arrays, model.dtype_policy.name)


def from_keras_nlp(backbone: keras.Model) -> GPT2:
    """Our model with copies of the weights of a `GPT2Backbone`, or of a task's such as `GPT2CausalLM`; LoRA is merged.

    Its dropout is 0, as with `from_checkpoint`.

    Raises:
        TypeError: another backbone.
        ValueError: one that is quantized, or as no GPT-2 is.
    """
    hparams, read = reader(backbone)
    model = GPT2(hparams, w_init_stdev=None)
    for name, variable in model.named_weights().items():
        variable.assign(read(name))
    return model


def reader(backbone: keras.Model) -> tuple[HParams, Callable[[str], np.ndarray]]:
    """The hyperparameters, and what gives a weight by OpenAI's name, as float32 of OpenAI's shape. Raises as above."""
    backbone = getattr(backbone, "backbone", backbone)
    if type(backbone).__name__ != "GPT2Backbone":
        raise TypeError(f"from_keras_nlp takes a GPT2Backbone, not a {type(backbone).__name__}")
    if backbone.intermediate_dim != 4 * backbone.hidden_dim:
        raise ValueError(
            f"the backbone's intermediate_dim is {backbone.intermediate_dim}, but GPT-2's is 4 x hidden_dim, "
            f"{4 * backbone.hidden_dim}"
        )
    layers = _layers(backbone)
    if modes := {mode for parts in layers.values() for layer in parts if (mode := layer.quantization_mode)}:
        raise ValueError(f"the backbone is quantized ({', '.join(modes)}); give the one that it was made from")
    hparams = HParams(
        n_vocab=backbone.vocabulary_size,
        n_ctx=backbone.max_sequence_length,
        n_embd=backbone.hidden_dim,
        n_head=backbone.num_heads,
        n_layer=backbone.num_layers,
    )
    shapes = hparams.shapes

    def read(name: str) -> np.ndarray:
        parts = [
            keras.ops.convert_to_numpy(weight).astype(np.float32, copy=False).reshape(*shapes[name][:-1], -1)
            for weight in _weights(layers, name)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    return hparams, read


def load_preset(folder: Path) -> tuple[HParams, Callable[[str], np.ndarray], Encoder | None]:
    """What a folder of `save_to_preset` holds: as `reader`, and the encoder where there is one."""
    hparams, read = reader(_library().models.GPT2Backbone.from_preset(str(folder)))
    vocabulary, merges = (folder / name for name in VOCABULARY)
    enc = huggingface.encoder_of(vocabulary, merges, {}, hparams.n_vocab) if vocabulary.exists() else None
    return hparams, read, enc


def save_preset(folder: Path, hparams: HParams, arrays: Iterable[np.ndarray], enc: Encoder | None) -> None:
    """Writes what `GPT2Backbone.from_preset` reads, and with an encoder `GPT2CausalLM.from_preset` too.

    Args:
        arrays: the weights in the order of `hparams.shapes`, each asked for once the one before is copied.
    """
    _backbone(hparams, arrays).save_to_preset(str(folder))
    if enc is not None:
        ids, merges = huggingface.vocabulary(enc)
        _library().tokenizers.GPT2Tokenizer(vocabulary=ids, merges=merges).save_to_preset(str(folder))


def _library() -> ModuleType:
    try:
        import keras_hub as library
    except ImportError:
        try:
            import keras_nlp as library
        except ImportError:
            raise ImportError("KerasNLP's models need the extra: pip install 'gpt2-tf[keras-nlp]'") from None
    return library


def _backbone(hparams: HParams, arrays: Iterable[np.ndarray], dtype: str | None = None) -> keras.Model:
    backbone = _library().models.GPT2Backbone(
        vocabulary_size=hparams.n_vocab,
        num_layers=hparams.n_layer,
        num_heads=hparams.n_head,
        hidden_dim=hparams.n_embd,
        intermediate_dim=4 * hparams.n_embd,
        dropout=hparams.dropout,
        max_sequence_length=hparams.n_ctx,
        dtype=dtype,
    )
    layers = _layers(backbone)
    for name, array in zip(hparams.shapes, arrays, strict=True):
        weights = _weights(layers, name)
        for weight, part in zip(weights, np.split(array, len(weights), axis=-1), strict=True):
            weight.assign(part.reshape(weight.shape))
    return backbone


def _layers(backbone: keras.Model) -> dict[str, tuple[keras.layers.Layer, ...]]:
    """The layers by OpenAI's names; `c_attn` is three of them, for the queries, the keys and the values."""
    layers = {
        "model/wte": (backbone.get_layer("token_embedding"),),
        "model/wpe": (backbone.get_layer("position_embedding"),),
        "model/ln_f": (backbone.get_layer("layer_norm"),),
    }
    for i in range(backbone.num_layers):
        block = backbone.get_layer(f"transformer_layer_{i}")
        attn = block._self_attention_layer
        layers |= {
            f"model/h{i}/ln_1": (block._self_attention_layer_norm,),
            f"model/h{i}/attn/c_attn": (attn._query_dense, attn._key_dense, attn._value_dense),
            f"model/h{i}/attn/c_proj": (attn._output_dense,),
            f"model/h{i}/ln_2": (block._feedforward_layer_norm,),
            f"model/h{i}/mlp/c_fc": (block._feedforward_intermediate_dense,),
            f"model/h{i}/mlp/c_proj": (block._feedforward_output_dense,),
        }
    return layers


def _weights(layers: dict, name: str) -> list:
    """The weights that together are OpenAI's of this name, each with its axes as KerasNLP cuts them into heads."""
    if name == "model/wte":
        return [layers[name][0].embeddings]
    if name == "model/wpe":
        return [layers[name][0].position_embeddings]
    scope, _, kind = name.rpartition("/")
    if "ln_" in scope:
        return [layers[scope][0].gamma if kind == "g" else layers[scope][0].beta]
    return [layer.kernel if kind == "w" else layer.bias for layer in layers[scope]]
