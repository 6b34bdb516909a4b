"""What `gpt2-tf train` does: start a run or resume it, then fit its model."""

import contextlib
import dataclasses
import gc
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from encoder import Encoder
from gpt2_tf.data import corpus
from gpt2_tf.data.corpus import RUN_FILE
from gpt2_tf.data.prepare import prepare, source_fingerprint, stored_source
from gpt2_tf.data.prepared import Prepared, ids_fingerprint, is_prepared, load_prepared
from gpt2_tf.files.atomic import atomic_write, move_into_place, new_folder, remove_abandoned, staging_folder
from gpt2_tf.files.lock import folder_lock
from gpt2_tf.files.regular import open_regular
from gpt2_tf.hparams import HParams
from gpt2_tf.model import distribute
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.pretrained.load import load
from gpt2_tf.training.fit import fit
from gpt2_tf.training.optimizer import adamw  # noqa: F401 - `gpt2_tf.train.adamw` is a public name
from gpt2_tf.training.run_folder import BASE_FOLDER, BEST_FOLDER, DATA_FOLDER, find_checkpoint
from gpt2_tf.training.settings import POLICIES, SETTING_NAMES, TrainingSettings, complete_settings

SCRATCH, RESUME = "scratch", "resume"  # values of --init-from that name no model
# The weights of a model in any form.
MODEL_FILES = ("model.ckpt*", "model-*", "optimizer-*", "*.safetensors", "pytorch_model*.bin", "*.h5", "*.keras")


def run_training(
    files: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    init_from: str = "124M",
    models_dir: str | os.PathLike = "models",
    vocab_size: int | str | None = None,
    model_shape: Mapping[str, int] | None = None,
    read_options: Mapping[str, Any] | None = None,
    extra_callbacks: Sequence[keras.callbacks.Callback] = (),
    strategy: tf.distribute.Strategy | None = None,
    **settings,
) -> None:
    """Prepare the files, train a model on them, and save the model in `out` as OpenAI's files.

    With several workers, each worker calls this function with the same arguments. All of them must see `out` and the
    files; only the chief writes.

    Args:
        files: text files, globs and folders as `prepare` takes them, or one folder that `prepare` has written.
        out: the run's folder.
        init_from: the name or the folder of the model to fine-tune; "scratch" for new weights; "resume" to continue
            the run in `out` with its own settings.
        models_dir: the folder in which models are looked up by name.
        vocab_size: for new weights, the size of the vocabulary to learn from the text, or "chars" for one token per
            character. None takes the vocabulary of prepared files.
        model_shape: for new weights, any of n_layer, n_head, n_embd and n_ctx; the others are those of 124M.
        read_options: `column`, `field` and `val_files`, as `prepare` takes them.
        extra_callbacks: Keras callbacks to run besides those of the run.
        strategy: the devices, as `distribute.make_strategy` gives them; None is one device. A run may be resumed with
            another strategy than it started with.
        settings: fields of `TrainingSettings`.

    A resumed run needs only `out` and `init_from`. It may be given the other arguments that it started with, as when
    the first command is repeated, and a larger `steps`.

    Raises:
        FileExistsError: `out` holds a run or a model that would be lost.
        FileNotFoundError: a file or the model is missing, or there is no run to resume.
        BlockingIOError: another process is writing `out`.
        ValueError: an argument is out of its range, or doesn't fit the others or the run.

    Example:
        >>> _ = Path("text.txt").write_text("to be or not to be, " * 20)
        >>> shape = {"n_layer": 1, "n_head": 1, "n_embd": 4, "n_ctx": 8}
        >>> run_training(["text.txt"], "run", init_from="scratch", vocab_size="chars", model_shape=shape, steps=2)
        >>> find_checkpoint("run")
        2
    """
    out, read_options, model_shape = Path(out), read_options or {}, model_shape or {}
    _check_combination(init_from, vocab_size, model_shape, settings)
    command = _describe_command(files, vocab_size, read_options)
    strategy = strategy or distribute.make_strategy(None)
    is_chief = distribute.is_chief(strategy)
    with contextlib.ExitStack() as resources:
        if is_chief and init_from != RESUME:
            _check_can_start(files, out)
            resources.enter_context(new_folder(out))
        if is_chief and out.exists():
            resources.enter_context(folder_lock(out))
        if is_chief:
            for folder in list(out.glob("**/")):  # `out` and all folders in it
                remove_abandoned(folder)
        else:
            distribute.barrier(strategy)  # until the chief has written the new run's folder
        if is_chief and init_from != RESUME:
            run_settings, prepared = _start_run(
                files,
                out,
                init_from=init_from,
                models_dir=models_dir,
                vocab_size=vocab_size,
                model_shape=model_shape,
                read_options=read_options,
                strategy=strategy,
                given_settings=settings,
                command=command,
            )
        else:
            # A worker of a new run has the arguments that its chief has just written.
            given = {**command, **model_shape, **settings} if init_from == RESUME else settings
            run_settings, prepared = _read_run(out, given, strategy)
        if is_chief:
            distribute.barrier(strategy)
        fit(_load_model(out, run_settings, strategy), prepared, out, run_settings, extra_callbacks)


