"""Damaged files of a model's folder, by seed: every reader returns, or raises an error that names the file.

The error is an OSError or a ValueError. Each call takes at most 5 seconds, and all together at most 300 MB of memory.
"""

import json
import math
import random
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from encoder import Encoder
from gpt2_tf import HParams
from gpt2_tf.pretrained.convert import find_form
from gpt2_tf.pretrained.load import describe, fingerprint, load_encoder
from gpt2_tf.weights import checkpoint, huggingface, safetensors

HPARAMS = HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=2, n_layer=1)
ROUNDS = 30  # per file
# What a JSON value is replaced with.
VALUES = [
    None,
    True,
    "",
    "x",
    "!",
    -1,
    0,
    1,
    2,
    10**9,
    10**30,
    1e300,
    -0.5,
    math.nan,
    [],
    {},
    [0],
    {"a": 1},
    [[]],
    ["x"],
]


def weights():
    return (np.full(shape, 0.5, np.float32) for shape in HPARAMS.shapes.values())


def openai_folder(folder: Path, enc: Encoder) -> None:
    checkpoint.save(folder, dict(zip(HPARAMS.shapes, weights(), strict=True)))
    HPARAMS.to_json(folder / "hparams.json")
    enc.save(folder)


def huggingface_folder(folder: Path, enc: Encoder) -> None:
    huggingface.save(folder, HPARAMS, weights(), enc)


def folder_of_older_tokenizer(folder: Path, enc: Encoder) -> None:
    huggingface.save(folder, HPARAMS, weights(), enc)
    (folder / "tokenizer.json").unlink()
    token = {"content": "<|endoftext|>", "lstrip": False, "rstrip": False, "single_word": False}
    (folder / "tokenizer_config.json").write_text(json.dumps({"added_tokens_decoder": {"259": token}}))
    (folder / "added_tokens.json").write_text('{"<|endoftext|>": 259}')
    (folder / "special_tokens_map.json").write_text(json.dumps({"pad_token": token}))


def folder_of_shards(folder: Path, enc: Encoder) -> None:
    huggingface.save(folder, HPARAMS, weights(), enc)
    (folder / "model.safetensors").rename(folder / "shard.safetensors")
    files = dict.fromkeys(safetensors.read_tensors(folder / "shard.safetensors"), "shard.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": files}))


def read_model(folder: Path) -> None:
    find_form(folder)
    describe(folder)
    fingerprint(folder)
    load_encoder(folder)
    if huggingface.is_huggingface_folder(folder):
        tensors = huggingface.read_tensors(folder, huggingface.read_hparams(folder))
    else:
        hparams = HParams.from_json(folder / "hparams.json")
        checkpoint.check_parameter_count(folder, hparams.n_params)
        tensors = checkpoint.read_tensors(folder, hparams.shapes)
    for tensor in tensors.values():
        np.asarray(tensor)


def changed_json(value: object, rng: random.Random) -> object:
    """Replace a value somewhere in a JSON value, remove it, or give it another name."""
    if isinstance(value, dict) and value and rng.random() < 0.9:
        key = rng.choice(list(value))
        kind = rng.random()
        if kind < 0.1:
            return {k: v for k, v in value.items() if k != key}
        if kind < 0.2:
            return {(rng.choice(["", "x", "é\n", key + "2"]) if k == key else k): v for k, v in value.items()}
        return value | {key: changed_json(value[key], rng)}
    if isinstance(value, list) and value and rng.random() < 0.7:
        position = rng.randrange(len(value))
        return [*value[:position], changed_json(value[position], rng), *value[position + 1 :]]
    return rng.choice(VALUES)


def changed_bytes(content: bytes, rng: random.Random) -> bytes:
    """Cut a file short, or change, insert or repeat some of its bytes."""
    kind = rng.randrange(5)
    if kind == 0:
        return content[: rng.randrange(len(content) + 1)]
    where = rng.randrange(min(len(content), rng.choice([40, 400, len(content)])) or 1)
    if kind == 1:
        return content[:where] + rng.randbytes(rng.randrange(20)) + content[where:]
    if kind == 2:
        return content[:where] + content[where : where + 50] + content[where:]
    changed = bytearray(content or b"\0")
    for _ in range(kind):
        changed[rng.randrange(where, len(changed)) if rng.random() < 0.3 else where] = rng.randrange(256)
    return bytes(changed)


@pytest.mark.parametrize(
    "make",
    [openai_folder, huggingface_folder, folder_of_older_tokenizer, folder_of_shards],
    ids=lambda function: function.__name__,
)
def test_a_damaged_file_is_read_or_named_in_an_error(make: Callable, enc, tmp_path):
    resource = pytest.importorskip("resource", reason="measures memory with POSIX")
    make(tmp_path / "whole", enc)
    read_model(tmp_path / "whole")
    rng = random.Random(0)
    refused = 0
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path in sorted((tmp_path / "whole").iterdir()):
        folder = Path(shutil.copytree(tmp_path / "whole", tmp_path / f"damaged {path.name}"))
        content = path.read_bytes()
        for _ in range(ROUNDS):
            if path.suffix == ".json" and rng.random() < 0.7:
                damaged = json.dumps(changed_json(json.loads(content), rng)).encode()
            else:
                damaged = changed_bytes(content, rng)
            (folder / path.name).write_bytes(damaged)
            start = time.monotonic()
            try:
                read_model(folder)
            except (OSError, ValueError) as error:
                refused += 1
                assert str(folder) in str(error) and "\n" not in str(error), (damaged[:300], error)
            except Exception as error:
                raise AssertionError(f"{path.name} holding {damaged[:300]!r} raises {error!r}") from error
            assert time.monotonic() - start < 5, (path.name, damaged[:300])
    assert refused > ROUNDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KB on Linux
