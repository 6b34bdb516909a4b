"""LoRA adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685) in folders of Hugging Face's PEFT library."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gpt2_tf.files.atomic import move_into_place, staging_folder
from gpt2_tf.weights import safetensors
from gpt2_tf.weights.hf_settings import check_settings, read_json
from gpt2_tf.weights.huggingface import FLOATS, huggingface_name
from gpt2_tf.weights.lazy_tensor import LazyTensor

FILES = ("adapter_config.json", "adapter_model.safetensors")
# Settings of other arithmetic than plain LoRA -> the supported values. A setting that is missing or null is supported.
SETTINGS = {
    "peft_type": ("LORA",),
    "use_rslora": (False,),
    "use_dora": (False,),
    "use_qalora": (False,),
    "lora_bias": (False,),
    "bias": ("none",),
    "modules_to_save": (None, []),
    "target_parameters": (None, []),
    "trainable_token_indices": (None, []),
    "layer_replication": (None, []),
    "alora_invocation_tokens": (None, []),
    "use_bdlora": (None, False),
    "arrow_config": (None, {}),
    "kasa_config": (None, {}),
    "velora_config": (None, {}),
    "monteclora_config": (None, {}),
    # Other ways to initialize the adapters change the weights of the model too.
    "init_lora_weights": (True, False, "gaussian", "eva", "orthogonal"),
}
DEFAULT_RANK = DEFAULT_ALPHA = 8  # of PEFT
MOST = 2**20  # of a rank or an alpha; a larger number is a mistake
TENSOR_NAME = re.compile(r"base_model\.model\.(?:transformer\.)?h\.(\d+)\.((?:attn|mlp)\.\w+)\.lora_([AB])\.weight")
ADAPTER_NAMES = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}


def save_adapters(folder: str | os.PathLike, adapters: Mapping[str, np.ndarray], rank: int) -> None:
    """Write a folder that PEFT loads onto the same model of the transformers library.

    Each file appears complete or not at all.

    Args:
        folder: made if it is missing.
        adapters: the adapters by name, as `model/h0/attn/c_attn/lora_a` [n_in, rank] and `.../lora_b` [rank, n_out].
        rank: the rank of all adapters.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.

    Example:
        >>> lora = {"model/h0/attn/c_attn/lora_a": np.ones((16, 2)), "model/h0/attn/c_attn/lora_b": np.ones((2, 48))}
        >>> save_adapters("adapters", lora, rank=2)
        >>> sorted(path.name for path in Path("adapters").iterdir())
        ['adapter_config.json', 'adapter_model.safetensors']
    """
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,  # PEFT scales by lora_alpha / r, which is 1
        "target_modules": sorted({name.split("/")[-2] for name in adapters}),
        "fan_in_fan_out": True,  # the weights are [n_in, n_out]
        "inference_mode": True,
    }
    arrays = {_peft_name(name): np.asarray(adapter).T for name, adapter in adapters.items()}
    with staging_folder(folder) as staging:
        (staging / FILES[0]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shapes = {name: array.shape for name, array in arrays.items()}
        safetensors.write_tensors(staging / FILES[1], shapes, arrays.values())
        move_into_place([staging / name for name in FILES], folder)


def read_adapters(
    folder: str | os.PathLike, layers: Mapping[str, tuple[int, int]]
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Read adapters that `save_adapters` or PEFT wrote: plain LoRA of any layers, ranks and alphas.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        layers: n_in and n_out of each dense layer of the model by name, as `model/h0/attn/c_attn`.

    Returns:
        For each layer that has an adapter: lora_a, float32 [n_in, rank], and lora_b, float32 [rank, n_out], which is
        multiplied by alpha / rank.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the adapters belong to another model or need other arithmetic, or a file is damaged.

    Example:
        >>> lora = {"model/h0/attn/c_attn/lora_a": np.ones((16, 2)), "model/h0/attn/c_attn/lora_b": np.ones((2, 48))}
        >>> save_adapters("adapters", lora, rank=2)
        >>> a, b = read_adapters("adapters", {"model/h0/attn/c_attn": (16, 48)})["model/h0/attn/c_attn"]
        >>> a.shape, b.shape
        ((16, 2), (2, 48))
    """
    config_path, weights_path = (Path(folder, name) for name in FILES)
    config = read_json(config_path)
    check_settings(config_path, config, SETTINGS)
    pairs: dict[str, dict[str, LazyTensor]] = {}
    for name, tensor in safetensors.read_tensors(weights_path).items():
        match = TENSOR_NAME.fullmatch(name)
        layer = match and f"model/h{match[1]}/{match[2].replace('.', '/')}"
        if layer not in layers or tensor.dtype not in FLOATS:
            raise ValueError(f"{weights_path}: {name} is not a LoRA adapter of a dense layer of this model")
        pairs.setdefault(layer, {})[match[3]] = tensor
    adapters = {}
    for layer, pair in pairs.items():
        (n_in, n_out), module = layers[layer], huggingface_name(f"{layer}/w").removesuffix(".weight")
        rank = _setting_of_module(config_path, config, "r", "rank_pattern", module, DEFAULT_RANK)
        alpha = _setting_of_module(config_path, config, "lora_alpha", "alpha_pattern", module, DEFAULT_ALPHA)
        shapes = {kind: tuple(tensor.shape) for kind, tensor in pair.items()}
        if shapes != {"A": (rank, n_in), "B": (n_out, rank)}:
            found = ", ".join(f"lora_{kind} {list(shape)}" for kind, shape in sorted(shapes.items()))
            raise ValueError(
                f"{weights_path}: {module} has {found}, expected lora_A [{rank}, {n_in}] and lora_B [{n_out}, {rank}]"
            )
        adapters[layer] = np.asarray(pair["A"]).T, np.asarray(pair["B"]).T * np.float32(alpha / rank)
    return adapters


