"""One export of the model `lively`, and three ways to ask it."""

from pathlib import Path

import pytest
from oracles.serving import MAX_BATCH, ServerProcess


@pytest.fixture(scope="session")
def exported(lively, enc, tmp_path_factory) -> Path:
    """The folder of an export whose default length is 6, and its limits 20 new tokens and MAX_BATCH rows."""
    from gpt2_tf.serving import export

    return export(lively, enc, tmp_path_factory.mktemp("export") / "gpt2", length=6, max_length=20, max_batch=MAX_BATCH)


@pytest.fixture(scope="session")
def server(exported):
    """A process that has TensorFlow alone and answers requests as TensorFlow Serving does."""
    process = ServerProcess(exported)
    yield process
    process.close()


@pytest.fixture(scope="session")
def signatures(exported):
    """The export's signatures in this process."""
    import tensorflow as tf

    return tf.saved_model.load(exported).signatures
