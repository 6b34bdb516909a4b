"""Choose the engine that runs a model, and open a model on LiteRT. Nothing here imports TensorFlow.

LiteRT needs the model in files of its own. They are made at the first use; `litert/kept.py` says where.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from encoder import Encoder
from gpt2_tf.files import progress
from gpt2_tf.files.atomic import atomic_write
from gpt2_tf.litert import kept
from gpt2_tf.pretrained.convert import open_weights
from gpt2_tf.pretrained.load import (
    check_has_no_step,
    check_vocabulary_size,
    fingerprint,
    read_encoder,
)
from gpt2_tf.weights import huggingface

if TYPE_CHECKING:
    from gpt2_tf.litert.engine import LiteRTEngine

ENGINES = ("auto", "litert", "tensorflow")
WEIGHTS = ("float32", "int8")
FORMAT = 2  # a change of the graphs or of the layout of the weights takes the next number


def choose_engine(engine: str = "auto", weights: str = "float32", threads: int | None = None) -> str:
    """Return "litert" or "tensorflow".

    "auto" takes LiteRT where it is installed and no GPU is visible, and where `weights` or `threads` need it. In
    float32 both write the same text, except where rounding decides between two tokens.

    Raises:
        ImportError: LiteRT is asked for, but not installed.
        ValueError: there is no such engine or type of weights, or `weights` or `threads` don't fit the engine.

    Example:
        >>> choose_engine("tensorflow")
        'tensorflow'
        >>> choose_engine("tensorflow", "int8")
        Traceback (most recent call last):
        ValueError: weights is 'int8', but the engine tensorflow has float32 only; take engine='litert'
    """
    if engine not in ENGINES:
        raise ValueError(f"engine is {engine!r}, but must be {', '.join(ENGINES[:-1])} or {ENGINES[-1]}")
    if weights not in WEIGHTS:
        raise ValueError(f"weights is {weights!r}, but must be {' or '.join(WEIGHTS)}")
    if threads is not None and threads < 1:
        raise ValueError(f"threads is {threads}, but must be at least 1")
    installed = importlib.util.find_spec("ai_edge_litert") is not None
    if engine == "auto":
        wanted = weights != "float32" or threads is not None or (installed and not gpu_is_visible())
        engine = "litert" if wanted else "tensorflow"
    if engine == "tensorflow" and weights != "float32":
        raise ValueError(f"weights is {weights!r}, but the engine tensorflow has float32 only; take engine='litert'")
    if engine == "tensorflow" and threads is not None:
        raise ValueError(f"threads is {threads}, but the engine tensorflow takes all; leave it out, or take 'litert'")
    if engine == "litert" and not installed:
        raise ImportError("the engine litert needs ai-edge-litert: pip install 'ai-edge-litert>=2.1.6,<3'")
    return engine


def gpu_is_visible() -> bool:
    """Return whether TensorFlow would probably find a GPU, without importing it.

    Example:
        >>> gpu_is_visible() in (True, False)
        True
    """
    if sys.platform == "darwin":
        return _is_installed("tensorflow-metal")
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(Path("/dev").glob("nvidia[0-9]*")) or Path("/dev/kfd").exists()


def available_threads() -> int:
    """Return how many threads this process may run at once, by its affinity and its cgroup.

    Example:
        >>> available_threads() >= 1
        True
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        count = min(count, max(1, round(int(quota) / int(period))))
    return count


def load_litert(
    model_dir: Path, step: int | None = None, weights: str = "float32", threads: int | None = None
) -> "tuple[LiteRTEngine, Encoder]":
    """Open a model on LiteRT. At the first use, its files are written, with a progress bar on stderr.

    Args:
        model_dir: the model's folder, in OpenAI's or Hugging Face's form.
        step: as for `load`.
        weights: "float32" or "int8".
        threads: how many threads compute. None takes what the process may use.

    Raises:
        OSError: a file is missing or can't be read.
        NotKept: the files can't be written.
        ValueError: a file is damaged, or the files don't fit one another.

    Example:
        >>> from gpt2_tf.pretrained.load import find_model_dir
        >>> engine, enc = load_litert(find_model_dir("shakespeare"))
        >>> engine.hparams.n_ctx
        256
    """
    from gpt2_tf.litert import graph_files
    from gpt2_tf.litert.decoder import Decoder
    from gpt2_tf.litert.engine import LiteRTEngine

    if huggingface.is_huggingface_folder(model_dir):
        check_has_no_step(model_dir, step)
        huggingface.check_files(model_dir)
    enc = read_encoder(model_dir)
    hparams, read_weight = open_weights(model_dir, step)
    check_vocabulary_size(model_dir, enc, hparams)
    folder = kept.kept_folder(model_dir, state_of(model_dir, step, weights))

    @contextlib.contextmanager
    def weights_with_bar() -> Iterator[Callable[[str], np.ndarray]]:
        title = f"{model_dir.name} -> LiteRT, {weights}"
        with progress.bar(desc=title, total=4 * hparams.n_params, unit="B", unit_scale=True, delay=1) as bar:

            def read_and_count(name: str) -> np.ndarray:
                bar.update(4 * int(np.prod(hparams.shapes[name])))
                return read_weight(name)

            yield read_and_count

    graph_files.prepare(folder, hparams, weights, weights_with_bar)
    engine = LiteRTEngine(Decoder(folder, hparams, weights, threads or available_threads()))
    kept.remove_unused(folder)
    return engine, enc


def state_of(model_dir: Path, step: int | None, weights: str) -> str:
    """Return the name of the folder that keeps a model's files: it differs for any two states of the model.

    Example:
        >>> from gpt2_tf.pretrained.load import find_model_dir
        >>> state_of(find_model_dir("shakespeare"), step=None, weights="int8").partition("-")[0]
        'int8'
    """
    is_huggingface = huggingface.is_huggingface_folder(model_dir)
    text = _kept_fingerprint(model_dir) if is_huggingface else fingerprint(model_dir, step)
    return f"{weights}-{hashlib.sha256(f'{FORMAT} {text}'.encode()).hexdigest()[:16]}"


def _kept_fingerprint(model_dir: Path) -> str:
    """The fingerprint of a folder in Hugging Face's form.

    Hashing the weights takes as long as reading them. So the fingerprint is kept too, and computed again only when a
    file has changed.
    """
    stamps = {path.name: kept.stamp(path) for path in huggingface.model_files(model_dir)}
    paths = [root / "fingerprint.json" for root in kept.kept_roots(model_dir)]
    for path in paths:
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError):
            known = json.loads(path.read_bytes())
            if known["stamps"] == stamps:
                return str(known["fingerprint"])
    text = fingerprint(model_dir)
    for path in paths:
        with contextlib.suppress(OSError):  # the first folder that can be written
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write(path, json.dumps({"stamps": stamps, "fingerprint": text}).encode())
            break
    return text


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
