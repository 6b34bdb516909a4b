"""The settings of a training run: their meanings, defaults and ranges."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

# --precision -> Keras's dtype policy. The weights are float32 under each of them.
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
AT_LEAST_1 = ("steps", "batch_size", "window", "grad_accumulation", "save_every", "eval_every", "sample_every")
UPPER_BOUNDS = {  # of the settings that may be 0; the bounds themselves are too large
    "learning_rate": math.inf,
    "weight_decay": math.inf,
    "clip_norm": math.inf,
    "dropout": 1,
    "val_fraction": 1,
    "seed": 2**31,
}


@dataclasses.dataclass(frozen=True)
class TrainingSettings:
    """The settings of one run. The data, the initial weights and the devices are chosen elsewhere.

    Args:
        learning_rate: the highest learning rate, reached at the end of the warm-up; at least 0.
        window: tokens per row of a batch; at least 1.
        warmup_steps: steps in which the learning rate rises from 0; at least 0, and less than `steps`.
        steps: optimizer steps of the whole run; at least 1.
        batch_size: rows per optimizer step, over all replicas; a multiple of `grad_accumulation`.
        weight_decay: AdamW's decay of matrices; at least 0. Biases and gains do not decay.
        clip_norm: the largest allowed norm of all gradients together; 0 turns clipping off.
        dropout: the probability that an activation is zeroed; at least 0, and less than 1.
        grad_accumulation: equal parts of a batch, computed one after another to save memory; at least 1.
        precision: the dtype of activations and products: "float32", "bfloat16" or "float16". Weights are float32.
        remat: compute each block's activations a second time in the backward pass instead of keeping them.
        lora_rank: the rank of LoRA adapters, at least 1; None trains all weights.
        save_every: steps between checkpoints; at least 1.
        eval_every: steps between evaluations on the validation tokens; at least 1.
        sample_every: steps between samples of text; at least 1.
        patience: stop after this many evaluations without a lower validation loss, at least 1; None never stops early.
        documents: give each document its own rows, padded, instead of packing documents into windows.
        val_fraction: the fraction of the tokens held out for validation; at least 0, and less than 1.
        seed: determines the order of the data, the dropout, new weights and the samples; 0 to 2**31 - 1.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> TrainingSettings(learning_rate=1e-3, window=256, warmup_steps=100).batch_size
        4
        >>> TrainingSettings(learning_rate=1e-3, window=0, warmup_steps=100)
        Traceback (most recent call last):
        ValueError: window is 0, but must be at least 1
    """

    learning_rate: float
    window: int
    warmup_steps: int
    steps: int = 1000
    batch_size: int = 4
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    dropout: float = 0.0
    grad_accumulation: int = 1
    precision: str = "float32"
    remat: bool = False
    lora_rank: int | None = None
    save_every: int = 500
    eval_every: int = 250
    sample_every: int = 250
    patience: int | None = None
    documents: bool = False
    val_fraction: float = 0.1
    seed: int = 0

    def __post_init__(self):
        for name in AT_LEAST_1:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.batch_size % self.grad_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} can't be divided into grad_accumulation {self.grad_accumulation} "
                f"equal parts; give a multiple of {self.grad_accumulation}"
            )
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(
                f"warmup_steps is {self.warmup_steps}, but must be at least 0 and less than steps, {self.steps}"
            )
        for name, bound in UPPER_BOUNDS.items():
            if not 0 <= getattr(self, name) < bound:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 0 and below {bound}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}, but must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}, but must be at least 1 evaluation")
        if self.precision not in POLICIES:
            raise ValueError(f"precision is {self.precision!r}, but must be one of {', '.join(POLICIES)}")


SETTING_NAMES = tuple(field.name for field in dataclasses.fields(TrainingSettings))


def complete_settings(given: Mapping[str, Any], *, new_weights: bool, n_ctx: int) -> TrainingSettings:
    """The settings of a new run: the given ones, and a default for each of the others.

    Args:
        given: values by the names of `TrainingSettings`.
        new_weights: whether the run starts from random weights, which take a higher learning rate, as adapters do.
        n_ctx: the most tokens that the model reads; the window is at most 256 of them by default.

    Raises:
        ValueError: a value is out of its range.

    Example:
        >>> complete_settings({"steps": 50}, new_weights=True, n_ctx=128).warmup_steps
        5
    """
    defaults = {
        "learning_rate": 1e-3 if new_weights or given.get("lora_rank") else 5e-5,
        "window": min(256, n_ctx),
        "warmup_steps": given.get("steps", TrainingSettings.steps) // 10,
    }
    return TrainingSettings(**{**defaults, **given})
