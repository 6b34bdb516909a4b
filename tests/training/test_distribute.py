"""Training by several replicas: it is that of one device, it goes on after a loss, and the chief alone writes.

Two logical CPU devices, which must be there before TensorFlow begins, are a process's own; two workers are processes.
"""

import re
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from test_train import COMMAND, TEXT, assert_same_run, begin, flags, resume, rows

from gpt2_tf.cli.main import main
from gpt2_tf.training import train

WORKERS = Path(__file__).parents[2] / "examples" / "workers.py"
# Clipped at every step; documents, of which the replicas' halves of a batch have other counts of targets.
SETTINGS = {"dropout": 0, "clip_norm": 0.1, "eval_every": 1, "save_every": 20}
KINDS = {"windows": {"grad_accumulation": 1}, "documents": {"grad_accumulation": 2, "documents": True}}
TWO_DEVICES = """
import sys
import tensorflow as tf
cpu, = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)
"""
COMMAND_ON_TWO = f"{TWO_DEVICES}from gpt2_tf.cli import main; sys.exit(main(sys.argv[1:]))"
# A worker that isn't the chief ends at once where it would change anything in the run's folder.
WORKER = """
import json, os, sys
out, chief = sys.argv[-1], json.loads(os.environ["TF_CONFIG"])["task"]["index"] == 0
def watch(event, args):
    changes = {"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate"}
    if event in changes or event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if not chief and str(args[0]).startswith(out):
            os._exit(77)
sys.addaudithook(watch)
from gpt2_tf.cli import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A document a line, of another length each."""
    path = tmp_path_factory.mktemp("text") / "text.csv"
    lines = [line * (1 + i % 3) for i, line in enumerate(TEXT.splitlines())]
    path.write_text("\n".join(["text", *(f'"{line}"' for line in lines)]))
    return path


@pytest.fixture(scope="module")
def single(texts, tmp_path_factory):
    """Folders of a run on one device, a kind each."""
    made = {}

    def run(kind):
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("runs") / kind
            begin(texts, made[kind], **SETTINGS, **KINDS[kind])
        return made[kind]

    return run


def command(texts, out, kind, **more):
    settings = {**SETTINGS, **KINDS[kind], **more}
    words = ["--documents"] if settings.pop("documents", False) else []
    return ["train", str(texts), *COMMAND, *words, *flags(**settings), "--out", str(out)]


def moments(out):
    """The optimizer's, of all weights."""
    reader = tf.train.load_checkpoint(str(out / "optimizer-20"))
    names = sorted(name for name in reader.get_variable_to_shape_map() if re.search("momentum|velocity", name))
    return {name: reader.get_tensor(name) for name in names}


