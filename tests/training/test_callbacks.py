"""The callbacks on their own: when they act, what they measure, what they write."""

import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from oracles.training_runs import NEW_RUN, SHAPE, CallAt, read_log, start_run

from gpt2_tf import GPT2, HParams
from gpt2_tf.cli.main import main
from gpt2_tf.training import callbacks
from gpt2_tf.training.flops import flops_per_token
from gpt2_tf.training.run_folder import latest_step


@pytest.fixture
def compiled_model():
    model = GPT2(HParams(n_vocab=9, **SHAPE))
    model.compile()
    return model


def test_every_acts_once_when_a_step_is_skipped(compiled_model):
    """A batch whose gradients overflow float16 leaves the count of steps unchanged."""
    acted_at = []
    every = callbacks.Every(2, acted_at.append)
    every.set_model(compiled_model)
    every.on_train_begin()
    for step in (0, 1, 2, 2, 3, 4, 4):
        compiled_model.optimizer.iterations.assign(step)
        every.on_train_batch_end(0)
    assert acted_at == [2, 4]


@pytest.mark.slow
def test_a_nan_loss_stops_the_run_and_names_the_step(text, tmp_path):
    """The weights are overwritten after step 6, so the loss of step 7 is NaN."""
    overwrite = CallAt(6, lambda model: model.wpe.assign(np.inf * np.ones(model.wpe.shape)))
    with pytest.raises(ValueError, match="the loss is nan at step 7; the last checkpoint is of an earlier step"):
        start_run(text, tmp_path / "out", overwrite)
    assert latest_step(tmp_path / "out") == 4
    assert all(np.isfinite(weight).all() for weight in GPT2.from_checkpoint(tmp_path / "out").weights)


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 20])
def test_nan_weights_are_not_saved(text, tmp_path, step):
    """At a step in the middle and at the last one."""
    overwrite = CallAt(step, lambda model: model.wpe.assign(np.nan * np.ones(model.wpe.shape)))
    message = f"model/wpe has NaN or infinite values after step {step}, which is not saved; the last checkpoint is"
    with pytest.raises(ValueError, match=message):
        start_run(text, tmp_path / "out", overwrite)
    assert latest_step(tmp_path / "out") == step - 4


def test_best_needs_a_validation_loss(compiled_model):
    best = callbacks.Best(None)
    best.set_model(compiled_model)
    with pytest.raises(
        ValueError, match="Best compares val_loss, but the logs have no val_loss; give `fit` validation_data"
    ):
        best.on_epoch_end(0, {"loss": 1.0})


def test_throughput_leaves_out_the_batch_that_is_compiled(monkeypatch):
    """The clock is a fake: the first batch takes 100 seconds, each of the other four 2 seconds."""
    hparams = HParams(n_vocab=9, **SHAPE)
    throughput = callbacks.Throughput(hparams, window=16, batch_size=4, n_replicas=2)
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for batch, seconds in enumerate([100, 2, 2, 2, 2]):
        throughput.on_train_batch_begin(batch)
        now += seconds
        throughput.on_train_batch_end(batch)
    logs = {"loss": 1.0}
    throughput.on_epoch_end(0, logs)
    assert logs["tokens_per_second"] == 16 * 4 / 2
    assert logs["of_peak"] == pytest.approx(32 * flops_per_token(hparams, 16) / throughput.peak_flops)
    assert logs["loss"] == 1.0


def test_throughput_measures_each_epoch_anew(monkeypatch):
    throughput = callbacks.Throughput(HParams(n_vocab=9, **SHAPE), window=16, batch_size=4)
    now = 0.0
    monkeypatch.setattr(time, "perf_counter", lambda: now)
    for seconds in (1, 4):
        for batch in (1, 2):
            throughput.on_train_batch_begin(batch)
            now += seconds
            throughput.on_train_batch_end(batch)
        logs = {}
        throughput.on_epoch_end(0, logs)
        assert logs["tokens_per_second"] == 16 * 4 / seconds


def test_the_peak_counts_every_replica(monkeypatch):
    monkeypatch.setattr(callbacks, "matmul_peak", lambda: 1e9)
    hparams = HParams(n_vocab=9, **SHAPE)
    assert callbacks.Throughput(hparams, 16, 4, n_replicas=3).peak_flops == 3e9


@pytest.mark.parametrize(
    ("flags", "library", "message"),
    [
        (["--tensorboard"], "tensorboard", "TensorBoard needs its library: pip install 'gpt2-tf[tensorboard]'"),
        (["--wandb", "tiny"], "wandb", "Weights & Biases needs its library: pip install 'gpt2-tf[wandb]'"),
    ],
)
def test_a_missing_extra_is_named(text, tmp_path, capfd, monkeypatch, flags, library, message):
    monkeypatch.setitem(sys.modules, library, None)  # as if it were not installed
    assert main(["train", str(text), "--out", str(tmp_path / "out"), *NEW_RUN, *flags]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == f"gpt2-tf: error: logging to {message}"
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_tensorboard_and_wandb_get_the_losses_of_the_log(text, tmp_path, monkeypatch):
    """Weights & Biases works offline here. 1e-4, since the log has six digits and TensorBoard float32."""
    pytest.importorskip("tensorboard", reason="TensorBoard is in the extra [tensorboard]")
    pytest.importorskip("wandb", reason="Weights & Biases is in the extra [wandb]")
    for name, value in {"MODE": "offline", "DIR": str(tmp_path), "SILENT": "true"}.items():
        monkeypatch.setenv(f"WANDB_{name}", value)
    command = ["train", text, "--out", tmp_path / "out", *NEW_RUN, "--tensorboard", "--wandb", "tiny"]
    run = subprocess.run([sys.executable, "-m", "gpt2_tf", *command], cwd=tmp_path, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    values = {}
    for path in (tmp_path / "out" / "tensorboard").glob("*/events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                values.setdefault(f"{path.parent.name}/{value.tag}", []).append(float(tf.make_ndarray(value.tensor)))
    log = read_log(tmp_path / "out")
    assert values["validation/epoch_loss"] == pytest.approx([float(row["val_loss"]) for row in log], rel=1e-4)
    assert values["train/epoch_loss"] == pytest.approx([float(row["loss"]) for row in log], rel=1e-4)
    (recorded,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"epoch/val_loss" in recorded.read_bytes()
