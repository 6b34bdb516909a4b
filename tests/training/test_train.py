"""What a run leaves in its folder, what it starts from, and how its mistakes are reported."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from oracles.training_runs import (
    NEW_RUN,
    SETTINGS,
    SHAPE,
    TEXT,
    CallAt,
    Crash,
    crash,
    read_log,
    resume_run,
    start_adapter_run,
    start_run,
    to_flags,
)

from encoder import Encoder
from gpt2_tf import GPT2, HParams, generate, load
from gpt2_tf.cli.main import main
from gpt2_tf.data.dataset import windows
from gpt2_tf.data.prepare import prepare
from gpt2_tf.data.prepared import load_prepared
from gpt2_tf.training.run_folder import latest_step
from gpt2_tf.training.settings import TrainingSettings
from gpt2_tf.training.train import run_training

# What a run leaves


def test_the_folder_loads_as_a_model_that_has_learned(finished_run):
    """Its loss is at least 0.1 below that of a uniform guess."""
    model, enc = load(finished_run)
    assert enc.n_vocab == model.hparams.n_vocab and model.hparams.to_dict().items() >= SHAPE.items()
    ids = enc.encode(TEXT[:17])
    logits = model(np.array([ids[:-1]])).numpy()[0]
    losses = np.log(np.exp(logits).sum(-1)) - logits[np.arange(16), ids[1:]]
    assert losses.mean() < np.log(enc.n_vocab) - 0.1
    assert json.loads((finished_run / "hparams.json").read_text()).keys() == HParams.from_size("124M").to_dict().keys()
    assert load(finished_run / "best")[1].encode("fox") == enc.encode("fox")


@pytest.mark.slow
def test_generate_takes_the_folder_of_a_run(text, tmp_path, capfd):
    out = str(tmp_path / "out")
    assert main(["train", str(text), "--out", out, *NEW_RUN, *to_flags(steps=4, eval_every=4)]) == 0
    assert capfd.readouterr().err.splitlines()[-1] == (
        f"gpt2-tf: done; `gpt2-tf generate --model {out}` samples from the trained model"
    )
    for folder in (out, f"{out}/best"):
        flags = ["--length", "5", "--seed", "1", "--json", "--engine", "tensorflow"]
        assert main(["generate", "12 times", "--model", folder, *flags]) == 0
        completion = json.loads(capfd.readouterr().out)
        model, enc = load(folder)
        assert completion == generate(model, enc, "12 times", length=5, seed=1)[0]._asdict()
        assert set(completion["text"]) <= set(TEXT)


def test_the_checkpoint_holds_the_weights_alone(finished_run):
    """The optimizer's state is in files of its own, so TensorFlow and OpenAI's code load the checkpoint."""
    names = {path.name for path in finished_run.iterdir()}
    assert names >= {"model-20.index", "optimizer-20.index", "checkpoint", "counter", "encoder.json", "vocab.bpe"}
    reader = tf.train.load_checkpoint(str(finished_run / "model-20"))
    assert set(reader.get_variable_to_shape_map()) == set(load(finished_run)[0].named_weights())
    assert tf.train.latest_checkpoint(finished_run) == str(finished_run / "model-20")


def test_the_log_has_one_row_per_evaluation(finished_run):
    log = read_log(finished_run)
    assert [int(row["step"]) for row in log] == [5, 10, 15, 20]
    assert float(log[-1]["val_loss"]) < float(log[0]["val_loss"]) < 5
    for row in log:
        assert float(row["tokens_per_second"]) > 0 and 0 < float(row["of_peak"]) < 1


def test_the_losses_are_plotted(finished_run):
    pytest.importorskip("matplotlib", reason="matplotlib is in the extra [plot]")
    assert (finished_run / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_best_has_the_lowest_val_loss_and_patience_stops_the_run(text, tmp_path, capsys):
    """The learning rate is so high that the loss rises again."""
    out = tmp_path / "out"
    start_run(text, out, steps=400, eval_every=4, learning_rate=0.3, warmup_steps=2, patience=2)
    log = read_log(out)
    losses = [float(row["val_loss"]) for row in log]
    assert len(log) < 100 and losses.index(min(losses)) == len(losses) - 3
    assert "stopped: no lower val_loss in 2 evaluations" in capsys.readouterr().err
    assert val_loss(GPT2.from_checkpoint(out / "best"), out) == pytest.approx(min(losses), rel=1e-5)
    resume_run(out)  # changes nothing: the run has ended
    assert read_log(out) == log


def val_loss(model, out):
    """The model's loss on the validation tokens of a run. 1e-5 relative: the log has six digits."""
    model.compile()
    return model.evaluate(windows(load_prepared(out / "data").val, 16, 4), verbose=0)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_documents_and_samples(text, tmp_path, precision, capsys):
    """The weights stay float32. Samples are shown and kept at their steps."""
    out = tmp_path / "out"
    start_run(text, out, precision=precision, documents=True, remat=True, sample_every=10, grad_accumulation=1)
    assert float(read_log(out)[-1]["loss"]) < float(read_log(out)[0]["loss"])
    assert {weight.dtype for weight in load(out)[0].weights} == {"float32"}
    shown = capsys.readouterr().err
    samples = (out / "samples.txt").read_text("utf-8")
    assert samples.count("--- step") == 2 and "--- step 10\n" in samples and "--- step 20\n" in shown


