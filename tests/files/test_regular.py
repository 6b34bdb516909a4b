"""Files that others made: a pipe or a device is refused, and not waited for."""

import os
import threading

import pytest

from encoder import Encoder
from gpt2_tf import HParams
from gpt2_tf.files.regular import open_regular
from gpt2_tf.pretrained.download import check_file
from gpt2_tf.weights import hf_tokenizer
from gpt2_tf.weights.checkpoint import latest_checkpoint
from gpt2_tf.weights.safetensors import read_tensors
from gpt2_tf.weights.tensor_bundle import check_data_files, read_index

needs_pipes = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")


def test_a_regular_file_and_a_link_to_one_are_opened(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    for name in ("file", "link"):
        with open_regular(tmp_path / name) as file:
            assert file.read() == b"content"
    with pytest.raises(FileNotFoundError):
        open_regular(tmp_path / "missing")
    with pytest.raises(IsADirectoryError):
        open_regular(tmp_path)


def test_a_device_is_refused(tmp_path):
    (tmp_path / "endless").symlink_to("/dev/zero")
    for path in ("/dev/zero", tmp_path / "endless"):
        with pytest.raises(ValueError, match=f"{path} is a pipe or a device, but must be a regular file"):
            open_regular(path)


READERS = {
    "encoder.json": Encoder.from_folder,
    "vocab.bpe": Encoder.from_folder,
    "hparams.json": lambda folder: HParams.from_json(folder / "hparams.json"),
    "checkpoint": latest_checkpoint,
    "model.ckpt.index": lambda folder: read_index(folder / "model.ckpt.index"),
    "model.ckpt.data-00000-of-00001": lambda folder: check_data_files(
        folder / "model.ckpt", read_index(folder / "model.ckpt.index")
    ),
    "model.ckpt.meta": lambda folder: check_file(folder / "model.ckpt.meta", "model.ckpt.meta", "124M"),
    "model.safetensors": lambda folder: read_tensors(folder / "model.safetensors"),
    "merges.txt": lambda folder: hf_tokenizer.read_encoder(folder, 300),
}


@needs_pipes
@pytest.mark.parametrize("name", READERS)
def test_readers_of_a_model_do_not_wait_for_a_pipe(name, tiny_folder, tmp_path):
    """A reader that waits does so in a thread, which the test leaves behind."""
    for path in tiny_folder.iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "vocab.json").symlink_to(tiny_folder / "encoder.json")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    found = []

    def read():
        try:
            READERS[name](tmp_path)
        except ValueError as error:
            found.append(str(error))

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(timeout=20)
    assert found and name in found[0] and "regular file" in found[0]
