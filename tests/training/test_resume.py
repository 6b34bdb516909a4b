"""A run that was stopped, crashed or was killed resumes exactly: as if it had never stopped."""

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
from oracles.training_runs import (
    NEW_RUN,
    SETTINGS,
    CallAt,
    Crash,
    assert_same_run,
    crash,
    press_ctrl_c,
    read_log,
    resume_run,
    start_adapter_run,
    start_run,
    to_flags,
)

from gpt2_tf import GPT2
from gpt2_tf.cli.main import main
from gpt2_tf.data.corpus import RUN_FILE
from gpt2_tf.files.lock import folder_lock
from gpt2_tf.training.optimizer import adamw
from gpt2_tf.training.run_folder import find_checkpoint, latest_step
from gpt2_tf.training.train import run_training


@pytest.mark.slow
@pytest.mark.parametrize(("step", "saved"), [(2, 0), (10, 8)])
def test_a_crashed_run_resumes_exactly(text, finished_run, tmp_path, step, saved):
    """Crashed before its first checkpoint, and two steps after its second."""
    with pytest.raises(Crash):
        start_run(text, tmp_path / "out", CallAt(step, crash))
    assert latest_step(tmp_path / "out") == saved
    resume_run(tmp_path / "out")
    assert_same_run(tmp_path / "out", finished_run)


@pytest.mark.slow
@pytest.mark.parametrize(("step", "saved"), [(2, 0), (10, 8)])
def test_a_crashed_adapter_run_resumes_exactly(text, finished_adapter_run, tiny_folder, tmp_path, step, saved):
    """Crashed before its first checkpoint, when a resume draws the same adapters again, and after its second."""
    out = tmp_path / "out"
    with pytest.raises(Crash):
        start_adapter_run(text, out, tiny_folder, CallAt(step, crash))
    assert latest_step(out) == saved
    resume_run(out)
    assert_same_run(out, finished_adapter_run)
    for folder in (".", "best"):
        name = f"{folder}/adapters/adapter_model.safetensors"
        assert (out / name).read_bytes() == (finished_adapter_run / name).read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize(("eval_every", "step"), [(4, 12), (7, 20)])
