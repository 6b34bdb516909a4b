"""Keras callbacks for training: they save, evaluate, log and show samples, and count the optimizer's steps."""

import csv
import importlib.util
import io
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from encoder import Encoder
from gpt2_tf.files.atomic import atomic_write, disk_errors_name
from gpt2_tf.files.terminal import escape_generated_text
from gpt2_tf.generation.generate import generate
from gpt2_tf.hparams import HParams
from gpt2_tf.training.flops import flops_per_token, matmul_peak
from gpt2_tf.training.loss_plot import draw_losses
from gpt2_tf.training.run_folder import ADAPTERS_FOLDER, FolderWatch, steps_taken


class Every(keras.callbacks.Callback):
    """Call a function after every `steps` optimizer steps.

    Args:
        steps: the interval, in optimizer steps; at least 1.
        action: called with the number of the step.

    Example:
        >>> from gpt2_tf import GPT2
        >>> from gpt2_tf.data.dataset import windows
        >>> small = GPT2(HParams(n_vocab=9, n_ctx=8, n_embd=4, n_head=1, n_layer=1))
        >>> small.compile("sgd")
        >>> batches = windows(range(9), window=4, batch_size=1, seed=0)
        >>> _ = small.fit(batches, steps_per_epoch=5, shuffle=False, callbacks=[Every(2, print)], verbose=0)
        2
        4
    """

    def __init__(self, steps: int, action: Callable[[int], None]):
        super().__init__()
        self.steps, self.action = steps, action

    def on_train_begin(self, logs=None):
        self.previous_step = steps_taken(self.model)

    def on_train_batch_end(self, batch, logs=None):
        step = steps_taken(self.model)
        # A batch whose float16 gradients overflow is skipped: the step stays the same and must not act twice.
        if step != self.previous_step and step % self.steps == 0:
            self.action(step)
        self.previous_step = step


class StopAtNaN(keras.callbacks.Callback):
    """Raise ValueError as soon as the loss of a batch is NaN or infinite, before a checkpoint of it is saved.

    Example:
        >>> StopAtNaN().on_train_batch_end(0, {"loss": 3.2})
    """

    def on_train_batch_end(self, batch, logs=None):
        if not np.isfinite(logs["loss"]):
            raise ValueError(
                f"the loss is {logs['loss']} at step {steps_taken(self.model)}; the last checkpoint is of an earlier "
                "step. Start another run with a lower learning rate or a longer warm-up"
            )


class StopAtRename(keras.callbacks.Callback):
    """Raise FileNotFoundError as soon as the folder of the run is renamed or removed.

    Args:
        watch: the watch of the run's folder.

    Example:
        >>> os.mkdir("watched")
        >>> StopAtRename(FolderWatch("watched")).on_train_batch_end(0)
    """

    def __init__(self, watch: FolderWatch):
        super().__init__()
        self.watch = watch

    def on_train_batch_end(self, batch, logs=None):
        if not self.watch.is_in_place():
            raise FileNotFoundError(f"{self.watch.out} was renamed or removed while the run trains")

    def on_epoch_end(self, epoch, logs=None):
        self.on_train_batch_end(epoch)


class Best(keras.callbacks.Callback):
    """Keep the model of the lowest `val_loss`, and stop the training when `val_loss` no longer falls.

    Args:
        folder: where the model is saved, as OpenAI's files; None saves no model.
        patience: stop after this many evaluations without a lower `val_loss`; None never stops.

    Attributes:
        state: float64 [3]: the lowest val_loss, the evaluations since then, and the step of the last evaluation.
            A run that resumes restores it. It is one variable, so that Ctrl-C can't leave it changed in part.

    Raises:
        ValueError: an epoch ends without a `val_loss`, because `fit` was given no validation data.

    Example:
        >>> best = Best("best", patience=2)
        >>> best.stopped
        False
    """

    def __init__(self, folder: str | os.PathLike | None, patience: int | None = None):
        super().__init__()
        self.folder, self.patience = folder, patience
        self.state = tf.Variable([np.inf, 0, 0], dtype=tf.float64)

    @property
    def step(self) -> int:
        """The step of the last evaluation; 0 before the first."""
        return int(self.state[2])

    @property
    def stopped(self) -> bool:
        """Whether `patience` evaluations have passed without a lower `val_loss`."""
        return self.patience is not None and int(self.state[1]) >= self.patience

    def on_epoch_end(self, epoch, logs=None):
        if "val_loss" not in logs:
            raise ValueError("Best compares val_loss, but the logs have no val_loss; give `fit` validation_data")
        lowest, evaluations_since, _ = self.state.numpy()
        is_lower = logs["val_loss"] < lowest
        if is_lower and self.folder is not None:
            self.model.save_checkpoint(self.folder)
            if self.model.lora_rank:
                self.model.save_adapters(Path(self.folder, ADAPTERS_FOLDER))
        step = steps_taken(self.model)
        self.state.assign([logs["val_loss"], 0, step] if is_lower else [lowest, evaluations_since + 1, step])
        if self.stopped:
            print(f"stopped: no lower val_loss in {self.patience} evaluations", file=sys.stderr)
            self.model.stop_training = True


