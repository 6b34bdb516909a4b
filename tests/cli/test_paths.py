"""Every command works in a folder of any name, or refuses before it writes."""

import os
import shutil

import pytest

from gpt2_tf.pretrained import FORMS


@pytest.mark.slow
def test_every_command_in_a_folder_whose_name_has_special_characters(cli, tiny_folder, tmp_path):
    place = tmp_path / "p [x] {c} ~ %s ä'$q"
    shutil.copytree(tiny_folder, place / "model")
    text, model = place / "text [1].txt", ["--model", place / "model"]
    text.write_text("the text then " * 99)

    def run(*command) -> None:
        ran = cli(*command)
        assert ran.status == 0, (command, ran.err)

    run("info", *model)
    run("encode", "the", *model)
    run("generate", "the", *model, "--length", 2, "--out", place / "samples [1]", "--seed", 0)
    run("evaluate", "perplexity", text, *model, "--out", place / "report [1]")
    run("prepare", text, "--out", place / "data", *model)
    settings = ["--init-from", place / "model", "--batch-size", 2, "--window", 8]
    run("train", place / "data", "--out", place / "run", *settings, "--steps", 1)
    run("train", place / "*.txt", "--out", place / "lora", *settings, "--steps", 1, "--lora-rank", 2)
    run("train", "--out", place / "lora", "--init-from", "resume", "--steps", 2)
    for form in set(FORMS) - {"keras-nlp"}:
        run("convert", place / "lora", place / form, "--to", form)
        run("info", "--model", place / form)
    before = sorted(os.listdir(place))
    ran = cli("export", place / "export", *model)
    assert ran.status == 1 and "has [ in its name, and TensorFlow cannot load a SavedModel from such a path" in ran.err
    assert sorted(os.listdir(place)) == before