def test_a_missed_evaluation_is_done_by_the_resume(text, tmp_path, eval_every, step):
    """Crashed between the save and the evaluation of the same step, once in the middle and once at the end."""
    settings = {"eval_every": eval_every, "patience": 50}
    start_run(text, tmp_path / "whole", **settings)
    with pytest.raises(Crash):
        start_run(text, tmp_path / "out", CallAt(step, crash, in_evaluation=True), **settings)
    assert latest_step(tmp_path / "out") == step
    resume_run(tmp_path / "out")
    assert_same_run(tmp_path / "out", tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_saves_the_step_that_was_reached(text, finished_run, tmp_path):
    """During a step, and during an evaluation."""
    with pytest.raises(KeyboardInterrupt):
        start_run(text, tmp_path / "out", CallAt(6, press_ctrl_c))
    assert latest_step(tmp_path / "out") == 6
    with pytest.raises(KeyboardInterrupt):
        resume_run(tmp_path / "out", CallAt(10, press_ctrl_c, in_evaluation=True))
    assert latest_step(tmp_path / "out") == 10
    resume_run(tmp_path / "out")
    assert_same_run(tmp_path / "out", finished_run)


@pytest.mark.slow
def test_log_rows_of_repeated_steps_are_replaced(text, tmp_path):
    """The checkpoint is of step 12, so the resume repeats step 15; its old row stays until the new one is there."""

    def steps():
        return [row["step"] for row in read_log(tmp_path / "out")]

    with pytest.raises(Crash):
        start_run(text, tmp_path / "out", CallAt(19, crash), save_every=12)
    assert steps() == ["5", "10", "15"]
    with pytest.raises(Crash):
        resume_run(tmp_path / "out", CallAt(15, crash, in_evaluation=True))
    assert steps() == ["5", "10", "15"]
    resume_run(tmp_path / "out")
    assert steps() == ["5", "10", "15", "20"]


def test_resuming_a_finished_run_changes_nothing(finished_run, tmp_path):
    """Also in another place: the folder holds its own training tokens."""
    out = Path(shutil.copytree(finished_run, tmp_path / "moved"))
    resume_run(out)
    assert_same_run(out, finished_run)


class RecordRates(keras.callbacks.Callback):
    """Keeps the learning rate of each step."""

    def on_train_begin(self, logs=None):
        self.rates = {}

    def on_train_batch_end(self, batch, logs=None):
        self.rates[int(self.model.optimizer.iterations)] = float(self.model.optimizer.learning_rate)


@pytest.mark.slow
def test_a_finished_run_can_be_made_longer(finished_run, tmp_path):
    """From then on the learning rate follows the schedule of 30 steps, also when that run is stopped and resumed."""
    out, recorder = Path(shutil.copytree(finished_run, tmp_path / "out")), RecordRates()
    run_training([], out, init_from="resume", steps=30, extra_callbacks=[recorder])
    schedule = adamw(1e-3, 30, warmup_steps=3)._learning_rate
    assert recorder.rates == pytest.approx({step: float(schedule(step)) for step in range(21, 31)}, rel=1e-6)
    assert [int(row["step"]) for row in read_log(out)] == [5, 10, 15, 20, 25, 30] and latest_step(out) == 30

    again = Path(shutil.copytree(finished_run, tmp_path / "again"))
    with pytest.raises(Crash):
        run_training([], again, init_from="resume", steps=30, extra_callbacks=[CallAt(26, crash)])
    resume_run(again)
    assert_same_run(again, out)


# Killed

# Reads lines of tab-separated arguments, runs `gpt2-tf train` in a fork for each, and prints its exit status. The fork
# is killed after `seconds`, or `late` seconds after its checkpoint of `step` is there.
FORK_SERVER = """
import os, signal, sys, time
import gpt2_tf
gpt2_tf.GPT2
from gpt2_tf.cli.main import main
from gpt2_tf.training.run_folder import latest_step
for line in sys.stdin:
    out, seconds, step, late, *argv = line[:-1].split("\\t")
    child = os.fork()
    if not child:
        os.dup2(2, 1)
        os._exit(main(["train", "--out", out, *argv]))
    end = time.monotonic() + float(seconds)
    while not (ended := os.waitpid(child, os.WNOHANG))[0] and time.monotonic() < end:
        if (latest_step(out) or 0) >= int(step):
            end = min(end, time.monotonic() + float(late))
        time.sleep(0.001)
    if not ended[0]:
        os.kill(child, signal.SIGKILL)
        ended = os.waitpid(child, 0)
    print(os.waitstatus_to_exitcode(ended[1]), flush=True)
"""


@pytest.fixture
def train_and_kill():
    """A function that runs `gpt2-tf train` in another process, kills it, and gives its exit status."""
    with subprocess.Popen([sys.executable, "-c", FORK_SERVER], stdin=-1, stdout=-1, text=True) as process:

        def run(out, *argv, seconds=300.0, step=10**9, late=0.0):
            process.stdin.write("\t".join(map(str, [out, seconds, step, late, *argv])) + "\n")
            process.stdin.flush()
            return int(process.stdout.readline())

        yield run
        process.kill()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
def test_a_run_killed_at_random_moments_resumes_exactly(train_and_kill, text, tiny_folder, tmp_path, adapters):
    """Each step writes a checkpoint, so many of the kills come while one is written; two come as the run starts."""
    of_adapters = to_flags(init_from=tiny_folder, lora_rank=2, window=16, **SETTINGS)
    new_run = [text, *(of_adapters if adapters else NEW_RUN), *to_flags(steps=100, eval_every=7, save_every=1)]
    assert train_and_kill(tmp_path / "whole", *new_run) == 0
    out, seed = tmp_path / "out", random.SystemRandom().randrange(10**6)
    rng = random.Random(seed)
    kills = [{"seconds": rng.uniform(0.1, 3)} for _ in range(2)]
    kills += [{"step": step, "late": rng.uniform(0, 0.1)} for step in sorted(rng.sample(range(1, 90), 4))]
    reached = []
    for kill in kills:
        argv = ["--init-from", "resume"] if (out / RUN_FILE).exists() else new_run
        assert train_and_kill(out, *argv, **kill) == -signal.SIGKILL, seed
        if (out / RUN_FILE).exists():
            GPT2.from_checkpoint(out)  # loads at any moment
            reached.append(latest_step(out))
    print("seed", seed, "killed at", reached)
    assert reached == sorted(reached) and reached[-1] < 100
    assert train_and_kill(out, "--init-from", "resume") == 0
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.slow
def test_ctrl_c_in_a_terminal_says_how_to_resume(text, tmp_path):
    out = tmp_path / "my run"
    command = [sys.executable, "-m", "gpt2_tf", "train", text, "--out", out, *NEW_RUN]
    command += to_flags(steps=300, save_every=250, eval_every=25)
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            while not (out / "log.csv").exists() and process.poll() is None:
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            printed, shown = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, printed) == (130, ""), shown
    hint = f"gpt2-tf: interrupted; `gpt2-tf train --out '{out}' --init-from resume` resumes the run"
    assert shown.splitlines()[-1] == hint and "Traceback" not in shown
    assert 25 <= latest_step(out) < 250
    start_run(text, tmp_path / "whole", steps=300, save_every=250, eval_every=25)
    resume_run(out)
    assert_same_run(out, tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on the size of files")
def test_a_full_disk_leaves_the_last_checkpoint_complete(text, finished_run, tmp_path):
    """A limit on the size of files acts as a full disk: the model's file fits under it, the optimizer's does not."""
    import resource

    out = tmp_path / "out"
    with pytest.raises(Crash):
        start_run(text, out, CallAt(6, crash))

    before = {path: path.read_bytes() for path in out.iterdir() if path.is_file()}
    before = {path: content for path, content in before.items() if path.suffix not in (".csv", ".png")}
    sizes = [(out / f"{name}-4.data-00000-of-00001").stat().st_size for name in ("model", "optimizer")]
    limit = sum(sizes) // 2
    assert sizes[0] < limit < sizes[1]
    run = subprocess.run(
        [sys.executable, "-m", "gpt2_tf", "train", "--out", out, "--init-from", "resume"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        env={**os.environ, "MPLBACKEND": "agg"},
    )
    assert run.returncode == 1 and "Traceback" not in run.stderr
    last_line = run.stderr.splitlines()[-1]
    assert last_line.startswith(f"gpt2-tf: error: {out / 'optimizer-8'} could not be written: "), run.stderr
    assert {path: path.read_bytes() for path in before} == before
    assert not list(out.glob(".part-*"))
    resume_run(out)
    assert_same_run(out, finished_run)


# Renamed


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows renames no folder that is in use")
@pytest.mark.parametrize("in_evaluation", [False, True], ids=["step", "evaluation"])
def test_a_run_whose_folder_is_renamed_ends_with_its_work_there(text, finished_run, tmp_path, in_evaluation):
    """No second folder appears. On Linux the step that was reached is saved in the renamed folder."""
    out, renamed = tmp_path / "out", tmp_path / "renamed"
    rename = CallAt(10, lambda model: out.rename(renamed), in_evaluation=in_evaluation)
    with pytest.raises(FileNotFoundError, match=f"^{out} was renamed or removed while the run trains"):
        start_run(text, out, rename)
    assert not out.exists()
    assert latest_step(renamed) == (10 if sys.platform == "linux" else 8)
    resume_run(renamed)
    assert_same_run(renamed, finished_run)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="Windows removes no folder that is in use")
def test_a_run_whose_folder_is_removed_ends(text, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match=f"^{out} was renamed or removed while the run trains"):
        start_run(text, out, CallAt(6, lambda model: shutil.rmtree(out)))
    assert not out.exists()


# A checkpoint that is hard to find


@pytest.mark.slow
@pytest.mark.parametrize("adapters", [False, True], ids=["weights", "adapters"])
@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (None, "is missing"),
        (b"", "names no checkpoint that is there"),
        (b"\0" * 80, "names no checkpoint that is there"),
        (b'model_checkpoint_path: "model-99"\n', "names no checkpoint that is there"),
    ],
    ids=["missing", "empty", "zeros", "other"],
)
def test_the_newest_checkpoint_is_found_without_its_pointer(request, tmp_path, capsys, content, fault, adapters):
    run = request.getfixturevalue("finished_adapter_run" if adapters else "finished_run")
    out = Path(shutil.copytree(run, tmp_path / "out"))
    pointer = out / "checkpoint"
    pointer.unlink() if content is None else pointer.write_bytes(content)
    capsys.readouterr()  # drop the output of the run itself, where this test is the first to ask for the run
    resume_run(out)
    notice = f"{pointer} {fault}; using step 20, the newest complete checkpoint\n"
    assert capsys.readouterr().err.startswith(notice)
    assert_same_run(out, run)


