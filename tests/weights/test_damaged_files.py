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
from gpt2_tf.data.prepare import prepare
from gpt2_tf.data.prepared import load_prepared
from gpt2_tf.pretrained.convert import find_form
from gpt2_tf.pretrained.load import describe, fingerprint, load_encoder
from gpt2_tf.weights import checkpoint, huggingface, peft, safetensors

HPARAMS = HParams(n_vocab=260, n_ctx=8, n_embd=4, n_head=2, n_layer=1)
LAYERS = {"model/h0/attn/c_attn": (4, 12), "model/h0/mlp/c_proj": (16, 4)}  # n_in and n_out
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


def adapters_folder(folder: Path, enc: Encoder) -> None:
    rng = np.random.default_rng(0)
    lora = {f"{name}/lora_a": rng.standard_normal((n_in, 2), np.float32) for name, (n_in, _) in LAYERS.items()}
    lora |= {f"{name}/lora_b": rng.standard_normal((2, n_out), np.float32) for name, (_, n_out) in LAYERS.items()}
    peft.save_adapters(folder, lora, rank=2)
    path = folder / "adapter_config.json"
    patterns = {"rank_pattern": {r"h\.\d+\.nothing": 4, "attn.c_attn": 2}, "alpha_pattern": {"^transformer": 2}}
    path.write_text(json.dumps(json.loads(path.read_text()) | patterns))


def read_adapters(folder: Path) -> None:
    peft.read_adapters(folder, LAYERS)


def prepared_folder(folder: Path, enc: Encoder) -> None:
    folder.mkdir()
    (folder / "text.txt").write_text("the then them " * 9)
    prepare([folder / "text.txt"], folder, enc, val_fraction=0.2)
    (folder / "text.txt").unlink()


def llm_c_folder(folder: Path, enc: Encoder) -> None:
    enc.save(folder)
    header = np.zeros(256, "<i4")
    header[:3] = 20240520, 1, 9
    (folder / "train.bin").write_bytes(header.tobytes() + np.arange(9, dtype="<u2").tobytes())


def read_ids(folder: Path) -> None:
    ids = load_prepared(folder)
    assert max(part.max() for part in (ids.train, ids.val) if part is not None) < ids.encoder.n_vocab


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


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "read"),
    [
        (openai_folder, read_model),
        (huggingface_folder, read_model),
        (folder_of_older_tokenizer, read_model),
        (folder_of_shards, read_model),
        (adapters_folder, read_adapters),
        (prepared_folder, read_ids),
        (llm_c_folder, read_ids),
    ],
    ids=lambda function: function.__name__,
)
def test_a_damaged_file_is_read_or_named_in_an_error(make: Callable, read: Callable, enc, tmp_path):
    resource = pytest.importorskip("resource", reason="measures memory with POSIX")
    make(tmp_path / "whole", enc)
    read(tmp_path / "whole")
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
                read(folder)
            except (OSError, ValueError) as error:
                refused += 1
                assert str(folder) in str(error) and "\n" not in str(error), (damaged[:300], error)
            except Exception as error:
                raise AssertionError(f"{path.name} holding {damaged[:300]!r} raises {error!r}") from error
            assert time.monotonic() - start < 5, (path.name, damaged[:300])
    assert refused > ROUNDS
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 300_000  # KB on Linux