@pytest.mark.slow
def test_a_text_shorter_than_a_window_trains(tmp_path):
    (tmp_path / "text.txt").write_text("short, yet")
    start_run(tmp_path / "text.txt", tmp_path / "out", val_fraction=0, eval_every=20)
    (row,) = read_log(tmp_path / "out")
    assert float(row["loss"]) < 3 and "val_loss" not in row


@pytest.mark.slow
def test_openais_graph_loads_a_run(shared, tmp_path, text):
    """One step at the size of 124M. 2e-4, as in tests/weights/test_checkpoint.py: float32 sums in another order."""
    official = shared / "data" / "official-117M"
    prepare([text], tmp_path / "data", Encoder.from_folder(official))
    settings = {"steps": 1, "window": 16, "batch_size": 1, "val_fraction": 0.0, "warmup_steps": 0}
    run_training([tmp_path / "data"], tmp_path / "out", init_from="scratch", **settings)
    model, enc = load(tmp_path / "out")
    tokens = np.array([enc.encode(TEXT * 2)[:1024]])
    with tf.Graph().as_default() as graph, tf.compat.v1.Session(graph=graph) as session:
        saver = tf.compat.v1.train.import_meta_graph(str(official / "model.ckpt.meta"), clear_devices=True)
        saver.restore(session, tf.train.latest_checkpoint(str(tmp_path / "out")))
        theirs = session.run("model/MatMul_2:0", {"Placeholder:0": tokens})
    assert np.abs(theirs).max() > 0.5
    np.testing.assert_allclose(model(tokens)[0], theirs, rtol=0, atol=2e-4)


# Adapters


def test_an_adapter_run_leaves_merged_weights_and_the_adapters(finished_adapter_run, tiny_folder):
    """1e-4 of logits of up to 10: the merged weights are rounded to float32."""
    out = finished_adapter_run
    tokens = np.random.default_rng(0).integers(0, 300, [2, 32])
    merged = load(out)[0]
    assert merged.hparams.n_params == sum(int(np.prod(weight.shape)) for weight in merged.weights)
    model = GPT2.from_checkpoint(tiny_folder, lora_rank=2)
    before = model(tokens).numpy()
    model.load_adapters(out / "adapters")
    assert np.abs(before - merged(tokens)).max() > 0.1
    np.testing.assert_allclose(model(tokens), merged(tokens), rtol=0, atol=1e-4)
    for kept, original in zip(load(out / "base")[0].weights, load(tiny_folder)[0].weights, strict=True):
        np.testing.assert_array_equal(kept, original)
    losses = [float(row["val_loss"]) for row in read_log(out)]
    assert losses[-1] < losses[0]
    model.load_adapters(out / "best" / "adapters")
    assert val_loss(model, out) == pytest.approx(min(losses), rel=1e-5)


