"""Training from text files to a folder of OpenAI's files, in plain Keras; a run that was stopped goes on exactly."""

import contextlib
import dataclasses
import gc
import importlib.util
import json
import math
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from encoder import Encoder
from gpt2_tf.data import corpus, dataset, prepare
from gpt2_tf.files import interrupt
from gpt2_tf.hparams import HParams
from gpt2_tf.model import distribute
from gpt2_tf.model.gpt2 import GPT2
from gpt2_tf.pretrained.load import load
from gpt2_tf.training import callbacks
from gpt2_tf.training.optimizer import adamw
from gpt2_tf.weights import checkpoint

SCRATCH, RESUME = "scratch", "resume"
RUN, DATA, BASE = "run.json", "data", "base"  # in a run's folder
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}
LIMITS = dict.fromkeys(["learning_rate", "weight_decay", "clip_norm"], math.inf)
LIMITS |= {"dropout": 1, "val_fraction": 1, "seed": 2**31}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run's; each as `gpt2-tf train --help` says.

    Raises:
        ValueError: a value out of its range.
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
        for name in ("steps", "batch_size", "window", "grad_accumulation", "save_every", "eval_every", "sample_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 1")
        if self.batch_size % self.grad_accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} can't be divided into grad_accumulation {self.grad_accumulation} parts"
            )
        if not 0 <= self.warmup_steps < self.steps:
            raise ValueError(f"warmup_steps is {self.warmup_steps}, but must be 0 to less than steps, {self.steps}")
        for name, limit in LIMITS.items():
            if not 0 <= getattr(self, name) < limit:
                raise ValueError(f"{name} is {getattr(self, name)}, but must be at least 0 and below {limit}")
        if self.lora_rank is not None and self.lora_rank < 1:
            raise ValueError(f"lora_rank is {self.lora_rank}, but must be at least 1")
        if self.patience is not None and self.patience < 1:
            raise ValueError(f"patience is {self.patience}, but must be at least 1 evaluation")
        if self.precision not in POLICIES:
            raise ValueError(f"precision is {self.precision!r}, but must be one of {', '.join(POLICIES)}")


SETTINGS = tuple(field.name for field in dataclasses.fields(Settings))


def run(
    files: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    init_from: str = "124M",
    models_dir: str | os.PathLike = "models",
    vocab_size: int | str | None = None,
    shape: Mapping[str, int] | None = None,
    data: Mapping[str, Any] | None = None,
    more: Sequence[keras.callbacks.Callback] = (),
    strategy: tf.distribute.Strategy | None = None,
    **settings,
) -> None:
    """`gpt2-tf train`: prepares the files, trains, and leaves in `out` a folder of OpenAI's files.

    Of several workers each calls it with the same arguments; `out` and the files are in a place that all of them see.
    The chief alone writes there.

    Args:
        files: as `prepare.prepare` takes them, or a prepared folder.
        init_from: a model's name or folder; "scratch" for new weights; "resume" to go on with the run in `out`.
        vocab_size: of a vocabulary to learn for new weights; None takes that of the files, if they are prepared.
        shape: n_layer, n_head, n_embd and n_ctx of new weights.
        data: what else `prepare.prepare` takes.
        more: of this process.
        strategy: as `distribute.strategy` makes it; a run may go on under another than it began with.
        settings: those of `Settings`; a run that goes on has its own, but may be given more steps.
    """
    out = Path(out)
    if init_from != SCRATCH and (vocab_size is not None or shape):
        names = ", ".join([*(["vocab_size"] if vocab_size is not None else []), *(shape or {})])
        raise ValueError(f"only new weights have a choice of {names}; give --init-from scratch, or leave that out")
    if init_from == SCRATCH and settings.get("lora_rank"):
        raise ValueError("new weights would stay random beside adapters; leave out --lora-rank, or --init-from scratch")
    if init_from == RESUME and (files or any((data or {}).values())):
        raise ValueError(
            "a run goes on with the data that it began with; leave out FILES and what says how to read them"
        )
    strategy = strategy or distribute.make_strategy(None)
    chief = distribute.is_chief(strategy)
    if chief and init_from != RESUME:
        _check_new(files, out)
        out.mkdir(parents=True, exist_ok=True)
    with prepare.alone(out) if chief and out.exists() else contextlib.nullcontext():
        if not chief:
            distribute.barrier(strategy)  # by then the chief has begun the run
        if init_from == RESUME or not chief:
            settings, prepared = _read_run(out, settings, strategy)
        else:
            settings, prepared = _begin(
                files,
                out,
                init_from=init_from,
                models_dir=models_dir,
                vocabulary=vocab_size,
                shape=shape or {},
                data=data or {},
                strategy=strategy,
                given=settings,
            )
        if chief:
            distribute.barrier(strategy)
        keras.utils.set_random_seed(settings.seed)  # for the adapters
        with strategy.scope():
            model = GPT2.from_checkpoint(
                out / BASE if settings.lora_rank else out,
                dropout=settings.dropout,
                remat=settings.remat,
                lora_rank=settings.lora_rank,
                dtype=POLICIES[settings.precision],
            )
        fit(model, prepared, out, settings, more)


