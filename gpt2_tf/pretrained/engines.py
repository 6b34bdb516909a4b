"""Choose the engine that runs a model, and open a model on LiteRT. Nothing here imports TensorFlow.

LiteRT needs the model in files of its own. They are made at the first use and kept beside the model, in `litert/`. For
the bundled model, and where the model's folder can't be written, they are kept in the user's cache folder. Each state
of the model has a folder of its own there, named by the type of the weights and a digest of the model's files.
"""

import contextlib
import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from encoder import Encoder
from gpt2_tf.files import progress
from gpt2_tf.pretrained.convert import open_weights
from gpt2_tf.pretrained.load import (
    bundled_folder,
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
CACHE = "GPT2_TF_CACHE"  # the environment variable that names another cache folder
UNUSED_SECONDS = 24 * 60 * 60  # files of an earlier state of the model are removed after this time


def choose_engine(engine: str = "auto", weights: str = "float32") -> str:
    """Return "litert" or "tensorflow".

    "auto" takes LiteRT where it is installed and no GPU is visible. In float32 both write the same text, except where
    rounding decides between two tokens.

    Raises:
        ImportError: LiteRT is asked for, but not installed.
        ValueError: there is no such engine or type of weights, or TensorFlow is asked for other weights than float32.

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
    installed = importlib.util.find_spec("ai_edge_litert") is not None
    if engine == "auto":
        wanted = weights != "float32" or (installed and not gpu_is_visible())
        engine = "litert" if wanted else "tensorflow"
    if engine == "tensorflow" and weights != "float32":
        raise ValueError(f"weights is {weights!r}, but the engine tensorflow has float32 only; take engine='litert'")
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
        OSError: a file is missing or can't be read or written.
        ValueError: a file is damaged, or the files don't fit one another.

    Example:
        >>> engine, enc = load_litert(bundled_folder())
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
    root = kept_root(model_dir)
    digest = hashlib.sha256(f"{graph_files.FORMAT} {fingerprint(model_dir, step)}".encode()).hexdigest()[:16]
    folder = root / f"{weights}-{digest}"

    @contextlib.contextmanager
    def weights_with_bar() -> Iterator[Callable[[str], np.ndarray]]:
        title = f"{model_dir.name} -> LiteRT, {weights}"
        with progress.bar(desc=title, total=4 * hparams.n_params, unit="B", unit_scale=True, delay=1) as bar:

            def read_and_count(name: str) -> np.ndarray:
                bar.update(4 * int(np.prod(hparams.shapes[name])))
                return read_weight(name)

            yield read_and_count

    graph_files.prepare(folder, hparams, weights, weights_with_bar)
    _remove_unused(root, folder)
    return LiteRTEngine(Decoder(folder, threads or available_threads())), enc


def kept_root(model_dir: Path) -> Path:
    """Return the folder in which a model's files for LiteRT are kept.

    Example:
        >>> kept_root(Path(".")).name
        'litert'
    """
    model_dir = model_dir.resolve()
    effective_ids = os.access in os.supports_effective_ids
    if model_dir != bundled_folder() and os.access(model_dir, os.W_OK, effective_ids=effective_ids):
        return model_dir / "litert"
    if CACHE in os.environ:
        cache = Path(os.environ[CACHE])
    elif sys.platform == "win32":
        cache = Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData/Local"), "gpt2-tf")
    elif sys.platform == "darwin":
        cache = Path.home() / "Library/Caches/gpt2-tf"
    else:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpt2-tf")
    place = hashlib.sha256(os.fsencode(model_dir)).hexdigest()[:8]
    return cache / "litert" / f"{model_dir.name}-{place}"


def describe_kept(model_dir: Path) -> str:
    """Say which files for LiteRT are kept for a model, as `gpt2-tf info` shows it; "" for none.

    Example:
        >>> describe_kept(Path("."))
        ''
    """
    root = kept_root(model_dir)
    sizes: dict[str, int] = {}
    for path in root.glob("*/*"):
        weights = path.parent.name.partition("-")[0]
        sizes[weights] = sizes.get(weights, 0) + path.stat().st_size
    kept = " and ".join(f"{weights}, {size:,} bytes" for weights, size in sorted(sizes.items()))
    return f"{kept}, in {root}" if kept else ""


def clear_kept(model_dir: Path) -> None:
    """Remove the files for LiteRT that are kept for a model. They are made again when they are needed.

    Example:
        >>> clear_kept(Path("."))
    """
    root = kept_root(model_dir)
    if root.exists():
        shutil.rmtree(root)


def _remove_unused(root: Path, current: Path) -> None:
    """Remove the files of earlier states of the model, unless another process may still use them."""
    os.utime(current)
    for folder in root.glob(f"{current.name.partition('-')[0]}-*"):
        if folder != current and time.time() - folder.stat().st_mtime > UNUSED_SECONDS:
            shutil.rmtree(folder, ignore_errors=True)


def _is_installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
