"""Training from text files to a folder of OpenAI's files, in plain Keras; a run that was stopped goes on exactly."""

import dataclasses
import json
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import keras
import tensorflow as tf

from encoder import Encoder
from gpt2_tf import bundle, callbacks, checkpoint, dataset, folder, interrupt, prepare
from gpt2_tf.hparams import HParams
from gpt2_tf.model import GPT2

SCRATCH, RESUME = "scratch", "resume"
RUN = "train.json"
POLICIES = {"float32": "float32", "bfloat16": "mixed_bfloat16", "float16": "mixed_float16"}


@dataclasses.dataclass(frozen=True)
class Settings:
    """A run's; each as `gpt2-tf train --help` says.

    Raises:
        ValueError: a value out of its range.
    """

    steps: int = 1000
    batch_size: int = 4
    window: int = 256
    learning_rate: float = 5e-5
    warmup_steps: int = 100
    weight_decay: float = 0.1
    clip_norm: float = 1.0
    dropout: float = 0.0
    grad_accumulation: int = 1
    precision: str = "float32"
    remat: bool = False
    save_every: int = 500
    eval_every: int = 250
    sample_every: int = 250
    patience: int | None = None
    documents: bool = False
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
        if self.precision not in POLICIES:
            raise ValueError(f"precision is {self.precision!r}, but must be one of {', '.join(POLICIES)}")


def adamw(
    learning_rate: float,
    steps: int,
    *,
    warmup_steps: int = 0,
    weight_decay: float = 0.1,
    clip_norm: float | None = 1.0,
    floor: float = 0.1,
) -> keras.optimizers.AdamW:
    """GPT's optimizer: Keras's AdamW, on a linear warm-up and then half a cosine down to `floor` of the rate.

    The decay is of matrices alone, not of biases and of the norms' gains. Source: "Language Models are Few-Shot
    Learners" (Brown et al., 2020), appendix B.
    """
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0 if warmup_steps else learning_rate,
        steps - warmup_steps,
        alpha=floor,
        warmup_target=learning_rate if warmup_steps else None,
        warmup_steps=warmup_steps,
    )
    optimizer = keras.optimizers.AdamW(
        schedule, weight_decay=weight_decay, beta_1=0.9, beta_2=0.95, epsilon=1e-8, global_clipnorm=clip_norm or None
    )
    optimizer.exclude_from_weight_decay(var_names=["^[bg]$"])
    return optimizer


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
    **settings,
) -> None:
    """`gpt2-tf train`: prepares the files, trains, and leaves in `out` a folder of OpenAI's files.

    Args:
        files: as `prepare.prepare` takes them, or a prepared folder.
        init_from: a model's name or folder; "scratch" for new weights; "resume" to go on with the run in `out`.
        vocab_size: of a vocabulary to learn for new weights; None takes that of the files, if they are prepared.
        shape: n_layer, n_head, n_embd and n_ctx of new weights.
        data: what else `prepare.prepare` takes.
        settings: those of `Settings`.
    """
    out = Path(out)
    if init_from == RESUME:
        begun = _read_run(out)
        settings, prepared = Settings(**begun), prepare.load(out / "data")
    else:
        if (out / RUN).exists():
            raise FileExistsError(f"{out} holds a run; `--init-from resume` goes on with it, or give another --out")
        settings = Settings(**settings)
        source = None if init_from == SCRATCH else folder.find(init_from, models_dir)
        vocabulary = vocab_size if source is None else Encoder.from_folder(source)
        prepared = prepare.prepare(files, out / "data", vocabulary, **(data or {}))
        keras.utils.set_random_seed(settings.seed)
        _begin(out, prepared, settings, source, shape or {})
    model = GPT2.from_checkpoint(
        out, dropout=settings.dropout, remat=settings.remat, dtype=POLICIES[settings.precision]
    )
    fit(model, prepared, out, settings, more)


def _begin(
    out: Path, data: prepare.Prepared, settings: Settings, source: Path | None, shape: Mapping[str, int]
) -> None:
    """Writes a run's folder as it is before the first step; the settings last, which say that the rest is there."""
    model = GPT2.from_checkpoint(source) if source else GPT2(HParams(n_vocab=data.encoder.n_vocab, **shape))
    if settings.window > model.hparams.n_ctx:
        raise ValueError(f"window is {settings.window}, but the model reads at most n_ctx {model.hparams.n_ctx}")
    for place in (out, out / "best"):
        place.mkdir(parents=True, exist_ok=True)
        for name in folder.VOCABULARY:
            shutil.copyfile(out / "data" / name, place / name)
    model.save_checkpoint(out, step=0)
    part = out / f"{RUN}.part"
    part.write_text(json.dumps(dataclasses.asdict(settings), indent=2))
    os.replace(part, out / RUN)


def _read_run(out: Path) -> dict[str, Any]:
    try:
        return json.loads((out / RUN).read_text())
    except FileNotFoundError:
        raise FileNotFoundError(f"{out} holds no run to go on with: {out / RUN} is missing") from None


def fit(
    model: GPT2,
    data: prepare.Prepared,
    out: str | os.PathLike,
    settings: Settings,
    more: Sequence[keras.callbacks.Callback] = (),
) -> None:
    """Trains the model, from the step that `out` holds, and leaves it and all that is to be known of the run there.

    Raises:
        KeyboardInterrupt: Ctrl-C; what was reached is saved.
        ValueError: the loss is no number.
    """
    out = Path(out)
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
    best = callbacks.Best(out / "best", settings.patience) if data.val is not None else None
    state = best.state if best else {}
    done = resumed(model, out, state)
    save = callbacks.saver(model, out, state)

    def batches(ids, **kwargs) -> tf.data.Dataset:
        if settings.documents:
            kwargs["end_of_text"] = data.encoder.end_of_text
        make = dataset.documents if settings.documents else dataset.windows
        return make(ids, settings.window, settings.batch_size, **kwargs)

    hooks = [
        callbacks.StopAtNaN(),
        callbacks.Throughput(model.hparams, settings.window, settings.batch_size),
        *([best] if best else []),
        callbacks.Log(out / "log.csv", done),
        callbacks.Every(
            settings.sample_every, callbacks.sampler(model, data.encoder, out / "samples.txt", settings.seed)
        ),
        *more,
        callbacks.Every(settings.save_every, save),
    ]
    train = batches(data.train, seed=settings.seed, start=done)
    val = None if data.val is None else batches(data.val)
    try:
        with interrupt.kept():
            while done < settings.steps and not model.stop_training:
                # An epoch ends at an evaluation; the first may have begun within it.
                first = settings.eval_every - done % settings.eval_every
                whole = max(1, (settings.steps - done) // settings.eval_every) if first == settings.eval_every else 1
                length = min(first, settings.steps - done)
                epoch = done // settings.eval_every
                model.fit(
                    train,
                    initial_epoch=epoch,
                    epochs=epoch + whole,
                    steps_per_epoch=length,
                    validation_data=val,
                    callbacks=hooks,
                    shuffle=False,
                    verbose=1 if sys.stderr.isatty() else 2,
                )
                done = callbacks.step(model)
                train = batches(data.train, seed=settings.seed, start=done)
    except KeyboardInterrupt:
        save(callbacks.step(model))
        raise
    if last(out) != (now := callbacks.step(model)):
        save(now)


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
    name = bundle.prefix(out).name
    step = name.removeprefix("model-")
    return int(step) if step.isdigit() else None
