"""`--step` chooses one of a folder's checkpoints, in every command that reads weights."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from oracles.command_line import assert_error

import gpt2_tf


@pytest.fixture(scope="module")
def run_folder(tiny_folder, tmp_path_factory) -> Path:
    """A folder with model-1, whose weights are all 0, and model-2, without the file `checkpoint`, as after its loss."""
    folder = Path(shutil.copytree(tiny_folder, tmp_path_factory.mktemp("steps") / "run"))
    model, _ = gpt2_tf.load(tiny_folder)
    for path in folder.glob("model.ckpt.*"):
        path.unlink()
    model.save_checkpoint(folder, step=2)
    for weight in model.weights:
        weight.assign(np.zeros(weight.shape))
    model.save_checkpoint(folder, step=1)
    (folder / "checkpoint").unlink()
    return folder


def test_a_lost_pointer_is_answered_with_the_flag(cli, run_folder):
    for command in (["info"], ["generate", "x"]):
        ran = cli(*command, "--model", run_folder)
        assert_error(
            ran,
            1,
            "the folder has model-1, model-2; to choose one,",
            "; generate, evaluate, inspect, convert and export also take --step 2",
        )


def test_info(cli, run_folder):
    for step in (1, 2):
        assert f"in model-{step}\n" in cli("info", "--model", run_folder, "--step", step).out.decode()


def test_evaluate(cli, run_folder):
    """Weights of 0 make all tokens equally likely."""
    perplexity = []
    for step in (1, 2):
        ran = cli("evaluate", "perplexity", "-", "--model", run_folder, "--step", step, stdin=b"the then")
        perplexity.append(json.loads(ran.out)["results"]["token_perplexity"])
    n_vocab = gpt2_tf.load(run_folder, step=1)[0].hparams.n_vocab
    assert perplexity[0] == pytest.approx(n_vocab) and perplexity[1] != pytest.approx(n_vocab)


@pytest.mark.slow
def test_generate_and_its_journal(cli, run_folder, tmp_path):
    command = ["generate", "the", "--model", run_folder, "--temperature", 0, "--length", 4, "--json"]
    logprobs = [json.loads(cli(*command, "--step", step).out)["logprobs"] for step in (1, 2)]
    assert logprobs[0] != logprobs[1]
    # A journal of one step is refused for another.
    out = tmp_path / "out"
    assert cli(*command, "--step", 1, "--seed", 0, "--out", out).status == 0
    out.rename(f"{out}.part")
    assert cli(*command, "--step", 2, "--seed", 0, "--out", out).status == 1


def test_convert(cli, run_folder, tmp_path):
    assert cli("convert", run_folder, tmp_path / "hf", "--to", "hf", "--step", 1).status == 0
    assert not any(np.any(weight) for weight in gpt2_tf.load(tmp_path / "hf")[0].weights)
    assert_error(
        cli("convert", tmp_path / "hf", tmp_path / "x", "--step", 1), 1, "so it has no steps; leave out --step"
    )
    assert_error(cli("info", "--model", tmp_path / "hf", "--step", 1), 1, "has no steps; leave out --step")


def test_a_missing_step_is_named(cli, run_folder):
    assert_error(cli("info", "--model", run_folder, "--step", 3), 1, "model-3.index is missing", "model-1, model-2")


def test_export_and_interactive(cli, run_folder, monkeypatch, tmp_path):
    from gpt2_tf.cli import interactive
    from gpt2_tf.serving import saved_model

    models = []
    monkeypatch.setattr(saved_model, "export", lambda model, *_, **__: models.append(model))
    monkeypatch.setattr(interactive, "answer_lines", lambda session: models.append(session.model))
    assert cli("export", tmp_path, "--model", run_folder, "--step", 1).status == 0
    assert cli("interactive", "--model", run_folder, "--step", 1, "--engine", "tensorflow").status == 0
    assert len(models) == 2 and not any(np.any(weight) for model in models for weight in model.weights)
