"""Fixtures for Hugging Face's form: a small model, its folder, and the peer libraries."""

import shutil
from pathlib import Path

import pytest
from oracles.random_model import random_model
from oracles.transformers_models import HPARAMS


@pytest.fixture(scope="session")
def model():
    return random_model(HPARAMS, stdev=0.1)


@pytest.fixture(scope="session")
def hf_folder(model, enc, tmp_path_factory) -> Path:
    """The folder that `model` was saved to. A test that changes the folder copies it first."""
    folder = tmp_path_factory.mktemp("huggingface") / "new" / "model"
    model.save_pretrained(folder, enc)
    return folder


@pytest.fixture
def copy(hf_folder, tmp_path) -> Path:
    return Path(shutil.copytree(hf_folder, tmp_path / "copy"))


@pytest.fixture(scope="session")
def transformers():
    pytest.importorskip("torch", reason="PyTorch is in the extra [peers]")
    return pytest.importorskip("transformers", reason="transformers is in the extra [peers]")
