"""What `fit` does beside training, as ordinary Keras callbacks; each counts the optimizer's steps."""

import csv
import io
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from encoder import Encoder
from gpt2_tf.generation.generate import generate
from gpt2_tf.hparams import HParams
from gpt2_tf.weights import checkpoint

ADAPTERS = "adapters"  # in a run's folder, and in its best/


def step(model: keras.Model) -> int:
    """The optimizer steps that the model has taken."""
    return int(model.optimizer.iterations.numpy())


class Every(keras.callbacks.Callback):
    """Calls `act(step)` after every `steps` optimizer steps."""

    def __init__(self, steps: int, act: Callable[[int], None]):
        super().__init__()
        self.steps, self.act = steps, act

    def on_train_begin(self, logs=None):
        self.before = step(self.model)

    def on_train_batch_end(self, batch, logs=None):
        # A batch whose gradients overflow float16 is no step.
        if (now := step(self.model)) != self.before and now % self.steps == 0:
            self.act(now)
        self.before = now


class StopAtNaN(keras.callbacks.Callback):
    """Raises ValueError, with the step, as soon as the loss is no number: before anything is saved of it."""

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise ValueError(
                f"the loss is {logs['loss']} at step {step(self.model)}; the last checkpoint is from before. Begin "
                "another run, with a lower learning rate or a longer warm-up"
            )


class Best(keras.callbacks.Callback):
    """Keeps the model of the least `val_loss` in `folder`, and stops after `patience` evaluations without a lower one.

    `state`, float64 [3], is what a run that goes on must know: the least, the evaluations since, and the step of the
    last. It is one variable, so that a Ctrl-C finds all of it changed or none. A `folder` of None keeps no model.
    """

    def __init__(self, folder: str | os.PathLike | None, patience: int | None = None):
        super().__init__()
        self.folder, self.patience = folder, patience
        self.state = tf.Variable([np.inf, 0, 0], dtype=tf.float64)

    @property
    def step(self) -> int:
        return int(self.state[2])

    @property
    def stopped(self) -> bool:
        return self.patience is not None and int(self.state[1]) >= self.patience

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" not in logs:
            raise ValueError("Best goes by val_loss, so `fit` needs validation_data")
        least, waited, _ = self.state.numpy()
        lower = logs["val_loss"] < least
        if lower and self.folder is not None:
            self.model.save_checkpoint(self.folder)
            if self.model.lora_rank:
                self.model.save_adapters(Path(self.folder, ADAPTERS))
        self.state.assign([logs["val_loss"] if lower else least, 0 if lower else waited + 1, step(self.model)])
        if self.stopped:
            print(f"stopped: no lower val_loss in {self.patience} evaluations", file=sys.stderr)
            self.model.stop_training = True


class Throughput(keras.callbacks.Callback):
    """Adds to the epoch's logs `tokens_per_second`, and `of_peak`: of the FLOP/s of matrix products on its devices."""

    def __init__(self, hparams: HParams, window: int, batch_size: int, n_replicas: int = 1, frozen: bool = False):
        super().__init__()
        self.tokens = batch_size * window
        self.flops = flops_per_token(hparams, window, frozen)
        self.peak = n_replicas * matmul_peak()
        self.seconds, self.batches = 0.0, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.began = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch:  # the first is compiled
            self.seconds += time.perf_counter() - self.began
            self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        if self.batches:
            logs["tokens_per_second"] = self.batches * self.tokens / self.seconds
            logs["of_peak"] = logs["tokens_per_second"] * self.flops / self.peak
        self.seconds, self.batches = 0.0, 0


class Log(keras.callbacks.Callback):
    """Appends the epoch's logs and its last step to a CSV file, and draws the losses as `loss.png` beside it.

    Without matplotlib (the extra `plot`) it doesn't draw. Later rows, of a run that was resumed, are dropped.
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        self.rows = []
        if self.path.exists():
            with open(self.path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def on_epoch_end(self, epoch, logs=None):
        row = {"step": str(step(self.model)), **{name: f"{float(value):.6g}" for name, value in logs.items()}}
        there = next((old for old in self.rows if old["step"] == row["step"]), {})
        self.rows = [*(old for old in self.rows if int(old["step"]) < int(row["step"])), there | row]
        names = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        put(self.path, text.getvalue().encode())
        draw(self.rows, self.path.with_name("loss.png"))


def draw(rows: list[Mapping[str, str]], path: Path) -> None:
    """The losses over the steps, as a PNG; nothing without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(xlabel="step", ylabel="nats a token")
    for name in ("loss", "val_loss"):
        points = [(int(row["step"]), float(row[name])) for row in rows if row.get(name)]
        if points:
            axes.plot(*zip(*points, strict=True), label=name, marker=".")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=120)
    put(path, image.getvalue())


def put(path: Path, data: bytes) -> None:
    """Writes a file, which appears whole."""
    part = path.with_name(f"{path.name}.part")
    part.write_bytes(data)
    os.replace(part, path)


def saver(model: keras.Model, folder: str | os.PathLike, state: Mapping[str, tf.Variable]) -> Callable[[int], None]:
    """Saves the model, and apart from it what a run that goes on must know: `state`, the optimizer's, the seeds'.

    Raises ValueError, and saves nothing, where a weight is no number.
    """

    def save(now: int) -> None:
        weights = model.merged_weights()
        for name, weight in weights.items():
            if not np.isfinite(weight).all():
                raise ValueError(f"{name} holds what is no number after step {now}; the last checkpoint is from before")
        if model.lora_rank:  # first, so that with the checkpoint all is there
            model.save_adapters(Path(folder, ADAPTERS))
        checkpoint.save(folder, weights, step=now, state=run_state(model, state))
        checkpoint.remove_other_steps(folder, now)

    return save


def run_state(model: keras.Model, state: Mapping[str, tf.Variable]) -> dict[str, tf.Variable]:
    """The variables of a run by name, but for the model's weights: of these, what is trained beside frozen ones."""
    return {
        **state,
        **model.adapters(),
        "seeds": model.seeds.state,
        # The path would begin with the optimizer's name, which is another for each of a process.
        **{f"optimizer/{i}/{variable.name}": variable for i, variable in enumerate(model.optimizer.variables)},
    }


def sampler(model: keras.Model, enc: Encoder, path: str | os.PathLike, seed: int) -> Callable[[int], None]:
    """Shows a sample on stderr, and appends it to a file; a run that goes on repeats those after its checkpoint."""

    def show(now: int) -> None:
        hparams = model.hparams
        (sample,) = generate(model, enc, length=min(100, hparams.n_ctx), top_k=min(40, hparams.n_vocab), seed=seed)
        text = f"\n--- step {now}\n{sample.text}\n"
        print(text, file=sys.stderr)
        with open(path, "a", encoding="utf-8") as file:
            file.write(text)

    return show


def flops_per_token(hparams: HParams, window: int, frozen: bool = False) -> int:
    """Of training on windows: twice for each weight and score forward, twice that backward, of frozen weights as much.

    Source: "PaLM" (Chowdhery et al., 2022), appendix B.
    """
    positions = hparams.n_ctx * hparams.n_embd
    return (4 if frozen else 6) * (hparams.n_params - positions) + 12 * hparams.n_layer * hparams.n_embd * window


def matmul_peak(size: int = 1536) -> float:
    """FLOP a second of a large float32 matrix product on this machine, at its best of five."""
    x = tf.random.normal([size, size])
    product = tf.function(lambda: tf.reduce_sum(tf.matmul(x, x)))
    times = []
    for _ in range(6):
        begin = time.perf_counter()
        product().numpy()
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times)