def test_the_newest_checkpoint_is_used_though_an_older_one_is_named(finished_run, tmp_path, capsys):
    """As when a kill comes between the last file of a step and the file that names it."""
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    for path in finished_run.glob("*-20.*"):
        shutil.copy(path, out / path.name.replace("-20.", "-16."))
    (out / "checkpoint").write_text('model_checkpoint_path: "model-16"\n')
    assert find_checkpoint(out) == 20
    expected = f"{out / 'checkpoint'} names step 16; using step 20, the newest complete checkpoint\n"
    assert capsys.readouterr().err == expected
    assert_same_run(out, finished_run)  # with the older step removed


def test_an_older_complete_checkpoint_is_used_when_the_newest_is_damaged(finished_run, tmp_path, capsys):
    """The damaged files stay."""
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    for path in finished_run.glob("*-20.*"):
        shutil.copy(path, out / path.name.replace("-20.", "-16."))
    (out / "optimizer-20.index").unlink()
    assert find_checkpoint(out) == 16 == latest_step(out)
    assert capsys.readouterr().err == (
        f"{out / 'checkpoint'} names step 20; using step 16, the newest complete checkpoint\n"
    )
    assert (out / "model-20.index").exists()


@pytest.mark.parametrize("lost", ["model-20.index", "model-20.data-00000-of-00001", "optimizer-20.index"])
@pytest.mark.parametrize("damage", ["lost", "cut"])
def test_without_a_complete_checkpoint_nothing_is_changed(error_of, finished_run, tmp_path, lost, damage):
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    (out / "checkpoint").unlink()
    if damage == "lost":
        (out / lost).unlink()
    else:
        (out / lost).write_bytes((out / lost).read_bytes()[:-1])
    before = sorted(out.rglob("*"))
    shown = error_of("--out", out, "--init-from", "resume")
    assert shown.startswith(f"{out} holds no complete checkpoint: {out / lost}")
    assert "Found model-20." in shown or "Found optimizer-20." in shown
    assert shown.endswith("Restore the missing files from a backup, or start another run")
    assert sorted(out.rglob("*")) == before


