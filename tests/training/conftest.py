"""Runs that several tests look at; a test that changes one copies it first."""

import pytest
from oracles.training_runs import TEXT, start_adapter_run, start_run


@pytest.fixture(scope="session")
def text(tmp_path_factory):
    """A small text file to train on."""
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="session")
def finished_run(text, tmp_path_factory):
    """The folder of a run that was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "finished"
    start_run(text, out)
    return out


@pytest.fixture(scope="session")
def finished_adapter_run(text, tiny_folder, tmp_path_factory):
    """The folder of a run that trained adapters and was never stopped."""
    out = tmp_path_factory.mktemp("runs") / "adapters"
    start_adapter_run(text, out, tiny_folder)
    return out