def assert_follows(out, single):
    """The losses to 1e-4; and the moments, since Adam's steps would be the same with gradients twice as large, or
    clipped in parts: to 1e-3 of the largest, for the sums' other order."""
    log, expected = rows(out), rows(single)
    assert [row["step"] for row in log] == [row["step"] for row in expected] == [str(i) for i in range(1, 21)]
    for name in ("loss", "val_loss"):
        losses, theirs = ([float(row[name]) for row in part] for part in (log, expected))
        assert theirs[-1] < theirs[0] - 0.05
        np.testing.assert_allclose(losses, theirs, rtol=0, atol=1e-4)
    found, expected = moments(out), moments(single)
    assert found.keys() == expected.keys() and len(found) == 2 * 16
    for name, moment in expected.items():
        np.testing.assert_allclose(found[name], moment, rtol=0, atol=1e-3 * np.abs(moment).max() + 1e-12, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_two_devices_follow_one(texts, single, kind, tmp_path):
    argv = [*command(texts, tmp_path / "out", kind), "--strategy", "mirrored"]
    ran = subprocess.run([sys.executable, "-c", COMMAND_ON_TWO, *argv], capture_output=True, text=True, timeout=300)
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert_follows(tmp_path / "out", single(kind))
    clipped = [moment for name, moment in moments(tmp_path / "out").items() if "momentum" in name]
    assert 0.02 < float(tf.linalg.global_norm(clipped)) <= 0.1


ON_TWO_DEVICES = f"""{TWO_DEVICES}
from pathlib import Path
import numpy as np
from gpt2_tf import GPT2, HParams, replicas, train
texts, out = map(Path, sys.argv[1:3])
sys.path.insert(0, sys.argv[3])
from test_train import At, Stopped, begin, stop
strategy = replicas.make_strategy("mirrored")
assert strategy.num_replicas_in_sync == 2

begin(texts, out / "whole", strategy=strategy)
for name, settings in (("stopped", {{}}), ("elsewhere", dict(dropout=0, save_every=10))):
    try:
        begin(texts, out / name, At(11, stop), strategy=strategy, **settings)
    except Stopped:
        pass
train.run([], out / "stopped", init_from="resume", strategy=strategy)

try:
    begin(texts, out / "odd", batch_size=6, strategy=strategy)
except ValueError as error:
    assert str(error).startswith("batch_size 6 can't be divided among 2 replicas and each part into grad_acc"), error
assert not list((out / "odd").iterdir())

with strategy.scope():
    model = GPT2(HParams(n_vocab=30, n_ctx=8, n_embd=16, n_head=2, n_layer=1, dropout=0.5))
same = tf.ones([1, 8], tf.int32)
for training in (False, True):
    step = tf.function(lambda: strategy.run(lambda: model.hidden_states(same, training=training)[0]))
    first, second = strategy.experimental_local_results(step())
    assert np.allclose(first, second) != training
seeds = [value.numpy().tolist() for value in strategy.experimental_local_results(model.seeds.state.value)]
assert seeds[0] == seeds[1] and seeds[0][1] == 1, seeds
"""


@pytest.mark.slow
def test_two_devices_go_on_exactly_and_drop_apart(texts, tmp_path):
    """Also on another number of devices, there to 1e-4, as without a stop."""
    command = [sys.executable, "-c", ON_TWO_DEVICES, texts, tmp_path, Path(__file__).parent]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stderr
    assert_same_run(tmp_path / "stopped", tmp_path / "whole")
    assert train.last(tmp_path / "elsewhere") == 10
    resume(tmp_path / "elsewhere")
    begin(texts, tmp_path / "single", dropout=0, save_every=10)
    for name in ("loss", "val_loss"):
        losses = [[float(row[name]) for row in rows(tmp_path / out)] for out in ("elsewhere", "single")]
        np.testing.assert_allclose(*losses, rtol=0, atol=1e-4)


@pytest.mark.slow
def test_two_workers_follow_one_device(texts, single, tmp_path):
    out = tmp_path / "out"
    argv = [*command(texts, out, "documents", sample_every=10), "--strategy", "multi-worker", "--out", str(out)]
    ran = subprocess.run(
        [sys.executable, WORKERS, "2", sys.executable, "-c", WORKER, *argv], capture_output=True, text=True, timeout=300
    )
    assert (ran.returncode, ran.stdout) == (0, ""), ran.stderr
    assert_follows(out, single("documents"))
    # Of two workers one shows what is done.
    assert ran.stderr.count("--- step 10") == (out / "samples.txt").read_text().count("--- step 10") == 1
    assert ran.stderr.count("Epoch 20/20") == ran.stderr.count("samples from the trained model") == 1
    assert "WARNING" not in ran.stderr


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="needs POSIX signals")
def test_where_a_worker_is_lost_the_others_end_and_a_restart_goes_on(texts, tmp_path):
    """One is killed, then the chief; then one no longer answers, as a machine that is gone."""
    start = runpy.run_path(str(WORKERS))["start"]
    settings = {"steps": 200, "eval_every": 25, "save_every": 10, "dropout": 0.1}

    def run(out, *argv):
        argv = [sys.executable, "-c", WORKER, *argv, "--strategy", "multi-worker", "--out", str(out)]
        return start(2, argv, stderr=subprocess.PIPE, text=True)

    new = command(texts, tmp_path, "windows", **settings)[:-2]
    whole, out = tmp_path / "whole", tmp_path / "out"
    for worker in run(whole, *new):
        shown = worker.communicate(timeout=300)[1]
        assert worker.returncode == 0, shown
    for step, lost, loss in ((20, 1, signal.SIGKILL), (80, 0, signal.SIGKILL), (130, 1, signal.SIGSTOP)):
        workers = run(out, *(["train", "--init-from", "resume"] if out.exists() else new))
        try:
            while (train.last(out) or 0) < step:
                assert workers[0].poll() is None and workers[1].poll() is None, workers[0].communicate()
                time.sleep(0.01)
            workers[lost].send_signal(loss)
            shown = workers[1 - lost].communicate(timeout=60)[1]
        finally:
            for worker in workers:
                worker.kill()
                worker.communicate()
        assert workers[1 - lost].returncode == 1
        message = (
            r"gpt2-tf: error: another worker was lost \(.{5,200}\); read that worker's error, then start all workers "
        )
        assert re.fullmatch(
            rf"{message}again with --init-from resume to continue from the last checkpoint", shown.splitlines()[-1]
        )
        assert "Traceback" not in shown and step <= train.last(out) < 200
    for worker in run(out, "train", "--init-from", "resume"):
        shown = worker.communicate(timeout=300)[1]
        assert worker.returncode == 0, shown
    assert_same_run(out, whole)


@pytest.mark.slow
def test_ctrl_c_ends_the_wait_for_the_others(texts, tmp_path):
    start = runpy.run_path(str(WORKERS))["start"]
    argv = [*command(texts, tmp_path / "out", "windows"), "--strategy", "multi-worker"]
    one, other = start(2, [sys.executable, "-m", "gpt2_tf", *argv], stderr=subprocess.PIPE, text=True)
    other.kill()
    other.communicate()
    assert one.stderr.readline() == "waiting for all 2 workers of TF_CONFIG\n"
    time.sleep(1)
    one.send_signal(signal.SIGINT)
    one.communicate(timeout=10)
    assert one.returncode == -signal.SIGINT


@pytest.mark.parametrize(
    "config",
    [
        None,
        "worker 0",
        '{"cluster": {"worker": ["a:1"]}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 1}}',
        '{"cluster": {"worker": ["a:1"]}, "task": {"type": "chief", "index": 0}}',
        '{"cluster": {"worker": ["a:1"], "ps": ["a:2"]}, "task": {"type": "worker", "index": 0}}',
    ],
)
def test_mistakes_in_tf_config(config, texts, tmp_path, monkeypatch, capfd):
    monkeypatch.delenv("TF_CONFIG", raising=False)
    if config is not None:
        monkeypatch.setenv("TF_CONFIG", config)
    assert main([*command(texts, tmp_path / "out", "windows"), "--strategy", "multi-worker"]) == 1
    shown = capfd.readouterr().err
    assert shown.splitlines()[-1] == (
        f"gpt2-tf: error: TF_CONFIG is {config or 'not set'}, but must list the workers and say which of them this "
        "process is, for example "
        '{"cluster": {"worker": ["HOST:PORT", "HOST:PORT"]}, "task": {"type": "worker", "index": 0}}'
    )
    assert not (tmp_path / "out").exists()