@pytest.mark.slow
def test_adapters_train_in_bfloat16(text, tiny_folder, tmp_path):
    out = tmp_path / "out"
    start_adapter_run(text, out, tiny_folder, precision="bfloat16", remat=True, documents=True)
    assert float(read_log(out)[-1]["val_loss"]) < float(read_log(out)[0]["val_loss"])
    assert {weight.dtype for weight in load(out)[0].weights} == {"float32"}


# What a run starts from


@pytest.mark.slow
def test_fine_tuning_starts_from_the_models_weights(text, tiny_folder, tmp_path):
    """The learning rate is nearly 0, so the trained weights are the first ones; 1e-29 is more than one step changes."""
    settings = {"steps": 1, "window": 8, "batch_size": 1, "learning_rate": 1e-30, "val_fraction": 0.0}
    run_training([text], tmp_path / "out", init_from=tiny_folder, **settings)
    for trained, original in zip(load(tmp_path / "out")[0].weights, load(tiny_folder)[0].weights, strict=True):
        np.testing.assert_allclose(trained, original, rtol=0, atol=1e-29)
    assert latest_step(tmp_path / "out") == 1


@pytest.mark.slow
def test_optimizer_settings_seed_and_validation_files_are_used(text, tmp_path):
    """No other test would fail without them."""
    used = {}

    def note(model):
        used.update(model.optimizer.get_config(), seed=int(model.seeds.state[0]))
        raise Crash

    (tmp_path / "val.txt").write_text(TEXT[:300])
    settings = {"weight_decay": 0.3, "clip_norm": 0.7, "seed": 5, "warmup_steps": 0, "learning_rate": 0.02}
    val_files = {"val_files": [tmp_path / "val.txt"]}
    with pytest.raises(Crash):
        start_run(text, tmp_path / "out", CallAt(2, note), read_options=val_files, **settings)
    assert (used["weight_decay"], used["global_clipnorm"], used["seed"]) == (0.3, 0.7, 5)
    assert used["learning_rate"]["config"]["initial_learning_rate"] == 0.02
    assert len(np.fromfile(tmp_path / "out/data/val.bin", np.uint16)) == 301


@pytest.mark.slow
def test_a_run_may_be_in_the_folder_of_its_prepared_tokens(text, tmp_path):
    folder = tmp_path / "both"
    prepare([text], folder, "chars")
    with pytest.raises(Crash):
        run_training(
            [folder], folder, init_from="scratch", model_shape=SHAPE, extra_callbacks=[CallAt(10, crash)], **SETTINGS
        )
    resume_run(folder)
    assert latest_step(folder) == 20