def _check_combination(
    init_from: str, vocab_size: int | str | None, model_shape: Mapping[str, int], settings: Mapping[str, Any]
) -> None:
    """Raise ValueError where arguments contradict each other."""
    if init_from not in (SCRATCH, RESUME) and (vocab_size is not None or model_shape):
        names = ", ".join([*(["vocab_size"] if vocab_size is not None else []), *model_shape])
        raise ValueError(f"{names} can be chosen for new weights only; give --init-from scratch, or leave {names} out")
    if init_from == SCRATCH and settings.get("lora_rank"):
        raise ValueError(
            "lora_rank would train adapters beside new weights, which would stay random; "
            "leave out --lora-rank, or --init-from scratch"
        )


def _check_can_start(files: Sequence[str | os.PathLike], out: Path) -> None:
    """Raise an error where a new run would overwrite something in `out`, or has nothing to train on."""
    if (out / RUN_FILE).exists():
        raise FileExistsError(f"{out} holds a run; resume it with `--init-from resume`, or give another --out")
    model_files = [path.name for pattern in MODEL_FILES for path in out.glob(pattern)]
    # A run that was killed while it started has a model of step 0 and no run.json. Nothing of it is worth keeping.
    killed_at_start = (out / BEST_FOLDER).is_dir() and all(name.startswith("model-0.") for name in model_files)
    if model_files and not killed_at_start:
        raise FileExistsError(f"{out} holds a model, {model_files[0]}, which would be lost; give another --out")
    if not files:
        raise ValueError("there are no FILES to train on; give text files, globs or folders")
    if not is_prepared(files):
        corpus.find_text_files(files)  # so that a wrong name is reported before a model is downloaded


def _check_batch_divides(settings: TrainingSettings, strategy: tf.distribute.Strategy) -> None:
    """Raise ValueError where the replicas can't have equal parts of a batch."""
    n_replicas = strategy.num_replicas_in_sync
    divisor = n_replicas * settings.grad_accumulation
    if settings.batch_size % divisor:
        parts = f" and each part into grad_accumulation {settings.grad_accumulation}"
        raise ValueError(
            f"batch_size {settings.batch_size} can't be divided among {n_replicas} replicas"
            f"{parts if settings.grad_accumulation > 1 else ''}; give a multiple of {divisor}"
        )


