"""The folder of a training run: the names in it, and how a step is saved there and restored.

run.json                      the settings, and a fingerprint of the training tokens
data/                         the token ids, unless the run was given a folder of prepared ids
base/                         with adapters: the frozen weights that they are trained beside
model-N.*, hparams.json, ...  the model after step N, as OpenAI's files; `checkpoint` names N
optimizer-N.*                 the optimizer's and the random generators' state after step N
adapters/                     with adapters: the adapters alone, after step N
best/                         the model of the lowest validation loss
log.csv, loss.png, samples.txt
"""

import os
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from gpt2_tf.weights import checkpoint

RUN_FILE, DATA_FOLDER, BASE_FOLDER, BEST_FOLDER, ADAPTERS_FOLDER = "run.json", "data", "base", "best", "adapters"


def latest_step(out: str | os.PathLike) -> int | None:
    """The step of the checkpoint in a run's folder; None without a checkpoint that has a step.

    Example:
        >>> model.save_checkpoint("run", step=7)
        >>> latest_step("run")
        7
    """
    return checkpoint.step_of(checkpoint.latest_checkpoint(out))


def steps_taken(model: keras.Model) -> int:
    """The optimizer steps that the model has taken."""
    return int(model.optimizer.iterations.numpy())


def save_step(model: keras.Model, out: str | os.PathLike, extra_state: Mapping[str, tf.Variable], step: int) -> None:
    """Save the model after a step, and beside it all state that an exact resume needs; remove the older checkpoint.

    Args:
        model: a GPT2 with its optimizer.
        out: the run's folder.
        extra_state: variables by name that belong to the run besides the model's and the optimizer's.
        step: the number of the step.

    Raises:
        ValueError: a weight is NaN or infinite. Nothing is saved then.
        OSError: the folder can't be written, or the disk is full.
    """
    weights = model.merged_weights()
    for name, weight in weights.items():
        if not np.isfinite(weight).all():
            raise ValueError(
                f"{name} has NaN or infinite values after step {step}, which is not saved; the last checkpoint is of "
                "an earlier step. Start another run with a lower learning rate or a longer warm-up"
            )
    if model.lora_rank:  # before the checkpoint, so that a folder that has the checkpoint has its adapters too
        model.save_adapters(Path(out, ADAPTERS_FOLDER))
    checkpoint.save(out, weights, step=step, state=_run_state(model, extra_state))
    checkpoint.remove_other_steps(out, step)


def restore_step(model: keras.Model, out: str | os.PathLike, extra_state: Mapping[str, tf.Variable]) -> int:
    """Restore the state that `save_step` saved, apart from the model's weights, and return its step.

    Returns 0 and changes nothing where the run has not saved a step yet.

    Raises:
        ValueError: the saved state is damaged, or belongs to another run.
    """
    step = latest_step(out)
    if not step:
        return 0
    checkpoint.restore_state(out, step, _run_state(model, extra_state))
    return step


def _run_state(model: keras.Model, extra_state: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """A run's variables by name, without the model's weights, but with adapters: the checkpoint merges those."""
    return {
        **extra_state,
        **model.adapters(),
        "seeds": model.seeds.state,
        # Keras numbers the optimizers of a process in `path`, so the path would differ in the process that resumes.
        **{f"optimizer/{i}/{variable.name}": variable for i, variable in enumerate(model.optimizer.variables)},
    }