# Mistakes


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "there are no FILES to train on; give text files, globs or folders"),
        (["TEXT", "--window", "17"], "window is 17, but the model reads at most n_ctx 16 tokens"),
        (["TEXT", "--grad-accumulation", "3"], "batch_size 4 can't be divided into grad_accumulation 3 equal parts"),
        (["TEXT", "--dropout", "1"], "dropout is 1.0, but must be at least 0 and below 1"),
        (["TEXT", "--patience", "2", "--val-fraction", "0"], "patience needs a validation loss, but there are no"),
        (["TEXT", "--warmup-steps", "20"], "warmup_steps is 20, but must be at least 0 and less than steps, 20"),
        (["TEXT", "--n-head", "3"], "n_embd 16 can't be divided among n_head 3 heads"),
        (["nowhere.txt"], "nowhere.txt: no such file"),
        (["TEXT", "--val-file", "nowhere.txt"], "nowhere.txt: no such file"),
        (["TEXT", "--val-fraction", "0.0004"], "there is 1 token to validate on, but at least 2 are needed; give more"),
        (
            ["TEXT", "--init-from", "nothing"],
            "vocab_size, n_layer, n_head, n_embd, n_ctx can be chosen for new weights",
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistakes_are_one_line_and_leave_no_model(text, tmp_path, monkeypatch, capfd, argv, message):
    monkeypatch.chdir(tmp_path)
    argv = [str(text) if word == "TEXT" else word for word in argv]
    assert main(["train", "--out", "out", *NEW_RUN, *argv]) == 1
    printed, shown = capfd.readouterr()
    assert printed == "" and shown.splitlines()[-1].startswith(f"gpt2-tf: error: {message}"), shown
    assert not Path("out/run.json").exists() and not Path("out/model-0.index").exists()


def test_a_new_run_overwrites_no_run_and_no_model(text, finished_run, tiny_folder, tmp_path):
    with pytest.raises(FileExistsError, match="holds a run; resume it with `--init-from resume`, or give another"):
        start_run(text, finished_run)
    model = shutil.copytree(tiny_folder, tmp_path / "model")
    would_be_lost = re.escape(f"{model} holds a model, model.ckpt.") + ".*, which would be lost; give another --out"
    with pytest.raises(FileExistsError, match=would_be_lost):
        run_training([text], model, init_from=model)
    assert GPT2.from_checkpoint(model)
    (model / "checkpoint").unlink()  # the weights alone are a model too
    with pytest.raises(FileExistsError, match=would_be_lost):
        start_run(text, model)
    assert GPT2.from_checkpoint(model)


def test_a_model_with_a_step_is_not_taken_for_a_run(text, tiny_folder, tmp_path):
    """The folders of gpt-2-simple have steps too."""
    GPT2.from_checkpoint(tiny_folder).save_checkpoint(tmp_path / "out", step=0)
    with pytest.raises(FileExistsError, match=r"holds a model, model-0\..*, which would be lost"):
        start_run(text, tmp_path / "out")
    assert GPT2.from_checkpoint(tmp_path / "out")


def test_new_weights_need_a_vocabulary_and_no_adapters(text, tmp_path):
    with pytest.raises(ValueError, match="new weights need a vocabulary; give --vocab-size N or chars, or a prepared"):
        run_training([text], tmp_path / "out", init_from="scratch")
    with pytest.raises(ValueError, match="lora_rank would train adapters beside new weights, which would stay random"):
        start_run(text, tmp_path / "out", lora_rank=2)


def test_validation_files_need_a_fraction_above_0(text, tmp_path):
    with pytest.raises(ValueError, match="val_fraction is 0, for no validation, but validation files are given"):
        start_run(text, tmp_path / "out", read_options={"val_files": [text]}, val_fraction=0.0)


@pytest.mark.parametrize(
    ("name", "value"),
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
        TrainingSettings(**{"learning_rate": 1e-3, "window": 8, "warmup_steps": 0, name: value})


@pytest.mark.parametrize("name", ["lora_rank", "patience", "steps"])
def test_settings_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"^{name} is 0, but must be at least 1"):
        TrainingSettings(**{"learning_rate": 1e-3, "window": 8, "warmup_steps": 0, name: 0})


def test_prepare_does_not_write_into_a_run(text, finished_run, capfd):
    files = {path.name: path.read_bytes() for path in finished_run.iterdir() if path.is_file()}
    assert main(["prepare", str(text), "--vocab-size", "chars", "--out", str(finished_run)]) == 1
    assert "hparams.json that `prepare` has not written; choose another folder" in capfd.readouterr().err
    assert {path.name: path.read_bytes() for path in finished_run.iterdir() if path.is_file()} == files


@pytest.mark.parametrize(
    ("name", "value", "argument"),
    [
        ("--vocab-size", "300", "vocab_size"),
        ("--val-file", "nowhere.txt", "val_files"),
        ("--column", "zz", "column"),
    ],
)
def test_prepared_tokens_leave_no_choice_of_how_to_read_text(text, tmp_path, capfd, name, value, argument):
    folder = str(tmp_path / "ids")
    prepare([text], folder, "chars")
    new = ["--init-from", "scratch", *to_flags(**SHAPE, **SETTINGS), name, value]
    assert main(["train", folder, "--out", str(tmp_path / "out"), *new]) == 1
    shown = capfd.readouterr().err.splitlines()[-1]
    expected = f"{folder} is prepared already, so {argument} can't be chosen; leave {argument} out"
    assert shown == f"gpt2-tf: error: {expected}"
