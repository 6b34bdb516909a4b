"""A folder's checkpoint in OpenAI's form: finding, restoring, saving and removing it.

OpenAI's folders hold `model.ckpt.*`. The folders of a training run hold `model-1000.*`, where 1000 is the step, as
gpt-2-simple and nshepperd's fork of OpenAI's code do. The small text file `checkpoint` names the latest checkpoint.
TensorFlow is not needed.
"""

import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gpt2_tf.files.atomic import move_into_place, staging_folder
from gpt2_tf.files.regular import open_regular
from gpt2_tf.weights.lazy_tensor import LazyTensor
from gpt2_tf.weights.tensor_bundle import (
    Entry,
    check_data_files,
    data_sizes,
    lazy_tensors,
    read_index,
    write_bundle,
)

if TYPE_CHECKING:
    import keras
    import tensorflow as tf

    Variables = Mapping[str, keras.Variable]
    Values = Mapping[str, keras.Variable | tf.Tensor | np.ndarray]

NAME = "model.ckpt"  # OpenAI's name of a checkpoint
COPY = ".copy-"  # follows the name of a copy that exists while a checkpoint is replaced
STEP_FILE = re.compile(r"(?:model|optimizer)-(\d+)(?:\.copy-\d)?\.(?:index|data-\d+-of-\d+)")


def latest_checkpoint(folder: str | os.PathLike, step: int | None = None) -> Path:
    """Return the path of a folder's checkpoint without the endings of its files.

    The checkpoint is the one that the file `checkpoint` names, as for `tf.train.latest_checkpoint`. A folder without
    that file has `model.ckpt`, which may be missing.

    Args:
        folder: the folder of a model or of a training run.
        step: choose `model-<step>` instead.

    Raises:
        FileNotFoundError: the named or chosen checkpoint is missing, or no checkpoint of several steps is named. The
            error lists the checkpoints that exist.

    Example:
        >>> save("latest", {"x": np.ones(2)}, step=1000)
        >>> latest_checkpoint("latest").name
        'model-1000'
        >>> latest_checkpoint("latest", step=5)
        Traceback (most recent call last):
            ...
        FileNotFoundError: latest/model-5.index is missing; the folder has model-1000
    """
    folder = Path(folder)
    name = _named_checkpoint(folder) if step is None else f"model-{step}"
    if name == NAME or (name and (folder / f"{name}.index").exists()):
        return folder / name
    existing = _checkpoints(folder)
    if step is not None:
        raise FileNotFoundError(
            f"{folder / name}.index is missing; the folder has {', '.join(existing) or 'no checkpoint'}"
        )
    if name is None and (NAME in existing or not existing):
        return folder / NAME
    problem = f"names {name}, but {name}.index is missing" if name else "names no checkpoint"
    hint = "the folder has no other checkpoint"
    if existing:
        last = step_of(existing[-1])
        step_flag = "" if last is None else f"; generate, evaluate, inspect, convert and export also take --step {last}"
        hint = (
            f"the folder has {', '.join(existing)}; to choose one, write this line into {folder / 'checkpoint'}: "
            f'model_checkpoint_path: "{existing[-1]}"{step_flag}'
        )
    raise FileNotFoundError(f"{folder / 'checkpoint'} {problem}; {hint}")


def step_of(prefix: str | os.PathLike) -> int | None:
    """Return the step in a checkpoint's name, or None for a checkpoint without a step.

    Example:
        >>> step_of("models/run/model-1000"), step_of("models/124M/model.ckpt")
        (1000, None)
    """
    match = re.fullmatch(rf"model-(\d+)(?:{re.escape(COPY)}\d)?", Path(prefix).name)
    return int(match[1]) if match else None