def _start_run(
    files: Sequence[str | os.PathLike],
    out: Path,
    *,
    init_from: str,
    models_dir: str | os.PathLike,
    vocab_size: int | str | None,
    model_shape: Mapping[str, int],
    read_options: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
    given_settings: Mapping[str, Any],
    command: Mapping[str, Any],
) -> tuple[TrainingSettings, Prepared]:
    """Write the folder of a new run as it is before the first step.

    `run.json` is written last, so a folder that has it has everything else. With adapters, the frozen weights are kept
    in `base`: the checkpoints merge the adapters into them, and taking them out again would round the weights.
    """
    if init_from == SCRATCH:
        model, vocabulary = None, vocab_size
        hparams = HParams.from_dict(HParams.from_size("124M").to_dict() | dict(model_shape))
    else:
        model, vocabulary = load(init_from, models_dir)
        hparams = model.hparams
    settings = complete_settings(given_settings, new_weights=model is None, n_ctx=hparams.n_ctx)
    _check_batch_divides(settings, strategy)
    if settings.window > hparams.n_ctx:
        raise ValueError(f"window is {settings.window}, but the model reads at most n_ctx {hparams.n_ctx} tokens")
    data_folder, prepared = _prepare_files(files, out / DATA_FOLDER, vocabulary, settings.val_fraction, read_options)
    _check_enough_tokens(prepared, settings)
    keras.utils.set_random_seed(settings.seed)
    if model is None:
        model = GPT2(dataclasses.replace(hparams, n_vocab=prepared.encoder.n_vocab))
    for folder in (out, out / BEST_FOLDER, *([out / BASE_FOLDER] if settings.lora_rank else [])):
        with staging_folder(folder) as staging:  # so that a kill leaves nothing that the next start does not remove
            prepared.encoder.save(staging)
            move_into_place(sorted(staging.iterdir()), folder)
    if settings.lora_rank:
        model.save_checkpoint(out / BASE_FOLDER)
    model.save_checkpoint(out, step=0)
    # A path relative to the run's folder lets the folder be moved.
    data_path = DATA_FOLDER if data_folder == out / DATA_FOLDER else str(data_folder)
    run = {
        "data": data_path,
        "identity": ids_fingerprint(prepared),
        "command": dict(command),
        **dataclasses.asdict(settings),
    }
    atomic_write(out / RUN_FILE, json.dumps(run, indent=2).encode())
    del model
    gc.collect()  # the model is in reference cycles, and would take memory beside the model that is trained
    return settings, prepared


def _prepare_files(
    files: Sequence[str | os.PathLike],
    data_folder: Path,
    vocabulary: Encoder | int | str | None,
    val_fraction: float,
    read_options: Mapping[str, Any],
) -> tuple[Path, Prepared]:
    """Tokenize the files into `data_folder`, unless they are prepared; return the folder of the ids, and the ids."""
    if is_prepared(files):
        given = [name for name, value in read_options.items() if value]
        given += ["vocab_size"] * isinstance(vocabulary, int | str)
        if given:
            names = ", ".join(given)
            raise ValueError(f"{files[0]} is prepared already, so {names} can't be chosen; leave {names} out")
        encoder = vocabulary if isinstance(vocabulary, Encoder) else None
        return Path(files[0]).resolve(), _load_prepared(files[0], encoder, val_fraction)
    if vocabulary is None:
        raise ValueError("new weights need a vocabulary; give --vocab-size N or chars, or a prepared folder as FILES")
    if read_options.get("val_files"):
        if not val_fraction:
            raise ValueError(
                "val_fraction is 0, for no validation, but validation files are given; leave one of them out"
            )
        val_fraction = 0.0
    return data_folder, prepare(files, data_folder, vocabulary, val_fraction=val_fraction, **read_options)


def _load_prepared(path: str | os.PathLike, encoder: Encoder | None, val_fraction: float) -> Prepared:
    """`load_prepared`, but without validation tokens where `val_fraction` is 0, even if there is a `val.bin`."""
    prepared = load_prepared(path, encoder, val_fraction=val_fraction)
    return prepared if val_fraction else prepared._replace(val=None)


def _check_enough_tokens(prepared: Prepared, settings: TrainingSettings) -> None:
    """Raise ValueError where there are too few tokens to train on or to validate on."""
    for ids, use, remedy in (
        (prepared.train, "train on", "give more text"),
        (prepared.val, "validate on", "give more text, or --val-fraction 0 for no validation"),
    ):
        if ids is not None and len(ids) < 2:
            raise ValueError(f"there is {len(ids)} token to {use}, but at least 2 are needed; {remedy}")
    if settings.patience is not None and prepared.val is None:
        raise ValueError(
            "patience needs a validation loss, but there are no validation tokens; give --val-fraction or --val-file, "
            "or leave --patience out"
        )