def test_a_run_without_any_checkpoint_file_is_named(error_of, finished_run, tmp_path):
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    for path in [out / "checkpoint", *out.glob("*-20.*")]:
        path.unlink()
    assert error_of("--out", out, "--init-from", "resume").startswith(f"{out} holds no checkpoint to resume from")


# Refused


@pytest.fixture
def error_of(capfd):
    """A function that runs `gpt2-tf train`, which must fail, and gives the text of its error."""

    def run(*argv):
        assert main(["train", *map(str, argv)]) == 1
        shown = capfd.readouterr().err
        assert "Traceback" not in shown
        return shown.splitlines()[-1].removeprefix("gpt2-tf: error: ")

    return run


def test_there_must_be_a_run_to_resume(error_of, tmp_path):
    out = tmp_path / "new"
    expected = f"{out} holds no run to resume: {out / 'run.json'} is missing"
    assert error_of("--out", out, "--init-from", "resume") == expected


def test_a_resumed_run_keeps_its_arguments(error_of, text, finished_run):
    """Every argument that differs is named."""
    resume = ["--out", finished_run, "--init-from", "resume"]
    keeps = f"the run in {finished_run} keeps the arguments that it started with"
    assert error_of(*resume, "--steps", "19") == (
        f"{keeps}: steps is 19, but the run has 20. Leave steps out, or start another run"
    )
    assert error_of(*resume, "--steps", "30", "--window", "9", "--n-layer", "2", "--vocab-size", "300") == (
        f"{keeps}: vocab_size is 300, but the run has chars; n_layer is 2, but the run has 1; window is 9, but the run "
        "has 16. Leave vocab_size, n_layer, window out, or start another run"
    )
    other = Path("other.txt").absolute()
    assert error_of(*resume, "other.txt", "--column", "said").startswith(
        f"{keeps}: files is {other}, but the run has {text}; column is said, but the run has none. Leave files, column"
    )
    assert error_of(*resume, "--val-file", "nowhere.txt").startswith(f"{keeps}: val_files is ")
    assert json.loads((finished_run / "run.json").read_text())["steps"] == 20


