"""Fixtures that run `gpt2-tf`: in this process, which is quick, or as a process of its own."""

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from oracles.command_line import Ran

import gpt2_tf
from gpt2_tf.cli.main import main


@pytest.fixture
def cli(capsysbinary, monkeypatch):
    """Runs a command in this process, with bytes for stdin."""

    def run(*argv, stdin: bytes = b"") -> Ran:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin), "utf-8"))
        capsysbinary.readouterr()
        try:
            status = main([str(argument) for argument in argv])
        except SystemExit as end:
            status = end.code
        out, err = capsysbinary.readouterr()
        return Ran(status, out, err.decode())

    return run


@pytest.fixture(scope="session")
def environment() -> dict[str, str]:
    """A shell's environment: without the variables that importing gpt2_tf sets in this process."""
    left_out = ("TF_CPP_MIN_LOG_LEVEL", "KERAS_BACKEND", "PYTHONUNBUFFERED")
    return {name: value for name, value in os.environ.items() if name not in left_out}


@pytest.fixture
def process(environment, tmp_path):
    """Runs a command as a process, in an empty folder."""

    def run(*argv, env=(), **options) -> subprocess.CompletedProcess:
        return subprocess.run(
            [sys.executable, "-m", "gpt2_tf", *argv],
            cwd=tmp_path,
            env={**environment, **dict(env)},
            stderr=subprocess.PIPE,
            timeout=120,
            **{"stdout": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options},
        )

    return run


@pytest.fixture(scope="session")
def tiny(tiny_folder):
    """The tiny model and its encoder."""
    return gpt2_tf.load(tiny_folder)


@pytest.fixture
def loaded(tiny, tiny_folder, monkeypatch):
    """The tiny model on TensorFlow and its encoder, which commands get too instead of loading it for seconds."""
    load = gpt2_tf.load

    def load_quickly(model, step=None, **engine):
        if str(model) == str(tiny_folder) and step is None and engine.get("engine") != "litert":
            return tiny
        return load(model, step=step, **engine)

    monkeypatch.setattr(gpt2_tf, "load", load_quickly)
    return tiny


@pytest.fixture
def copy(tiny_folder, tmp_path) -> Path:
    """A copy of the tiny model's folder, which a test may damage."""
    return Path(shutil.copytree(tiny_folder, tmp_path / "copy", ignore=shutil.ignore_patterns("litert")))
