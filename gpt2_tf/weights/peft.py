"""LoRA adapters (Hu et al., 2021, https://arxiv.org/abs/2106.09685) in folders of Hugging Face's PEFT library."""

import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from gpt2_tf.files.atomic import move_into_place, staging_folder
from gpt2_tf.weights import safetensors
from gpt2_tf.weights.hf_settings import check_settings, read_json
from gpt2_tf.weights.huggingface import FLOATS, huggingface_name

FILES = ("adapter_config.json", "adapter_model.safetensors")
# Settings that change the adapters' effect, but no tensor's name or shape -> the supported values.
SETTINGS = {
    "peft_type": ("LORA",),
    "use_rslora": (False,),
    "alpha_pattern": ({},),
    # Other ways to initialize the adapters change the weights of the model too.
    "init_lora_weights": (True, False, "gaussian"),
}
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
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": rank,  # PEFT scales by lora_alpha / r, which is 1
        "target_modules": ["c_attn", "c_proj"],
        "fan_in_fan_out": True,  # the weights are [n_in, n_out]
        "inference_mode": True,
    }
    arrays = {_peft_name(name): np.asarray(adapter).T for name, adapter in adapters.items()}
    with staging_folder(folder) as staging:
        (staging / FILES[0]).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        shapes = {name: array.shape for name, array in arrays.items()}
        safetensors.write_tensors(staging / FILES[1], shapes, arrays.values())
        move_into_place([staging / name for name in FILES], folder)


def read_adapters(folder: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], rank: int) -> dict[str, np.ndarray]:
    """Read adapters that `save_adapters` or PEFT wrote.

    Args:
        folder: holds `adapter_config.json` and `adapter_model.safetensors`.
        shapes: the expected shape of each adapter by name, as for `save_adapters`.
        rank: the rank of all adapters.

    Returns:
        The adapters by name as float32. Each `lora_b` is multiplied by lora_alpha / rank.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: the adapters have another rank, belong to another model or need other arithmetic, or a file is
            damaged.

    Example:
        >>> lora = {"model/h0/attn/c_attn/lora_a": np.ones((16, 2)), "model/h0/attn/c_attn/lora_b": np.ones((2, 48))}
        >>> save_adapters("adapters", lora, rank=2)
        >>> read = read_adapters("adapters", {name: array.shape for name, array in lora.items()}, rank=2)
        >>> read["model/h0/attn/c_attn/lora_b"].shape
        (2, 48)
    """
    config_path, weights_path = (Path(folder, name) for name in FILES)
    config = read_json(config_path)
    check_settings(config_path, config, {**SETTINGS, "r": (rank,)})
    stored = safetensors.read_tensors(weights_path)
    found = {name: tensor.shape[::-1] for name, tensor in stored.items() if tensor.dtype in FLOATS}
    expected = {_peft_name(name): tuple(shape) for name, shape in shapes.items()}
    if differences := sorted({name for name, _ in found.items() ^ expected.items()}):
        raise ValueError(
            f"{weights_path}: the adapters don't fit this model's c_attn and c_proj at rank {rank}: "
            f"{len(differences)} tensors differ, such as {differences[0]}"
        )
    scale = np.float32(config.get("lora_alpha", rank) / rank)
    arrays = {name: np.asarray(stored[_peft_name(name)]).T for name in shapes}
    return {name: array * scale if name.endswith("lora_b") else array for name, array in arrays.items()}


def _peft_name(name: str) -> str:
    """Convert an adapter's name to PEFT's: base_model.model.transformer.h.0.attn.c_attn.lora_A.weight."""
    scope, _, last = name.rpartition("/")
    module = huggingface_name(f"{scope}/w").removesuffix("weight")
    return f"base_model.model.transformer.{module}{ADAPTER_NAMES[last]}"