def _check_new(files: Sequence[str | os.PathLike], out: Path) -> None:
    """Raises where a run can't begin: what is in `out` would be lost, or there is nothing to train on."""
    if (out / RUN).exists():
        raise FileExistsError(f"{out} holds a run; `--init-from resume` goes on with it, or give another --out")
    begun = (out / "best").is_dir() and last(out) == 0  # and killed before its settings were there
    if (out / "checkpoint").exists() and not begun:
        raise FileExistsError(f"{out} holds a model, which would be lost; give another --out")
    if not files:
        raise ValueError("there are no FILES to train on")
    if not prepare.is_prepared(files):
        corpus.find(files)  # before a model is fetched


def _check_division(settings: Settings, strategy: tf.distribute.Strategy) -> None:
    """Raises ValueError where the replicas can't have equal parts of a batch."""
    n = strategy.num_replicas_in_sync
    if settings.batch_size % (n * settings.grad_accumulation):
        parts = f" and each part into grad_accumulation {settings.grad_accumulation}"
        raise ValueError(
            f"batch_size {settings.batch_size} can't be divided among {n} replicas"
            f"{parts if settings.grad_accumulation > 1 else ''}; give a multiple of {n * settings.grad_accumulation}"
        )


def _defaults(scratch: bool, n_ctx: int, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that depend on others, but for those given."""
    defaults = {
        "learning_rate": 1e-3 if scratch or given.get("lora_rank") else 5e-5,
        "window": min(256, n_ctx),
        "warmup_steps": given.get("steps", Settings.steps) // 10,
    }
    return {name: value for name, value in defaults.items() if name not in given}


def _load(place: str | os.PathLike, encoder: Encoder | None, val_fraction: float) -> prepare.Prepared:
    """`prepare.load`; with a `val_fraction` of 0 nothing is to be validated on, though there be a `val.bin`."""
    prepared = prepare.load(place, encoder, val_fraction=val_fraction)
    return prepared if val_fraction else prepared._replace(val=None)


def _prepared(
    files: Sequence[str | os.PathLike],
    out: Path,
    vocabulary: Encoder | int | str | None,
    val_fraction: float,
    data: Mapping[str, Any],
) -> tuple[Path, prepare.Prepared]:
    """Where the files' ids are, and the ids: in `out`, or where they were prepared before."""
    if prepare.is_prepared(files):
        given = [name for name, value in data.items() if value] + ["vocab_size"] * isinstance(vocabulary, int | str)
        if given:
            raise ValueError(f"{files[0]} is prepared, which leaves no choice of {', '.join(given)}; leave that out")
        encoder = vocabulary if isinstance(vocabulary, Encoder) else None
        return Path(files[0]).resolve(), _load(files[0], encoder, val_fraction)
    if vocabulary is None:
        raise ValueError("new weights need a vocabulary: give --vocab-size N or chars, or a folder that is prepared")
    share = 0.0 if data.get("val_files") else val_fraction
    if data.get("val_files") and not val_fraction:
        raise ValueError("val_fraction 0 is for no validation, but there are files to validate on; leave one out")
    return out, prepare.prepare(files, out, vocabulary, val_fraction=share, **data)


def _begin(
    files: Sequence[str | os.PathLike],
    out: Path,
    *,
    init_from: str,
    models_dir: str | os.PathLike,
    vocabulary: int | str | None,
    shape: Mapping[str, int],
    data: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
    given: Mapping[str, Any],
) -> tuple[Settings, prepare.Prepared]:
    """Writes a run's folder as it is before the first step; the settings last, which say that the rest is there.

    Adapters go on from the weights in `base`, which stay: merged ones, and taken apart again, would be rounded.
    """
    model = None
    if init_from == SCRATCH:
        hparams = HParams.from_dict(HParams.from_size("124M").to_dict() | dict(shape))
    else:
        model, vocabulary = load(init_from, models_dir)
        hparams = model.hparams
    settings = Settings(**_defaults(model is None, hparams.n_ctx, given), **given)
    _check_division(settings, strategy)
    if settings.window > hparams.n_ctx:
        raise ValueError(f"window is {settings.window}, but the model reads at most n_ctx {hparams.n_ctx} tokens")
    place, prepared = _prepared(files, out / DATA, vocabulary, settings.val_fraction, data)
    for ids, use in ((prepared.train, "train on"), (prepared.val, "validate on; --val-fraction 0 leaves that out")):
        if ids is not None and len(ids) < 2:
            raise ValueError(f"there is {len(ids)} token to {use}, but at least 2 are needed")
    if settings.patience is not None and prepared.val is None:
        raise ValueError("patience goes by val_loss; give --val-fraction or --val-file, or leave --patience out")
    keras.utils.set_random_seed(settings.seed)
    if model is None:
        model = GPT2(dataclasses.replace(hparams, n_vocab=prepared.encoder.n_vocab))
    for kept in (out, out / "best", *([out / BASE] if settings.lora_rank else [])):
        kept.mkdir(parents=True, exist_ok=True)
        prepared.encoder.save(kept)
    if settings.lora_rank:
        model.save_checkpoint(out / BASE)
    model.save_checkpoint(out, step=0)
    place = DATA if place == out / DATA else str(place)  # so that the whole folder can be moved
    run = {"data": place, "identity": prepare.identity(prepared), **dataclasses.asdict(settings)}
    callbacks.put(out / RUN, json.dumps(run, indent=2).encode())
    del model
    gc.collect()  # it holds itself, and would take as much memory as the one that is trained
    return settings, prepared


def _read_run(
    out: Path, given: Mapping[str, Any], strategy: tf.distribute.Strategy
) -> tuple[Settings, prepare.Prepared]:
    """The settings and data of the run in `out`. ValueError where others are given, or the data have changed.

    More steps may be, and stay the run's: from here on the rate is that of the schedule of so many.
    """
    try:
        values = json.loads((out / RUN).read_text())
        settings = Settings(**{name: values[name] for name in SETTINGS})
        place, identity = out / values["data"], values["identity"]
    except FileNotFoundError:
        raise FileNotFoundError(f"{out} holds no run to go on with: {out / RUN} is missing") from None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{out / RUN} is damaged: {error!r}; it holds the settings of the run") from None
    for name, value in given.items():
        if value != getattr(settings, name) and not (name == "steps" and value > settings.steps):
            raise ValueError(
                f"{name} is {value}, but {getattr(settings, name)} in the run in {out}, which goes on as it began; "
                "leave it out, or begin another with --init-from"
            )
    _check_division(settings, strategy)
    prepared = _load(place, Encoder.from_folder(out), settings.val_fraction)
    if prepare.identity(prepared) != identity:
        raise ValueError(f"{place} has other tokens than when the run in {out} began; begin another with them")
    if (steps := given.get("steps", settings.steps)) > settings.steps:
        settings = dataclasses.replace(settings, steps=steps)
        callbacks.put(out / RUN, json.dumps({**values, "steps": steps}, indent=2).encode())
    return settings, prepared


def fit(
    model: GPT2,
    data: prepare.Prepared,
    out: str | os.PathLike,
    settings: Settings,
    more: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains the model, from the step that `out` holds, and leaves it and all that is to be known of the run there.

    Under the strategy in whose scope the model was made.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was reached is saved.
        ValueError: the loss is no number.
    """
    out = Path(out)
    strategy = model.distribute_strategy
    chief, n_replicas = distribute.is_chief(strategy), strategy.num_replicas_in_sync
    with strategy.scope():
        optimizer = adamw(
            settings.learning_rate,
            settings.steps,
            warmup_steps=settings.warmup_steps,
            weight_decay=settings.weight_decay,
            clip_norm=settings.clip_norm,
        )
        model.compile(optimizer, grad_accumulation=settings.grad_accumulation)
        model.optimizer.build(model.trainable_variables)
    model.seeds.state.assign([settings.seed, 0])
    best = None if data.val is None else callbacks.Best(out / "best" if chief else None, settings.patience)
    state = {"best": best.state} if best else {}
    done = resumed(model, out, state)
    save = callbacks.saver(model, out, state)

    def batches(ids, **kwargs) -> tf.data.Dataset:
        if settings.documents:
            kwargs["end_of_text"] = data.encoder.end_of_text
        make = dataset.documents if settings.documents else dataset.windows
        return make(ids, settings.window, settings.batch_size, **kwargs)

    def shared(ids, **kwargs) -> tf.data.Dataset | tf.distribute.DistributedDataset:
        """The batches, of which each replica has its part."""

        def part(context: tf.distribute.InputContext) -> tf.data.Dataset:
            here = n_replicas // context.num_input_pipelines  # a worker's replicas take theirs one after the other
            share = dataset.Share(context.input_pipeline_id * here, here, n_replicas)
            return batches(ids, share=share, **kwargs)

        return strategy.distribute_datasets_from_function(part)

    evaluated = [best] if best else []
    hooks = [callbacks.StopAtNaN(), *evaluated, *more]
    if chief:
        evaluated.append(callbacks.Log(out / "log.csv"))
        sample = callbacks.sampler(model, data.encoder, out / "samples.txt", settings.seed)
        hooks = [
            callbacks.StopAtNaN(),
            callbacks.Throughput(
                model.hparams, settings.window, settings.batch_size, n_replicas, bool(settings.lora_rank)
            ),
            *evaluated,
            callbacks.Every(settings.sample_every, sample),
            *more,
            callbacks.Every(settings.save_every, save),
        ]

    def save_last() -> None:
        if chief and last(out) != (now := callbacks.step(model)):  # one that is there would, on its way, not be whole
            save(now)

    if chief and done >= settings.steps:
        print(f"all {done} steps are done; --steps makes the run longer", file=sys.stderr)
    train = shared(data.train, seed=settings.seed, start=done)
    val = None if data.val is None else shared(data.val)
    val_steps = None if data.val is None else int(batches(data.val).cardinality())
    try:
        with interrupt.reliable_ctrl_c():
            ended = done % settings.eval_every == 0 or done == settings.steps
            if best and done and ended and done != best.step:
                # It was stopped between a save and the evaluation at the same step.
                logs = {"val_loss": model.evaluate(val, steps=val_steps, verbose=0)}
                for hook in evaluated:
                    hook.set_model(model)
                    hook.on_epoch_end(-(-done // settings.eval_every) - 1, logs)
            stopped = best and best.stopped
            while done < settings.steps and not stopped:
                # An epoch ends at an evaluation; the first may have begun within it.
                length = min(settings.eval_every - done % settings.eval_every, settings.steps - done)
                whole = (settings.steps - done) // length if length == settings.eval_every else 1
                epoch = done // settings.eval_every
                model.fit(
                    train,
                    initial_epoch=epoch,
                    epochs=epoch + whole,
                    steps_per_epoch=length,
                    validation_data=val,
                    validation_steps=val_steps,
                    callbacks=hooks,
                    shuffle=False,
                    verbose=(1 if sys.stderr.isatty() else 2) if chief else 0,
                )
                done, stopped = callbacks.step(model), model.stop_training
                train = shared(data.train, seed=settings.seed, start=done)
    except KeyboardInterrupt as stop:
        # A step that failed since the other workers were stopped too may have changed a part of the weights.
        if not (distribute.is_multi_worker(strategy) and isinstance(stop.__context__, tf.errors.OpError)):
            save_last()
        raise
    save_last()
    distribute.barrier(strategy)  # none leaves, which the others would take for a failure, while one is at work


def resumed(model: GPT2, out: Path, state: dict[str, tf.Variable]) -> int:
    """The step that `out` holds, 0 for none; the run's state is that step's."""
    if not (step := last(out)):
        return 0
    checkpoint.restore_state(out, step, callbacks.run_state(model, state))
    return step


def last(out: str | os.PathLike) -> int | None:
    """The step of the checkpoint in a run's folder."""
    if not Path(out, "checkpoint").exists():
        return None
    name = checkpoint.latest_checkpoint(out).name
    step = name.removeprefix("model-")
    return int(step) if step.isdigit() else None


def tensorboard(out: str | os.PathLike) -> keras.callbacks.Callback:
    """Keras's own callback, for `tensorboard --logdir OUT/tensorboard`. ImportError without the extra."""
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("logging to TensorBoard needs its library: pip install 'gpt2-tf[tensorboard]'")
    return keras.callbacks.TensorBoard(Path(out, "tensorboard"), write_graph=False)


def wandb(project: str) -> keras.callbacks.Callback:
    """Weights & Biases' own callback. ImportError without the extra."""
    try:
        import wandb
        from wandb.integration.keras import WandbMetricsLogger
    except ImportError:
        raise ImportError("logging to Weights & Biases needs its library: pip install 'gpt2-tf[wandb]'") from None
    wandb.init(project=project)
    return WandbMetricsLogger(log_freq=10)