class Throughput(keras.callbacks.Callback):
    """Add the training speed of an epoch to its logs.

    `tokens_per_second` counts all replicas. `of_peak` is the model FLOPs utilization (MFU): the arithmetic done, as a
    fraction of what the devices could do in large float32 matrix products. The first batch of a `fit` is left out,
    because TensorFlow traces and compiles the step during it.

    Source: "PaLM: Scaling Language Modeling with Pathways" (Chowdhery et al., 2022), appendix B.

    Args:
        hparams: the size of the model.
        window: tokens per row.
        batch_size: rows per step, over all replicas.
        n_replicas: devices that train together.
        frozen: whether adapters are trained beside frozen weights.

    Example:
        >>> throughput = Throughput(model.hparams, window=64, batch_size=2)
        >>> throughput.tokens_per_batch
        128
    """

    def __init__(self, hparams: HParams, window: int, batch_size: int, n_replicas: int = 1, frozen: bool = False):
        super().__init__()
        self.tokens_per_batch = batch_size * window
        self.flops_per_token = flops_per_token(hparams, window, frozen)
        self.peak_flops = n_replicas * matmul_peak()
        self.seconds, self.batches = 0.0, 0

    def on_train_batch_begin(self, batch, logs=None):
        self.batch_started = time.perf_counter()

    def on_train_batch_end(self, batch, logs=None):
        if batch > 0:
            self.seconds += time.perf_counter() - self.batch_started
            self.batches += 1

    def on_epoch_end(self, epoch, logs=None):
        if self.batches:
            tokens_per_second = self.batches * self.tokens_per_batch / self.seconds
            mfu = tokens_per_second * self.flops_per_token / self.peak_flops
            logs |= {"tokens_per_second": tokens_per_second, "of_peak": mfu}
        self.seconds, self.batches = 0.0, 0


class Log(keras.callbacks.Callback):
    """Append the logs of each epoch to a CSV file, with its last step, and plot the losses as `loss.png` beside it.

    A resumed run may repeat steps; then the rows of those steps are replaced. Without matplotlib, the extra `plot`,
    there is no `loss.png`.

    Args:
        path: the CSV file; an existing file is continued.

    Example:
        >>> Log("log.csv").rows
        []
    """

    def __init__(self, path: str | os.PathLike):
        super().__init__()
        self.path = Path(path)
        self.rows = []
        if self.path.exists():
            with open(self.path, newline="") as file:
                self.rows = list(csv.DictReader(file))

    def on_epoch_end(self, epoch, logs=None):
        step = str(steps_taken(self.model))
        logged = {name: f"{float(value):.6g}" for name, value in logs.items()}
        same_step = next((row for row in self.rows if row["step"] == step), {})
        earlier = [row for row in self.rows if int(row["step"]) < int(step)]
        self.rows = [*earlier, {**same_step, "step": step, **logged}]
        columns = list(dict.fromkeys(name for row in self.rows for name in row))
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        atomic_write(self.path, text.getvalue().encode())
        draw_losses(self.rows, self.path.with_name("loss.png"))


def show_sample(model: keras.Model, enc: Encoder, path: str | os.PathLike, seed: int, step: int) -> None:
    """Generate a text of at most 100 tokens, print it to stderr and append it to a file.

    A resumed run may repeat steps; the samples of those steps are then in the file twice.

    Args:
        model: a GPT2.
        enc: its vocabulary.
        path: the file that the sample is appended to.
        seed: seed of the sample; the same weights and seed give the same text.
        step: the number printed above the sample.

    Example:
        >>> show_sample(model, enc, "samples.txt", seed=0, step=500)
        >>> Path("samples.txt").read_text(encoding="utf-8").splitlines()[1]
        '--- step 500'
    """
    length, top_k = min(100, model.hparams.n_ctx), min(40, model.hparams.n_vocab)
    (sample,) = generate(model, enc, length=length, top_k=top_k, seed=seed)
    text = f"\n--- step {step}\n{sample.text}\n"
    print(escape_generated_text(text), file=sys.stderr)
    with disk_errors_name(path), open(path, "a", encoding="utf-8") as file:
        file.write(text)


def tensorboard(out: str | os.PathLike) -> keras.callbacks.Callback:
    """Keras's callback for TensorBoard; `tensorboard --logdir OUT/tensorboard` shows its logs.

    Raises:
        ImportError: TensorBoard is not installed.

    Example:
        >>> Path(tensorboard("run").log_dir).as_posix()  # for `run_training(..., extra_callbacks=[...])`
        'run/tensorboard'
    """
    if importlib.util.find_spec("tensorboard") is None:
        raise ImportError("logging to TensorBoard needs its library: pip install 'gpt2-tf[tensorboard]'")
    return keras.callbacks.TensorBoard(Path(out, "tensorboard"), write_graph=False)


def wandb(project: str) -> keras.callbacks.Callback:
    """The callback of Weights & Biases, which logs to this project.

    Raises:
        ImportError: the library `wandb` is not installed.

    Example:
        >>> run_training(["text.txt"], "run", extra_callbacks=[wandb("my-project")])  # doctest: +SKIP
    """
    try:
        import wandb
        from wandb.integration.keras import WandbMetricsLogger
    except ImportError:
        raise ImportError("logging to Weights & Biases needs its library: pip install 'gpt2-tf[wandb]'") from None
    wandb.init(project=project)
    return WandbMetricsLogger(log_freq=10)