def pointer_files(name: str, step: int | None = None) -> dict[str, str]:
    """Return the text files that belong beside a checkpoint, by their names.

    `checkpoint` names the checkpoint. With a step, `counter` holds the step, from which the forks resume.

    Example:
        >>> pointer_files("model-7", step=7)["counter"]
        '7\\n'
    """
    files = {"checkpoint": f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n'}
    return files if step is None else files | {"counter": f"{step}\n"}


def check_parameter_count(folder: str | os.PathLike, n_params: int, step: int | None = None) -> None:
    """Check that a model of `n_params` weights is not far larger than the folder's checkpoint.

    Such a model might not fit in memory, so this check comes before the model is built. Ten times as many weights
    are allowed: for those, `read_tensors` names each difference.

    Raises:
        OSError: the index can't be read.
        ValueError: `n_params` is more than ten times the count of weights, or the index is damaged.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> check_parameter_count(".", 20)
    """
    path = Path(f"{latest_checkpoint(folder, step)}.index")
    found = sum(data_sizes(read_index(path)).values()) // 4  # 4 bytes per float32
    if n_params > 10 * found:
        raise ValueError(f"hparams.json describes a model of {n_params:,} weights, but {path} lists {found:,}")


def read_tensors(
    folder: str | os.PathLike, shapes: Mapping[str, tuple[int, ...]], step: int | None = None
) -> dict[str, LazyTensor]:
    """Return the weights of a folder's checkpoint by name. Their values are read later, by `np.asarray`.

    Args:
        folder: the folder of the checkpoint.
        shapes: the expected shape of each weight by name; all weights are float32.
        step: as for `latest_checkpoint`.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: a name, shape or dtype differs from the expected one (all differences are named), a data file has
            another size than the index implies, or the index is damaged.

    Example:
        >>> write_bundle("model.ckpt", {"x": (2,)}, [np.ones(2, np.float32)])
        >>> np.asarray(read_tensors(".", {"x": (2,)})["x"])
        array([1., 1.], dtype=float32)
    """
    prefix = latest_checkpoint(folder, step)
    entries = read_index(f"{prefix}.index")
    if differences := _differences(entries, shapes):
        raise ValueError(f"{prefix}.index doesn't fit the hyperparameters in hparams.json: {'; '.join(differences)}")
    check_data_files(prefix, entries)
    return lazy_tensors(prefix, entries)


def restore(folder: str | os.PathLike, variables: "Variables", step: int | None = None) -> None:
    """Assign to each variable the tensor of its name, one tensor at a time.

    Args:
        folder: the folder of the checkpoint.
        variables: the model's variables by OpenAI's names, as `GPT2.named_weights` returns them.
        step: as for `latest_checkpoint`.

    Raises:
        FileNotFoundError: the index or a data file is missing.
        ValueError: as for `read_tensors`, or a tensor fails its checksum (the tensor is named).

    Example:
        >>> from gpt2_tf.pretrained.load import find_model_dir
        >>> restore(find_model_dir("shakespeare"), model.named_weights())
    """
    tensors = read_tensors(folder, {name: tuple(variable.shape) for name, variable in variables.items()}, step)
    for name, variable in variables.items():
        variable.assign(np.asarray(tensors[name]))


def restore_state(folder: str | os.PathLike, step: int, variables: "Variables") -> None:
    """Assign the training state of a step to the variables, from `optimizer-<step>.*`.

    Args:
        folder: the folder of the training run.
        step: the step of the checkpoint, as in `model-1000`.
        variables: the optimizer's variables and the run's counters by name.

    Raises:
        ValueError: the state is missing or damaged, or differs from the variables in names, shapes or dtypes.

    Example:
        >>> import keras
        >>> momentum = keras.Variable([0.0, 0.0])
        >>> save(".", {"x": np.ones(2)}, step=7, state={"momentum": keras.Variable([1.0, 2.0])})
        >>> restore_state(".", 7, {"momentum": momentum}); momentum.numpy()
        array([1., 2.], dtype=float32)
    """
    import keras

    prefix = Path(folder, f"optimizer-{step}")
    try:
        entries = read_index(f"{prefix}.index")
        tensors = lazy_tensors(prefix, entries)
        for name in sorted(variables):
            variable = variables[name]
            if name not in entries:
                raise ValueError(f"{name} is missing")
            expected = keras.backend.standardize_dtype(variable.dtype), tuple(variable.shape)
            found = entries[name].dtype, entries[name].shape
            if found != expected:
                raise ValueError(f"{name} is {found[0]} {list(found[1])}, expected {expected[0]} {list(expected[1])}")
        values = {name: np.asarray(tensors[name]) for name in variables}
    except (OSError, ValueError) as error:
        raise ValueError(f"{folder}: the state of step {step} is damaged or of another run ({error})") from None
    for name, variable in variables.items():
        variable.assign(values[name])


def save(folder: str | os.PathLike, weights: "Values", step: int | None = None, state: "Values | None" = None) -> None:
    """Save weights as float32 in `model.ckpt.*`, and write the file `checkpoint`, which names them.

    The file `checkpoint` names a complete checkpoint at every moment, also when the process is killed. All files are
    on the disk when this function returns, so that older checkpoints may be removed.

    Args:
        folder: made if it is missing.
        weights: variables, tensors or arrays by OpenAI's names.
        step: with a step such as 1000, the weights go to `model-1000.*`, and `counter` holds the step.
        state: the training state, saved with its own dtypes in `optimizer-1000.*`; needs a step.

    Raises:
        OSError: the folder can't be made or written, or the disk is full.

    Example:
        >>> save("run", {"x": np.ones(2)}, step=1000)
        >>> sorted(path.name for path in Path("run").iterdir())
        ['checkpoint', 'counter', 'model-1000.data-00000-of-00001', 'model-1000.index']
    """
    folder, name = Path(folder), NAME if step is None else f"model-{step}"
    with staging_folder(folder) as staging:
        _write(folder, staging / name, weights, np.float32)
        if state:
            _write(folder, staging / f"optimizer-{step}", state)
        for file_name, content in pointer_files(name, step).items():
            Path(staging, file_name).write_text(content)
        if (folder / f"{name}.index").exists():
            _place_copy(staging, folder, name)
        move_into_place(_in_order(staging), folder)
        for path in folder.glob(f"{name}{COPY}*"):
            path.unlink()


def remove_other_steps(folder: str | os.PathLike, step: int) -> None:
    """Remove the checkpoints of all steps but one.

    Example:
        >>> save("other", {"x": np.ones(2)}, step=1)
        >>> save("other", {"x": np.ones(2)}, step=2)
        >>> remove_other_steps("other", 2)
        >>> sorted(path.name for path in Path("other").glob("*.index"))
        ['model-2.index']
    """
    for path in Path(folder).iterdir():
        if (match := STEP_FILE.fullmatch(path.name)) and int(match[1]) != step:
            path.unlink()


def _named_checkpoint(folder: Path) -> str | None:
    """Return the name in the file `checkpoint`, or None without the file or without a name in it."""
    try:
        with open_regular(folder / "checkpoint") as file:
            match = re.match(rb'model_checkpoint_path: "([^"\n]+)"', file.read())
    except FileNotFoundError:
        return None
    # Only the last part of a path counts: the folder may have been moved since the file was written.
    return (match and re.split(r"[/\\]", match[1].decode(errors="replace"))[-1]) or None


def _checkpoints(folder: Path) -> list[str]:
    """Return the names of a folder's checkpoints whose index exists, `model.ckpt` first and then by step."""
    names = [path.stem for path in folder.glob("model*.index")]
    return sorted(
        (name for name in names if name == NAME or step_of(name) is not None), key=lambda name: step_of(name) or -1
    )


def _in_order(staging: Path) -> list[Path]:
    """Return the files to move: an index after its data, and `checkpoint`, which names the index, last."""
    files = (path for path in staging.iterdir() if path.is_file())
    return sorted(files, key=lambda path: (path.name == "checkpoint", path.suffix == ".index"))


def _place_copy(staging: Path, folder: Path, name: str) -> None:
    """Place a copy of the new checkpoint under another name, and let the file `checkpoint` name the copy.

    An old checkpoint of the same name has two or more files, which can't be replaced at once. A process that is killed
    between two of them leaves the copy, which `checkpoint` names.
    """
    first, second = f"{name}{COPY}1", f"{name}{COPY}2"
    # A process that was killed earlier may have left a copy, which must stay until the new one is complete.
    copy_name = second if _named_checkpoint(folder) == first else first
    copy = staging / "copy"
    copy.mkdir()
    for path in staging.glob(f"{name}.*"):
        _link_or_copy(path, copy / f"{copy_name}{path.name.removeprefix(name)}")
    (copy / "checkpoint").write_text(pointer_files(copy_name)["checkpoint"])
    move_into_place(_in_order(copy), folder)


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)  # takes no space on the disk
    except OSError:  # the file system has no hard links
        shutil.copyfile(source, target)