def _describe_command(
    files: Sequence[str | os.PathLike], vocab_size: int | str | None, read_options: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments that say what a run is trained on, as `run.json` keeps them; those not given are left out."""
    arguments = {
        "files": [os.path.abspath(file) for file in files],
        "vocab_size": vocab_size,
        "column": read_options.get("column"),
        "field": read_options.get("field"),
        "val_files": [os.path.abspath(file) for file in read_options.get("val_files") or ()],
    }
    return {name: value for name, value in arguments.items() if value}


def _read_run(
    out: Path, given: Mapping[str, Any], strategy: tf.distribute.Strategy
) -> tuple[TrainingSettings, Prepared]:
    """Read the settings and the token ids of the run in `out`, and let its `checkpoint` name a complete checkpoint.

    A larger `steps` than the run's is written to the run: the learning rate follows the longer schedule from here on.

    Args:
        given: arguments by name, which must be those of the run.

    Raises:
        FileNotFoundError: there is no run, or it has no complete checkpoint.
        ValueError: an argument is another than the run's, or the training tokens have changed.
    """
    try:
        with open_regular(out / RUN_FILE) as file:
            content = file.read()
    except FileNotFoundError:
        raise FileNotFoundError(f"{out} holds no run to resume: {out / RUN_FILE} is missing") from None
    try:
        run = json.loads(content)
        settings = TrainingSettings(**{name: run[name] for name in SETTING_NAMES})
        data_path, fingerprint, command = out / run["data"], run["identity"], run.get("command", {})
        if not (isinstance(command, dict) and isinstance(command.get("files", []), list)):
            raise TypeError(f"command is {command!r:.80}")
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"{out / RUN_FILE} is damaged: {error!r}; it holds the settings of the run") from None
    model_shape = HParams.from_json(out / "hparams.json").to_dict()
    _check_same_arguments(out, given, {**model_shape, **command, **dataclasses.asdict(settings)})
    _check_batch_divides(settings, strategy)
    prepared = _load_prepared(data_path, Encoder.from_folder(out), settings.val_fraction)
    if ids_fingerprint(prepared) != fingerprint:
        raise ValueError(f"{data_path} has other tokens than when the run in {out} started; start another run on them")
    if "files" in given and distribute.is_chief(strategy):
        _report_changed_files(command, settings, prepared.encoder, data_path)
    if distribute.is_chief(strategy) and find_checkpoint(out) is None:
        raise FileNotFoundError(f"{out} holds no checkpoint to resume from: it has {RUN_FILE}, but no files model-N.*")
    if (steps := given.get("steps", settings.steps)) > settings.steps:
        settings = dataclasses.replace(settings, steps=steps)
        if distribute.is_chief(strategy):
            atomic_write(out / RUN_FILE, json.dumps({**run, "steps": steps}, indent=2).encode())
    return settings, prepared


def _check_same_arguments(out: Path, given: Mapping[str, Any], arguments: Mapping[str, Any]) -> None:
    """Raise ValueError where an argument differs from the one that the run started with. `steps` may be larger."""
    different = {
        name: value
        for name, value in given.items()
        if value != arguments.get(name) and not (name == "steps" and value > arguments["steps"])
    }
    if different:
        changes = "; ".join(
            f"{name} is {_show_argument(value)}, but the run has {_show_argument(arguments.get(name))}"
            for name, value in different.items()
        )
        raise ValueError(
            f"the run in {out} keeps the arguments that it started with: {changes}. "
            f"Leave {', '.join(different)} out, or start another run"
        )


def _report_changed_files(
    command: Mapping[str, Any], settings: TrainingSettings, encoder: Encoder, data_path: Path
) -> None:
    """Print a notice where the text files differ from those that the run's tokens were made from."""
    if is_prepared(command["files"]):
        return
    try:
        fingerprint = source_fingerprint(
            command["files"],
            command.get("vocab_size", encoder),
            column=command.get("column"),
            field=command.get("field", "text"),
            val_fraction=0.0 if "val_files" in command else settings.val_fraction,
            val_files=command.get("val_files", ()),
        )
        changed = stored_source(data_path) != fingerprint
    except (OSError, ValueError):  # a file is gone, or of another format
        changed = True
    if changed:
        print("the text files have changed; the run keeps the tokens that it started with", file=sys.stderr)


def _show_argument(value: Any) -> str:
    """An argument as a person writes it."""
    if value is None:
        return "none"
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _load_model(out: Path, settings: TrainingSettings, strategy: tf.distribute.Strategy) -> GPT2:
    """The model of a run's last checkpoint, or with adapters the frozen weights and new adapters."""
    keras.utils.set_random_seed(settings.seed)  # new adapters are random
    with strategy.scope():
        return GPT2.from_checkpoint(
            out / BASE_FOLDER if settings.lora_rank else out,
            dropout=settings.dropout,
            remat=settings.remat,
            lora_rank=settings.lora_rank,
            dtype=POLICIES[settings.precision],
        )
