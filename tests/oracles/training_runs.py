"""Tiny training runs for the tests: how to start, stop, resume and compare them."""

import csv

import keras

from gpt2_tf.training.run_folder import latest_step, steps_taken
from gpt2_tf.training.train import run_training

TEXT = "".join(f"{i} times {i % 7} is {i * (i % 7)}, said the fox.\n" for i in range(100))
SHAPE = {"n_layer": 1, "n_head": 2, "n_embd": 16, "n_ctx": 16}
SETTINGS = {
    "steps": 20,
    "batch_size": 4,
    "warmup_steps": 3,
    "dropout": 0.1,
    "grad_accumulation": 2,
    "eval_every": 5,
    "save_every": 4,
    "sample_every": 1000,
}


def to_flags(**values) -> list[str]:
    """Command-line flags of the values: `save_every=4` becomes `--save-every 4`."""
    return [word for name, value in values.items() for word in (f"--{name.replace('_', '-')}", str(value))]


NEW_RUN = to_flags(init_from="scratch", vocab_size="chars", **SHAPE, **SETTINGS)


class CallAt(keras.callbacks.Callback):
    """Call `action(model)` after a step, or when the evaluation after that step begins."""

    def __init__(self, step, action, in_evaluation=False):
        super().__init__()
        self.step, self.action, self.in_evaluation = step, action, in_evaluation

    def on_train_batch_end(self, batch, logs=None):
        if not self.in_evaluation and steps_taken(self.model) == self.step:
            self.action(self.model)

    def on_test_begin(self, logs=None):
        if self.in_evaluation and steps_taken(self.model) == self.step:
            self.action(self.model)


class Crash(Exception):
    """An error that no code of the project handles, so nothing is saved after it."""


def crash(model):
    raise Crash


def press_ctrl_c(model):
    raise KeyboardInterrupt


def start_run(text, out, *extra_callbacks, **settings):
    """Start a run with new weights. `SETTINGS` apply unless others are given."""
    run_training(
        [text],
        out,
        init_from="scratch",
        vocab_size="chars",
        model_shape=SHAPE,
        extra_callbacks=extra_callbacks,
        **{**SETTINGS, **settings},
    )


def start_adapter_run(text, out, folder, *extra_callbacks, **settings):
    """Start a run that trains adapters beside the weights in a folder."""
    settings = {**SETTINGS, "window": 16, "lora_rank": 2, "learning_rate": 1e-2, **settings}
    run_training([text], out, init_from=folder, extra_callbacks=extra_callbacks, **settings)


def resume_run(out, *extra_callbacks):
    run_training([], out, init_from="resume", extra_callbacks=extra_callbacks)


def read_log(out) -> list[dict[str, str]]:
    """The rows of a run's log."""
    with open(out / "log.csv", newline="") as file:
        return list(csv.DictReader(file))


def assert_same_run(out, expected):
    """Two runs are equal bit for bit: the weights, the state that a resume needs, and the best weights."""
    assert latest_step(out) == latest_step(expected)
    names = sorted(path.name for path in expected.glob("*-*.*"))
    assert sorted(path.name for path in out.glob("*-*.*")) == names and len(names) == 4
    for name in (*names, "best/model.ckpt.data-00000-of-00001"):
        assert (out / name).read_bytes() == (expected / name).read_bytes(), name
    losses, expected_losses = ([(row["step"], row["val_loss"]) for row in read_log(run)] for run in (out, expected))
    assert losses == expected_losses