def _differences(entries: Mapping[str, Entry], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Describe each difference between a checkpoint and the expected float32 weights."""
    differences = [f"{name} is missing" for name in shapes if name not in entries]
    differences += [f"{name} isn't of this model" for name in entries if name not in shapes]
    for name in shapes.keys() & entries.keys():
        shape, entry = tuple(shapes[name]), entries[name]
        if (entry.shape, entry.dtype) != (shape, "float32"):
            differences.append(f"{name} is {entry.dtype} {list(entry.shape)}, expected float32 {list(shape)}")
    return sorted(differences)


def _write(folder: Path, prefix: Path, values: "Values", dtype: type | None = None) -> None:
    """Write values as the checkpoint `prefix`, one after the other in order of their names.

    An error names the place in `folder` for which the files are meant.
    """
    import keras

    def array(value: object) -> np.ndarray:
        converted = keras.ops.convert_to_numpy(value)
        return converted if dtype is None else converted.astype(dtype, copy=False)

    names = sorted(values)  # the order in OpenAI's data file
    shapes = {name: tuple(values[name].shape) for name in names}
    try:
        write_bundle(prefix, shapes, (array(values[name]) for name in names))
    except OSError as error:
        raise OSError(f"{folder / prefix.name} could not be written: {error.strerror or error}") from None