@pytest.mark.slow
def test_the_first_command_resumes_with_init_from_changed(text, finished_run, tmp_path, monkeypatch, capfd):
    """As when a person repeats the last command and only types `resume`; here from another folder, by another path."""
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    monkeypatch.chdir(text.parent)
    arguments = [*NEW_RUN, "--init-from", "resume", "--steps", "22", "--eval-every", "5"]
    assert main(["train", text.name, "--out", str(out), *arguments]) == 0
    assert latest_step(out) == 22 and "have changed" not in capfd.readouterr().err


@pytest.mark.slow
def test_changed_text_files_are_reported(finished_run, tmp_path, capfd):
    """The run keeps its tokens, so it also resumes when the file is gone."""
    text = tmp_path / "text.txt"
    text.write_text("The fox said so, and so said the hen.\n" * 20)
    with pytest.raises(Crash):
        start_run(text, tmp_path / "out", CallAt(5, crash))
    notice = "the text files have changed; the run keeps the tokens that it started with"
    for change in (lambda: text.write_text("Another text."), text.unlink):
        change()
        with pytest.raises(Crash):
            run_training([text], tmp_path / "out", init_from="resume", extra_callbacks=[CallAt(5, crash)])
        assert notice in capfd.readouterr().err


def test_a_damaged_run_is_named(error_of, finished_run, tmp_path):
    out = Path(shutil.copytree(finished_run, tmp_path / "broken"))
    resume = ["--out", out, "--init-from", "resume"]
    state = out / "optimizer-20.data-00000-of-00001"
    state.write_bytes(b"")
    assert error_of(*resume).startswith(f"{out} holds no complete checkpoint: {state} has 0 bytes, but ")
    (out / "run.json").write_text("{}")
    assert error_of(*resume).startswith(f"{out / 'run.json'} is damaged")


def test_changed_training_tokens_are_refused(error_of, finished_run, tmp_path):
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    ids = np.fromfile(out / "data/train.bin", np.uint16)
    ids[:2] = ids[1::-1]
    ids.tofile(out / "data/train.bin")
    changed = f"{out / 'data'} has other tokens than when the run in {out} started; start another run on them"
    assert error_of("--out", out, "--init-from", "resume") == changed


def test_a_second_process_is_refused(error_of, finished_run, tmp_path):
    out = Path(shutil.copytree(finished_run, tmp_path / "out"))
    with folder_lock(out):
        shown = error_of("--out", out, "--init-from", "resume")
    assert shown.startswith(f"{out} is being written by another process; wait")
