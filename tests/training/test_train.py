"""Runs of `gpt2-tf train`: their optimizer, what they leave, and that one that was stopped goes on exactly."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf

from gpt2_tf import GPT2, HParams, generate, load
from gpt2_tf.cli.main import main
from gpt2_tf.training import callbacks, train
from gpt2_tf.weights import checkpoint

TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}, said the fox.\n" for i in range(100))
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16}
SETTINGS = {
    **{"steps": 20, "batch_size": 4, "warmup_steps": 3, "dropout": 0.1, "grad_accumulation": 2},
    **{"eval_every": 5, "save_every": 4, "sample_every": 1000},
}


def flags(**values) -> list[str]:
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


COMMAND = flags(init_from="scratch", vocab_size="chars", **SHAPE, **SETTINGS)


class At(keras.callbacks.Callback):
    """Calls `act(model)` after a step, or as the evaluation after it begins."""

    def __init__(self, step, act, evaluation=False):
        super().__init__()
        self.at, self.act, self.evaluation = step, act, evaluation

    def on_train_batch_end(self, batch, logs=None):
        if not self.evaluation and int(self.model.optimizer.iterations.numpy()) == self.at:
            self.act(self.model)

    def on_test_begin(self, logs=None):
        if self.evaluation and int(self.model.optimizer.iterations.numpy()) == self.at:
            self.act(self.model)


class Stopped(Exception):
    """As a crash: nothing is saved after it."""


def stop(model):
    raise Stopped


def interrupt(model):
    raise KeyboardInterrupt


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


def begin(text, out, *more, **settings):
    train.run([text], out, init_from="scratch", vocab_size="chars", shape=SHAPE, more=more, **{**SETTINGS, **settings})


def resume(out, *more):
    train.run([], out, init_from="resume", more=more)


@pytest.fixture(scope="module")
def whole(text, tmp_path_factory):
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    begin(text, out)
    return out


def rows(out):
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(out, whole):
    """Bit for bit: weights, the optimizer's state and all else that a run needs to go on, and the best weights."""
    assert train.last(out) == train.last(whole)
    names = sorted(path.name for path in whole.glob("*-*.*"))
    assert sorted(path.name for path in out.glob("*-*.*")) == names and len(names) == 4
    for name in (*names, "best/model.ckpt.data-00000-of-00001"):
        assert (out / name).read_bytes() == (whole / name).read_bytes(), name
    assert [(row["step"], row["val_loss"]) for row in rows(out)] == [(r["step"], r["val_loss"]) for r in rows(whole)]


# What a run leaves


def test_the_folder_loads_as_a_model(whole):
    model, enc = load(whole)
    assert enc.n_vocab == model.hparams.n_vocab and model.hparams.to_dict().items() >= SHAPE.items()
    ids = enc.encode(TEXT[:17])
    logits = model(np.array([ids[:-1]])).numpy()[0]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(16), ids[1:]]
    assert losses.mean() < np.log(enc.n_vocab) - 0.1  # it has learned
    assert json.loads((whole / "hparams.json").read_text()).keys() == HParams.from_size("124M").to_dict().keys()
    assert load(whole / "best")[1].encode("fox") == enc.encode("fox")


def test_the_command_writes_with_a_run(text, tmp_path, capfd):
    """Of `gpt2-tf train` to `gpt2-tf generate`, as a person has them."""
    out = str(tmp_path / "out")
    assert main(["train", str(text), "--out", out, *COMMAND, *flags(steps=4, eval_every=4)]) == 0
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"gpt2-tf: done; `gpt2-tf generate --model {out}` samples from the trained model"
    )
    for place in (out, f"{out}/best"):
        assert main(["generate", "12 times", "--model", place, "--length", "5", "--seed", "1", "--json"]) == 0
        completion = json.loads(capfd.readouterr().out)
        model, enc = load(place)
        assert completion == generate(model, enc, "12 times", length=5, seed=1)[0]._asdict()
        assert set(completion["text"]) <= set(TEXT)