def _setting_of_module(path: Path, config: Mapping, name: str, patterns: str, module: str, default: int) -> float:
    """Return the rank or alpha of a module, as PEFT finds it: the first matching pattern, else the common setting."""
    value, found = config.get(name, default), config.get(patterns) or {}
    if not isinstance(found, dict):
        raise ValueError(f"{path}: {patterns} is {json.dumps(found)[:80]}, but must be an object")
    for pattern, other in found.items():
        if _matches(path, patterns, pattern, module):
            value = other
            break
    least = 1 if name == "r" else 0
    kinds = int if name == "r" else (int, float)
    if isinstance(value, bool) or not isinstance(value, kinds) or not least <= value <= MOST:
        raise ValueError(f"{path}: {name} of {module} is {value!r:.80}, but must be a number from {least} to {MOST:,}")
    return value


def _matches(path: Path, patterns: str, pattern: str, module: str) -> bool:
    """Whether a pattern of the configuration is for a module, as in PEFT.

    TensorFlow matches by RE2, in linear time. Python's `re` could take hours for a hostile pattern.
    """
    import tensorflow as tf

    try:
        re.compile(f"({pattern})")  # RE2 would print an error of its own
        return bool(tf.strings.regex_full_match(f"transformer.{module}", rf"(.*\.)?({pattern})"))
    except (re.error, RecursionError, OverflowError, UnicodeEncodeError, tf.errors.InvalidArgumentError):
        raise ValueError(
            f"{path}: {patterns} has {pattern[:80]!r}, which RE2 cannot compile as a regular expression"
        ) from None


def _peft_name(name: str) -> str:
    """Convert an adapter's name to PEFT's: base_model.model.transformer.h.0.attn.c_attn.lora_A.weight."""
    scope, _, last = name.rpartition("/")
    module = huggingface_name(f"{scope}/w").removesuffix("weight")
    return f"base_model.model.transformer.{module}{ADAPTER_NAMES[last]}"
