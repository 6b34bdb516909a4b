"""`gpt2-tf export`: its flags reach the export."""

import pytest
from oracles.command_line import assert_error, text_of

import gpt2_tf


def test_given_flags_reach_the_export(cli, tiny_folder, loaded, monkeypatch, tmp_path):
    from gpt2_tf.serving import saved_model

    asked = []
    monkeypatch.setattr(saved_model, "export", lambda *args, **kwargs: asked.append((args, kwargs)) or tmp_path / "1")
    settings = {"length": 3, "max_length": 9, "max_batch": 2, "temperature": 0.5, "top_k": 4, "top_p": 0.5, "seed": -1}
    flags = [word for name, value in settings.items() for word in (f"--{name.replace('_', '-')}", value)]
    ran = cli("export", "--model", tiny_folder, tmp_path, *flags, "--dtype", "bfloat16", "--check")
    assert (ran.status, text_of(ran), ran.err) == (0, str(tmp_path / "1"), "")
    cli("export", "--model", tiny_folder, tmp_path)
    assert asked == [
        ((*loaded, str(tmp_path)), {**settings, "dtype": "bfloat16", "check": True}),
        ((*loaded, str(tmp_path)), {"check": False}),
    ]


@pytest.mark.slow
def test_tensorflow_alone_runs_the_export(cli, tiny_folder, loaded, tmp_path):
    import tensorflow as tf

    ran = cli("export", "--model", tiny_folder, tmp_path / "out", "--length", 5, "--temperature", 0, "--check")
    assert (ran.status, ran.out.decode()) == (0, f"{tmp_path / 'out' / '1'}\n")
    assert ran.err.startswith("gpt2-tf: checked: ") and ran.err.count("\n") == 1
    (completion,) = gpt2_tf.generate(*loaded, "The quick", length=5, temperature=0)
    (text,) = (
        tf.saved_model.load(tmp_path / "out" / "1")
        .signatures["serving_default"](tf.constant(["The quick"]))["text"]
        .numpy()
    )
    assert text.decode() == completion.text


def test_max_length_beyond_the_window_is_refused(cli, tiny_folder, loaded, tmp_path):
    ran = cli("export", "--model", tiny_folder, tmp_path / "out", "--max-length", 33)
    assert_error(ran, 1, "max_length is 33, but must be 1 to 32")
    assert not (tmp_path / "out").exists()