def test_the_optimizers_state_is_apart(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {"model-20.index", "optimizer-20.index", "checkpoint", "counter", "encoder.json", "vocab.bpe"}
    reader = tf.train.load_checkpoint(str(whole / "model-20"))
    assert set(reader.get_variable_to_shape_map()) == set(load(whole)[0].named_weights())
    assert tf.train.latest_checkpoint(whole) == str(whole / "model-20")


def test_the_log_has_a_row_an_evaluation(whole):
    log = rows(whole)
    assert [int(row["step"]) for row in log] == [5, 10, 15, 20]
    assert float(log[-1]["val_loss"]) < float(log[0]["val_loss"]) < 5
    for row in log:
        assert float(row["tokens_per_second"]) > 0 and 0 < float(row["of_peak"]) < 1


def test_the_losses_are_drawn(whole):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra [plot]")
    assert (whole / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_best_is_kept_and_patience_ends(text, tmp_path, capsys):
    """A rate so high that the loss rises again: what is in best/ has the least val_loss of the log."""
    begin(text, tmp_path / "out", steps=400, eval_every=4, learning_rate=0.3, warmup_steps=2, patience=2)
    log = rows(tmp_path / "out")
    losses = [float(row["val_loss"]) for row in log]
    assert len(log) < 100 and losses.index(min(losses)) == len(losses) - 3
    assert "stopped: no lower val_loss in 2 evaluations" in capsys.readouterr().err
    model = GPT2.from_checkpoint(tmp_path / "out" / "best")
    model.compile()
    data = train.prepare.load(tmp_path / "out" / "data")
    assert model.evaluate(train.dataset.windows(data.val, 16, 4), verbose=0) == pytest.approx(min(losses), rel=1e-5)
    resume(tmp_path / "out")  # it has ended
    assert rows(tmp_path / "out") == log


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_other_precisions_documents_and_samples(text, tmp_path, precision, capsys):
    out = tmp_path / "out"
    begin(text, out, precision=precision, documents=True, remat=True, sample_every=10, grad_accumulation=1)
    assert float(rows(out)[-1]["loss"]) < float(rows(out)[0]["loss"])
    assert {weight.dtype for weight in load(out)[0].weights} == {"float32"}
    shown = capsys.readouterr().err
    samples = (out / "samples.txt").read_text("utf-8")
    assert samples.count("--- step") == 2 and "--- step 10\n" in samples and "--- step 20\n" in shown


@pytest.mark.slow
def test_text_shorter_than_a_window(tmp_path):
    (tmp_path / "text.txt").write_text("short, yet")
    begin(tmp_path / "text.txt", tmp_path / "out", val_fraction=0, eval_every=20)
    assert float(rows(tmp_path / "out")[-1]["loss"]) < 3 and "val_loss" not in rows(tmp_path / "out")[0]


@pytest.mark.slow
def test_openais_own_graph_loads_a_run(shared, tmp_path, text):
    """The size of 124M, one step; 2e-4 as in test_checkpoint.py."""
    official = shared / "data" / "official-117M"
    from encoder import Encoder

    train.prepare.prepare([text], tmp_path / "data", Encoder.from_folder(official))
    settings = {"steps": 1, "window": 16, "batch_size": 1, "val_fraction": 0.0, "warmup_steps": 0}
    train.run([tmp_path / "data"], tmp_path / "out", init_from="scratch", **settings)
    model, enc = load(tmp_path / "out")
    tokens = np.array([enc.encode(TEXT * 2)[:1024]])
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        saver = tf.compat.v1.train.import_meta_graph(str(official / "model.ckpt.meta"), clear_devices=True)
        saver.restore(session, tf.train.latest_checkpoint(str(tmp_path / "out")))
        theirs = session.run("model/MatMul_2:0", {"Placeholder:0": tokens})
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(model(tokens)[0], theirs, rtol=0, atol=2e-4)


# Stopped, and gone on


@pytest.mark.parametrize("step", [2, 10])
def test_a_run_that_crashed_goes_on_exactly(text, whole, tmp_path, step):
    """Before its first checkpoint, and two steps after its second."""
    with pytest.raises(Stopped):
        begin(text, tmp_path / "out", At(step, stop))
    assert train.last(tmp_path / "out") == {2: 0, 10: 8}[step]
    resume(tmp_path / "out")
    assert_same_run(tmp_path / "out", whole)


def begin_adapters(text, out, folder, *more, **settings):
    settings = {**SETTINGS, "window": 16, "lora_rank": 2, "learning_rate": 1e-2, **settings}
    train.run([text], out, init_from=folder, more=more, **settings)


@pytest.fixture(scope="module")
def adapted(text, tiny_folder, tmp_path_factory):
    """The folder of a run of adapters that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "adapted"
    begin_adapters(text, out, tiny_folder)
    return out


def test_a_run_of_adapters_leaves_them_merged_and_apart(adapted, tiny_folder):
    """1e-4, 1e-5 of logits of up to 10: float32's roundings of the merged weights."""
    tokens = np.random.default_rng(0).integers(0, 300, [2, 32])
    model = load(adapted)[0]
    assert model.hparams.n_params == sum(int(np.prod(weight.shape)) for weight in model.weights)
    again = GPT2.from_checkpoint(tiny_folder, lora_rank=2)
    before = again(tokens).numpy()
    again.load_adapters(adapted / "adapters")
    assert np.abs(before - model(tokens)).max() > 0.1
    np.testing.assert_allclose(again(tokens), model(tokens), rtol=0, atol=1e-4)
    for one, other in zip(load(adapted / "base")[0].weights, load(tiny_folder)[0].weights, strict=True):
        np.testing.assert_array_equal(one, other)
    log = [float(row["val_loss"]) for row in rows(adapted)]
    assert log[-1] < log[0]
    again.load_adapters(adapted / "best" / "adapters")
    again.compile()
    data = train.prepare.load(adapted / "data")
    assert again.evaluate(train.dataset.windows(data.val, 16, 4), verbose=0) == pytest.approx(min(log), rel=1e-5)


@pytest.mark.slow
def test_adapters_of_other_precisions(text, tiny_folder, tmp_path):
    out = tmp_path / "out"
    begin_adapters(text, out, tiny_folder, precision="bfloat16", remat=True, documents=True)
    assert float(rows(out)[-1]["val_loss"]) < float(rows(out)[0]["val_loss"])
    assert {weight.dtype for weight in load(out)[0].weights} == {"float32"}


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 10])
def test_a_run_of_adapters_that_crashed_goes_on_exactly(text, adapted, tiny_folder, tmp_path, step):
    """Before its first checkpoint, when its adapters are drawn again, and after its second."""
    out = tmp_path / "out"
    with pytest.raises(Stopped):
        begin_adapters(text, out, tiny_folder, At(step, stop))
    assert train.last(out) == {2: 0, 10: 8}[step]
    resume(out)
    assert_same_run(out, adapted)
    for place in (".", "best"):
        name = f"{place}/adapters/adapter_model.safetensors"
        assert (out / name).read_bytes() == (adapted / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("eval_every, step", [(4, 12), (7, 20)])
def test_an_evaluation_that_was_missed_is_made_up_for(text, tmp_path, eval_every, step):
    """Stopped between the save and the evaluation at one step, which may be the last."""
    settings = {"eval_every": eval_every, "patience": 50}
    begin(text, tmp_path / "whole", **settings)
    with pytest.raises(Stopped):
        begin(text, tmp_path / "out", At(step, stop, evaluation=True), **settings)
    assert train.last(tmp_path / "out") == step
    resume(tmp_path / "out")
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_saves_the_step(text, whole, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        begin(text, tmp_path / "out", At(6, interrupt))
    assert train.last(tmp_path / "out") == 6
    with pytest.raises(KeyboardInterrupt):
        resume(tmp_path / "out", At(10, interrupt, evaluation=True))
    assert train.last(tmp_path / "out") == 10
    resume(tmp_path / "out")
    assert_same_run(tmp_path / "out", whole)


@pytest.mark.slow
def test_rows_after_the_resumed_step_are_dropped(text, tmp_path):
    with pytest.raises(Stopped):
        begin(text, tmp_path / "out", At(19, stop), save_every=12)
    assert [row["step"] for row in rows(tmp_path / "out")] == ["5", "10", "15"]
    with pytest.raises(Stopped):
        resume(tmp_path / "out", At(15, stop, evaluation=True))
    assert [row["step"] for row in rows(tmp_path / "out")] == ["5", "10", "15"]  # 15 is not yet written anew
    resume(tmp_path / "out")
    assert [row["step"] for row in rows(tmp_path / "out")] == ["5", "10", "15", "20"]


def test_a_finished_run_stays_as_it_is(whole, tmp_path):
    out = Path(shutil.copytree(whole, tmp_path / "moved"))  # elsewhere: its data go with it
    resume(out)
    assert_same_run(out, whole)


class Rates(keras.callbacks.Callback):
    def on_train_begin(self, logs=None):
        self.rates = {}

    def on_train_batch_end(self, batch, logs=None):
        self.rates[int(self.model.optimizer.iterations)] = float(self.model.optimizer.learning_rate)


@pytest.mark.slow
def test_a_run_is_made_longer(whole, tmp_path):
    """The rate is that of a run of 30 steps; stopped, it goes on to these 30, exactly."""
    out, rates = Path(shutil.copytree(whole, tmp_path / "out")), Rates()
    train.run([], out, init_from="resume", steps=30, more=[rates])
    schedule = train.adamw(1e-3, 30, warmup_steps=3)._learning_rate
    assert rates.rates == pytest.approx({step: float(schedule(step)) for step in range(21, 31)}, rel=1e-6)
    assert [int(row["step"]) for row in rows(out)] == [5, 10, 15, 20, 25, 30] and train.last(out) == 30

    again = Path(shutil.copytree(whole, tmp_path / "again"))
    with pytest.raises(Stopped):
        train.run([], again, init_from="resume", steps=30, more=[At(26, stop)])
    resume(again)
    assert_same_run(again, out)


@pytest.mark.parametrize(
    ("flags", "hidden", "extra"),
    [
        (["--tensorboard"], "tensorboard", "TensorBoard needs its library: pip install 'gpt2-tf[tensorboard]'"),
        (["--wandb", "tiny"], "wandb", "Weights & Biases needs its library: pip install 'gpt2-tf[wandb]'"),
    ],
)
def test_an_extra_that_is_missing_is_named(text, tmp_path, capfd, monkeypatch, flags, hidden, extra):
    monkeypatch.setitem(sys.modules, hidden, None)  # as if it weren't installed
    assert main(["train", str(text), "--out", str(tmp_path / "out"), *COMMAND, *flags]) == 1
    assert capfd.readouterr().err.splitlines()[-1] == f"gpt2-tf: error: logging to {extra}"
    assert not (tmp_path / "out").exists()


def test_without_the_extra_nothing_is_drawn(tmp_path, monkeypatch):
    row = {"step": "5", "loss": "3.1", "val_loss": "3.2"}
    if train.importlib.util.find_spec("matplotlib"):
        callbacks.draw([row], tmp_path / "loss.png")
        assert (tmp_path / "loss.png").exists()
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    callbacks.draw([row], tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()


def test_nan_stops_with_the_step(text, tmp_path):
    """The weights are spoilt after step 6: the loss of step 7 shows it."""
    spoil = At(6, lambda model: model.wpe.assign(np.inf * np.ones(model.wpe.shape)))
    with pytest.raises(ValueError, match="the loss is nan at step 7; the last checkpoint is from before"):
        begin(text, tmp_path / "out", spoil)
    assert train.last(tmp_path / "out") == 4
    assert all(np.isfinite(weight).all() for weight in GPT2.from_checkpoint(tmp_path / "out").weights)


@pytest.mark.slow
@pytest.mark.parametrize("step", [8, 20])
def test_weights_that_are_no_numbers_are_not_saved(text, tmp_path, step):
    """Also the last."""
    spoil = At(step, lambda model: model.wpe.assign(np.nan * np.ones(model.wpe.shape)))
    with pytest.raises(ValueError, match=f"model/wpe holds what is no number after step {step}; the last checkpoint"):
        begin(text, tmp_path / "out", spoil)
    assert train.last(tmp_path / "out") == step - 4


FORKS = """
import os, signal, sys, time
import gpt2_tf
gpt2_tf.GPT2
from gpt2_tf import cli, train
for line in sys.stdin:
    out, seconds, step, late, *argv = line[:-1].split("\\t")
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        os._exit(cli.main(["train", "--out", out, *argv]))
    end = time.monotonic() + float(seconds)
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        if (train.last(out) or 0) >= int(step):
            end = min(end, time.monotonic() + float(late))
        time.sleep(0.001)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
"""


@pytest.fixture
def killed():
    """Runs `gpt2-tf train` as a process of its own, killed after some seconds, or `late` seconds after its checkpoint
    of a step; gives the exit status."""
    with subprocess.Popen([sys.executable, "-c", FORKS], stdin=-1, stdout=-1, text=True) as process:

        def run(out, *argv, seconds=300.0, step=10**9, late=0.0):
            process.stdin.write("\t".join(map(str, [out, seconds, step, late, *argv])) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.kill()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_a_run_killed_at_random_moments_goes_on_exactly(killed, text, tiny_folder, tmp_path, adapters):
    """A checkpoint is written at every step, so that many of the kills come while one is; two as the run begins."""
    of_adapters = flags(init_from=tiny_folder, lora_rank=2, window=16, **SETTINGS)
    settings = [text, *(of_adapters if adapters else COMMAND), *flags(steps=200, eval_every=7, save_every=1)]
    assert killed(tmp_path / "whole", *settings) == 0
    out, seed = tmp_path / "out", random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    kills = [{"seconds": rng.uniform(0.1, 3)} for _ in range(2)]
    kills += [{"step": step, "late": rng.uniform(0, 0.1)} for step in sorted(rng.sample(range(1, 190), 8))]
    reached = []
    for kill in kills:
        argv = ["--init-from", "resume"] if (out / train.RUN).exists() else settings
        assert killed(out, *argv, **kill) == -signal.SIGKILL, seed
        if (out / train.RUN).exists():
            GPT2.from_checkpoint(out)  # whole at any moment
            reached.append(train.last(out))
    print("seed", seed, "killed at", reached)
    assert reached == sorted(reached) and reached[-1] < 200
    assert killed(out, "--init-from", "resume") == 0
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_says_how_to_go_on(text, tmp_path):
    out = tmp_path / "my run"
    command = [sys.executable, "-m", "gpt2_tf", "train", text, "--out", out, *COMMAND]
    command += flags(steps=600, save_every=500, eval_every=50)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (out / "log.csv").exists() and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            printed, shown = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, printed) == (130, ""), shown
    line = f"gpt2-tf: interrupted; `gpt2-tf train --out '{out}' --init-from resume` resumes the run"
    assert shown.splitlines()[-1] == line and "Traceback" not in shown
    assert 50 <= train.last(out) < 500
    begin(text, tmp_path / "whole", steps=600, save_every=500, eval_every=50)
    resume(out)
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_last_checkpoint_whole(text, whole, tmp_path):
    """Of the files, the optimizer's is the largest; a limit between it and the next is as a full disk."""
    import resource

    out = tmp_path / "out"
    with pytest.raises(Stopped):
        begin(text, out, At(6, stop))
    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    sizes = [(out / f"{name}-4.data-00000-of-00001").stat().st_size for name in ("model", "optimizer")]
    limit = sum(sizes) // 2
    assert sizes[0] < limit < sizes[1]
    ran = subprocess.run(
        [sys.executable, "-m", "gpt2_tf", "train", "--out", out, "--init-from", "resume"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "agg"},
    )
    assert ran.returncode == 1
    last = ran.stderr.splitlines()[-1]
    assert last.startswith(f"gpt2-tf: error: {out / 'optimizer-8'} could not be written: "), ran.stderr
    assert "Traceback" not in ran.stderr
    assert {path: path.read_bytes() for path in before if path.suffix not in (".csv", ".png")} == {
        path: content for path, content in before.items() if path.suffix not in (".csv", ".png")
    }
    assert not list(out.glob(".part-*"))
    resume(out)
    assert_same_run(out, whole)


@pytest.mark.slow
def test_tensorboard_and_weights_and_biases(text, tmp_path):
    """Both of one run; W&B offline."""
    pytest.importorskip("tensorboard", reason="TensorBoard is in the extra [tensorboard]")
    if train.importlib.util.find_spec("wandb") is None:
        pytest.skip("W&B is in the extra [wandb]")
    command = ["train", text, "--out", tmp_path / "out", *COMMAND, "--tensorboard", "--wandb", "tiny"]
    ran = subprocess.run(
        [sys.executable, "-m", "gpt2_tf", *command],
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path), "WANDB_SILENT": "true"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    tags = {}
    for path in (tmp_path / "out" / "tensorboard").glob("*/events*"):
        for event in tf.compat.v1.train.summary_iterator(str(path)):
            for value in event.summary.value:
                tags.setdefault(f"{path.parent.name}/{value.tag}", []).append(float(tf.make_ndarray(value.tensor)))
    log = rows(tmp_path / "out")
    assert tags["validation/epoch_loss"] == pytest.approx([float(row["val_loss"]) for row in log], rel=1e-4)
    assert tags["train/epoch_loss"] == pytest.approx([float(row["loss"]) for row in log], rel=1e-4)
    (recorded,) = (tmp_path / "wandb").glob("offline-run-*/*.wandb")
    assert b"epoch/val_loss" in recorded.read_bytes()


# Mistakes


@pytest.mark.parametrize(
    "argv, message",
    [
        ([], "there are no FILES to train on"),
        (["TEXT", "--window", "17"], "window is 17, but the model reads at most n_ctx 16 tokens"),
        (["TEXT", "--grad-accumulation", "3"], "batch_size 4 can't be divided into grad_accumulation 3 parts"),
        (["TEXT", "--dropout", "1"], "dropout is 1.0, but must be at least 0 and below 1"),
        (["TEXT", "--patience", "2", "--val-fraction", "0"], "patience goes by val_loss; give --val-fraction or"),
        (["TEXT", "--warmup-steps", "20"], "warmup_steps is 20, but must be 0 to less than steps, 20"),
        (["TEXT", "--n-head", "3"], "n_embd 16 can't be divided among n_head 3 heads"),
        (["nowhere.txt"], "nowhere.txt"),
        (["TEXT", "--val-file", "nowhere.txt"], "nowhere.txt"),
        (["TEXT", "--val-fraction", "0.0004"], "there is 1 token to validate on; --val-fraction 0 leaves that out"),
        (["TEXT", "--init-from", "nothing"], "only new weights have a choice of vocab_size, n_layer, n_head, n_embd"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line(text, tmp_path, monkeypatch, capfd, argv, message):
    monkeypatch.chdir(tmp_path)
    flags = [str(text) if word == "TEXT" else word for word in argv]
    assert main(["train", "--out", "out", *COMMAND, *flags]) == 1
    printed, shown = capfd.readouterr()
    assert printed == "" and shown.splitlines()[-1].startswith(f"gpt2-tf: error: {message}"), shown
    assert not Path("out/run.json").exists() and not Path("out/model-0.index").exists()


def test_mistakes_of_a_run(text, whole, tiny_folder, tmp_path, capfd):
    def error(*argv):
        assert main(["train", *map(str, argv)]) == 1
        shown = capfd.readouterr().err
        assert "Traceback" not in shown
        return shown.splitlines()[-1].removeprefix("gpt2-tf: error: ")

    new = ["--init-from", "scratch", "--vocab-size", "chars"]
    assert error(text, "--out", whole, *new).startswith(f"{whole} holds a run; `--init-from resume` goes on with it")
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    assert error(text, "--out", model, "--init-from", model) == (
        f"{model} holds a model, which would be lost; give another --out"
    )
    assert GPT2.from_checkpoint(model)
    assert error(text, "--out", tmp_path / "new", "--init-from", "scratch").startswith("new weights need a vocabulary")
    assert error(text, "--out", tmp_path / "new", *new, "--lora-rank", "2").startswith("new weights would stay random")
    assert error("--out", tmp_path / "new", "--init-from", "resume") == (
        f"{tmp_path / 'new'} holds no run to go on with: {tmp_path / 'new' / 'run.json'} is missing"
    )
    assert error("--out", whole, "--init-from", "resume", "--steps", "19").startswith(
        f"steps is 19, but 20 in the run in {whole}, which goes on as it began"
    )
    assert error("--out", whole, "--init-from", "resume", "--steps", "30", "--window", "9").startswith("window is 9,")
    assert json.loads((whole / "run.json").read_text())["steps"] == 20
    broken = Path(shutil.copytree(whole, tmp_path / "broken"))
    (broken / "optimizer-20.data-00000-of-00001").write_bytes(b"")
    assert error("--out", broken, "--init-from", "resume").startswith(
        f"{broken}: the state of step 20 is damaged or of another run"
    )
    (broken / "run.json").write_text("{}")
    assert error("--out", broken, "--init-from", "resume").startswith(f"{broken / 'run.json'} is damaged")


@pytest.mark.parametrize(
    "name, value",
    [
        ("learning_rate", -1),
        ("weight_decay", -1),
        ("dropout", 1),
        ("clip_norm", np.nan),
        ("val_fraction", 1),
        ("seed", 2**31),
    ],
)
def test_settings_out_of_range_are_refused(name, value):
    with pytest.raises(ValueError, match=f"^{name} is {value}, but must be at least 0 and below"):
        train.Settings(**{"learning_rate": 1e-3, "window": 8, "warmup_steps": 0, name: value})


@pytest.mark.parametrize("name", ["lora_rank", "patience", "steps"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} is 0, but must be at least 1"):
        train.Settings(**{"learning_rate": 1e-3, "window": 8, "warmup_steps": 0, name: 0})


def test_a_run_and_prepared_files_leave_each_other_alone(text, whole, tmp_path, capfd):
    files = {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()}
    assert main(["prepare", str(text), "--vocab-size", "chars", "--out", str(whole)]) == 1
    assert "hparams.json of something else; choose another folder" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in whole.iterdir() if path.is_file()} == files
    place = str(tmp_path / "both")
    assert main(["prepare", str(text), "--vocab-size", "chars", "--out", place]) == 0
    for mistake in (["--vocab-size", "300"], ["--val-file", "nowhere.txt"], ["--column", "zz"]):
        new = ["--init-from", "scratch", *flags(**SHAPE, **SETTINGS), *mistake]
        assert main(["train", place, "--out", str(tmp_path / "out"), *new]) == 1
        shown = capfd.readouterr().err.splitlines()[-1]
        name = mistake[0].removeprefix("--").replace("-", "_").replace("val_file", "val_files")
        assert shown == f"gpt2-tf: error: {place} is prepared, which leaves no choice of {name}; leave that out"
    with pytest.raises(Stopped):
        train.run([place], place, init_from="scratch", shape=SHAPE, more=[At(10, stop)], **SETTINGS)
    resume(Path(place))
    assert train.last(place) == 20


def test_what_a_run_goes_on_with_is_its_own(text, whole, tmp_path, capfd):
    """Other data, files that it wouldn't read, or a second process at the same time."""
    out = Path(shutil.copytree(whole, tmp_path / "out"))

    def error(*argv):
        assert main(["train", "--out", str(out), "--init-from", "resume", *map(str, argv)]) == 1
        return capfd.readouterr().err.splitlines()[-1].removeprefix("gpt2-tf: error: ")

    assert error(text).startswith("a run goes on with the data that it began with; leave out FILES")
    assert error("--val-file", "nowhere.txt").startswith("a run goes on with the data that it began with")
    with train.prepare.alone(out):
        assert error() == f"{out} is being written by another process; wait for it, or choose another folder"
    ids = np.fromfile(out / "data/train.bin", np.uint16)
    ids[:2] = ids[1::-1]
    ids.tofile(out / "data/train.bin")
    assert error() == f"{out / 'data'} has other tokens than when the run in {out} began; begin another with them"


def test_a_converted_model_is_not_taken_for_a_run(text, tiny_folder, tmp_path):
    """gpt-2-simple's folders have steps too."""
    GPT2.from_checkpoint(tiny_folder).save_checkpoint(tmp_path / "out", step=0)
    with pytest.raises(FileExistsError, match="holds a model, which would be lost"):
        begin(text, tmp_path / "out")
    assert GPT2.from_checkpoint(tmp_path / "out")


def test_the_settings_arrive(text, tmp_path):
    """Those of the optimizer and the seed, which no other test would miss; and files to validate on."""
    found = {}

    def note(model):
        found.update(model.optimizer.get_config(), seed=int(model.seeds.state[0]))
        raise Stopped

    (tmp_path / "val.txt").write_text(TEXT[:300])
    with pytest.raises(ValueError, match="val_fraction 0 is for no validation"):
        begin(text, tmp_path / "out", data={"val_files": [tmp_path / "val.txt"]}, val_fraction=0.0)
    settings = {"weight_decay": 0.3, "clip_norm": 0.7, "seed": 5, "warmup_steps": 0, "learning_rate": 0.02}
    with pytest.raises(Stopped):
        begin(text, tmp_path / "out", At(2, note), data={"val_files": [tmp_path / "val.txt"]}, **settings)
    assert (found["weight_decay"], found["global_clipnorm"], found["seed"]) == (0.3, 0.7, 5)
    assert found["learning_rate"]["config"]["initial_learning_rate"] == 0.02
    assert len(np.fromfile(tmp_path / "out/data/val.bin", np.uint16)) == 301


def test_skipped_steps_are_acted_on_once():
    """A batch whose gradients overflow float16 leaves the count of steps as it was."""
    acted, model = [], GPT2(HParams(n_vocab=9, **SHAPE))
    model.compile()
    every = callbacks.Every(2, acted.append)
    every.set_model(model)
    every.on_train_begin()
    for step in (0, 1, 2, 2, 3, 4, 4):
        model.optimizer.iterations.assign(step)
        every.on_train_batch_end(0)
    assert acted == [2, 4]


def test_fine_tuning_begins_with_the_models_own_weights(text, tiny_folder, tmp_path):
    """At a rate of nothing, what comes out is what went in."""
    settings = {"steps": 1, "window": 8, "batch_size": 1, "learning_rate": 1e-30, "val_fraction": 0.0}
    train.run([text], tmp_path / "out", init_from=tiny_folder, **settings)
    for one, other in zip(load(tmp_path / "out")[0].weights, load(tiny_folder)[0].weights, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-29)
    assert checkpoint.latest_checkpoint(tmp_path / "out").name == "model-1"
