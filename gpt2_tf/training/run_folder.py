"""The folder of a training run: the names in it, and how a step is saved there and found again.

run.json                      the settings, the arguments of the command, a fingerprint of the training tokens
data/                         the token ids, unless the run was given a folder of prepared ids
base/                         with adapters: the frozen weights that they are trained beside
model-N.*, hparams.json, ...  the model after step N, as OpenAI's files; `checkpoint` names N
optimizer-N.*                 the optimizer's and the random generators' state after step N
adapters/                     with adapters: the adapters alone, after step N
best/                         the model of the lowest validation loss
log.csv, loss.png, samples.txt
"""

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from gpt2_tf.files.atomic import atomic_write
from gpt2_tf.weights import checkpoint
from gpt2_tf.weights.tensor_bundle import check_data_files, read_index

DATA_FOLDER, BASE_FOLDER, BEST_FOLDER, ADAPTERS_FOLDER = "data", "base", "best", "adapters"


def latest_step(out: str | os.PathLike) -> int | None:
    """The step of the checkpoint that a run's file `checkpoint` names; None without such a checkpoint.

    Example:
        >>> model.save_checkpoint("run", step=7)
        >>> latest_step("run")
        7
    """
    try:
        return checkpoint.step_of(checkpoint.latest_checkpoint(out))
    except FileNotFoundError:  # `checkpoint` is damaged, or names files that are gone
        return None


def find_checkpoint(out: str | os.PathLike) -> int | None:
    """Return the newest step whose files are complete, and let `checkpoint` name it.

    A process that was killed, or a copy that was interrupted, may have left a `checkpoint` that is missing, damaged or
    names another step. Then a notice on stderr says which step is used. Complete checkpoints of older steps, which a
    kill may have left too, are removed.

    Returns:
        The step; None where the folder has no files of any step.

    Raises:
        FileNotFoundError: the folder has files of checkpoints, but none is complete. Nothing is removed then.

    Example:
        >>> model.save_checkpoint("copied-run", step=0)
        >>> Path("copied-run", "checkpoint").unlink()
        >>> find_checkpoint("copied-run")
        0
        >>> latest_step("copied-run")
        0
    """
    out = Path(out)
    files = sorted(path.name for path in out.iterdir() if checkpoint.STEP_FILE.fullmatch(path.name))
    steps = {int(checkpoint.STEP_FILE.fullmatch(name)[1]) for name in files}
    faults = {step: _fault(out, step) for step in steps}
    complete = [step for step in steps if faults[step] is None]
    if not steps:
        return None
    if not complete:
        raise FileNotFoundError(
            f"{out} holds no complete checkpoint: {faults[max(steps)]}. Found {', '.join(files)}. "
            "Restore the missing files from a backup, or start another run"
        )
    newest, named = max(complete), latest_step(out)
    if named != newest:
        print(f"{_describe_pointer(out)}; using step {newest}, the newest complete checkpoint", file=sys.stderr)
        for name, content in checkpoint.pointer_files(f"model-{newest}", newest).items():
            atomic_write(out / name, content.encode())
    if newest == max(steps):
        checkpoint.remove_other_steps(out, newest)
    return newest


class FolderWatch:
    """Notices when the folder of a run is renamed or removed while the run trains.

    Without it, the next checkpoint would make a second folder under the old name, and the run would be split in two.

    Args:
        out: the run's folder.

    Example:
        >>> os.mkdir("watched")
        >>> watch = FolderWatch("watched")
        >>> os.rename("watched", "renamed")
        >>> watch.is_in_place()
        False
    """

    def __init__(self, out: str | os.PathLike):
        self.out = Path(out)
        self.identity = self._identity(self.out)
        # An open folder can be found by its new name. Windows opens no folders, and renames none that is in use.
        self.descriptor = None if os.name == "nt" else os.open(self.out, os.O_RDONLY)

    def is_in_place(self) -> bool:
        """Whether the folder still has its name."""
        return self._identity(self.out) == self.identity

    def new_path(self) -> Path | None:
        """The folder's new name, where the system tells it (Linux); None for a folder that is gone."""
        try:
            path = Path(os.readlink(f"/proc/self/fd/{self.descriptor}"))
        except OSError:
            return None
        return path if self._identity(path) == self.identity else None

    def close(self) -> None:
        """Stop watching."""
        if self.descriptor is not None:
            os.close(self.descriptor)

    @staticmethod
    def _identity(path: Path) -> tuple[int, int] | None:
        try:
            status = path.stat()
        except OSError:
            return None
        return status.st_dev, status.st_ino


def _fault(out: Path, step: int) -> str | None:
    """What is wrong with the files of a step; None where they are complete. Step 0 has no optimizer's state yet."""
    for name in (f"model-{step}", *([f"optimizer-{step}"] if step else [])):
        try:
            check_data_files(out / name, read_index(out / f"{name}.index"))
        except (OSError, ValueError) as error:
            return str(error)
    return None


def _describe_pointer(out: Path) -> str:
    """What is wrong with the file `checkpoint` of a run."""
    pointer = out / "checkpoint"
    if not pointer.exists():
        return f"{pointer} is missing"
    named = latest_step(out)
    return f"{pointer} names no checkpoint that is there" if named is None else f"{pointer} names step {named}"


def steps_taken(model: keras.Model) -> int:
    """The optimizer steps that the model has taken.

    Example:
        >>> model.compile("sgd")
        >>> steps_taken(model)
        0
    """
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

    Example:
        >>> model.compile("sgd")
        >>> save_step(model, "run", {}, step=500)
        >>> latest_step("run")
        500
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
        FileNotFoundError: no checkpoint in the folder is complete.
        ValueError: the saved state is damaged, or belongs to another run.

    Example:
        >>> model.compile("sgd")
        >>> save_step(model, "saved-run", {}, step=500)
        >>> restore_step(model, "saved-run", {})
        500
    """
    step = find_checkpoint(out) or 0
    if step:
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
