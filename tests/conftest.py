"""Fixtures for all tests; nothing here comes from the network."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

TEXT = """\
The quick brown fox jumps over the lazy dog, and then the dog jumps over the fox.

    if x == 12:
        return "naïve café" or 'didn't'

色は匂へど散りぬるを 👍 The quick brown fox didn't sleep.\r\n
"""


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of OpenAI's own files and texts, which the repository doesn't hold."""
    folder = Path(__file__).parents[2] / "shared"
    if not folder.is_dir():
        pytest.skip(f"{folder}, with OpenAI's own files, isn't there")
    return folder


@pytest.fixture(scope="session", autouse=True)
def user_cache(tmp_path_factory) -> Iterator[Path]:
    """The user's cache folder, which the tests must not fill."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("XDG_CACHE_HOME", "LOCALAPPDATA"):
            patch.setenv(name, str(folder))
        patch.delenv("GPT2_TF_CACHE", raising=False)
        yield folder


@pytest.fixture
def unwritable() -> Iterator[Path]:
    """A folder in which this process may write nothing; root, whom nothing stops, is nobody meanwhile."""
    if not hasattr(os, "seteuid"):
        pytest.skip("needs POSIX permissions")
    import requests  # noqa: F401 - nobody may not read where they are, so they are imported before
    import tqdm  # noqa: F401

    parent = Path(tempfile.mkdtemp())  # pytest's own folder is its user's alone
    parent.chmod(0o755)
    (parent / "folder").mkdir(mode=0o555)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    yield parent / "folder"
    os.seteuid(user)
    shutil.rmtree(parent)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory) -> Path:
    """A folder like OpenAI's, with random weights: 300 tokens, n_ctx 32. A test that damages it copies it first."""
    import keras

    from encoder.train import train
    from gpt2_tf import GPT2, HParams

    text = tmp_path_factory.mktemp("text") / "text.txt"
    text.write_bytes(TEXT.encode() * 4)
    folder = tmp_path_factory.mktemp("model") / "tiny"
    enc = train([text], 300, folder)
    keras.utils.set_random_seed(1)
    hparams = HParams(n_vocab=enc.n_vocab, n_ctx=32, n_embd=16, n_head=2, n_layer=2)
    # Weights so large that the context matters: fresh ones say each token again.
    GPT2(hparams, w_init_stdev=0.5).save_checkpoint(folder)
    return folder


@pytest.fixture(scope="session")
def enc(tmp_path_factory):
    """A vocabulary of 260: the bytes, three merges and `<|endoftext|>`, id 259."""
    from encoder.train import train

    folder = tmp_path_factory.mktemp("vocabulary")
    (folder / "text").write_text("the then them " * 3)
    return train([folder / "text"], 260, folder)


@pytest.fixture(scope="session")
def lively():
    """Return a model for `enc`. Its random weights are large, so that each step has another most likely token."""
    from oracles.random_model import random_model

    from gpt2_tf import HParams

    return random_model(HParams(n_vocab=260, n_ctx=32, n_embd=40, n_head=4, n_layer=2))


@pytest.fixture
def forbid_traces(monkeypatch):
    """Call it, and from then on the model may compute, but not be traced."""
    import tensorflow as tf

    from gpt2_tf import GPT2

    def forbid():
        hidden = GPT2.hidden_states

        def computed(*args, **kwargs):
            assert tf.executing_eagerly(), "the model was traced again"
            return hidden(*args, **kwargs)

        monkeypatch.setattr(GPT2, "hidden_states", computed)

    return forbid
