"""KerasNLP's GPT-2 (now KerasHub's) <-> our model; KerasNLP's preset folders.

Both libraries offer the same classes; KerasHub is taken if it is installed. They come with the extra `[keras-nlp]`.
"""

from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType

import keras
import numpy as np

from encoder import Encoder
from gpt2_tf.hparams import HParams, json_object
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.weights import hf_tokenizer

SIZES = {
    "vocabulary_size": "n_vocab",
    "max_sequence_length": "n_ctx",
    "hidden_dim": "n_embd",
    "num_heads": "n_head",
    "num_layers": "n_layer",
}
VOCABULARY = ("assets/tokenizer/vocabulary.json", "assets/tokenizer/merges.txt")


def to_keras_nlp(model: GPT2) -> keras.Model:
    """Make a KerasNLP `GPT2Backbone` with the model's weights, dropout and dtype policy.

    The weights are copied. LoRA adapters are merged into them.

    Raises:
        ImportError: the extra `[keras-nlp]` is missing.

    Example:
        >>> backbone = to_keras_nlp(model)  # doctest: +SKIP
        >>> backbone.num_layers  # doctest: +SKIP
        6
    """
    weights = model.merged_weights()
    arrays = (weights[name].numpy() for name in model.hparams.shapes)
    return _make_backbone(model.hparams, arrays, model.dtype_policy.name)


def from_keras_nlp(backbone: keras.Model) -> GPT2:
    """Make a model with the weights of a KerasNLP `GPT2Backbone`.

    The weights are copied. LoRA adapters are merged into them. The dropout is 0.

    Args:
        backbone: a `GPT2Backbone`, or a task model that has one, such as `GPT2CausalLM`.

    Raises:
        TypeError: the backbone is not a GPT-2's.
        ValueError: the backbone is quantized, or has a size that no GPT-2 has.

    Example:
        >>> from_keras_nlp(keras.Sequential())
        Traceback (most recent call last):
            ...
        TypeError: from_keras_nlp takes a GPT2Backbone, not a Sequential
        >>> from_keras_nlp(to_keras_nlp(model)).hparams == model.hparams  # doctest: +SKIP
        True
    """
    hparams, read_weight = weight_reader(backbone)
    model = GPT2(hparams, w_init_stdev=None)
    for name, variable in model.named_weights().items():
        variable.assign(read_weight(name))
    return model


def weight_reader(backbone: keras.Model) -> tuple[HParams, Callable[[str], np.ndarray]]:
    """Return the sizes of a backbone, and a function that returns a weight by OpenAI's name.

    The function's result is float32 in OpenAI's shape.

    Raises:
        TypeError, ValueError: as for `from_keras_nlp`.

    Example:
        >>> hparams, read_weight = weight_reader(to_keras_nlp(model))  # doctest: +SKIP
        >>> read_weight("model/wte").shape  # doctest: +SKIP
        (1024, 256)
    """
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
        raise ValueError(
            f"the backbone is quantized ({', '.join(sorted(modes))}); convert the backbone from before quantization"
        )
    hparams = HParams(
        n_vocab=backbone.vocabulary_size,
        n_ctx=backbone.max_sequence_length,
        n_embd=backbone.hidden_dim,
        n_head=backbone.num_heads,
        n_layer=backbone.num_layers,
    )
    shapes = hparams.shapes

    def read_weight(name: str) -> np.ndarray:
        parts = [
            keras.ops.convert_to_numpy(weight).astype(np.float32, copy=False).reshape(*shapes[name][:-1], -1)
            for weight in _weights(layers, name)
        ]
        return parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)

    return hparams, read_weight


def load_preset(folder: Path) -> tuple[HParams, Callable[[str], np.ndarray], Encoder | None]:
    """Load a folder that KerasNLP's `save_to_preset` wrote.

    Returns:
        The results of `weight_reader`, and the encoder, or None for a folder without a tokenizer.

    Raises:
        ValueError: the model is no GPT-2, or `config.json` describes far more weights than the folder holds.

    Example:
        >>> hparams, read_weight, enc = load_preset(Path("preset"))  # doctest: +SKIP
    """
    _check_sizes(folder)
    hparams, read_weight = weight_reader(_library().models.GPT2Backbone.from_preset(str(folder)))
    vocabulary, merges = (folder / name for name in VOCABULARY)
    if not vocabulary.exists():
        return hparams, read_weight, None
    return hparams, read_weight, hf_tokenizer.encoder_from_files(vocabulary, merges, {}, hparams.n_vocab)


def save_preset(folder: Path, hparams: HParams, arrays: Iterable[np.ndarray], enc: Encoder | None) -> None:
    """Write a folder that `GPT2Backbone.from_preset` reads. With an encoder, `GPT2CausalLM.from_preset` reads it too.

    Args:
        folder: an existing folder.
        hparams: the model's sizes.
        arrays: the weights in the order of `hparams.shapes`. Each array is taken after the one before it is copied.
        enc: the model's encoder, or None.

    Example:
        >>> save_preset(Path("preset"), hparams, arrays, enc)  # doctest: +SKIP
    """
    _make_backbone(hparams, arrays).save_to_preset(str(folder))
    if enc is not None:
        ids, merges = hf_tokenizer.vocab_and_merges(enc)
        _library().tokenizers.GPT2Tokenizer(vocabulary=ids, merges=merges).save_to_preset(str(folder))


def _check_sizes(folder: Path) -> None:
    """Check `config.json` against the size of the weights. The library would make any model that it describes."""
    path = folder / "config.json"
    config = json_object(path).get("config")
    if not isinstance(config, dict) or not set(SIZES) <= config.keys():
        return  # another model, which the library or `weight_reader` names
    try:
        n_params = HParams(**{ours: config[theirs] for theirs, ours in SIZES.items()}).n_params
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    size = sum(weights.stat().st_size for weights in folder.glob("*.weights.h5"))
    if n_params > 5 * size:  # a weight has at least 2 bytes; ten times too many are allowed
        raise ValueError(f"{path} describes a model of {n_params:,} weights, but the weights have {size:,} bytes")


def _library() -> ModuleType:
    """Return KerasHub or KerasNLP, whichever is installed."""
    try:
        import keras_hub as library
    except ImportError:
        try:
            import keras_nlp as library
        except ImportError:
            raise ImportError("KerasNLP's models need an extra: pip install 'gpt2-tf[keras-nlp]'") from None
    return library


def _make_backbone(hparams: HParams, arrays: Iterable[np.ndarray], dtype: str | None = None) -> keras.Model:
    """Make a `GPT2Backbone` with the given weights and dtype policy."""
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
    """Return the layers by OpenAI's names. `c_attn` is three layers: for the queries, the keys and the values."""
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
    """Return the weights that together make OpenAI's weight of a name; their heads have an axis of their own."""
    if name == "model/wte":
        return [layers[name][0].embeddings]
    if name == "model/wpe":
        return [layers[name][0].position_embeddings]
    scope, _, kind = name.rpartition("/")
    if "ln_" in scope:
        return [layers[scope][0].gamma if kind == "g" else layers[scope][0].beta]
    return [layer.kernel if kind == "w" else layer.bias for layer in layers[scope]]
